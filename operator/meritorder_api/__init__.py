"""What Meritorder's parts agree on: the InferencePolicy API, the routing table, and the names both are known
by.

This package knows nobody else. `policy` is the custom resource (its CRD is generated from it), `table` is
what a router server hands to an agent and hears back, `names` holds every string that leaves a process and
that two parts must spell alike, `reasons` every reason of a condition, an event or a decision.
"""
