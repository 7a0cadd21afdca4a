"""The capacity curve: slow share as a function of load that can only rise.

Load is mean requests in flight per ready replica. Evidence is counted in geometric buckets of it, 4 % wide:
fine enough that one bucket decides little, coarse enough that a few hundred requests fill one. Old evidence
fades, by half every 10 windows, so a slow drift of the pool is followed; a sudden one is not waited for
(`limits` throws the evidence away).

A curve is an immutable mapping from bucket to `Cell`; every function returns a new one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from meritorder_core.learned import Cell, Curve, Look
from meritorder_core.stats import isotonic, wilson

BUCKET = 1.04
HALF_LIFE_WINDOWS = 10.0
SAFE_PART = 0.6
"""Part of the allowed slow share that a limit may use: 3 % of 5 %. The rest is for bursts and for other
pools."""
_LEAST_LOAD = 0.02
_LEAST_TOTAL = 0.05
"""Fainter evidence is dropped: it decides nothing and would make the state grow."""
_LOG = math.log(BUCKET)


def bucket_of(load: float) -> int:
    """Number of the bucket that holds `load`."""
    return math.floor(math.log(load if load > _LEAST_LOAD else _LEAST_LOAD) / _LOG + 1e-9)


def lower_edge(bucket: int) -> float:
    """Smallest load of the bucket."""
    return math.exp(bucket * _LOG)


def add(curve: Curve, looks: Iterable[Look]) -> dict[int, Cell]:
    """The curve with these intervals' evidence."""
    cells = dict(curve)
    for look in looks:
        bucket = bucket_of(look.load)
        old = cells.get(bucket)
        if old is None:
            cells[bucket] = Cell(look.total, look.slow, look.seconds, look.tokens)
        else:
            cells[bucket] = Cell(
                old.total + look.total,
                old.slow + look.slow,
                old.seconds + look.seconds,
                old.tokens + look.tokens,
            )
    return cells


def fade(curve: Curve, factor: float, *, above: float = 0.0) -> dict[int, Cell]:
    """The curve with the evidence at loads of at least `above` multiplied by `factor`."""
    first = bucket_of(above) if above > 0 else -(10**9)
    cells: dict[int, Cell] = {}
    for bucket, cell in curve.items():
        if bucket < first:
            cells[bucket] = cell
        elif cell[0] * factor >= _LEAST_TOTAL:
            cells[bucket] = Cell(cell[0] * factor, cell[1] * factor, cell[2] * factor, cell[3] * factor)
    return cells


def aging(seconds: float, window: float) -> float:
    """What is left of evidence after so many seconds."""
    return float(0.5 ** (max(seconds, 0.0) / (HALF_LIFE_WINDOWS * window)))


@dataclass(frozen=True, slots=True)
class Fit:
    """A curve, fitted: parallel sequences over the buckets that have evidence, ascending."""

    buckets: tuple[int, ...]
    totals: tuple[float, ...]
    slows: tuple[float, ...]
    shares: tuple[float, ...]
    """Isotonic: never falling."""

    def share_at(self, load: float) -> float | None:
        """Fitted slow share at a load: that of the nearest evidence at or below it; None above nothing."""
        here = bucket_of(load)
        found: float | None = None
        for bucket, share in zip(self.buckets, self.shares, strict=True):
            if bucket > here:
                break
            found = share
        return found

    def evidence_from(self, load: float) -> float:
        """Requests seen at this load or at a higher one."""
        first = bucket_of(load)
        return sum(total for b, total in zip(self.buckets, self.totals, strict=True) if b >= first)

    def bad_from(self, safe: float, *, least_slow: float = 1.5) -> int | None:
        """The first bucket from which on the fitted share is over `safe`; None: no such evidence.

        One slow request proves nothing about a bucket: `least_slow` of them must be at it or above.
        """
        for i, share in enumerate(self.shares):
            if share > safe:
                return self.buckets[i] if sum(self.slows[i:]) >= least_slow else None
        return None

    def surely_bad_at(self, load: float, safe: float, z: float) -> bool:
        """Whether the share at `load` is over `safe` beyond chance, by the run of equal fit that it is in."""
        here = bucket_of(load)
        chosen: float | None = self.share_at(load)
        if chosen is None or chosen <= safe:
            return False
        total = slow = 0.0
        for i, bucket in enumerate(self.buckets):
            if bucket <= here and self.shares[i] > safe:
                total += self.totals[i]
                slow += self.slows[i]
        return wilson(slow, total, z=z).low > safe

    def good_below(self, bucket: int, safe: float, least: float) -> float | None:
        """Upper edge of the highest evidence below `bucket` that is under `safe` and rests on `least`
        requests."""
        seen = 0.0
        top: int | None = None
        for b, total, share in zip(self.buckets, self.totals, self.shares, strict=True):
            if b >= bucket or share > safe:
                break
            seen += total
            top = b
        return lower_edge(top + 1) if top is not None and seen >= least else None


def fit(curve: Curve) -> Fit:
    """Fit the never-falling slow share to a curve."""
    buckets = sorted(bucket for bucket, cell in curve.items() if cell[0] > 0)
    totals = [curve[bucket][0] for bucket in buckets]
    slows = [curve[bucket][1] for bucket in buckets]
    return Fit(tuple(buckets), tuple(totals), tuple(slows), tuple(isotonic(totals, slows)))


def near(curve: Curve, looks: Iterable[Look], load: float, *, reach: int) -> Cell:
    """Evidence within `reach` buckets of a load, summed."""
    here = bucket_of(load)
    total = slow = seconds = tokens = 0.0
    for bucket in range(here - reach, here + reach + 1):
        cell = curve.get(bucket)
        if cell is not None:
            total, slow = total + cell[0], slow + cell[1]
            seconds, tokens = seconds + cell[2], tokens + cell[3]
    low, high = lower_edge(here - reach), lower_edge(here + reach + 1)
    for look in looks:
        if low <= look.load < high:
            total, slow = total + look.total, slow + look.slow
            seconds, tokens = seconds + look.seconds, tokens + look.tokens
    return Cell(total, slow, seconds, tokens)
