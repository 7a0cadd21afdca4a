"""The operator process: reads Prometheus, decides for each InferencePolicy, and writes its status.

`prometheus` gathers what the decision sees, `reconcile` is one pass over one policy, `loops` runs the
passes, `status` turns a decision into what a person reads, `cluster` and `lease` talk to the API server,
`handlers` is the only module that knows kopf.
"""
