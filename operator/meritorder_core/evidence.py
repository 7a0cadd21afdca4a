"""What one interval tells about one limit, and how it is added to what is remembered.

The load of an interval is taken from Little's law over the requests that completed in it, not from the gauge:
it is then the load under which *these* requests ran, whatever happened to the limit since. Where requests
last longer than an interval, it is averaged over as many intervals as one request lasts, since a single long
request would else look like a spike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from meritorder_core import curve
from meritorder_core.learned import LimitMemory, Look

NOT_YET_FADED = 0.98
"""A curve fades in steps of 2 %: doing it at every sample would cost more than all else."""
LOOKS_PER_WINDOW = 10
"""Shorter intervals are joined, so that the memory of a window stays bounded whatever the interval is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a limit is held to."""

    window: float
    """The SLA's window in seconds: the unit of all of the controller's times."""
    allowed: float
    """Allowed slow share, 1 - percentile."""
    minimum: float
    maximum: float
    enforced: bool = True
    """False: nothing holds requests to the limit (the fallback pool, Recommend); it only says what was seen.
    """
    one_of_many: bool = False
    """The limit of one size class: the load is that of all classes."""
    never_drained: bool = False
    """The last resort keeps its minimum even where it misses there."""
    policy_rate: float = 0.0
    """Requests per second of the whole policy: what looks at a drained pool are measured against."""

    @property
    def safe(self) -> float:
        return self.allowed * curve.SAFE_PART


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One interval's counts of a pool or of one size class."""

    at: float
    span: float
    ready: int
    """Ready replicas, at least 1."""
    load: float
    """Mean requests in flight per ready replica of the whole pool, by Little's law over the interval."""
    total: float
    slow: float
    seconds: float
    """Sum of the requests' end-to-end times."""
    slow_error: float = 0.0
    tokens: float = 0.0
    gauge: float | None = None
    """In-flight of the pool now, per ready replica."""
    spilled: float | None = None
    """Share of the requests that came by this pool and went on to a later one; None: there is none, or not
    known."""
    stalled: bool = False
    pressure: float | None = None
    """The SLA's percentile, as it is now, over the target; None: not known."""
    attained: float | None = None
    """The SLA's percentile over the window, over the target; None: not known."""
    met_load: float | None = None
    """Load per replica of the window, where the window Meets."""
    met_seconds: float = 0.0

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.total if self.total > 0 else 0.0


def effective(limit: float, ready: int) -> float:
    """What a limit per replica comes to, per replica, after the whole pool's is rounded down to a whole
    request."""
    return math.floor(limit * ready + 1e-9) / ready


def fold(memory: LimitMemory, new: Evidence, rules: Rules) -> LimitMemory:
    """Add an interval to the memory; what ended too soon after a cut is left out."""
    memory = _age(memory, new.at, rules.window)
    if new.met_load is not None and new.met_load > memory.met_load:
        memory = replace(memory, met_load=new.met_load, met_seconds=new.met_seconds)
    if new.total <= 0 or new.span <= 0 or new.at - new.span / 2 < memory.learn_after:
        return memory
    if memory.limit <= 0 and rules.enforced:
        return memory  # drained: what still completes was admitted before
    fresh_part = min(max((new.at - memory.fresh_from) / new.span, 0.0), 1.0)
    look = Look(new.at, new.span, _load(memory, new, rules), new.total, new.slow, new.seconds, new.tokens)
    return replace(
        memory,
        fresh=memory.fresh + new.total * fresh_part,
        fresh_slow=memory.fresh_slow + (new.slow + new.slow_error) * fresh_part,
        looks=_append(memory.looks, look, rules.window / LOOKS_PER_WINDOW),
    )


def _age(memory: LimitMemory, at: float, window: float) -> LimitMemory:
    """Fade the curve, and fold into it what is older than a window."""
    left = curve.aging(at - memory.curve_at, window)
    old = [look for look in memory.looks if look.at <= at - window]
    faded = left < NOT_YET_FADED
    if not faded and not old:
        return memory
    cells = curve.fade(memory.curve, left) if faded else memory.curve
    return replace(
        memory,
        curve=curve.add(cells, old) if old else cells,
        curve_at=at if faded else memory.curve_at,
        looks=tuple(look for look in memory.looks if look.at > at - window) if old else memory.looks,
    )


def _load(memory: LimitMemory, new: Evidence, rules: Rules) -> float:
    span, weighted = new.span, new.load * new.span
    for look in reversed(memory.looks):
        if span >= new.mean_seconds:
            break
        span += look.span
        weighted += look.load * look.span
    load = weighted / span
    limit = effective(memory.limit, new.ready)
    if not rules.enforced or rules.one_of_many or limit <= 0:
        return load
    # More than the limit is not in flight: batches that end together make the quotient of an interval jump.
    load = min(load, limit)
    all_under_this_limit = new.at - new.span >= memory.fresh_from
    # A pool that is full now and then has a mean below its limit: by chance, one deviation of it.
    near = load + math.sqrt(load / new.ready) >= limit
    return limit if all_under_this_limit and near else load


def _append(looks: tuple[Look, ...], look: Look, least_span: float) -> tuple[Look, ...]:
    if not looks or looks[-1].span + look.span > least_span:
        return (*looks, look)
    last = looks[-1]
    span = last.span + look.span
    return (
        *looks[:-1],
        Look(
            look.at,
            span,
            (last.load * last.span + look.load * look.span) / span,
            last.total + look.total,
            last.slow + look.slow,
            last.seconds + look.seconds,
            last.tokens + look.tokens,
        ),
    )


@dataclass(frozen=True, slots=True)
class Counted:
    """Looks, summed."""

    total: float
    slow: float
    seconds: float
    tokens: float
    load: float
    """Mean over time."""

    @property
    def share(self) -> float:
        return self.slow / self.total if self.total > 0 else 0.0


def counted(looks: Sequence[Look]) -> Counted:
    """Sum looks."""
    span = sum(look.span for look in looks)
    return Counted(
        sum(look.total for look in looks),
        sum(look.slow for look in looks),
        sum(look.seconds for look in looks),
        sum(look.tokens for look in looks),
        sum(look.load * look.span for look in looks) / span if span > 0 else 0.0,
    )
