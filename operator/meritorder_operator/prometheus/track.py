"""Running totals of one group of counters, with enough history to look back over any window.

A *track* belongs to one policy (its routers' series) or to one engine's pool. Each step of the feed adds
what the counters gained in it. A *lane* is one of the counters: (pool, signal) or (signal, bucket). What
was gained since a moment is the difference of two totals, so windows of any length cost one subtraction and
no query, and nothing is counted twice.
"""

from __future__ import annotations

import statistics
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

Lane = tuple[str, ...]

FINE_MARKS = 64
"""Marks kept within one window; the spacing that follows is at least a step."""
GAPS = 9
"""Gaps between scrapes that the scrape interval is the median of."""
WHOLE_ROUND = 0.9
"""Mean scrapes per target that make a gap: steps shorter than the scrape interval see only some targets'
turn.
"""
COARSE_MARKS = 4
"""Marks kept per window before that."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Totals as they were at `end`."""

    end: float
    """Time of evaluation of the step that this follows."""
    seconds: float
    scrapes: float
    totals: array[float]


@dataclass(frozen=True, slots=True)
class Gain:
    """What the counters gained between two marks."""

    seconds: float
    """Time between scrapes that this covers, not between evaluations."""
    scrapes: float
    values: dict[Lane, float]

    def of(self, *lane: str) -> float:
        """What one counter gained; 0 for one that is not there."""
        return self.values.get(lane, 0.0)


class Track:
    """The totals of one key of a feed."""

    __slots__ = (
        "_gains",
        "_gaps",
        "_lanes",
        "_marks",
        "_open_scrapes",
        "_open_seconds",
        "_totals",
        "at",
        "end",
        "gauges",
        "not_numbers",
        "quiet_since",
        "reach",
        "scrapes",
        "seconds",
        "uncounted_since",
    )

    def __init__(self, end: float, reach: float) -> None:
        """Begin at `end` with nothing; `reach` is the window in seconds: marks go back over 10 of them."""
        self._lanes: dict[Lane, int] = {}
        self._totals: array[float] = array("d")
        self._marks: deque[Mark] = deque()
        self._gains: dict[float, Gain] = {}
        """What was asked for since the last step, by the end of the mark: all pools ask for the same."""
        self._gaps: deque[float] = deque(maxlen=GAPS)
        self._open_seconds = self._open_scrapes = 0.0
        self.reach = reach
        self.end = end
        self.seconds = 0.0
        self.scrapes = 0.0
        self.at: float | None = None
        """Time of the newest scrape seen, whether or not its target is still there."""
        self.gauges: dict[Lane, float] = {}
        self.not_numbers: set[str] = set()
        """First parts of the lanes (pools) whose counters were NaN in the last step."""
        self.uncounted_since: float | None = None
        """Since then agents have applied a table, but no Envoy's counters are scraped."""
        self.quiet_since: dict[str, float] = {}
        """Pools that have requests in flight and completed none since then."""
        self._mark()

    def gain(self, lane: Lane, value: float) -> None:
        """Add to a counter's total."""
        self._gains.clear()
        index = self._lanes.get(lane)
        if index is None:
            self._lanes[lane] = len(self._totals)
            self._totals.append(value)
        else:
            self._totals[index] += value

    def step(self, end: float, seconds: float, scrapes: float, at: float | None) -> None:
        """End a step, after its gains were added."""
        self._gains.clear()
        self.end = end
        self.seconds += seconds
        self.scrapes += scrapes
        self._open_seconds += seconds
        self._open_scrapes += scrapes
        if self._open_scrapes >= WHOLE_ROUND:
            self._gaps.append(self._open_seconds / self._open_scrapes)
            self._open_seconds = self._open_scrapes = 0.0
        if at is not None:
            self.at = at
        self._mark()

    def _mark(self) -> None:
        marks = self._marks
        marks.append(Mark(self.end, self.seconds, self.scrapes, array("d", self._totals)))
        while len(marks) > 1 and marks[1].end <= self.end - 10 * self.reach:
            marks.popleft()
        if len(marks) > 2 * (FINE_MARKS + 10 * COARSE_MARKS):
            self._thin()

    def _thin(self) -> None:
        kept: deque[Mark] = deque()
        for mark in self._marks:
            age = self.end - mark.end
            spacing = self.reach / (FINE_MARKS if age <= self.reach * 1.5 else COARSE_MARKS)
            if not kept or mark.end - kept[-1].end >= spacing * 0.99 or mark is self._marks[-1]:
                kept.append(mark)
        self._marks = kept

    @property
    def now(self) -> Mark:
        """The newest mark."""
        return self._marks[-1]

    @property
    def oldest(self) -> Mark:
        """The oldest mark."""
        return self._marks[0]

    def before(self, seconds: float) -> Mark:
        """The newest mark that is at least `seconds` old (less what rounding takes); else the oldest."""
        latest = self.end - seconds + 0.05
        for mark in reversed(self._marks):
            if mark.end <= latest:
                return mark
        return self._marks[0]

    def cut(self, end: float) -> None:
        """Forget what was before `end`, but for the mark from which what follows is counted."""
        while len(self._marks) > 1 and self._marks[0].end < end:
            self._marks.popleft()

    def backwards(self) -> Iterator[Mark]:
        """All marks, the newest first."""
        return reversed(self._marks)

    def since(self, mark: Mark) -> Gain:
        """What was gained since a mark of this track; not to be changed."""
        found = self._gains.get(mark.end)
        if found is None:
            now, then = self._totals, mark.totals
            known = len(then)
            values = {
                lane: gained
                for lane, index in self._lanes.items()
                if (gained := now[index] - then[index] if index < known else now[index])
            }
            found = Gain(self.seconds - mark.seconds, self.scrapes - mark.scrapes, values)
            self._gains[mark.end] = found
        return found

    def gained(self, lane: Lane, mark: Mark) -> float:
        """What one counter gained since a mark."""
        index = self._lanes.get(lane)
        if index is None:
            return 0.0
        then = mark.totals
        return self._totals[index] - then[index] if index < len(then) else self._totals[index]

    def total(self, lane: Lane) -> float:
        """A counter's total since the track began."""
        index = self._lanes.get(lane)
        return self._totals[index] if index is not None else 0.0

    def scrape_interval(self) -> float | None:
        """Seconds between scrapes, as seen of late; None before two scrapes were seen.

        The median: an outage is one long gap between two scrapes, and says nothing of how often targets are
        scraped.
        """
        return statistics.median(self._gaps) if self._gaps else None
