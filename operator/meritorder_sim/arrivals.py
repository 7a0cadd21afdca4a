"""When requests arrive and how big they are: open-loop traffic, planned ahead and the same for the same seed.

`plan(schedule, mix, rng)` yields `Planned` requests in order of time, which `load.run_load` sends in real
time and a simulation can replay in its own. Arrivals do not depend on the mix, so that the same seed brings
the same moments.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request to come: `at` is seconds from the start."""

    at: float
    prompt_tokens: int
    output_tokens: int
    stream: bool
    max_tokens: int | None = None
    priority: int | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` of traffic at `rate` requests per second, or going evenly from `rate` to `end_rate`."""

    seconds: float
    rate: float
    end_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Burst:
    """`count` extra requests from `at` on, spread evenly over `seconds`."""

    at: float
    count: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Phases one after the other, with bursts on top."""

    phases: tuple[Phase, ...]
    bursts: tuple[Burst, ...] = ()
    spacing: Literal["poisson", "even"] = "poisson"

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def rate_at(self, seconds: float) -> float:
        """Return the planned rate, without bursts."""
        for phase in self.phases:
            if seconds < phase.seconds:
                return phase.rate + (_end_rate(phase) - phase.rate) * max(seconds, 0.0) / phase.seconds
            seconds -= phase.seconds
        return 0.0

    def arrivals(self, rng: random.Random) -> list[float]:
        """Draw all moments of arrival, in order."""
        times = [
            burst.at + burst.seconds * n / burst.count for burst in self.bursts for n in range(burst.count)
        ]
        start = 0.0
        wanted = self._gap(rng)
        for phase in self.phases:
            expected = (phase.rate + _end_rate(phase)) / 2 * phase.seconds
            while wanted < expected:
                times.append(start + _time_of(phase, wanted))
                wanted += self._gap(rng)
            wanted -= expected
            start += phase.seconds
        return sorted(times)

    def _gap(self, rng: random.Random) -> float:
        """Return the distance to the next arrival in expected requests (its mean is 1)."""
        return rng.expovariate(1.0) if self.spacing == "poisson" else 1.0


def _end_rate(phase: Phase) -> float:
    return phase.rate if phase.end_rate is None else phase.end_rate


def _time_of(phase: Phase, requests: float) -> float:
    """Return after how many seconds of the phase `requests` are expected to have come."""
    slope = (_end_rate(phase) - phase.rate) / phase.seconds
    # The smaller root of slope/2 t^2 + rate t = requests, in the form that is stable for any slope.
    return 2 * requests / (phase.rate + math.sqrt(max(phase.rate**2 + 2 * slope * requests, 0.0)))


class Distribution(Protocol):
    """Something that draws a number of tokens."""

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number."""

    tokens: int

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A long-tailed number around `median`, held within bounds."""

    median: float
    sigma: float
    low: int = 1
    high: int = 8192

    def draw(self, rng: random.Random) -> int:
        return max(self.low, min(round(rng.lognormvariate(math.log(self.median), self.sigma)), self.high))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`, each as often as its weight says."""

    values: Sequence[int]
    weights: Sequence[float] | None = None

    def draw(self, rng: random.Random) -> int:
        return rng.choices(self.values, self.weights)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What requests look like.

    `max_tokens`: what a client asks for. `exact`: its answer's length; `power-of-two`: the next power of
    two, as people choose it; `none`: no limit.
    """

    prompt_tokens: Distribution = Fixed(1000)
    output_tokens: Distribution = Fixed(200)
    stream_percent: float = 50.0
    max_tokens: Literal["exact", "power-of-two", "none"] = "power-of-two"


def plan(schedule: Schedule, mix: Mix, rng: random.Random) -> Iterator[Planned]:
    """Draw all requests of a schedule, in order of time."""
    moments = schedule.arrivals(random.Random(rng.getrandbits(64)))
    sizes = random.Random(rng.getrandbits(64))
    for at in moments:
        prompt, output = mix.prompt_tokens.draw(sizes), mix.output_tokens.draw(sizes)
        yield Planned(
            at=at,
            prompt_tokens=prompt,
            output_tokens=output,
            stream=sizes.random() * 100 < mix.stream_percent,
            max_tokens=_limit(mix, output),
        )


def _limit(mix: Mix, output: int) -> int | None:
    match mix.max_tokens:
        case "exact":
            return output
        case "power-of-two":
            return 1 << max(output - 1, 0).bit_length()
        case "none":
            return None
