"""What the decision sees, from readings of the Envoy that runs here: exact differences of its counters.

Readings are kept in a ring over ten windows of the SLA, for with little traffic the window reaches back
until it has `minimumSamples`. No requests is Idle; an Envoy that does not answer is Missing.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from meritorder_api.policy import InferencePolicySpec, SLAMetric
from meritorder_api.pool import Pool
from meritorder_api.reasons import Missing as Why
from meritorder_cli.readings import Reading
from meritorder_core.inputs import (
    Counts,
    Inputs,
    Missing,
    Observation,
    PerMillionTokens,
    PoolInputs,
    Price,
    ReplicaHour,
    Sample,
)
from meritorder_operator.prometheus.histogram import percentile

MOST_WINDOWS = 10
_STALLED_SECONDS = 30.0
HISTOGRAMS: Final = {SLAMetric.END_TO_END: "latency", SLAMetric.TTFT: "ttft"}
"""Which of Envoy's histograms shows an SLA's percentile; a token's time has none."""
_SLACK = 0.25
"""Readings come at their time give or take; a window may be shorter by so much."""


class Ring:
    """The readings of the last ten windows."""

    def __init__(self, spec: InferencePolicySpec) -> None:
        self._spec = spec
        self._readings: deque[Reading] = deque()
        self._histogram = HISTOGRAMS.get(spec.sla.metric)

    def add(self, reading: Reading) -> None:
        """Take the newest reading and forget what no window reaches."""
        self._readings.append(reading)
        oldest = reading.at - max(MOST_WINDOWS * self._spec.sla.window_seconds, 2 * _STALLED_SECONDS) - 5
        while len(self._readings) > 2 and self._readings[1].at < oldest:
            self._readings.popleft()

    @property
    def newest(self) -> Reading | None:
        """The last reading."""
        return self._readings[-1] if self._readings else None

    def before(self, seconds: float) -> Reading | None:
        """The newest reading that is at least so much older than the last one; the oldest where none is."""
        if len(self._readings) < 2:
            return None
        last = self._readings[-1]
        found = self._readings[0]
        for reading in self._readings:
            if reading.at > last.at - seconds + _SLACK:
                break
            found = reading
        return found

    def attained(self, pool: str | None = None) -> float | None:
        """The SLA's percentile in ms over the window; None with too few requests."""
        older = self.before(self._spec.sla.window_seconds)
        if older is None or self.newest is None or self._histogram is None:
            return None
        buckets = self.newest.buckets(older, self._histogram, pool)
        if max(buckets.values(), default=0.0) < _least_for(self._spec.sla.percentile):
            return None
        return percentile(buckets, self._spec.sla.percentile / 100)

    def increase(self, what: str, pool: str, seconds: float, *, until: float | None = None) -> float:
        """How much a counter of a pool rose over so many seconds that end now, or by `until` (Unix seconds);
        0 while nothing was read twice.
        """
        upto = [reading for reading in self._readings if until is None or reading.at <= until]
        if not upto:
            return 0.0
        start = upto[-1].at - seconds + _SLACK
        older = next((reading for reading in reversed(upto) if reading.at <= start), upto[0])
        return upto[-1].count(what, pool) - older.count(what, pool)

    def window(self, pool: str) -> Counts | None:
        """Counts over the window, reaching back until there are `minimumSamples`."""
        for windows in range(1, MOST_WINDOWS + 1):
            older = self.before(windows * self._spec.sla.window_seconds)
            if older is None or self.newest is None:
                return None
            counts = difference(self.newest, older, pool)
            if counts.total >= self._spec.sla.minimum_samples or older is self._readings[0]:
                break
        return counts

    def client(self) -> Counts | None:
        """The clients' side over the window, reaching back likewise."""
        for windows in range(1, MOST_WINDOWS + 1):
            older = self.before(windows * self._spec.sla.window_seconds)
            if older is None or self.newest is None:
                return None
            counts = client_difference(self.newest, older, [pool.name for pool in self._spec.pools])
            if counts.total >= self._spec.sla.minimum_samples or older is self._readings[0]:
                break
        return counts

    def stalled(self, pool: str) -> bool:
        """Requests in flight and none completed for so long that something is wrong.

        Judged for end-to-end SLAs only: under the others a sample is a finished stream, so that samples also
        stand still while a pool answers without streaming, or while its streams are long.
        """
        sla = self._spec.sla
        if sla.metric is not SLAMetric.END_TO_END:
            return False
        seconds = max(sla.window_seconds, 2 * sla.target_milliseconds / 1000, _STALLED_SECONDS)
        newest = self.newest
        if newest is None or newest.at - self._readings[0].at < seconds:
            return False
        recent = [reading for reading in self._readings if reading.at >= newest.at - seconds]
        waiting = all(reading.in_flight.get(pool, 0.0) > 0 for reading in recent)
        return waiting and newest.count("total", pool) == recent[0].count("total", pool)


