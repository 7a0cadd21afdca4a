"""The data plane: routers (agent and Envoy in sidecars and gateways), and the servers of their tables."""

from __future__ import annotations

from typing import Final

from meritorder_api import metric_names as names
from meritorder_dashboards.grafana import GREEN, ORANGE, RED, Dashboard, Panel, Query, Row, Variable
from meritorder_dashboards.promql import OF_POLICY, POLICIES, alerts, chosen, increase, rate

ROUTERS: Final = f'{POLICIES}, instance=~"$router"'
_BY: Final = "namespace, policy, pod, instance"
_NAME: Final = "{{pod}} {{instance}}"
_UPDATES: Final = (
    "envoy_cluster_manager_cds",
    "envoy_http_data_rds_routes",
    "envoy_http_egress_rds_egress",
    "envoy_runtime",
)

_TOP: Final = (
    Panel(
        kind="stat",
        title="Routers",
        description="Routers that Prometheus reads: sidecars and gateways.",
        queries=(Query(f"count ({names.APPLIED_SEQUENCE}{{{ROUTERS}}})"),),
        width=3,
        height=4,
        nothing="none seen",
        alerts=("MeritorderMetricsStale",),
    ),
    Panel(
        kind="stat",
        title="Without a table",
        description=(
            "Routers that never got a table: they answer 503 `no_routing_table`. Normal for seconds "
            "after their start."
        ),
        queries=(Query(f"sum ({names.APPLIED_SEQUENCE}{{{ROUTERS}}} < bool 0)"),),
        width=3,
        height=4,
        thresholds=((0, GREEN), (1, ORANGE)),
        nothing="none seen",
        alerts=("MeritorderTablesOff", "MeritorderRouterCutOff"),
    ),
    Panel(
        kind="stat",
        title="Behind",
        description=(
            "Routers whose table is older than the newest of their policy. More than 0 for long: see "
            "who is cut off."
        ),
        queries=(
            Query(
                f"sum (({names.APPLIED_SEQUENCE}{{{ROUTERS}}} < on ({OF_POLICY}) group_left ()"
                f" max by ({OF_POLICY}) ({names.APPLIED_SEQUENCE}{{{POLICIES}}})) * 0 + 1) or vector(0)"
            ),
        ),
        width=3,
        height=4,
        thresholds=((0, GREEN), (1, ORANGE)),
        alerts=("MeritorderRouterCutOff", "MeritorderTableRefused"),
    ),
    Panel(
        kind="stat",
        title="Longest without contact",
        description=(
            "Time since the router that is longest alone heard of a server. It serves on by its last table."
        ),
        queries=(Query(f"time() - min (meritorder_router_last_contact_timestamp_seconds{{{ROUTERS}}} > 0)"),),
        unit="s",
        decimals=0,
        width=3,
        height=4,
        thresholds=((0, GREEN), (60, ORANGE), (120, RED)),
        nothing="none seen",
        alerts=("MeritorderRouterCutOff",),
    ),
    Panel(
        kind="stat",
        title="Tables refused, in this time",
        description=(
            "Tables that routers refused in the time shown. `status.programmed.refused` names pod and reason."
        ),
        queries=(Query(increase("meritorder_router_tables_refused_total", ROUTERS, over="$__range")),),
        decimals=0,
        width=3,
        height=4,
        thresholds=((0, GREEN), (1, RED)),
        alerts=("MeritorderTableRefused",),
    ),
    Panel(
        kind="stat",
        title="Servers that hand out tables",
        description=(
            "Router servers that know the state of the cluster. At 0 routers keep what they have, and "
            "new pods get none."
        ),
        queries=(Query("sum (meritorder_server_tables_on)"),),
        width=3,
        height=4,
        thresholds=((0, RED), (1, GREEN)),
        nothing="none seen",
        alerts=("MeritorderTablesOff",),
    ),
    Panel(
        kind="stat",
        title="Silent routers",
        description=(
            "Routers whose pods are there but that do not report. They lost their share of the limits, "
            "and serve on by it."
        ),
        queries=(Query('max (meritorder_server_agents{state="silent"})'),),
        width=3,
        height=4,
        thresholds=((0, GREEN), (1, ORANGE)),
        nothing="none seen",
        alerts=("MeritorderRoutersSilent",),
    ),
    Panel(
        kind="stat",
        title="Pods without their router",
        description=(
            "Pods that ask for a router and have none: their requests go where their client leads. "
            "Delete them."
        ),
        queries=(
            Query(
                'sum (max by (namespace) (meritorder_server_uninjected_pods{namespace=~"$namespace"}))'
                " or vector(0)"
            ),
        ),
        width=3,
        height=4,
        thresholds=((0, GREEN), (1, RED)),
        alerts=("MeritorderPodsWithoutRouter",),
    ),
)

