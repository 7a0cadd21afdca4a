"""The operator's own metrics, made at each scrape from what is there: a deleted policy leaves no series
behind.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.version import own_version
from meritorder_core.inputs import Missing, Sample
from meritorder_operator.prometheus.client import QueryStats
from meritorder_operator.view import PolicyView

_POLICY = ("namespace", "policy")
_POOL = (*_POLICY, "pool")


@dataclass(slots=True)
class Durations:
    """Durations that are measured as they happen."""

    registry: CollectorRegistry
    reconcile: Histogram = field(init=False)

    def __post_init__(self) -> None:
        self.reconcile = Histogram(
            "meritorder_reconcile_duration_seconds",
            "Time that one pass over one policy took, queries and write included.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """How many statuses were written, and how often one was decided on again."""

    written: int
    conflicts: int


class Telemetry(Collector):
    """Computes all series but the durations."""

    def __init__(
        self,
        *,
        views: Callable[[], Iterable[PolicyView]],
        queries: Callable[[], dict[str, QueryStats]],
        writes: Callable[[], Writes],
        is_leader: Callable[[], bool],
        wall: Callable[[], float],
    ) -> None:
        self._views = views
        self._queries = queries
        self._writes = writes
        self._is_leader = is_leader
        self._wall = wall

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known at collection."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All series as they are now."""
        views = list(self._views())
        yield InfoMetricFamily(
            "meritorder_build", "Version of the operator.", value={"version": own_version()}
        )
        leader = GaugeMetricFamily("meritorder_leader", "1 while this process holds the lease.")
        leader.add_metric((), float(self._is_leader()))
        yield leader
        policies = GaugeMetricFamily("meritorder_policies", "Policies that are served.")
        policies.add_metric((), len(views))
        yield policies
        yield from self._of_writes()
        yield from self._of_queries()
        yield from self._of_policies(views)
        yield from _of_pools(views)

    def _of_writes(self) -> Iterator[Metric]:
        writes = self._writes()
        written = CounterMetricFamily("meritorder_status_writes", "Statuses written.")
        written.add_metric((), writes.written)
        yield written
        conflicts = CounterMetricFamily(
            "meritorder_status_conflicts", "Writes that were decided again because the object had changed."
        )
        conflicts.add_metric((), writes.conflicts)
        yield conflicts

    def _of_queries(self) -> Iterator[Metric]:
        asked = CounterMetricFamily("meritorder_query", "Queries asked of Prometheus.", labels=("query",))
        failed = CounterMetricFamily(
            "meritorder_query_failures", "Queries without an answer, by reason.", labels=("query", "reason")
        )
        took = SummaryMetricFamily(
            "meritorder_query_duration_seconds", "Time that queries took.", labels=("query",)
        )
        for name, stats in sorted(self._queries().items()):
            asked.add_metric((name,), stats.asked)
            took.add_metric((name,), count_value=stats.asked, sum_value=stats.seconds)
            for reason, count in sorted(stats.failed.items()):
                failed.add_metric((name, reason), count)
        yield from (asked, failed, took)

    def _of_policies(self, views: list[PolicyView]) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            "meritorder_decisions",
            "Decisions by what they did and why.",
            labels=(*_POLICY, "action", "reason"),
        )
        attained = GaugeMetricFamily(
            "meritorder_sla_attained_seconds", "The SLA's percentile as measured.", labels=_POLICY
        )
        target = GaugeMetricFamily("meritorder_sla_target_seconds", "The SLA's target.", labels=_POLICY)
        met = GaugeMetricFamily(
            "meritorder_sla_met",
            "1 while the SLA is met, 0 while it is missed; absent while not known.",
            labels=_POLICY,
        )
        cost = GaugeMetricFamily(
            "meritorder_cost_per_hour", "US dollars per hour for all that is ready.", labels=_POLICY
        )
        savings = GaugeMetricFamily(
            "meritorder_savings_per_hour",
            "US dollars per hour saved against the fallback pool alone: realised, and possible.",
            labels=(*_POLICY, "kind"),
        )
        age = GaugeMetricFamily(
            "meritorder_observation_age_seconds", "Age of the newest sample of a policy.", labels=_POLICY
        )
        for view in views:
            own = (view.namespace, view.name)
            for (action, reason), count in sorted(view.decisions.items()):
                decisions.add_metric((*own, action, reason), count)
            if isinstance(view.spec, InferencePolicySpec):
                target.add_metric(own, view.spec.sla.target_milliseconds / 1000)
            decision = view.decision
            if decision is None or view.inputs is None:
                continue
            if decision.attained_milliseconds is not None:
                attained.add_metric(own, decision.attained_milliseconds / 1000)
            if decision.sla_met.status is not None:
                met.add_metric(own, float(decision.sla_met.status))
            if decision.cost_per_hour is not None:
                cost.add_metric(own, decision.cost_per_hour)
            if not isinstance(decision.savings, Missing):
                savings.add_metric((*own, "realised"), decision.savings.realised_per_hour)
                savings.add_metric((*own, "possible"), decision.savings.possible_per_hour)
            samples = [pool.observation for pool in view.inputs.pools.values()]
            newest = max((sample.at for sample in samples if isinstance(sample, Sample)), default=None)
            if newest is not None:
                age.add_metric(own, self._wall() - newest)
        yield from (decisions, attained, target, met, cost, savings, age)


def _of_pools(views: list[PolicyView]) -> Iterator[Metric]:
    limit = GaugeMetricFamily(
        "meritorder_pool_limit", "Learned limit: requests in flight per ready replica.", labels=_POOL
    )
    needed = GaugeMetricFamily(
        "meritorder_pool_replicas_needed", "Replicas that the recent peak needs.", labels=_POOL
    )
    cheapest = GaugeMetricFamily(
        "meritorder_pool_replicas_cheapest", "Replicas in the cheapest mix for the recent peak.", labels=_POOL
    )
    ready = GaugeMetricFamily("meritorder_pool_replicas_ready", "Ready replicas.", labels=_POOL)
    cost = GaugeMetricFamily(
        "meritorder_pool_cost_per_hour", "US dollars per hour for what is ready.", labels=_POOL
    )
    share = GaugeMetricFamily("meritorder_pool_share_ratio", "Share of the policy's requests.", labels=_POOL)
    in_flight = GaugeMetricFamily("meritorder_pool_in_flight", "Mean requests in flight.", labels=_POOL)
    slow = GaugeMetricFamily(
        "meritorder_pool_slow_ratio", "Share of the samples that missed the target.", labels=_POOL
    )
    for view in views:
        decision = view.decision
        if decision is None:
            continue
        for report in decision.pools:
            labels = (view.namespace, view.name, report.name)
            for family, value in (
                (limit, report.limit_per_replica),
                (needed, report.needed_replicas),
                (ready, report.ready_replicas),
                (cost, report.cost_per_hour),
                (share, report.share),
                (in_flight, report.mean_in_flight),
                (slow, report.slow_share),
            ):
                if value is not None:
                    family.add_metric(labels, value)
            if not isinstance(decision.cheapest_mix, Missing):
                replicas = decision.cheapest_mix.replicas.get(report.name)
                if replicas is not None:
                    cheapest.add_metric(labels, replicas)
    yield from (limit, needed, cheapest, ready, cost, share, in_flight, slow)