def difference(newer: Reading, older: Reading, pool: str, size: str = "") -> Counts:
    """What a pool, or one size class of it, completed between two readings."""

    def increase(what: str) -> float:
        return newer.count(what, pool, size) - older.count(what, pool, size)

    tokens = newer.knows("completion_tokens", pool, size)
    return Counts(
        seconds=newer.at - older.at,
        total=increase("total"),
        slow=increase("slow"),
        latency_sum_seconds=increase("milliseconds") / 1000,
        prompt_tokens=increase("prompt_tokens") if tokens and not size else None,
        completion_tokens=increase("completion_tokens") if tokens else None,
    )


def by_class(newer: Reading, older: Reading, pool: str) -> dict[int, Counts]:
    """The same by size class, where something was completed."""
    found = {int(size): difference(newer, older, pool, size) for size in newer.sizes(pool)}
    return {
        size: counts
        for size, counts in sorted(found.items())
        if counts.total > 0 or counts.latency_sum_seconds > 0
    }


def client_difference(newer: Reading, older: Reading, pools: Sequence[str]) -> Counts:
    """What the clients saw between two readings."""
    return Counts(
        seconds=newer.at - older.at,
        total=newer.count("client") - older.count("client"),
        slow=newer.count("client_slow") - older.count("client_slow"),
        latency_sum_seconds=sum(difference(newer, older, pool).latency_sum_seconds for pool in pools),
    )


def gather(
    spec: InferencePolicySpec,
    ring: Ring,
    *,
    last: Reading | None,
    ready: Mapping[str, int],
    now: float,
) -> Inputs:
    """Everything for one pass. `last` is the reading that the pass before rested on."""
    return Inputs(
        now=now,
        pools={
            pool.name: PoolInputs(
                observation=_observe(
                    ring,
                    pool.name,
                    last,
                    now,
                    stale_seconds=spec.behavior.staleness_seconds,
                    interval_seconds=spec.behavior.interval_seconds,
                ),
                price=price(pool),
                ready_replicas=ready.get(pool.name),
            )
            for pool in spec.pools
        },
        client=ring.client() or Missing(reason=Why.NO_SERIES, message="the router was not read yet"),
        client_attained_milliseconds=ring.attained(),
        effective_interval_seconds=float(spec.behavior.interval_seconds),
    )


def price(pool: Pool) -> Price:
    """The price that the spec names; one that Prometheus would tell is not known here."""
    cost = pool.cost
    if cost.per_replica_hour is not None:
        return ReplicaHour(dollars=float(cost.per_replica_hour))
    if cost.per_million_tokens is not None:
        tokens = cost.per_million_tokens
        return PerMillionTokens(input=float(tokens.input), output=float(tokens.output))
    return Missing(
        reason=Why.NO_PRICE, message=f"pool `{pool.name}`: the price is a query, and no Prometheus is given"
    )


def _observe(
    ring: Ring, pool: str, last: Reading | None, now: float, *, stale_seconds: float, interval_seconds: float
) -> Observation:
    newest = ring.newest
    window = ring.window(pool)
    older = last if last is not None else ring.before(interval_seconds)
    if newest is None or window is None or older is None:
        return Missing(reason=Why.NO_SERIES, message="the router was not read yet")
    if now - newest.at > stale_seconds:
        return Missing(reason=Why.STALE, message=f"the router was last read {now - newest.at:.0f} s ago")
    return Sample(
        at=newest.at,
        window=window,
        recent=difference(newest, older, pool),
        in_flight=newest.in_flight.get(pool),
        attained_milliseconds=ring.attained(pool),
        stalled=ring.stalled(pool),
        classes=by_class(newest, older, pool),
    )


def _least_for(wanted: int) -> float:
    """Requests below which a percentile is a guess."""
    return 1 / (1 - wanted / 100)
