"""All policies: where does traffic go, why, and is it better than before?"""

from __future__ import annotations

from typing import Final

from meritorder_api import metric_names as names
from meritorder_dashboards.grafana import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Column,
    Dashboard,
    Panel,
    Query,
    Row,
)
from meritorder_dashboards.promql import (
    COST,
    OF_POLICY,
    OF_POOL,
    POLICIES,
    REALISED,
    SAVED_SHARE,
    alerts,
    chosen,
    decisions,
    gauge,
    increase,
    rate,
    total,
)

_POSSIBLE: Final = gauge("meritorder_savings_per_hour", f'{POLICIES}, kind="possible"', OF_POLICY)
# A policy whose comparison is not measured yet counts as one that saves nothing.
_BASELINE: Final = f"sum (({REALISED} + {COST}) or {COST})"
_NEEDED: Final = f"sum (({REALISED} + {COST} - {_POSSIBLE}) or {COST})"
_SLOW: Final = (
    f"{increase(names.CLIENT_SLOW, POLICIES, over='$__range')}"
    f" / ({increase(names.CLIENT_REQUESTS, POLICIES, over='$__range')} > 0)"
)
_POLICY_LINK: Final = (
    "/d/meritorder-policy?var-datasource=${datasource}&var-namespace=${__data.fields.Namespace}"
    "&var-policy=${__data.fields.Policy}&${__url_time_range}"
)

_TOP: Final = (
    Panel(
        kind="stat",
        title="Requests",
        description=(
            "Requests of clients per second, over all routers; each counts once, however many pools "
            "were tried."
        ),
        queries=(Query(rate(names.CLIENT_REQUESTS, POLICIES)),),
        unit="reqps",
        width=3,
        height=4,
        nothing="none",
    ),
    Panel(
        kind="stat",
        title="Policies that keep their promise",
        description=(
            "Share of the policies under traffic whose latency promise is met now. Policies without "
            "traffic do not count."
        ),
        queries=(Query(f"avg ({gauge('meritorder_sla_met', POLICIES, OF_POLICY)})"),),
        unit="percentunit",
        width=3,
        height=4,
        thresholds=((0, RED), (0.9, YELLOW), (1, GREEN)),
        nothing="no traffic",
        alerts=("MeritorderSLAMissed",),
    ),
    Panel(
        kind="stat",
        title="Slow, in this time",
        description=(
            "Share of the requests of the time shown that were slower than their policy's target, "
            "failed or were"
            " shed. With a promise on the 95th percentile, 5 % may be."
        ),
        queries=(Query(_SLOW),),
        unit="percentunit",
        decimals=2,
        width=3,
        height=4,
        thresholds=((0, GREEN), (0.05, ORANGE)),
        nothing="no traffic",
        alerts=("MeritorderSLAMissed",),
    ),
    Panel(
        kind="stat",
        title="Paid per hour",
        description="US dollars per hour for all ready replicas, used or not, by the prices in the policies.",
        queries=(Query(total("meritorder_cost_per_hour", POLICIES)),),
        unit="currencyUSD",
        decimals=2,
        width=3,
        height=4,
        nothing="no prices",
    ),
    Panel(
        kind="stat",
        title="Saved per hour",
        description=(
            "US dollars per hour less than serving the same peak on each policy's fallback pool alone. "
            "Negative: more"
            " replicas are ready than that would need. Unknown until the fallback pool's limit was learned."
        ),
        queries=(Query(f"sum ({REALISED})"),),
        unit="currencyUSD",
        decimals=2,
        width=3,
        height=4,
        thresholds=((-1e9, ORANGE), (0, GREEN)),
        nothing="not measured yet",
        alerts=("MeritorderPaidForIdle",),
    ),
    Panel(
        kind="stat",
        title="Saved",
        description="The same as a share of what the fallback pools alone would cost.",
        queries=(Query(SAVED_SHARE),),
        unit="percentunit",
        decimals=0,
        width=3,
        height=4,
        thresholds=((-1e9, ORANGE), (0, GREEN)),
        nothing="not measured yet",
    ),
    Panel(
        kind="stat",
        title="Saved in this time",
        description=(
            "US dollars saved in the time shown: the sum over its hours. What was not measured adds nothing."
        ),
        queries=(
            Query(f"sum (sum_over_time(({REALISED})[$__range:$__interval])) * $__interval_ms / 3600000"),
        ),
        unit="currencyUSD",
        decimals=2,
        width=3,
        height=4,
        thresholds=((-1e9, ORANGE), (0, GREEN)),
        nothing="not measured yet",
    ),
    Panel(
        kind="stat",
        title="Alerts firing",
        description=(
            "Alerts of Meritorder that fire now, in all namespaces. They are marked in the panels below."
        ),
        queries=(Query('count (ALERTS{alertname=~"Meritorder.+", alertstate="firing"}) or vector(0)'),),
        width=3,
        height=4,
        thresholds=((0, GREEN), (1, RED)),
    ),
)

