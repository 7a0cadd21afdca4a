"""One policy: its promise, its pools in merit order, and what they cost."""

from __future__ import annotations

from typing import Final

from meritorder_api import metric_names as names
from meritorder_dashboards.grafana import BLUE, GREEN, ORANGE, RED, Dashboard, Panel, Query, Row, Variable
from meritorder_dashboards.promql import (
    COST,
    OF_POLICY,
    POLICIES,
    POOLS,
    SAVED_SHARE,
    alerts,
    chosen,
    decisions,
    gauge,
    increase,
    quantile,
    rate,
    total,
)

_TOP: Final = (
    Panel(
        kind="stat",
        title="Promise",
        description=(
            "Whether the share of slow requests is within what the percentile allows. Unknown without "
            "traffic."
            " Missed: `kubectl meritorder explain POLICY` names the pool and what was decided."
        ),
        queries=(Query(f"min ({gauge('meritorder_sla_met', POLICIES, OF_POLICY)})"),),
        words=(("1", "kept", GREEN), ("0", "missed", RED)),
        width=3,
        height=4,
        nothing="no traffic",
        alerts=("MeritorderSLAMissed",),
    ),
    Panel(
        kind="stat",
        title="Attained",
        description="The promise's percentile as the clients had it, over the policy's window.",
        queries=(Query(f"max ({gauge('meritorder_sla_attained_seconds', POLICIES, OF_POLICY)})"),),
        unit="s",
        width=3,
        height=4,
        nothing="no traffic",
        alerts=("MeritorderSLAMissed",),
    ),
    Panel(
        kind="stat",
        title="Target",
        description="What is promised: `spec.sla.targetMilliseconds`.",
        queries=(Query(f"max ({gauge('meritorder_sla_target_seconds', POLICIES, OF_POLICY)})"),),
        unit="s",
        width=3,
        height=4,
    ),
    Panel(
        kind="stat",
        title="Slow, in this time",
        description=(
            "Share of the requests of the time shown that were slower than the target, failed or were shed."
        ),
        queries=(
            Query(
                f"{increase(names.CLIENT_SLOW, POLICIES, over='$__range')}"
                f" / ({increase(names.CLIENT_REQUESTS, POLICIES, over='$__range')} > 0)"
            ),
        ),
        unit="percentunit",
        decimals=2,
        width=3,
        height=4,
        nothing="no traffic",
    ),
    Panel(
        kind="stat",
        title="Requests",
        description="Requests of clients per second.",
        queries=(Query(rate(names.CLIENT_REQUESTS, POLICIES)),),
        unit="reqps",
        width=3,
        height=4,
        nothing="none",
    ),
    Panel(
        kind="stat",
        title="Paid per hour",
        description="US dollars per hour for the ready replicas of all pools, used or not.",
        queries=(Query(total("meritorder_cost_per_hour", POLICIES)),),
        unit="currencyUSD",
        decimals=2,
        width=3,
        height=4,
        nothing="no prices",
    ),
    Panel(
        kind="stat",
        title="Saved",
        description=(
            "Against serving the same peak on the fallback pool alone. Unknown until that pool's limit "
            "was learned."
        ),
        queries=(Query(SAVED_SHARE),),
        unit="percentunit",
        decimals=0,
        width=3,
        height=4,
        thresholds=((-1e9, ORANGE), (0, GREEN)),
        nothing="not measured yet",
        alerts=("MeritorderPaidForIdle",),
    ),
    Panel(
        kind="stat",
        title="Paid per 1,000 requests",
        description=(
            "The bill of the ready replicas divided by the requests served now: low traffic makes it dear."
        ),
        queries=(Query(f"sum ({COST}) / ({rate(names.CLIENT_REQUESTS, POLICIES)} > 0) / 3.6"),),
        unit="currencyUSD",
        decimals=2,
        width=3,
        height=4,
        nothing="no traffic",
    ),
)

_WHERE: Final = (
    Panel(
        kind="timeseries",
        title="Requests by pool",
        description="Requests per second by the pool that answered.",
        queries=(Query(rate(names.REQUESTS, POOLS, "pool"), "{{pool}}"),),
        unit="reqps",
        stack="normal",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Share of each pool",
        description="Share of the policy's requests over its window, as the operator measured it.",
        queries=(Query(gauge("meritorder_pool_share_ratio", POOLS, "pool"), "{{pool}}"),),
        unit="percentunit",
        minimum=0,
        maximum=1,
        nothing="no traffic",
    ),
    Panel(
        kind="timeseries",
        title="In flight, and what the routers may have",
        description=(
            "Requests in flight by pool, and the sum of the routers' slices of its limit (dashed). At "
            "its slice a router"
            " gives the next pool what comes. A pool without a dashed line is not limited."
        ),
        queries=(
            Query(f"sum by (pool) ({names.IN_FLIGHT}{{{POOLS}}})", "{{pool}}"),
            Query(f"sum by (pool) ({names.LIMIT}{{{POOLS}}} < Inf)", "{{pool}} may have"),
        ),
        minimum=0,
    ),
)