_TRAFFIC: Final = (
    Panel(
        kind="timeseries",
        title="Requests by status",
        description="Requests per second by the status that the client got.",
        queries=(Query(rate(names.REQUESTS, ROUTERS, "code"), "{{code}}"),),
        unit="reqps",
        stack="normal",
        minimum=0,
        alerts=("MeritorderRequestsFail",),
    ),
    Panel(
        kind="timeseries",
        title="Requests by response flags",
        description=(
            "What Envoy says of them (docs/metrics.md): UF no connection, UC and UPE cut by the pool, "
            "UT timeout, URX all"
            " tries used up, NC shed, UH no healthy endpoint, DC the client left."
        ),
        queries=(Query(rate(names.REQUESTS, ROUTERS, "flags"), "{{flags}}"),),
        unit="reqps",
        minimum=0,
        alerts=("MeritorderRequestsFail",),
    ),
    Panel(
        kind="timeseries",
        title="Time in pools, per second",
        description=(
            "Seconds that requests spent in each pool per second: by Little's law the mean number in "
            "flight, exact where"
            " the gauge only samples."
        ),
        queries=(Query(f"{rate(names.POOL_MILLISECONDS, ROUTERS, 'pool')} / 1000", "{{pool}}"),),
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Requests of clients, by router",
        description="Requests per second by router: whether the load is spread over them.",
        queries=(Query(rate(names.CLIENT_REQUESTS, ROUTERS, _BY), _NAME),),
        unit="reqps",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="In flight and open connections, of clients",
        description="Requests in flight and connections that clients have open, over the routers chosen.",
        queries=(
            Query(f"sum (envoy_http_data_downstream_rq_active{{{ROUTERS}}})", "requests"),
            Query(f"sum (envoy_http_data_downstream_cx_active{{{ROUTERS}}})", "connections"),
        ),
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Waiting for a connection, by pool",
        description=(
            "Requests that wait for a connection to the pool: more than a few means that the pool does "
            "not accept."
        ),
        queries=(
            Query(f"sum by (pool) (envoy_cluster_upstream_rq_pending_active{{{ROUTERS}}})", "{{pool}}"),
        ),
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Healthy endpoints by pool",
        description=(
            "Least share, over the routers chosen, of a pool's endpoints that answer health checks and "
            "are not ejected."
            " Traffic goes on to the next pool where it is 0."
        ),
        queries=(
            Query(
                f'min by (policy, pool) ({names.ENDPOINTS_HEALTHY}{{{ROUTERS}, pool!=""}}'
                f' / (envoy_cluster_membership_total{{{ROUTERS}, pool!=""}} > 0))',
                "{{policy}} {{pool}}",
            ),
        ),
        unit="percentunit",
        minimum=0,
        maximum=1,
    ),
    Panel(
        kind="timeseries",
        title="Slices of the limits",
        description=(
            "What each router may have in flight in a pool; the slices of a pool add up to its limit."
        ),
        queries=(Query(f"{names.LIMIT}{{{ROUTERS}}} < Inf", "{{pool}} {{pod}} {{instance}}"),),
        minimum=0,
        nothing="no pool is limited",
    ),
    Panel(
        kind="timeseries",
        title="Target that requests are judged by",
        description="The target in force in each policy's routers; two lines only while a new one spreads.",
        queries=(
            Query(f"min by ({OF_POLICY}) ({names.TARGET}{{{ROUTERS}}})", "{{namespace}}/{{policy}} least"),
            Query(f"max by ({OF_POLICY}) ({names.TARGET}{{{ROUTERS}}})", "{{namespace}}/{{policy}} most"),
        ),
        unit="ms",
        minimum=0,
    ),
)

