"""What the clients saw: outcomes of requests, read from the load process's file and summed over stretches
of time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request as its client saw it; times in seconds, `sent` since the epoch."""

    kind: str
    sent: float
    seconds: float
    ok: bool
    pool: str | None
    error: str | None

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


class Results:
    """Follows the load process's file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = ""
        self._all: list[Outcome] = []

    def read(self) -> Sequence[Outcome]:
        """Return everything that has ended so far."""
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            text = self._rest + file.read()
            self._offset = file.tell()
        *lines, self._rest = text.split("\n")
        for line in lines:
            record = json.loads(line)
            del record["url"]
            self._all.append(Outcome(**record))
        return self._all

    def ended_between(self, start: float, end: float) -> list[Outcome]:
        """Return what ended in this stretch."""
        return [outcome for outcome in self.read() if start <= outcome.ended < end]

    def sent_between(self, start: float, end: float) -> list[Outcome]:
        """Return what was sent in this stretch and has ended."""
        return [outcome for outcome in self.read() if start <= outcome.sent < end]


def shares(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Return each pool's share of what was answered."""
    counted = Counter(outcome.pool for outcome in outcomes if outcome.ok and outcome.pool)
    total = sum(counted.values())
    return {pool: count / total for pool, count in counted.items()} if total else {}


def share(outcomes: Iterable[Outcome], pool: str) -> float:
    return shares(outcomes).get(pool, 0.0)


def quantile_seconds(outcomes: Iterable[Outcome], q: float) -> float:
    """Return the q-quantile of the answered requests' times (nearest rank); 0 when there are none."""
    times = sorted(outcome.seconds for outcome in outcomes if outcome.ok)
    return times[min(len(times) - 1, int(q * len(times)))] if times else 0.0


def slow_share(outcomes: Sequence[Outcome], target_seconds: float) -> float:
    """Return the share that was slower than the target or failed."""
    if not outcomes:
        return 0.0
    return sum(not o.ok or o.seconds > target_seconds for o in outcomes) / len(outcomes)


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.ok]


def first_moment_below(outcomes: Iterable[Outcome], pool: str, bound: float, *, since: float) -> float:
    """Return the first moment from which, for 2 s, less than `bound` of what was sent went to the pool."""
    sent = sorted((outcome for outcome in outcomes if outcome.sent >= since), key=lambda o: o.sent)
    moment = since
    while sent and moment + 2 <= sent[-1].sent:
        stretch = [o for o in sent if moment <= o.sent < moment + 2]
        if stretch and sum(o.pool == pool for o in stretch) / len(stretch) < bound:
            return moment
        moment += 0.5
    return math.inf