_WHY: Final = (
    Panel(
        kind="timeseries",
        title="Attained and target",
        description=(
            "The promise's percentile as measured, and the target. Cheap pools used to the full bring "
            "it near the target."
        ),
        queries=(
            Query(f"max ({gauge('meritorder_sla_attained_seconds', POLICIES, OF_POLICY)})", "attained"),
            Query(f"max ({gauge('meritorder_sla_target_seconds', POLICIES, OF_POLICY)})", "target"),
        ),
        unit="s",
        minimum=0,
        colours=(("attained", BLUE), ("target", RED)),
        dashed=("target",),
        alerts=("MeritorderSLAMissed",),
    ),
    Panel(
        kind="timeseries",
        title="Slow requests by pool",
        description=(
            "Share of each pool's samples that were slower than the target or failed, over the window. "
            "A pool whose share"
            " surely exceeds what the percentile allows has its limit cut."
        ),
        queries=(Query(gauge("meritorder_pool_slow_ratio", POOLS, "pool"), "{{pool}}"),),
        unit="percentunit",
        minimum=0,
        nothing="no traffic",
        alerts=("MeritorderSLAMissed",),
    ),
    Panel(
        kind="timeseries",
        title="Learned limit per replica",
        description=(
            "Requests in flight that a ready replica can take within the promise, as learned so far. "
            "The fallback pool's is"
            " learned too, for the comparison of costs, but not enforced."
        ),
        queries=(Query(gauge("meritorder_pool_limit", POOLS, "pool"), "{{pool}}"),),
        minimum=0,
        nothing="nothing learned yet",
    ),
    Panel(
        kind="timeseries",
        title="Decisions that changed something",
        description=(
            "How often, what and why. `kubectl meritorder history POLICY` has the sentence with "
            "numbers for each."
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
        title="Why nothing changed",
        description=(
            "Passes that held all limits, by reason: a policy at rest says NoNewSample, one that waits "
            "says for what."
        ),
        queries=(
            Query(rate("meritorder_decisions_total", f'{POLICIES}, action="Hold"', "reason"), "{{reason}}"),
        ),
        unit="cps",
        stack="normal",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="In flight as the operator measured it",
        description="Mean requests in flight per pool over the window: what limits are learned from.",
        queries=(Query(gauge("meritorder_pool_in_flight", POOLS, "pool"), "{{pool}}"),),
        minimum=0,
        nothing="no traffic",
    ),
)

_BETTER: Final = (
    Panel(
        kind="timeseries",
        title="Cost per hour by pool",
        description="US dollars per hour for the ready replicas of each pool, used or not.",
        queries=(Query(gauge("meritorder_pool_cost_per_hour", POOLS, "pool"), "{{pool}}"),),
        unit="currencyUSD",
        decimals=2,
        stack="normal",
        minimum=0,
        nothing="no prices",
    ),
    Panel(
        kind="timeseries",
        title="Saved per hour, against the fallback pool alone",
        description=(
            "Realised: with the replicas that are ready. Possible: with those that the recent peak "
            "needs. Below 0: more is"
            " paid than the fallback pool alone would cost."
        ),
        queries=(
            Query(
                gauge("meritorder_savings_per_hour", POLICIES, f"{OF_POLICY}, kind"),
                "{{kind}}",
            ),
        ),
        unit="currencyUSD",
        decimals=2,
        nothing="not measured yet",
        colours=(("realised", BLUE), ("possible", GREEN)),
        alerts=("MeritorderPaidForIdle",),
    ),
    Panel(
        kind="timeseries",
        title="Replicas: ready, needed, cheapest mix",
        description=(
            "Ready now; needed for the recent peak with the traffic as it is split; and the mix of "
            "pools that would carry"
            " the peak at the least cost. An autoscaler may follow `meritorder_pool_replicas_needed`."
        ),
        queries=(
            Query(gauge("meritorder_pool_replicas_ready", POOLS, "pool"), "{{pool}} ready"),
            Query(gauge("meritorder_pool_replicas_needed", POOLS, "pool"), "{{pool}} needed"),
            Query(gauge("meritorder_pool_replicas_cheapest", POOLS, "pool"), "{{pool}} in the cheapest mix"),
        ),
        decimals=0,
        minimum=0,
        alerts=("MeritorderPaidForIdle",),
    ),
)

_LATENCY: Final = (
    Panel(
        kind="timeseries",
        title="p95 of the answers by pool",
        description=(
            "From the first byte of the request to the last of the answer, failures left out. From a "
            "histogram, for display:"
            " what decides are exact counters."
        ),
        queries=(Query(quantile(0.95, names.LATENCY_BUCKET, POOLS, "pool"), "{{pool}}"),),
        unit="ms",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="p95 of the time to first byte by pool",
        description=(
            "From the first byte of the request to the first of the answer's body: for streams, the "
            "first token."
        ),
        queries=(Query(quantile(0.95, names.TTFT_BUCKET, POOLS, "pool"), "{{pool}}"),),
        unit="ms",
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Slow requests of the clients",
        description=(
            "Share of all requests, each judged once by the time of the whole request, whatever pools "
            "were tried."
        ),
        queries=(
            Query(
                f"{rate(names.CLIENT_SLOW, POLICIES)} / ({rate(names.CLIENT_REQUESTS, POLICIES)} > 0)", "slow"
            ),
        ),
        unit="percentunit",
        minimum=0,
        nothing="no traffic",
    ),
    Panel(
        kind="timeseries",
        title="Attempts that pools failed",
        description=(
            "5xx, 429, resets, timeouts and refused connections per second, whoever answered in the "
            "end. Clients see them"
            " only where every pool failed."
        ),
        queries=(Query(rate(names.FAILED_ATTEMPTS, POOLS, "pool"), "{{pool}}"),),
        unit="reqps",
        minimum=0,
        alerts=("MeritorderRequestsFail",),
    ),
    Panel(
        kind="timeseries",
        title="What became of the requests",
        description=(
            "By status and by Envoy's response flags (docs/metrics.md): `-` none, UF no connection, UT "
            "timeout, URX all tries"
            " used up, NC shed, DC the client left."
        ),
        queries=(Query(rate(names.REQUESTS, POLICIES, "code, flags"), "{{code}} {{flags}}"),),
        unit="reqps",
        minimum=0,
        alerts=("MeritorderRequestsFail",),
    ),
    Panel(
        kind="timeseries",
        title="Tokens",
        description=(
            "Tokens per second as the answers' `usage` says: prompt (into the pool) and completion "
            "(out of it)."
        ),
        queries=(
            Query(rate(names.PROMPT_TOKENS, POOLS, "pool"), "{{pool}} prompt"),
            Query(rate(names.COMPLETION_TOKENS, POOLS, "pool"), "{{pool}} completion"),
        ),
        unit="cps",
        minimum=0,
        nothing="no answer told its usage",
    ),
)

_CLASSES: Final = (
    Panel(
        kind="timeseries",
        title="Requests by size class",
        description=(
            "Samples per second by the most tokens that the request may have (`max_tokens`). Only with "
            "an end-to-end promise"
            " and `sizeClasses` not Off; requests of unknown length have no class."
        ),
        queries=(Query(rate(names.SAMPLES, POOLS, "pool, class"), "{{pool}} {{class}}"),),
        unit="reqps",
        width=12,
        minimum=0,
    ),
    Panel(
        kind="timeseries",
        title="Slow requests by size class",
        description=(
            "Share of each class's samples that were slower than the target or failed: which class is "
            "too long for a pool."
        ),
        queries=(
            Query(
                f"({rate(names.SAMPLES_SLOW, POOLS, 'pool, class')}"
                # A class of which none was slow yet has no such series.
                f" or {rate(names.SAMPLES, POOLS, 'pool, class')} * 0)"
                f" / ({rate(names.SAMPLES, POOLS, 'pool, class')} > 0)",
                "{{pool}} {{class}}",
            ),
        ),
        unit="percentunit",
        width=12,
        minimum=0,
        nothing="no traffic",
    ),
)

DASHBOARD: Final = Dashboard(
    uid="meritorder-policy",
    title="Meritorder / Policy",
    description="One policy: its promise, where its traffic goes and why, and what its pools cost.",
    variables=(
        *chosen(many=False),
        Variable(
            name="pool",
            title="Pool",
            values=f"label_values({names.LIMIT}{{{POLICIES}}}, pool)",
            description="Pools of the policy; those of its routers' tables.",
        ),
    ),
    top=_TOP,
    rows=(
        Row(title="Where does traffic go?", panels=_WHERE),
        Row(title="Why?", panels=_WHY),
        Row(title="Is it better than before?", panels=_BETTER),
        Row(title="Latency, failures, tokens", panels=_LATENCY),
        Row(title="Size classes", panels=_CLASSES, folded=True),
    ),
    annotations=(decisions(), alerts()),
)
