"""The command line and standalone mode: the decision, a router and its Envoy in one process, for people
without a cluster.
"""
