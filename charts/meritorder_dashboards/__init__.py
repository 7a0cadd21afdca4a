"""The Grafana dashboards of the chart, as code: `make dashboards` writes `charts/meritorder/dashboards/`.

`grafana` knows Grafana's JSON and nothing of Meritorder; `promql` has the queries' common parts; `fleet`,
`policy` and `router` are one dashboard each. Built only, never shipped in the wheel.
"""
