"""How the agents of a policy share each pool's in-flight limit: exact slices, or a split by weight with a
guard.

A pure function of limits and merged reports, so that any number of servers with the same reports hand out
slices that add up to the limit exactly. Terms:

- *held*: what an agent may be enforcing of a pool's limit: the slice it reported, or a larger one that was
  handed to it and that it has not acknowledged. A slice grows only out of what nobody holds, so a shrunk
  slice is acknowledged before what it frees is given away.
- *silent*: not heard of for 15 s. It loses its share and keeps serving: what it holds is the possible excess.
- *missing*: an agent that was there before this server started and that it has not heard of yet: its share
  waits.

The memory that keeps slices calm is in the reports themselves (`held`): while everyone's slice is near
enough to what its load asks for, the slices stay as they are. So two servers need to agree on nothing but
the reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isqrt
from typing import Final

from meritorder_api.table import Fill

FILL_FROM: Final = 8
"""Requests in flight per agent from which limits can be filled: below, an agent's chance bursts waste its
slice.
"""
FILL_UNTIL: Final = 6
"""Back to splitting by weight only below this."""
CALM: Final = 4
"""A slice within a quarter of what its load asks for stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimit:
    """What all agents together may have in flight to a pool."""

    pool: str
    limit: int | None
    """Absent: unlimited."""
    classes: tuple[tuple[int, int], ...] = ()
    """(maxTokens, limit) in order."""
    weight_percent: int | None = None

    @property
    def ceiling(self) -> int | None:
        """The most that any request may find in flight and still enter."""
        return None if self.limit is None else max([self.limit, *(limit for _, limit in self.classes)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What is known of an agent that matters for its share."""

    uid: str
    load: float = 0.0
    """Mean requests in flight over all pools."""
    held: Mapping[str, int] = field(default_factory=dict)
    """Largest slice per pool that it may be enforcing; a pool that it does not know is absent."""
    silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSlice:
    """One agent's part of a pool's limits."""

    limit: int | None
    classes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who gets what."""

    fill: Fill
    slices: Mapping[str, Mapping[str, PoolSlice]]
    """By agent and pool; silent agents are not in it."""
    excess: Mapping[str, int]
    """Requests in flight per pool that silent agents may add beyond its limit."""


def share_out(
    limits: Sequence[PoolLimit], agents: Sequence[Agent], *, previous: Fill | None, missing: int = 0
) -> Shares:
    """Share each limit among the live agents. `previous` is how it was last shared (for the hysteresis)."""
    live = sorted((agent for agent in agents if not agent.silent), key=lambda agent: agent.uid)
    fill = fill_or_split(limits, len(live) + missing, previous)
    slices: dict[str, dict[str, PoolSlice]] = {agent.uid: {} for agent in live}
    excess: dict[str, int] = {}
    for pool in limits:
        parts = _parts(pool, live, fill, missing)
        for agent in live:
            slices[agent.uid][pool.pool] = parts[agent.uid]
        beyond = sum(agent.held.get(pool.pool, 0) for agent in agents if agent.silent)
        if pool.limit is not None and beyond:
            excess[pool.pool] = beyond
    return Shares(fill=fill, slices=slices, excess=excess)


def fill_or_split(limits: Sequence[PoolLimit], agents: int, previous: Fill | None) -> Fill:
    """Fill when each limited pool has at least 8 per agent, or still 6 where it was Fill; drained pools do
    not count.
    """
    ceilings = [pool.ceiling for pool in limits if pool.ceiling]
    least = FILL_UNTIL if previous is Fill.FILL else FILL_FROM
    enough = all(ceiling is not None and ceiling >= least * max(1, agents) for ceiling in ceilings)
    return Fill.FILL if enough else Fill.SPLIT


def _parts(pool: PoolLimit, live: Sequence[Agent], fill: Fill, missing: int) -> dict[str, PoolSlice]:
    if pool.limit is None:
        return {agent.uid: PoolSlice(limit=None) for agent in live}
    limit = pool.limit
    loads = {agent.uid: agent.load for agent in live}
    wanted = targets(limit, loads, missing)
    by_class: list[tuple[int, Mapping[str, int]]]
    if fill is Fill.SPLIT and pool.weight_percent is not None:
        given = {uid: guard(part, limit) for uid, part in wanted.items()}
        by_class = [
            (size, {uid: guard(part, most) for uid, part in targets(most, loads, missing).items()})
            for size, most in pool.classes
        ]
    else:
        held = {agent.uid: agent.held.get(pool.pool) for agent in live}
        given = split(limit, wanted, held, missing)
        if limit:
            # What is not given away yet of the pool is not given away of a class either.
            weights = {**given, "": max(0, limit - sum(given.values()))}
            by_class = [(size, apportion(most, weights)) for size, most in pool.classes]
        else:
            by_class = [(size, targets(most, loads, missing)) for size, most in pool.classes]
    return {
        uid: PoolSlice(limit=part, classes=tuple((size, parts[uid]) for size, parts in by_class))
        for uid, part in given.items()
    }


def guard(part: int, limit: int) -> int:
    """Where weights hold the mean: the most an agent may have in flight, its part and a chance burst (one
    sigma).
    """
    if limit == 0:
        return 0
    return max(1, part + ceil_root(part))


def ceil_root(value: int) -> int:
    """The square root, rounded up."""
    root = isqrt(value)
    return root if root * root == value else root + 1


def targets(limit: int, loads: Mapping[str, float], missing: int = 0) -> dict[str, int]:
    """The exact slices that the loads ask for; they and what is set aside for `missing` agents add up to
    the limit.

    Each gets a floor: an equal share where that is less than 8, else 8 or a quarter of an equal share. The
    rest follows the load, plus one request, so that an agent at rest can begin.
    """
    if not loads:
        return {}
    count = len(loads) + missing
    aside = ceil(limit * missing / count)
    equal = (limit - aside) // len(loads)
    floor = min(equal, max(FILL_FROM, equal // 4))
    rest = limit - aside - floor * len(loads)
    if equal < FILL_FROM:
        weights = dict.fromkeys(loads, 1)
    else:
        weights = {uid: max(0, round((load + 1) * 100)) for uid, load in loads.items()}
    return {uid: floor + part for uid, part in apportion(rest, weights).items()}


def split(
    limit: int, wanted: Mapping[str, int], held: Mapping[str, int | None], missing: int = 0
) -> dict[str, int]:
    """The slices to hand out now on the way from what is held to what is wanted.

    Each is at most what is held, or grows out of what nobody holds; near enough to what is wanted, it stays.
    """
    holding = {uid: held.get(uid) or 0 for uid in wanted}
    total = sum(holding.values())
    if missing and total <= limit:
        # Do not take from anyone on the word of a few: the others are about to report.
        newcomers = {uid: part for uid, part in wanted.items() if held.get(uid) is None}
        free = limit - total - ceil(limit * missing / (len(wanted) + missing))
        return {**holding, **_grow(newcomers, free)}
    if not missing and total == limit and all(held.get(uid) is not None for uid in wanted):
        least = min(wanted.values(), default=0)
        if all(
            abs(wanted[uid] - have) <= max(1, have // CALM) and have >= min(least, FILL_FROM)
            for uid, have in holding.items()
        ):
            return holding
    more = {uid: max(0, part - holding[uid]) for uid, part in wanted.items()}
    aside = limit - sum(wanted.values())
    grown = _grow(more, limit - total - aside)
    return {uid: min(part, holding[uid]) + grown[uid] for uid, part in wanted.items()}


def _grow(more: Mapping[str, int], free: int) -> dict[str, int]:
    """As much of what is asked for as is free."""
    if sum(more.values()) <= free:
        return dict(more)
    return apportion(max(0, free), more)


def apportion(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Divide a total by integer weights, exactly: largest remainders, ties by name. No weight at all:
    equally.
    """
    if not weights:
        return {}
    whole = sum(weights.values())
    if whole == 0:
        weights, whole = dict.fromkeys(weights, 1), len(weights)
    parts = {uid: total * weight // whole for uid, weight in weights.items()}
    left = total - sum(parts.values())
    by_remainder = sorted(weights, key=lambda uid: (-(total * weights[uid] % whole), uid))
    for uid in by_remainder[:left]:
        parts[uid] += 1
    return parts