_TABLES: Final = (
    Panel(
        kind="timeseries",
        title="Sequence of the table in force",
        description=(
            "Least and most over the routers of a policy. Apart for long: a router is cut off, or "
            "refuses its table."
        ),
        queries=(
            Query(
                f"min by ({OF_POLICY}) ({names.APPLIED_SEQUENCE}{{{ROUTERS}}})",
                "{{namespace}}/{{policy}} least",
            ),
            Query(
                f"max by ({OF_POLICY}) ({names.APPLIED_SEQUENCE}{{{ROUTERS}}})",
                "{{namespace}}/{{policy}} most",
            ),
        ),
        decimals=0,
        alerts=("MeritorderTableRefused",),
    ),
    Panel(
        kind="timeseries",
        title="Tables applied and refused",
        description=(
            "By the routers chosen, in each step of time. A table is applied for each change of "
            "limits, endpoints or spec."
        ),
        queries=(
            Query(increase("meritorder_router_tables_applied_total", ROUTERS), "applied"),
            Query(increase("meritorder_router_tables_refused_total", ROUTERS), "refused"),
        ),
        minimum=0,
        colours=(("applied", GREEN), ("refused", RED)),
        alerts=("MeritorderTableRefused",),
    ),
    Panel(
        kind="timeseries",
        title="Time since contact",
        description="How long ago each router heard of a server.",
        queries=(
            Query(
                f"time() - max by ({_BY}) "
                f"(meritorder_router_last_contact_timestamp_seconds{{{ROUTERS}}} > 0)",
                _NAME,
            ),
        ),
        unit="s",
        minimum=0,
        alerts=("MeritorderRouterCutOff",),
    ),
    Panel(
        kind="timeseries",
        title="Files that Envoy did not take",
        description=(
            "Updates of routes, clusters, endpoints or the target that Envoy refused or could not "
            "read. It serves on by what"
            " it had; the log of container `meritorder-router` has its words."
        ),
        queries=tuple(
            Query(
                " + ".join(
                    f"sum (increase({prefix}_{ending}{{{ROUTERS}}}[$__rate_interval]))"
                    for ending in ("update_rejected", "update_failure")
                ),
                prefix.removeprefix("envoy_"),
            )
            for prefix in _UPDATES
        ),
        minimum=0,
        alerts=("MeritorderTableRefused",),
    ),
    Panel(
        kind="timeseries",
        title="Clusters that threads have not taken yet",
        description=(
            "Clusters of Envoy, less those that its slowest thread has; and clusters that warm up. "
            "Above 0 for a moment with"
            " each change; for long, a starved Envoy: give its container more CPU."
        ),
        queries=(
            Query(
                f"max (max by ({_BY}) (envoy_cluster_manager_active_clusters{{{ROUTERS}}})"
                f" - min by ({_BY}) (envoy_thread_local_cluster_manager_clusters_inflated{{{ROUTERS}}}))",
                "not taken",
            ),
            Query(f"max (envoy_cluster_manager_warming_clusters{{{ROUTERS}}})", "warming"),
        ),
    ),
    Panel(
        kind="timeseries",
        title="Memory of Envoy",
        description="What Envoy has allocated, by router. A sidecar in all should stay under 150 MiB.",
        queries=(Query(f"max by ({_BY}) (envoy_server_memory_allocated{{{ROUTERS}}})", _NAME),),
        unit="bytes",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Envoys that serve, and how long",
        description=(
            "Live Envoys, and the uptime of the youngest: a fall to 0 is a restart, in which counters "
            "begin again."
        ),
        queries=(
            Query(f"sum (envoy_server_live{{{ROUTERS}}})", "live"),
            Query(f"min (envoy_server_uptime{{{ROUTERS}}})", "youngest (s)"),
        ),
        minimum=0,
    ),
)

