"""From limits to a plan: what is routed, with the postures of the spec.

A posture changes what is planned and never what was learned: when it no longer acts, traffic goes back to
where it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meritorder_api.policy import OnMissingMetrics, WhenInfeasible, WhenSaturated
from meritorder_core.evidence import effective
from meritorder_core.learned import PoolMemory
from meritorder_core.outcome import Plan, PlannedPool

WEIGHT_STEP = 5
_WEIGHT_MARGIN = 7.5
"""A weight moves only past this many points: it follows the load, and the routing must be at rest when the
load is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the postures act on."""

    absent: frozenset[str]
    """Pools whose metrics are missing."""
    infeasible: bool
    """No pool meets the SLA at its minimum."""
    on_missing: OnMissingMetrics
    when_infeasible: WhenInfeasible
    when_saturated: WhenSaturated

    @property
    def sheds(self) -> bool:
        return self.when_saturated is WhenSaturated.SHED or (
            self.infeasible and self.when_infeasible is WhenInfeasible.SHED
        )


def make_plan(
    order: tuple[str, ...],
    memories: Mapping[str, PoolMemory],
    situation: Situation,
    *,
    in_flight: float | None,
    current: Plan | None,
) -> Plan:
    """Plan the learned limits in merit order; `in_flight` is the policy's mean over the last window."""
    pools = [_planned(name, memories[name]) for name in order[:-1]]
    last = _planned(order[-1], memories[order[-1]])
    if not _fallback_is_limited(memories[order[-1]], situation, current):
        last = PlannedPool(name=last.name)
    if situation.on_missing is OnMissingMetrics.SAFEST:
        pools = [_closed(pool) if pool.name in situation.absent else pool for pool in pools]
    if situation.infeasible and situation.when_infeasible is WhenInfeasible.HOLD and current is not None:
        held = {pool.name: pool for pool in current.pools}
        pools = [_held(pool, held.get(pool.name)) for pool in pools]
    weighted = _weights([*pools, last], memories, in_flight, current)
    return Plan(pools=tuple(weighted), shed=situation.sheds)


def _planned(name: str, memory: PoolMemory) -> PlannedPool:
    classes = tuple((size, memory.classes[size].limit) for size in sorted(memory.classes))
    return PlannedPool(name=name, limit_per_replica=memory.main.limit, class_limits=classes)


def _fallback_is_limited(memory: PoolMemory, situation: Situation, current: Plan | None) -> bool:
    """The last resort is unlimited, except where the spec would rather shed, and only once its limit is
    known."""
    if not situation.sheds:
        return False
    was = (
        current is not None and current.pools[-1].limit_per_replica is not None
        if current and current.pools
        else False
    )
    return was or memory.main.edge_seen or situation.infeasible


def _closed(pool: PlannedPool) -> PlannedPool:
    return replace(
        pool, limit_per_replica=0.0, class_limits=tuple((size, 0.0) for size, _ in pool.class_limits)
    )


def _held(pool: PlannedPool, before: PlannedPool | None) -> PlannedPool:
    """What was routed stays, where it would now be drained."""
    if before is None or before.limit_per_replica is None or pool.limit_per_replica != 0.0:
        return pool
    return replace(pool, limit_per_replica=before.limit_per_replica)


def _weights(
    pools: list[PlannedPool],
    memories: Mapping[str, PoolMemory],
    in_flight: float | None,
    current: Plan | None,
) -> list[PlannedPool]:
    """Shares for where limits cannot be split among agents: fill by limits, in merit order, to multiples of
    5."""
    before = {pool.name: pool for pool in current.pools} if current is not None else {}
    left = 100
    weighted: list[PlannedPool] = []
    for pool in pools[:-1]:
        ready = memories[pool.name].ready
        limit = _widest(pool)
        weight = 0
        if limit > 0 and ready:
            room = effective(limit, ready) * ready
            exact = 100.0 if not in_flight else min(100.0 * room / in_flight, 100.0)
            was = before.get(pool.name)
            kept = was.weight_percent if was is not None else None
            weight = round(exact / WEIGHT_STEP) * WEIGHT_STEP
            if kept and abs(exact - kept) <= _WEIGHT_MARGIN:
                weight = kept
            weight = min(weight, left)
        left -= weight
        weighted.append(replace(pool, weight_percent=weight))
    return [*weighted, replace(pools[-1], weight_percent=left)]


def _widest(pool: PlannedPool) -> float:
    return max([pool.limit_per_replica or 0.0, *(limit for _, limit in pool.class_limits)])


def same_routing(a: Plan | None, b: Plan) -> bool:
    """Whether two plans route alike: weights aside."""
    if a is None or a.shed != b.shed or len(a.pools) != len(b.pools):
        return False
    return all(
        (x.name, x.limit_per_replica, x.class_limits) == (y.name, y.limit_per_replica, y.class_limits)
        for x, y in zip(a.pools, b.pools, strict=True)
    )
