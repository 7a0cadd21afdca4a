"""One reading of what Envoy counted: plain numbers per pool that only ever grow.

Envoy's counters begin anew when it does; `Meter` carries them on, so that the difference of two readings is
exact over restarts, except for what was counted between the last reading and the end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meritorder_router.agent.scrape import Scrape
from meritorder_router.render.loggers import FAILED_FLAGS

_GONE = "DC"
"""Envoy's response flag for a client that went away: nobody failed."""

Key = tuple[str, str, str]
"""What is counted, of which pool, and the status code, the bucket's bound or the size class; empty where it
has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was counted since the run began, and the gauges, at one moment (Unix seconds)."""

    at: float
    counters: Mapping[Key, float]
    in_flight: Mapping[str, float] = field(default_factory=dict)

    def count(self, what: str, pool: str = "", size: str = "") -> float:
        """A counter of one pool, or of none; or of one of the pool's size classes."""
        return self.counters.get((what, pool, size), 0.0)

    def knows(self, what: str, pool: str, size: str = "") -> bool:
        """Whether a pool, or a size class of it, has that counter at all."""
        return (what, pool, size) in self.counters

    def sizes(self, pool: str) -> set[str]:
        """The size classes of which a pool has counted time."""
        return {size for what, of, size in self.counters if what == "milliseconds" and of == pool and size}

    def answered(self, pool: str) -> float:
        """Requests that a pool answered for a client, at whatever try."""
        return sum(
            value for (what, of, _), value in self.counters.items() if what == "requests" and of == pool
        )

    def failed(self) -> float:
        """Requests that ended badly for a client: 5xx, 429, no answer at all, or one that was cut short."""
        return self.count("failed")

    def buckets(self, older: "Reading", what: str, pool: str | None = None) -> dict[float, float]:
        """Cumulative counts by upper bound in ms since an older reading, of one pool or all."""
        found: dict[float, float] = {}
        for key, value in self.counters.items():
            if key[0] == what and (pool is None or key[1] == pool):
                bound = float(key[2])
                found[bound] = found.get(bound, 0.0) + value - older.counters.get(key, 0.0)
        return found


def _flat(scrape: Scrape) -> Iterator[tuple[Key, float]]:
    yield ("client", "", ""), scrape.client_requests
    yield ("client_slow", "", ""), scrape.client_slow
    for name, pool in scrape.pools.items():
        yield ("total", name, ""), pool.samples
        yield ("slow", name, ""), pool.samples_slow
        yield ("failed_attempts", name, ""), pool.failed_attempts
        yield ("milliseconds", name, ""), pool.pool_milliseconds
        for size, part in pool.classes.items():
            yield ("total", name, f"{size}"), part.samples
            yield ("slow", name, f"{size}"), part.samples_slow
            yield ("milliseconds", name, f"{size}"), part.pool_milliseconds
            if part.completion_tokens is not None:
                yield ("completion_tokens", name, f"{size}"), part.completion_tokens
        if pool.prompt_tokens is not None:
            yield ("prompt_tokens", name, ""), pool.prompt_tokens
        if pool.completion_tokens is not None:
            yield ("completion_tokens", name, ""), pool.completion_tokens
        yield from ((("latency", name, f"{bound:g}"), count) for bound, count in pool.latency_buckets.items())
        yield from ((("ttft", name, f"{bound:g}"), count) for bound, count in pool.ttft_buckets.items())
    for (pool_name, code, flags), count in scrape.requests.items():
        if _GONE not in flags.split(","):
            yield ("requests", pool_name, code), count
            if _is_failure(code, flags):
                yield ("failed", "", ""), count


def _is_failure(code: str, flags: str) -> bool:
    # A stream that its pool cut has the 200 with which it began.
    cut = not set(FAILED_FLAGS).isdisjoint(flags.split(","))
    return cut or code.startswith("5") or code in ("0", "429")


class Meter:
    """Turns scrapes into readings whose counters never fall."""

    def __init__(self) -> None:
        self._epoch = 0
        self._last: dict[Key, float] = {}
        self._before: dict[Key, float] = {}

    def read(self, scrape: Scrape, at: float) -> Reading:
        """Take the next scrape."""
        counters: dict[Key, float] = {}
        for key, value in _flat(scrape):
            counters[key] = counters.get(key, 0.0) + value
        if scrape.epoch != self._epoch:
            for key, value in self._last.items():
                self._before[key] = self._before.get(key, 0.0) + value
        self._epoch, self._last = scrape.epoch, counters
        return Reading(
            at=at,
            counters={
                key: self._before.get(key, 0.0) + counters.get(key, 0.0)
                for key in self._before.keys() | counters.keys()
            },
            in_flight={name: float(pool.in_flight) for name, pool in scrape.pools.items()},
        )
