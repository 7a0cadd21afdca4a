"""What everything costs, said honestly: figures are measured, marked "at least", or absent.

A pool's bill is its ready replicas times their price, used or not. What a request costs *at the pool's limit*
comes from the curve: by Little's law a replica with `limit` requests in flight that last `seconds` each
completes limit / seconds of them per second. Never from a declared maximum. A pool that was never driven to
its limit counts with the largest load at which it was seen to meet the SLA, and says so.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from meritorder_core import curve
from meritorder_core.inputs import Missing, PerMillionTokens, Price, ReplicaHour
from meritorder_core.learned import Block, Edge, LimitMemory, Peak, PoolMemory

HEADROOM = 1.1
PEAK_WINDOWS = 60
_BLOCK_WINDOWS = 5
"""The peak is remembered per stretch of so many windows: 13 numbers instead of 60."""
ENOUGH_AT_LIMIT = 12.0
SAME_EDGE = 1.25
"""A limit that moved by no more than this is still the one that was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a replica carries within the SLA."""

    load: float
    """Requests in flight per replica."""
    rate: float
    """Requests per second that a replica completes at that load."""
    measured: bool
    """Reached with evidence; else "at least"."""


def capacity(memory: PoolMemory) -> Capacity | None:
    """What a replica of the pool was seen to carry; None: nothing was seen."""
    limit = _widest(memory)
    edge = known_edge(memory)
    if edge is not None:
        return Capacity(load=limit.limit, rate=limit.limit / edge.seconds, measured=True)
    if limit.met_load > 0 and limit.met_seconds > 0:
        return Capacity(load=limit.met_load, rate=limit.met_load / limit.met_seconds, measured=False)
    return None


def known_edge(memory: PoolMemory) -> Edge | None:
    """What requests take at the pool's limit: by the curve where it still holds enough, else as remembered.

    Evidence fades, also that of a pool that gets no traffic because another one is cheaper: without a memory
    the order would rest on measurement only until it had acted on it. What is remembered of another limit, or
    of before a recovery, says nothing.
    """
    limit = _widest(memory)
    if not limit.edge_seen or limit.limit <= 0:
        return None
    # The bucket of the limit itself may hold little yet, right after a step.
    total, seconds = _near(memory, limit.limit / curve.BUCKET)
    if total >= ENOUGH_AT_LIMIT and seconds > 0:
        return Edge(limit.limit, seconds / total)
    known = memory.edge
    if known is None or known.seconds <= 0:
        return None
    alike = known.load / SAME_EDGE <= limit.limit <= known.load * SAME_EDGE
    return known if alike else None


def _near(memory: PoolMemory, load: float) -> tuple[float, float]:
    """Requests seen near a load and their seconds. Size classes share the pool's load, so that they add up to
    its mix."""
    total = seconds = 0.0
    for limit in (memory.main, *memory.classes.values()):
        cell = curve.near(limit.curve, limit.looks, load, reach=2)
        total, seconds = total + cell.total, seconds + cell.seconds
    return total, seconds


def _widest(memory: PoolMemory) -> LimitMemory:
    """The limit up to which the pool is filled: with size classes, the widest of those that have traffic."""
    used = [limit for limit in memory.classes.values() if limit.curve or limit.looks]
    return max([memory.main, *used], key=lambda limit: limit.limit) if used else memory.main


def remember_peak(peak: Peak, value: float, *, now: float, window: float) -> Peak:
    """The peak's memory with one more mean over a window."""
    number = math.floor(now / (_BLOCK_WINDOWS * window))
    oldest = number - PEAK_WINDOWS // _BLOCK_WINDOWS
    kept = [block for block in peak if oldest <= block.number <= number]
    if kept and kept[-1].number == number:
        kept[-1] = Block(number, max(kept[-1].highest, value))
    else:
        kept.append(Block(number, value))
    return tuple(kept)


def highest(peak: Peak) -> float | None:
    """The highest mean over one window in the last 60; None: none was seen."""
    return max((block.highest for block in peak), default=None)


def needed_replicas(memory: PoolMemory, seen: Capacity | None, *, fallback: bool) -> tuple[int | None, bool]:
    """Replicas that the recent peak needs, and whether fewer might do ("at least" was all that was seen).

    The last resort always needs one. A pool that was cut deep is reckoned at its former limit until its new
    edge is found: an autoscaler that follows must not multiply a pool because it is slow for a minute.
    """
    least = 1 if fallback else 0
    peak = highest(memory.peak)
    if peak is None:
        return None, False
    if peak <= 0:
        return least, False
    if seen is None:
        return None, False
    load = max(seen.load, _widest(memory).former)
    return max(ceiling(HEADROOM * peak / load), least), not seen.measured


def ceiling(value: float) -> int:
    """Round up, forgiving the dust of floating point."""
    return math.ceil(value - 1e-9)


def request_price(price: PerMillionTokens, prompt_tokens: float, completion_tokens: float) -> float | None:
    """Dollars for a mean request at a metered provider; None: the mean request is not known."""
    if prompt_tokens <= 0 and completion_tokens <= 0:
        return None
    return (price.input * prompt_tokens + price.output * completion_tokens) / 1e6


def per_thousand_at_limit(
    price: Price, seen: Capacity | None, mean_request: tuple[float, float]
) -> float | None:
    """Dollars per 1,000 requests of a replica filled to its limit; None: not measured."""
    if isinstance(price, PerMillionTokens):
        each = request_price(price, *mean_request)
        return None if each is None else each * 1000
    if isinstance(price, Missing) or seen is None or not seen.measured or seen.rate <= 0:
        return None
    return price.dollars / (seen.rate * 3600) * 1000


def bill(price: Price, replicas: int | None, rate: float, mean_request: tuple[float, float]) -> float | None:
    """Dollars per hour for so many replicas, or for the tokens of `rate` requests per second."""
    if isinstance(price, ReplicaHour):
        return None if replicas is None else replicas * price.dollars
    if isinstance(price, PerMillionTokens):
        if rate <= 0:
            return 0.0
        each = request_price(price, *mean_request)
        return None if each is None else rate * 3600 * each
    return None


def total(parts: Iterable[float | None]) -> float | None:
    """Sum; not known if one part is not."""
    result = 0.0
    for part in parts:
        if part is None:
            return None
        result += part
    return result