_WHERE: Final = (
    Panel(
        kind="timeseries",
        title="Requests by pool",
        description=(
            "Requests per second by the pool that answered. Pools of one name in several policies are "
            "added up."
        ),
        queries=(Query(rate(names.REQUESTS, f'{POLICIES}, pool!=""', "pool"), "{{pool}}"),),
        unit="reqps",
        width=12,
        stack="normal",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Share of each pool",
        description="The same in percent: how much of the traffic sits on the cheap pools.",
        queries=(Query(rate(names.REQUESTS, f'{POLICIES}, pool!=""', "pool"), "{{pool}}"),),
        unit="percentunit",
        width=12,
        stack="percent",
        minimum=0,
    ),
)

_WHY: Final = (
    Panel(
        kind="timeseries",
        title="Decisions that changed something",
        description=(
            "How often limits grew, were cut, drained or tried again, and why. `kubectl meritorder "
            "history POLICY` has the"
            " sentence with numbers for each."
        ),
        queries=(
            Query(
                increase("meritorder_decisions_total", f'{POLICIES}, action!="Hold"', "action, reason"),
                "{{action}}: {{reason}}",
            ),
        ),
        decimals=0,
        stack="normal",
        bars=True,
        minimum=0,
        nothing="nothing was decided yet",
    ),
    Panel(
        kind="timeseries",
        title="How full the limited pools are",
        description=(
            "Requests in flight, of what the routers may have in flight in the pool. Near 100 %: the "
            "pool takes what it can"
            " within the promise, and the next pool takes the rest. The fallback pool has no limit and "
            "is not shown."
        ),
        queries=(
            Query(
                f"sum by ({OF_POOL}) ({names.IN_FLIGHT}{{{POLICIES}}})"
                f" / (sum by ({OF_POOL}) ({names.LIMIT}{{{POLICIES}}} < Inf) > 0)",
                "{{policy}} {{pool}}",
            ),
        ),
        unit="percentunit",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Attained, of the target",
        description=(
            "Each policy's percentile as measured, divided by its target: above 100 % the promise is "
            "missed. It should come"
            " near 100 % only where cheap pools are used to the full."
        ),
        queries=(
            Query(
                f"{gauge('meritorder_sla_attained_seconds', POLICIES, OF_POLICY)}"
                f" / {gauge('meritorder_sla_target_seconds', POLICIES, OF_POLICY)}",
                "{{namespace}}/{{policy}}",
            ),
        ),
        unit="percentunit",
        minimum=0,
        nothing="no traffic",
        alerts=("MeritorderSLAMissed",),
    ),
)

_BETTER: Final = (
    Panel(
        kind="timeseries",
        title="Cost per hour, against the fallback pools alone",
        description=(
            "Paid: all ready replicas. Needed: the replicas that the recent peak needs. Fallback "
            "alone: what the same peak"
            " would cost on each policy's fallback pool, by the requests per second that a replica of "
            "it completes at its"
            " limit. Between Paid and Needed lies what can still be saved by scaling down."
        ),
        queries=(
            Query(total("meritorder_cost_per_hour", POLICIES), "paid"),
            Query(_NEEDED, "needed"),
            Query(_BASELINE, "fallback alone"),
        ),
        unit="currencyUSD",
        decimals=2,
        width=12,
        minimum=0,
        colours=(("paid", BLUE), ("needed", GREEN), ("fallback alone", ORANGE)),
        dashed=("fallback alone",),
        alerts=("MeritorderPaidForIdle",),
    ),
    Panel(
        kind="timeseries",
        title="Slow requests by policy",
        description=(
            "Share of the clients' requests that were slower than the target, failed or were shed. "
            "What is allowed follows"
            " from the policy's percentile: 5 % for the 95th."
        ),
        queries=(
            Query(
                f"{rate(names.CLIENT_SLOW, POLICIES, OF_POLICY)}"
                f" / ({rate(names.CLIENT_REQUESTS, POLICIES, OF_POLICY)} > 0)",
                "{{namespace}}/{{policy}}",
            ),
        ),
        unit="percentunit",
        width=12,
        minimum=0,
        nothing="no traffic",
        alerts=("MeritorderSLAMissed", "MeritorderRequestsFail"),
    ),
)

