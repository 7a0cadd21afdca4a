"""Slow counts and percentiles from a histogram's buckets, with the error said.

Buckets are counts of requests at most as slow as their bound. Where the target is a bound the slow count is
exact; between two bounds it is interpolated (on a log scale, as latencies spread), and anything from "the
whole bucket is slow" to "none of it is" could be true: the error is the half-width that covers both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCount:
    """Requests slower than a target."""

    slow: float
    error: float
    """How far the truth may be on either side."""


def slow_count(buckets: Mapping[float, float], target: float) -> SlowCount:
    """Requests slower than `target`; `buckets` are cumulative counts by upper bound, in the target's unit."""
    bounds = sorted(buckets)
    total = buckets.get(math.inf, max(buckets.values(), default=0.0))
    below_bound, below = 0.0, 0.0
    for bound in bounds:
        count = min(max(buckets[bound], below), total)
        if math.isclose(bound, target, rel_tol=1e-9):
            return SlowCount(slow=total - count, error=0.0)
        if bound > target:
            return _between(below_bound, below, bound, count, total, target)
        below_bound, below = bound, count
    return SlowCount(slow=total - below, error=0.0)


def _between(low: float, below: float, high: float, upto: float, total: float, target: float) -> SlowCount:
    inside = upto - below
    if inside <= 0:
        return SlowCount(slow=total - below, error=0.0)
    if math.isinf(high):
        share = 0.0 if low > 0 else 0.5
    elif low > 0:
        share = math.log(target / low) / math.log(high / low)
    else:
        share = target / high
    slow = total - below - inside * share
    return SlowCount(slow=slow, error=max(total - below - slow, slow - (total - upto)))


def percentile(buckets: Mapping[float, float], share: float) -> float | None:
    """The latency that `share` of the requests do not pass; None without requests or beyond the last finite
    bound.
    """
    total = buckets.get(math.inf, max(buckets.values(), default=0.0))
    if total <= 0:
        return None
    rank = total * share
    low, below = 0.0, 0.0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return None
            inside = count - below
            part = (rank - below) / inside if inside > 0 else 1.0
            return float(low * (bound / low) ** part if low > 0 else bound * part)
        low, below = bound, max(below, count)
    return None
