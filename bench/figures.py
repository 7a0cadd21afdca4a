"""The few statistics that the benchmarks report. Pure."""

import math
from collections.abc import Mapping, Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of the values (0 to 1) does not exceed, interpolated between neighbours."""
    if not values:
        raise ValueError("no values, no quantile")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be from 0 to 1")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median, p90 and the extremes."""
    return {
        "median": round(quantile(values, 0.5), digits),
        "p90": round(quantile(values, 0.9), digits),
        "minimum": round(min(values), digits),
        "maximum": round(max(values), digits),
    }


def grown(
    before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """By how much counters grew, those that did; one that was not there began at 0."""
    return {
        key: value - before.get(key, 0) for key, value in sorted(after.items()) if value > before.get(key, 0)
    }
