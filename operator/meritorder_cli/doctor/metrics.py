"""Checks of what policies are measured by: Prometheus, names, units, bounds, scrapes, prices. Pure."""

import math
from collections.abc import Iterator
from typing import Final

from meritorder_api import metric_names, names
from meritorder_api.policy import Engine, Pool, SLAMetric
from meritorder_api.reasons import ConditionType, Missing
from meritorder_api.resource import InferencePolicy
from meritorder_cli.doctor.backends import called, edit
from meritorder_cli.doctor.facts import Facts, PolicyMetrics, PoolMetrics
from meritorder_cli.doctor.findings import Finding, Severity
from meritorder_cli.doctor.installation import SKEW_SECONDS
from meritorder_operator.prometheus.queries import PRESETS
from meritorder_operator.prometheus.samples import LEAST_SCRAPES

LONGEST_SECONDS: Final = {
    SLAMetric.END_TO_END: 20_000.0,
    SLAMetric.TTFT: 20_000.0,
    SLAMetric.TPOT: 1_000.0,
}
"""No engine has a histogram that reaches further: one that does is in milliseconds."""


def metrics(facts: Facts) -> Iterator[Finding]:
    """Of all policies."""
    for policy in facts.policies:
        found = facts.metrics.get(policy.key)
        said = list(_of(policy, found, facts)) if found is not None else []
        yield from said
        yield from _operators_own(policy, any(one.severity is Severity.ERROR for one in said))


def _of(policy: InferencePolicy, found: PolicyMetrics, facts: Facts) -> Iterator[Finding]:
    if not found.server:
        yield Finding(
            check="PrometheusMissing",
            object=called(policy),
            message=f"nothing says where its metrics are: {found.said}",
            fix="helm upgrade --reuse-values --set "
            "prometheus.url=http://prometheus-operated.monitoring.svc:9090",
        )
        return
    if found.failure is not None:
        yield _failure(policy, found)
        return
    yield from _router(policy, found, facts)
    for index, pool in enumerate(policy.spec.pools):
        known = found.pools.get(pool.name)
        if known is not None:
            yield from _pool(policy, pool, f"spec.pools[{index}]", known)


def _failure(policy: InferencePolicy, found: PolicyMetrics) -> Finding:
    if found.failure is Missing.UNAUTHORIZED:
        fix = (
            "correct the Secret of `authSecretRef`, or the chart's prometheus.tokenSecret; for this "
            "command alone "
            "give --prometheus-token-file"
        )
    else:
        source = (
            "`spec.metricsSource.prometheus.url`"
            if policy.spec.metrics_source
            else "the chart's prometheus.url"
        )
        elsewhere = "where only this machine cannot reach it, give --prometheus-url"
        fix = f"see that it runs, and correct {source}; {elsewhere}"
    return Finding(
        check=str(found.failure), object=f"Prometheus `{found.server}`", message=found.said, fix=fix
    )


def _router(policy: InferencePolicy, found: PolicyMetrics, facts: Facts) -> Iterator[Finding]:
    programmed = policy.status.programmed
    window = policy.spec.sla.window_seconds
    labels = f'namespace="{policy.metadata.namespace}", policy="{policy.metadata.name}"'
    if programmed is not None and programmed.agents and not found.routers:
        if found.foreign:
            yield Finding(
                check="NamespaceLabelMissing",
                object=called(policy),
                message=f"{found.foreign} series of its routers are there without the label "
                f'namespace="{policy.metadata.namespace}" of their target, by which alone they are trusted',
                fix="in the scrape configuration: relabel_configs: "
                "[{source_labels: [__meta_kubernetes_pod_namespace], "
                "target_label: namespace}], honor_labels: false (the chart's PodMonitor does so)",
            )
        else:
            yield Finding(
                check="RouterNotScraped",
                object=called(policy),
                message=f"{programmed.agents} agents serve it and none is scraped: there is no series "
                f"{metric_names.APPLIED_SEQUENCE} with {labels}",
                fix="helm upgrade --reuse-values --set podMonitor.enabled=true, with podMonitor.labels "
                "that your Prometheus "
                f"selects; or scrape port {names.DEFAULT_METRICS_PORT}, paths {metric_names.METRICS_PATH} "
                "and "
                f"{metric_names.AGENT_METRICS_PATH}",
            )
    if found.uncounted:
        yield Finding(
            check="PathNotScraped",
            object=called(policy),
            message=f"its agents are scraped ({metric_names.AGENT_METRICS_PATH}) and their Envoys are "
            "not, so no request "
            "is counted",
            fix=f"scrape path {metric_names.METRICS_PATH} of the same port too",
        )
    if found.scrapes is not None and found.scrapes < LEAST_SCRAPES - 0.1:
        yield Finding(
            check=str(Missing.SCRAPE_TOO_SLOW),
            object=called(policy),
            message=f"its routers are scraped {found.scrapes:.1f} times within its window of {window} s; "
            "must be at "
            f"least {LEAST_SCRAPES} times",
            fix=f"scrape each {max(1, window // 6)} s (chart: podMonitor.interval), or make "
            f"`spec.sla.windowSeconds` longer: {edit(policy)}",
        )
    if found.newest is None:
        return
    age = facts.now - found.newest
    if age < -SKEW_SECONDS:
        yield Finding(
            check="ClockSkew",
            object=f"Prometheus `{found.server}`",
            message=f"its newest scrape is {-age:.0f} s in the future; its node's clock must agree with "
            "the API server's "
            f"within {SKEW_SECONDS:.0f} s",
            fix="set the node's clock: chronyc makestep, or timedatectl set-ntp true",
        )
    elif age > policy.spec.behavior.staleness_seconds:
        yield Finding(
            check=str(Missing.STALE),
            object=called(policy),
            message=f"the newest scrape of its routers is {age:.0f} s old; must be at most "
            f"{policy.spec.behavior.staleness_seconds} s (`behavior.stalenessSeconds`)",
            fix="see Prometheus's page of targets for why they are down, and its node's clock",
        )


