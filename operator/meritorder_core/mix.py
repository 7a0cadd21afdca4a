"""The cheapest mix: which replicas would carry the recent peak at the least bill.

Unit commitment, to stay with the power grid, without its start-up costs: integer replicas n_i >= 0 with sum
n_i x rate_i >= demand and the least sum n_i x price_i; among equal bills the mix nearest to what runs
already. Exact, by depth-first search over the pools in order of price per rate, with the fractional solution
as the bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_TIES = 20_000
"""After so many visited nodes equal bills are no longer compared: the bill stays exact, the tie-break may
not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A pool as the search sees it."""

    name: str
    price: float
    """Per replica and hour."""
    rate: float
    """Requests per second that a replica completes at its limit; above 0."""
    running: int = 0


@dataclass(slots=True)
class _Best:
    cost: float
    distance: int
    counts: tuple[int, ...]


def cheapest_mix(units: Sequence[Unit], demand: float) -> dict[str, int]:
    """Return the replicas per pool whose bill is least; empty if there is no pool."""
    ordered = sorted(units, key=lambda unit: (unit.price / unit.rate, -unit.rate, unit.name))
    if not ordered:
        return {}
    if demand <= 0:
        return {unit.name: 0 for unit in sorted(units, key=lambda unit: unit.name)}
    scale = max(max(unit.price for unit in ordered), 1e-12)
    best = _Best(math.inf, 0, ())
    visited = 0

    def search(index: int, left: float, cost: float, distance: int, counts: tuple[int, ...]) -> None:
        nonlocal visited
        visited += 1
        unit = ordered[index]
        enough = max(math.ceil(left / unit.rate - 1e-9), 0)
        if index == len(ordered) - 1:
            _offer(
                cost + enough * unit.price / scale, distance + abs(enough - unit.running), (*counts, enough)
            )
            return
        following = ordered[index + 1]
        bound_rate = following.price / scale / following.rate
        # Fullest first: the fractional solution fills the most efficient pool, the integer one is near it.
        for count in range(enough, -1, -1):
            rest = left - count * unit.rate
            here = cost + count * unit.price / scale
            bound = here + max(rest, 0.0) * bound_rate
            if bound > best.cost + 1e-9 or (visited > _TIES and bound >= best.cost - 1e-9):
                if rest > 0:
                    break  # the bound only grows as the more efficient pool is used less
                continue
            search(index + 1, max(rest, 0.0), here, distance + abs(count - unit.running), (*counts, count))

    def _offer(cost: float, distance: int, counts: tuple[int, ...]) -> None:
        if cost < best.cost - 1e-9 or (cost <= best.cost + 1e-9 and distance < best.distance):
            best.cost, best.distance, best.counts = cost, distance, counts

    search(0, demand, 0.0, 0, ())
    return {
        unit.name: count
        for unit, count in sorted(zip(ordered, best.counts, strict=True), key=lambda x: x[0].name)
    }