_SERVERS: Final = (
    Panel(
        kind="timeseries",
        title="Routers known",
        description=(
            "By state, as each server knows them from reports. A silent one has not reported for 15 s."
        ),
        queries=(Query("sum by (instance, state) (meritorder_server_agents)", "{{state}} {{instance}}"),),
        minimum=0,
        alerts=("MeritorderRoutersSilent",),
    ),
    Panel(
        kind="timeseries",
        title="Answers to routers that ask for a table",
        description="200: a new table; 304: nothing new within the time that the router waits.",
        queries=(
            Query(
                "sum by (status) (rate(meritorder_server_table_answers_total[$__rate_interval]))",
                "{{status}}",
            ),
            Query("sum (meritorder_server_waiting)", "waiting"),
        ),
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="From a change to the answer",
        description=(
            "From a change seen in the API server to the answer to a router that waited for it: the "
            "99th percentile."
        ),
        queries=(
            Query(
                "histogram_quantile(0.99, sum by (le)"
                " (rate(meritorder_server_table_delay_seconds_bucket[$__rate_interval])))",
                "p99",
            ),
        ),
        unit="s",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Reports",
        description="Reports of routers per second, and posts of them to the other servers by outcome.",
        queries=(
            Query("sum (rate(meritorder_server_reports_total[$__rate_interval]))", "of routers"),
            Query(
                "sum by (outcome) (rate(meritorder_server_peer_posts_total[$__rate_interval]))",
                "to servers: {{outcome}}",
            ),
        ),
        unit="cps",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Turned away",
        description=(
            "Requests of routers that were not served, by reason: no token, a pod without the policy's "
            "annotation ..."
        ),
        queries=(
            Query("sum by (reason) (rate(meritorder_server_denied_total[$__rate_interval]))", "{{reason}}"),
        ),
        unit="reqps",
        minimum=0,
        nothing="none",
        alerts=("MeritorderRouterCutOff",),
    ),
    Panel(
        kind="timeseries",
        title="Injection",
        description="Pods that the webhook was asked about, by outcome.",
        queries=(
            Query(
                "sum by (outcome) (increase(meritorder_server_injections_total[$__rate_interval]))",
                "{{outcome}}",
            ),
        ),
        minimum=0,
        alerts=("MeritorderPodsWithoutRouter",),
    ),
    Panel(
        kind="timeseries",
        title="Writes of what was applied",
        description=(
            "Writes of `status.programmed` per second by outcome, and how many servers hold that task: one."
        ),
        queries=(
            Query(
                "sum by (outcome) (rate(meritorder_server_status_writes_total[$__rate_interval]))",
                "{{outcome}}",
            ),
            Query("sum (meritorder_server_writes_status)", "servers that write"),
        ),
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Policies known",
        description="By server: alike, unless one of them is cut off from the API server.",
        queries=(Query("sum by (instance) (meritorder_server_policies)", "{{instance}}"),),
        decimals=0,
        minimum=0,
        alerts=("MeritorderTablesOff",),
    ),
)

DASHBOARD: Final = Dashboard(
    uid="meritorder-router",
    title="Meritorder / Routers",
    description=(
        "Routers in sidecars and gateways, their Envoys, and the router servers that give them their tables."
    ),
    variables=(
        *chosen(many=True),
        Variable(
            name="router",
            title="Router",
            values=f"label_values({names.APPLIED_SEQUENCE}{{{POLICIES}}}, instance)",
            description="Routers by the address that Prometheus reads.",
        ),
    ),
    top=_TOP,
    rows=(
        Row(title="Traffic", panels=_TRAFFIC),
        Row(title="Tables and Envoy", panels=_TABLES),
        Row(title="Router servers", panels=_SERVERS),
    ),
    annotations=(alerts(),),
)