def _pool(policy: InferencePolicy, pool: Pool, field: str, known: PoolMetrics) -> Iterator[Finding]:
    object_ = f"{called(policy)}, pool `{pool.name}`"
    if known.no_price is not None:
        yield Finding(
            check=str(Missing.NO_PRICE),
            object=object_,
            message=known.no_price,
            fix=f"correct `{field}.cost.query` (try it in Prometheus), or state `cost.perReplicaHour`: "
            f"{edit(policy)}",
        )
    if pool.metrics.engine is Engine.CUSTOM:
        yield from _custom(policy, object_, field, known)
    if pool.metrics.engine in PRESETS:
        if not PRESETS[pool.metrics.engine].queries(policy.spec.sla.metric):
            yield Finding(
                check=str(Missing.NOT_SUPPORTED),
                object=object_,
                message=f"{pool.metrics.engine} has no histogram for {policy.spec.sla.metric}",
                fix=f"set `{field}.metrics.engine` to Router, which measures it itself: {edit(policy)}",
            )
        elif not known.series:
            yield _no_series(policy, pool, object_, field, known)
        else:
            yield from _bounds(policy, pool, object_, field, known)


def _no_series(policy: InferencePolicy, pool: Pool, object_: str, field: str, known: PoolMetrics) -> Finding:
    engine = pool.metrics.engine
    message = f"there is no series `{PRESETS[engine].up[0]}` with {known.picked}"
    fix = f"have Prometheus scrape its pods; {PRESETS[engine].note or 'or set engine to Router'}"
    if known.other_engine is not None:
        message += f"; what has these labels are series of {known.other_engine}"
        fix = f"set `{field}.metrics.engine` to {known.other_engine}: {edit(policy)}"
    elif known.elsewhere:
        shown = "; ".join(
            ", ".join(f'{label}="{value}"' for label, value in labels.items() if value) or "no label of these"
            for labels in known.elsewhere[:3]
        )
        message += f"; such series are there with {shown}"
        chosen = ", ".join(f"{label}: {value}" for label, value in known.elsewhere[0].items() if value)
        fix = f"set `{field}.metrics.selector` to labels that they have, such as {{{chosen}}}: {edit(policy)}"
    return Finding(check=str(Missing.NO_SERIES), object=object_, message=message, fix=fix)


