"""From a routing table to Envoy's files, purely: equal tables give equal bytes.

What may change while streams run decides what goes where (measured on Envoy 1.40):

- `bootstrap.json`: listeners, filters, access loggers. Frozen for the life of the Envoy process, since a
  changed listener cuts long streams. Whatever a policy may change in a filter is therefore switched on and
  off per route.
- `cds.json`: one cluster per pool, and the chains, by which a failed try goes to the next pool. A changed
  pool cluster is a new object whose in-flight count begins at 0, so it depends only on what hardly ever
  changes.
- `eds-POOL.json`: endpoints. `rds.json`: limits, order, weights, rules. `rtds.json`: the SLA target.
"""
