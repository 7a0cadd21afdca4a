"""A group of queries that together fill tracks, asked in steps that follow one another without gap or
overlap.

All that share a server and a preset share a feed: one step asks each of its queries once, for all keys, and
whoever asks within the same step finds it done. A step that failed is not lost: the next one asks for both,
as a range. A key that is new is filled with its last 10 windows first, so a restarted operator judges as
before.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from meritorder_operator.prometheus.client import PrometheusClient, QueryError, Row
from meritorder_operator.prometheus.queries import Match, Query, Signal
from meritorder_operator.prometheus.track import Track

Key = tuple[str, ...]

LAG_SECONDS: Final = 0.5
"""A step ends this long before it is asked for: a scrape is stored when it is done, with the time at which it
began, and what is stored after its step was asked for is not counted."""
MOST_STEPS: Final = 60
"""Steps asked for at once after an outage; a longer one is cut into this many longer steps."""
BACKFILL_STEPS_PER_WINDOW: Final = 4
FORGET_SECONDS: Final = 600.0
NAMED_KEYS: Final = 64
"""Up to so many keys are named in the matchers; beyond, all are asked for."""

TIMING: Final = (Signal.AT, Signal.COVERED, Signal.SCRAPES, Signal.UNCOUNTED)
"""Signals of a key as a whole, which count at 0 too."""


@dataclass(slots=True)
class Want:
    """What is wanted of a key."""

    reach: float
    interval: float
    asked_at: float


class Feed:
    """Keeps the tracks of its keys up to date."""

    def __init__(
        self,
        client: PrometheusClient,
        queries: tuple[Query, ...],
        by: tuple[str, ...],
        match: Callable[[tuple[Key, ...]], Match],
        *,
        lag_seconds: float = LAG_SECONDS,
    ) -> None:
        self.queries = queries
        self.by = by
        self.tracks: dict[Key, Track] = {}
        self.error: QueryError | None = None
        self.failures = 0
        """Steps that failed in a row."""
        self._client = client
        self._match = match
        self._lag = lag_seconds
        self.step = 5.0
        """Length of a step in seconds: the shortest interval that anyone wants."""
        self._wanted: dict[Key, Want] = {}
        self._fresh: set[Key] = set()
        """Wanted keys that have no track yet."""
        self._last_end: float | None = None
        self._busy = asyncio.Lock()
        self._failed_at = -math.inf

    def want(self, key: Key, *, reach: float, interval: float, now: float) -> None:
        """Say that a key is needed, with windows of `reach` seconds, every `interval` seconds."""
        before = self._wanted.get(key)
        if before is not None and before.reach == reach and before.interval == interval:
            before.asked_at = now
            return
        self._wanted[key] = Want(reach, interval, now)
        self._set_step()
        track = self.tracks.get(key)
        if track is None:
            self._fresh.add(key)
        elif track.reach < reach:
            track.reach = reach

    def _set_step(self) -> None:
        self.step = min((want.interval for want in self._wanted.values()), default=5.0)

    async def advance(self, now: float) -> None:
        """Ask for the steps that are due; returns at once when none is. Never raises: see `error`."""
        if not self.is_due(now):
            return
        async with self._busy:
            if not self.is_due(now):
                return
            self._forget(now)
            try:
                await self._advance(now)
            except QueryError as error:
                self.error = error
                self.failures += 1
                self._failed_at = now
            else:
                self.error = None
                self.failures = 0

    def _due(self, now: float) -> float:
        step = self.step
        return math.floor((now - self._lag) / step) * step

    def is_due(self, now: float) -> bool:
        """Whether `advance` would ask for anything."""
        if now - self._failed_at < self.step / 2:
            return False
        if self._last_end is None or self._fresh:
            return True
        return self._due(now) > self._last_end

    def _forget(self, now: float) -> None:
        for key in [key for key, want in self._wanted.items() if now - want.asked_at > FORGET_SECONDS]:
            del self._wanted[key]
            self._fresh.discard(key)
            self.tracks.pop(key, None)
            self._set_step()

    async def _advance(self, now: float) -> None:
        due = self._due(now)
        last = self._last_end
        if last is not None and due > last and self.tracks:
            gap = due - last
            count = max(1, min(MOST_STEPS, round(gap / self.step)))
            await self._fetch(self.tracks, last + gap / count, due, gap / count)
            self._last_end = due
        elif last is None or due > last:
            self._last_end = due
        if self._fresh:
            await self._backfill(sorted(self._fresh))

    async def _backfill(self, keys: list[Key]) -> None:
        assert self._last_end is not None
        reach = max(self._wanted[key].reach for key in keys)
        step = max(self.step, reach / BACKFILL_STEPS_PER_WINDOW)
        start = self._last_end - 10 * reach
        count = max(1, round((self._last_end - start) / step))
        start = self._last_end - count * step
        tracks = {key: Track(start, self._wanted[key].reach) for key in keys}
        await self._fetch(tracks, start + step, self._last_end, step, coarse=True)
        self.tracks.update(tracks)
        self._fresh.difference_update(tracks)

    async def _fetch(
        self, tracks: dict[Key, Track], start: float, end: float, step: float, *, coarse: bool = False
    ) -> None:
        match = self._match(tuple(tracks) if len(tracks) <= NAMED_KEYS else ())
        if coarse:
            # One after the other: ten windows of everything at once would be a lot of memory.
            answers = [await self._ask(query, match, start, end, step) for query in self.queries]
        else:
            answers = await _all(self._ask(query, match, start, end, step) for query in self.queries)
        count = max(1, round((end - start) / step) + 1)
        ends = [start + step * index for index in range(count)]
        self._fill(tracks, answers, ends, step)

    async def _ask(
        self, query: Query, match: Match, start: float, end: float, step: float
    ) -> tuple[Query, list[Row]]:
        text = query.render(by=self.by, match=match.series, where=match.targets, step=step)
        labels = self.by + query.extra_labels
        return query, await self._client.range(query.name, text, labels, start=start, end=end, step=step)

    def _fill(
        self, tracks: dict[Key, Track], answers: list[tuple[Query, list[Row]]], ends: list[float], step: float
    ) -> None:
        width = len(self.by)
        first = ends[0]
        found: list[list[tuple[Signal, Key, float]]] = [[] for _ in ends]
        for query, rows in answers:
            signal = query.signal
            for row in rows:
                if row.key[:width] in tracks:
                    for at, value in row.points:
                        index = round((at - first) / step)
                        if 0 <= index < len(found) and (value or signal in TIMING):
                            found[index].append((signal, row.key, value))
        for end, values in zip(ends, found, strict=True):
            timing: dict[Key, dict[Signal, float]] = {}
            gained: dict[Key, set[str]] = {}
            for track in tracks.values():
                track.gauges = {}
                track.not_numbers = set()
            for signal, key, value in values:
                owner, rest = key[:width], key[width:]
                if signal in TIMING:
                    timing.setdefault(owner, {})[signal] = value
                else:
                    _put(tracks[owner], signal, rest, value, gained.setdefault(owner, set()))
            for owner, track in tracks.items():
                times = timing.get(owner, {})
                _note_quiet(track, gained.get(owner, set()), end - step)
                if Signal.UNCOUNTED not in times:
                    track.uncounted_since = None
                elif track.uncounted_since is None:
                    track.uncounted_since = end
                track.step(
                    end, times.get(Signal.COVERED, 0.0), times.get(Signal.SCRAPES, 0.0), times.get(Signal.AT)
                )


def _put(track: Track, signal: Signal, rest: tuple[str, ...], value: float, gained: set[str]) -> None:
    """Put one value of a step into its lane: (pool, signal), and (pool, signal, class or bucket) beside
    it.
    """
    pool = rest[0] if rest else ""
    if signal is Signal.BUCKETS:
        pool = ""
    if not math.isfinite(value):
        track.not_numbers.add(pool)
        return
    if signal is Signal.IN_FLIGHT:
        track.gauges[(pool,)] = value
        return
    if signal is Signal.BUCKETS:
        track.gain(("", signal, rest[-1]), value)
        gained.add("")
        return
    track.gain((pool, signal), value)
    if signal is Signal.TOTAL:
        gained.add(pool)
    if len(rest) > 1 and rest[1]:
        track.gain((pool, signal, rest[1]), value)


def _note_quiet(track: Track, gained: set[str], began: float) -> None:
    busy: set[str] = {lane[0] for lane, value in track.gauges.items() if value > 0}
    for pool in [pool for pool in track.quiet_since if pool not in busy or pool in gained]:
        del track.quiet_since[pool]
    for pool in busy - gained:
        track.quiet_since.setdefault(pool, began)


async def _all(asked: Iterable[Awaitable[tuple[Query, list[Row]]]]) -> list[tuple[Query, list[Row]]]:
    """Await all; the first failure is raised once all have ended."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    done: list[tuple[Query, list[Row]]] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        done.append(answer)
    return done
