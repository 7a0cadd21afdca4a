"""Turn what cannot be into what is not known, before anything is computed from it.

A NaN, an infinity or a negative count that slips through a query must become `Missing(NotANumber)` here:
further in it would be a comparison that is silently false.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from meritorder_api import reasons
from meritorder_core.inputs import (
    Counts,
    Inputs,
    Missing,
    Observation,
    PerMillionTokens,
    PoolInputs,
    Price,
    ReplicaHour,
)

_MOST = 1e12
"""No count, time or amount of ours is larger; sums and products of such numbers stay finite."""
_MOST_REPLICAS = 1_000_000
MOST_CLASSES = 16


def sane(inputs: Inputs) -> Inputs:
    """The same inputs, with what is no number said to be missing."""
    client = inputs.client
    if isinstance(client, Counts) and not _counts_ok(client):
        client = _not_a_number("the clients' counts are no numbers")
    attained = inputs.client_attained_milliseconds
    return replace(
        inputs,
        now=_number(inputs.now),
        client=client,
        client_attained_milliseconds=attained if attained is not None and _ok((attained,)) else None,
        effective_interval_seconds=max(_number(inputs.effective_interval_seconds), 0.1),
        pools={name: _pool(name, pool, _number(inputs.now)) for name, pool in inputs.pools.items()},
    )


def _pool(name: str, pool: PoolInputs, now: float) -> PoolInputs:
    seen, price, ready = (
        _observation(name, pool.observation, now),
        _price(name, pool.price),
        pool.ready_replicas,
    )
    known = None if ready is None else min(max(ready, 0), _MOST_REPLICAS)
    if seen is pool.observation and price is pool.price and known == ready:
        return pool
    return PoolInputs(observation=seen, price=price, ready_replicas=known)


def _observation(name: str, seen: Observation, now: float) -> Observation:
    if isinstance(seen, Missing):
        return seen
    counts = (seen.window, seen.recent, *seen.classes.values())
    if not math.isfinite(seen.at) or not all(_counts_ok(each) for each in counts):
        return _not_a_number(f"the counts of {name} are no numbers")
    in_flight, attained = _maybe(seen.in_flight), _maybe(seen.attained_milliseconds)
    as_was = (in_flight, attained) == (seen.in_flight, seen.attained_milliseconds)
    if as_was and seen.at <= now and len(seen.classes) <= MOST_CLASSES:
        return seen
    largest = sorted(seen.classes, key=lambda size: (-seen.classes[size].total, size))[:MOST_CLASSES]
    return replace(
        seen,
        at=min(seen.at, now),
        in_flight=in_flight,
        attained_milliseconds=attained,
        classes={size: seen.classes[size] for size in sorted(largest)},
    )


def _counts_ok(counts: Counts) -> bool:
    tokens = [value for value in (counts.prompt_tokens, counts.completion_tokens) if value is not None]
    return _ok(
        (counts.seconds, counts.total, counts.slow, counts.latency_sum_seconds, counts.slow_error, *tokens)
    )


def _price(name: str, price: Price) -> Price:
    if isinstance(price, ReplicaHour) and not _ok((price.dollars,)):
        return _no_price(name)
    if isinstance(price, PerMillionTokens) and not _ok((price.input, price.output)):
        return _no_price(name)
    return price


def _ok(values: Iterable[float]) -> bool:
    """Whether all are amounts; a NaN fails every comparison."""
    return all(0.0 <= value <= _MOST for value in values)


def _maybe(value: float | None) -> float | None:
    return value if value is not None and _ok((value,)) else None


def _number(value: float) -> float:
    return min(max(value, -_MOST), _MOST) if math.isfinite(value) else 0.0


def _not_a_number(message: str) -> Missing:
    return Missing(reason=reasons.Missing.NOT_A_NUMBER, message=message)


def _no_price(name: str) -> Missing:
    return Missing(reason=reasons.Missing.NO_PRICE, message=f"the price of {name} is no number")
