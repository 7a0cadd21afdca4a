"""What the decision sees: one `Inputs` per pass, gathered by whoever runs the loop.

A signal is a value or a `Missing` with a reason, never 0 or NaN for "not known". Times are Unix seconds,
latencies are seconds unless the name says milliseconds.

`Counts` are of requests *completed* within a stretch of time: `total`, of these `slow` (slower than the
target, or failed; design 4 says what counts), and the sum of their end-to-end times, whose quotient by the
stretch's length is the mean in-flight (Little's law).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meritorder_api import reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A signal that is not known, and why."""

    reason: reasons.Missing
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests completed within a stretch of `seconds`."""

    seconds: float
    total: float
    slow: float
    latency_sum_seconds: float
    slow_error: float = 0.0
    """Half-width of `slow` where it was interpolated from a histogram; 0 where it was counted."""
    prompt_tokens: float | None = None
    completion_tokens: float | None = None

    @property
    def mean_in_flight(self) -> float:
        """Mean requests in flight over the stretch, by Little's law."""
        return self.latency_sum_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def per_second(self) -> float:
        """Completed requests per second."""
        return self.total / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was measured of a pool, as of `at`."""

    at: float
    """Time of the newest scrape that this rests on. Between scrapes it stands still, and nothing is learned.
    """
    window: Counts
    """Over the SLA's window; reached back over up to 10 windows where one has fewer than `minimumSamples`."""
    recent: Counts
    """Since the sample before (or over the last interval, on the first): what the curve is fed with."""
    in_flight: float | None = None
    """The gauge, now."""
    attained_milliseconds: float | None = None
    """The SLA's percentile over `window`, for display."""
    stalled: bool = False
    """Requests in flight and none completed (and no byte on streams) for max(window, 2T, 30 s); router series
    only."""
    classes: Mapping[int, Counts] = field(default_factory=dict)
    """`recent` by size class (most tokens asked), where there are classes."""


Observation = Sample | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHour:
    """A pool paid by replica and hour, in US dollars."""

    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerMillionTokens:
    """A pool paid by token, in US dollars per million."""

    input: float
    output: float


Price = ReplicaHour | PerMillionTokens | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInputs:
    """All that is known of a pool in this pass."""

    observation: Observation
    price: Price
    ready_replicas: int | None = None
    """Ready replicas; None while nobody has said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that is known of a policy in this pass."""

    now: float
    """Unix seconds."""
    pools: Mapping[str, PoolInputs]
    client: Counts | Missing
    """Over the window, from the clients' side: each request once, whatever the number of tries. What SLAMet
    is judged by."""
    client_attained_milliseconds: float | None = None
    effective_interval_seconds: float
    """max(interval, scrape interval)."""