def _bounds(
    policy: InferencePolicy, pool: Pool, object_: str, field: str, known: PoolMetrics
) -> Iterator[Finding]:
    sla = policy.spec.sla
    histogram = PRESETS[pool.metrics.engine].histograms[sla.metric]
    if known.bounds is None:
        return
    router = f"set `{field}.metrics.engine` to Router, which counts exactly: {edit(policy)}"
    if not known.bounds:
        yield Finding(
            check="HistogramMissing",
            object=object_,
            message=f"{pool.metrics.engine} is scraped, and there is no histogram "
            f"`{histogram.names[0]}_bucket` with "
            f"{known.picked}",
            fix=f"see that nothing drops it (metric_relabel_configs), or {router}",
        )
        return
    target = sla.target_milliseconds / 1000
    bounds = sorted(bound * histogram.unit_seconds for bound in known.bounds)
    if any(math.isclose(bound, target, rel_tol=1e-6) for bound in bounds):
        return
    if bounds[-1] > LONGEST_SECONDS[sla.metric]:
        yield Finding(
            check="UnitConfusion",
            object=object_,
            message=f"`{histogram.names[0]}` reaches to {bounds[-1]:g} s, which no request takes: it "
            "seems to be in "
            "milliseconds",
            fix=f"have it in seconds where it is made or rewritten, or {router}",
        )
    elif target < bounds[0]:
        longer = sla.target_milliseconds * 1000
        meant = f"; {target:g} s as `targetMilliseconds` is {sla.target_milliseconds}" if longer else ""
        maybe = bounds[0] <= longer / 1000 <= bounds[-1]
        yield Finding(
            check="UnitConfusion" if maybe else "SLAOutsideHistogram",
            object=object_,
            message=f"the target of {target:g} s is below the first bound of `{histogram.names[0]}`, "
            f"{bounds[0]:g} s, so "
            f"what is slower cannot be told{meant}",
            fix=f"if {longer / 1000:g} s was meant, set `spec.sla.targetMilliseconds` to {longer}: "
            f"{edit(policy)}"
            if maybe
            else router,
        )
    elif target > bounds[-1]:
        yield Finding(
            check="SLAOutsideHistogram",
            object=object_,
            message=f"the target of {target:g} s is beyond the last bound of `{histogram.names[0]}`, "
            f"{bounds[-1]:g} s: no "
            "request would ever count as slow",
            fix=router,
        )
    else:
        yield _between(policy, pool, object_, bounds, target, router)


def _between(
    policy: InferencePolicy, pool: Pool, object_: str, bounds: list[float], target: float, router: str
) -> Finding:
    low = max(bound for bound in bounds if bound < target)
    high = min(bound for bound in bounds if bound > target)
    seen = next((one for one in policy.status.pools or () if one.name == pool.name), None)
    error = (
        f"at present by up to {seen.slow_percent_error} percentage points"
        if seen is not None and seen.slow_percent_error is not None
        else "by up to all requests that took between the two"
    )
    return Finding(
        check="SLABetweenBounds",
        object=object_,
        message=f"the target of {target:g} s lies between two bounds of the engine's histogram, {low:g} s "
        f"and {high:g} s: "
        f"the share of slow requests is interpolated and may be wrong, {error}",
        fix=f"set `spec.sla.targetMilliseconds` to {low * 1000:.0f} or {high * 1000:.0f}, or {router}",
        severity=Severity.WARNING,
    )


def _custom(policy: InferencePolicy, object_: str, field: str, known: PoolMetrics) -> Iterator[Finding]:
    for name, value in known.custom.items():
        if isinstance(value, str):
            yield Finding(
                check="CustomQuery",
                object=object_,
                message=value,
                fix=f"correct `{field}.metrics.custom.{name}` (try it in Prometheus): {edit(policy)}",
            )
    values = {name: value for name, value in known.custom.items() if isinstance(value, float)}
    total, slow = values.get("total"), values.get("slow")
    if total is not None and slow is not None and slow > total * 1.01 + 1:
        yield Finding(
            check="CustomQuery",
            object=object_,
            message=f"`slow` gives {slow:g} and `total` {total:g}: more slow requests than requests",
            fix=f"correct `{field}.metrics.custom`: both must count requests within `$window`: "
            f"{edit(policy)}",
        )
    latency, in_flight = values.get("latencySum"), values.get("inFlight")
    if total and latency is not None and in_flight is not None:
        mean = latency / policy.spec.sla.window_seconds
        if mean > 100 * max(in_flight, 1.0):
            yield Finding(
                check="UnitConfusion",
                object=object_,
                message=f"`latencySum` says {latency / total:g} s per request, so {mean:,.0f} in flight "
                "on average, while "
                f"`inFlight` gives {in_flight:g}: it seems to be in milliseconds; must be in seconds",
                fix=f"divide it: `{field}.metrics.custom.latencySum`: (...) / 1000: {edit(policy)}",
            )


def _operators_own(policy: InferencePolicy, is_explained: bool) -> Iterator[Finding]:
    """What the operator says is missing and nothing here explains: it may see another network than we."""
    for condition in policy.status.conditions or ():
        if (
            condition.type == ConditionType.METRICS_AVAILABLE
            and condition.status == "False"
            and not is_explained
        ):
            yield Finding(
                check=condition.reason,
                object=called(policy),
                message=f"the operator says: {condition.message}",
                fix="see what it names from where the operator runs; `meritorder explain "
                f"{policy.metadata.name} -n "
                f"{policy.metadata.namespace}` shows the whole status",
            )
