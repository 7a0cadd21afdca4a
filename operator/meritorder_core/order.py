"""The merit order: cheapest first, the fallback pool last.

`DeclaredPrice` orders by the price of a replica-hour. `MeasuredCost` lets measurement overrule that between
two pools whose limits were both reached with evidence; where they were not, the declared order stands. A
metered pool is compared by the price of this policy's mean request with what the others' requests cost where
that was measured, else it comes last but one. An order once taken changes only past a margin and a dwell
time: prices that jitter must not move traffic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meritorder_api.policy import InferencePolicySpec, MeritOrder

MARGIN = 0.05
DWELL_WINDOWS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What the order of a pool rests on; None: not known."""

    per_replica_hour: float | None = None
    """Dollars; None for metered pools."""
    metered: bool = False
    per_request: float | None = None
    """Dollars per request: at the limit where measured, of the mean request where metered."""


def fallback_of(spec: InferencePolicySpec, prices: Mapping[str, float | None]) -> str:
    """The pool that comes last: named by the spec, else the dearest per replica-hour (metered only if all
    are)."""
    if spec.fallback_pool is not None:
        return spec.fallback_pool
    metered = {pool.name for pool in spec.pools if pool.cost.per_million_tokens is not None}
    names = sorted(pool.name for pool in spec.pools)
    candidates = [name for name in names if name not in metered] or names
    return max(candidates, key=lambda name: (prices.get(name) or 0.0, name))


def merit_order(
    spec: InferencePolicySpec, costs: Mapping[str, Costs], fallback: str, present: Sequence[str]
) -> tuple[str, ...]:
    """The order that costs ask for; `present` is kept where the difference is within the margin."""
    place = {name: i for i, name in enumerate(present)}

    def cheaper(a: str, b: str) -> bool:
        """Whether a must come before b."""
        difference = _difference(costs[a], costs[b], measured=spec.merit_order is MeritOrder.MEASURED_COST)
        if difference is None or abs(difference) <= MARGIN:
            if a in place and b in place:
                return place[a] < place[b]
            if difference:
                return difference < 0
            return _unknown_last(costs[a], a) < _unknown_last(costs[b], b)
        return difference < 0

    ordered: list[str] = []
    for name in sorted(
        (p.name for p in spec.pools if p.name != fallback), key=lambda n: _unknown_last(costs[n], n)
    ):
        at = len(ordered)
        while at > 0 and cheaper(name, ordered[at - 1]):
            at -= 1
        ordered.insert(at, name)
    return (*ordered, fallback)


def _unknown_last(costs: Costs, name: str) -> tuple[int, float, str]:
    if costs.metered:
        return (2, 0.0, name)
    if costs.per_replica_hour is None:
        return (1, 0.0, name)
    return (0, costs.per_replica_hour, name)


def _difference(a: Costs, b: Costs, *, measured: bool) -> float | None:
    """Relative difference of cost, below 0 where a is cheaper; None: they cannot be compared."""
    if (measured or a.metered or b.metered) and a.per_request is not None and b.per_request is not None:
        return _relative(a.per_request, b.per_request)
    if a.metered or b.metered or a.per_replica_hour is None or b.per_replica_hour is None:
        return None
    return _relative(a.per_replica_hour, b.per_replica_hour)


def _relative(a: float, b: float) -> float:
    larger = max(a, b)
    return 0.0 if larger <= 0 else (a - b) / larger
