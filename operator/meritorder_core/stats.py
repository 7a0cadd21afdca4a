"""The little statistics that the decision rests on: error bars on shares, and monotone regression.

A share of slow requests is a count over a count; its error bar is Wilson's interval, which stays honest at
few samples and at shares near 0 where the normal approximation does not. A pool's slow share as a function of
its load can only rise: isotonic regression (pool adjacent violators) is the least-squares fit that respects
it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.96
"""Two-sided 95 %: verdicts."""
Z_CONTRADICTION = 3.0
"""For throwing old evidence away: about one false alarm in 700 looks, where 1.96 would give one in 40."""


class Interval(NamedTuple):
    """A share with its error bar."""

    low: float
    share: float
    high: float


def wilson(slow: float, total: float, *, z: float = Z95, slow_error: float = 0.0) -> Interval:
    """Wilson's interval of slow/total; `slow_error` (half-width of an interpolated count) widens it on both
    sides.

    No samples say nothing: (0, 0, 1).
    """
    if total <= 0:
        return Interval(0.0, 0.0, 1.0)
    slow = min(max(slow, 0.0), total)
    error = max(slow_error, 0.0)
    low = _bound(max(slow - error, 0.0), total, z, -1.0)
    high = _bound(min(slow + error, total), total, z, 1.0)
    return Interval(low, slow / total, high)


def _bound(slow: float, total: float, z: float, sign: float) -> float:
    share = slow / total
    square = z * z / total
    centre = share + square / 2
    half = z * math.sqrt(max(share * (1 - share), 0.0) / total + square / (4 * total))
    return min(max((centre + sign * half) / (1 + square), 0.0), 1.0)


def isotonic(weights: Sequence[float], sums: Sequence[float]) -> list[float]:
    """Fit the never-falling sequence nearest to sums[i]/weights[i], weighted; all weights must be above 0."""
    blocks: list[tuple[float, float, int]] = []
    for weight, total in zip(weights, sums, strict=True):
        size = 1
        while blocks and blocks[-1][1] * weight > total * blocks[-1][0]:
            earlier = blocks.pop()
            weight, total, size = weight + earlier[0], total + earlier[1], size + earlier[2]
        blocks.append((weight, total, size))
    fitted: list[float] = []
    for weight, total, size in blocks:
        fitted.extend([total / weight] * size)
    return fitted
