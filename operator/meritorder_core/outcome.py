"""What the decision says: where traffic goes, why, and what everything costs.

A `Decision` carries its reason, its terms and its limits also when it changes nothing. Figures are floats or
None for "not known"; writing them as the API's decimal strings is the status writer's work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meritorder_api.reasons import Action, Reason, Verdict
from meritorder_core.inputs import Missing
from meritorder_core.learned import Learned


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPool:
    """A pool's place in the merit order, and how much it may take."""

    name: str
    limit_per_replica: float | None = None
    """Requests in flight per ready replica, 2 decimals; None: unlimited."""
    class_limits: tuple[tuple[int, float], ...] = ()
    """(most tokens asked, limit per replica), ascending; empty without size classes."""
    weight_percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is routed: pools in merit order, the fallback pool last."""

    pools: tuple[PlannedPool, ...]
    shed: bool = False
    """What no pool takes gets 429."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """What is known of a pool after this pass."""

    name: str
    verdict: Verdict
    reason: str
    """A word of `reasons.Missing` or `reasons.Reason`, or the verdict itself."""
    attained_milliseconds: float | None = None
    slow_share: float | None = None
    slow_share_low: float | None = None
    slow_share_high: float | None = None
    slow_share_error: float | None = None
    samples: int | None = None
    sampled_at: float | None = None
    requests_per_second: float | None = None
    mean_in_flight: float | None = None
    share: float | None = None
    ready_replicas: int | None = None
    needed_replicas: int | None = None
    needed_at_least: bool = False
    limit_per_replica: float | None = None
    """Learned limit, for the fallback pool too."""
    limit_measured: bool = False
    """The limit was reached with evidence (slow samples above it), so that figures "at its limit" are
    measured."""
    price_per_replica_hour: float | None = None
    cost_per_hour: float | None = None
    cost_per_thousand_requests: float | None = None
    cost_per_thousand_at_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionReport:
    """A condition without its clockwork: status is True, False or None for Unknown."""

    status: bool | None
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavingsReport:
    """US dollars per hour against serving everything on the fallback pool (design 4.1)."""

    baseline_pool: str
    baseline_per_hour: float
    realised_per_hour: float
    possible_per_hour: float
    share: float
    """Realised over baseline; may be negative."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MixReport:
    """The replicas whose bill would be least for the recent peak (design 4.1)."""

    replicas: Mapping[str, int]
    per_hour: float
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One pass of the decision."""

    at: float
    """Unix seconds: the `now` of its inputs."""
    action: Action
    reason: Reason
    message: str
    """A sentence with numbers: "l40s p95 2.31 s > 2.00 s over 412 requests: limit 48 -> 31 per replica; h100
    takes 22 %"."""
    plan: Plan
    """What the loop wants routed. With `enforced` False it is a recommendation and the last routing stays."""
    enforced: bool
    fallback_pool: str
    pools: tuple[PoolReport, ...]
    """In merit order."""
    sla_met: ConditionReport
    metrics_available: ConditionReport
    ready_note: ConditionReport
    """What Ready says when nothing else is wrong: AllWell, SLAInfeasible, AllPoolsSaturated,
    MeasuredCostDisagrees ..."""
    savings: SavingsReport | Missing
    cheapest_mix: MixReport | Missing
    cost_per_hour: float | None
    attained_milliseconds: float | None
    learned: Learned
    """The next pass's memory."""
    learned_changed: bool = False
    """A limit, a cool-down or an order changed: must be persisted with the plan. Else evidence only."""
    notes: tuple[tuple[Reason, str], ...] = ()
    """News for people beyond the decision itself, such as MeasuredCostDisagrees with its sentence."""
    terms: Mapping[str, object] = field(default_factory=dict)
    """Every term of the decision, for the log line."""