_POLICIES: Final = (
    Panel(
        kind="table",
        title="Policy by policy",
        description=(
            "One line per policy; its name leads to its own dashboard. Empty fields are not measured yet."
        ),
        queries=tuple(
            Query(expr)
            for expr in (
                gauge("meritorder_sla_met", POLICIES, OF_POLICY),
                gauge("meritorder_sla_target_seconds", POLICIES, OF_POLICY),
                gauge("meritorder_sla_attained_seconds", POLICIES, OF_POLICY),
                rate(names.CLIENT_REQUESTS, POLICIES, OF_POLICY),
                COST,
                REALISED,
                _POSSIBLE,
                gauge("meritorder_observation_age_seconds", POLICIES, OF_POLICY),
            )
        ),
        columns=(
            Column(title="Namespace", label="namespace"),
            Column(title="Policy", label="policy", link=_POLICY_LINK),
            Column(title="Promise", query="A", words=(("1", "kept", GREEN), ("0", "missed", RED))),
            Column(title="Target", query="B", unit="s"),
            Column(title="Attained", query="C", unit="s"),
            Column(title="Requests", query="D", unit="reqps"),
            Column(title="Paid per hour", query="E", unit="currencyUSD", decimals=2),
            Column(title="Saved per hour", query="F", unit="currencyUSD", decimals=2),
            Column(title="Could be saved", query="G", unit="currencyUSD", decimals=2),
            Column(
                title="Measured",
                query="H",
                unit="s",
                decimals=0,
                thresholds=((0, GREEN), (60, ORANGE), (120, RED)),
            ),
        ),
        width=24,
        height=9,
        alerts=("MeritorderSLAMissed", "MeritorderMetricsStale", "MeritorderPaidForIdle"),
    ),
)

_OPERATOR: Final = (
    Panel(
        kind="stat",
        title="Operators that decide",
        description=(
            "Processes that hold the lease: exactly one. None: traffic goes on by the limits decided last."
        ),
        queries=(Query("sum (meritorder_leader)"),),
        width=4,
        height=5,
        thresholds=((0, RED), (1, GREEN), (2, RED)),
        nothing="none seen",
        alerts=("MeritorderNobodyDecides",),
    ),
    Panel(
        kind="stat",
        title="Policies served",
        description="Policies that the deciding operator serves, in all namespaces.",
        queries=(Query("max (meritorder_policies)"),),
        width=4,
        height=5,
    ),
    Panel(
        kind="stat",
        title="Versions",
        description="Versions of the operators that run; more than one only while a new one is rolled out.",
        queries=(Query("count by (version) (meritorder_build_info)", "{{version}}"),),
        width=4,
        height=5,
    ),
    Panel(
        kind="timeseries",
        title="One pass over one policy",
        description=(
            "Time that the operator takes per policy, queries and write included: the median and the "
            "99th percentile."
        ),
        queries=tuple(
            Query(
                f"histogram_quantile({share}, sum by (le)"
                " (rate(meritorder_reconcile_duration_seconds_bucket[$__rate_interval])))",
                word,
            )
            for share, word in ((0.5, "median"), (0.99, "p99"))
        ),
        unit="s",
        width=12,
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Age of the newest sample",
        description=(
            "How old the newest measurement of each policy is. Beyond the policy's staleness its limits hold."
        ),
        queries=(
            Query(
                gauge("meritorder_observation_age_seconds", POLICIES, OF_POLICY), "{{namespace}}/{{policy}}"
            ),
        ),
        unit="s",
        minimum=0,
        nothing="nothing measured yet",
        alerts=("MeritorderMetricsStale",),
    ),
    Panel(
        kind="timeseries",
        title="Queries of Prometheus",
        description="What the operator asks Prometheus per second, and how long an answer takes.",
        queries=(
            Query("sum by (query) (rate(meritorder_query_total[$__rate_interval]))", "{{query}}"),
            Query(
                "sum (rate(meritorder_query_duration_seconds_sum[$__rate_interval]))"
                " / (sum (rate(meritorder_query_duration_seconds_count[$__rate_interval])) > 0)",
                "mean time (s)",
            ),
        ),
        minimum=0,
        dashed=("mean time (s)",),
        alerts=("MeritorderQueriesFail",),
    ),
    Panel(
        kind="timeseries",
        title="Queries that fail",
        description=(
            "By query and reason. PrometheusUnreachable is the network or Prometheus, "
            "PrometheusUnauthorized its"
            " credentials, QueryRefused a query of a policy's own."
        ),
        queries=(
            Query(
                "sum by (query, reason) (rate(meritorder_query_failures_total[$__rate_interval]))",
                "{{query}}: {{reason}}",
            ),
        ),
        unit="reqps",
        minimum=0,
        nothing="none failed",
        alerts=("MeritorderQueriesFail",),
    ),
    Panel(
        kind="timeseries",
        title="Writes of status",
        description=(
            "Statuses written per second, and those decided again because the object had changed. At "
            "rest there is none."
        ),
        queries=(
            Query("sum (rate(meritorder_status_writes_total[$__rate_interval]))", "written"),
            Query("sum (rate(meritorder_status_conflicts_total[$__rate_interval]))", "decided again"),
        ),
        unit="wps",
        minimum=0,
    ),
)

DASHBOARD: Final = Dashboard(
    uid="meritorder-fleet",
    title="Meritorder / Fleet",
    description=(
        "All policies: where traffic goes, why, and whether it is better than all on the fallback pools."
    ),
    variables=chosen(many=True),
    top=_TOP,
    rows=(
        Row(title="Where does traffic go?", panels=_WHERE),
        Row(title="Why?", panels=_WHY),
        Row(title="Is it better than before?", panels=_BETTER),
        Row(title="Policies", panels=_POLICIES),
        Row(title="The operator", panels=_OPERATOR, folded=True),
    ),
    annotations=(decisions(), alerts()),
)
