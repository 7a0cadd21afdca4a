"""What a load run saw, request by request, and the figures drawn from it.

Times are seconds; `started` and `ended` count from the run's start. A request that failed, or whose answer
broke off, is slow whatever its time, and takes no part in percentiles.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Metric = Literal["EndToEndLatency", "TimeToFirstToken", "TimePerOutputToken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request as its client saw it. `status` 0: no answer; `error` None: a whole, good answer."""

    started: float
    ended: float
    late: float
    pool: str
    status: int
    error: str | None
    stream: bool
    prompt_tokens: int
    output_tokens: int
    completion_tokens: int | None
    max_tokens: int | None
    first_byte: float | None
    tpot: float | None

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def e2e(self) -> float:
        return self.ended - self.started

    def value(self, metric: Metric) -> float | None:
        """Return the measured time, or None where this request has none (not a stream, one token, failed)."""
        if self.failed:
            return None
        match metric:
            case "EndToEndLatency":
                return self.e2e
            case "TimeToFirstToken":
                return self.first_byte if self.stream else None
            case "TimePerOutputToken":
                return self.tpot


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests that ended within [start, start + seconds)."""

    start: float
    seconds: float
    requests: int
    failed: int
    slow: int
    measured: int
    percentiles: dict[int, float]
    pools: dict[str, int]

    @property
    def slow_share(self) -> float:
        counted = self.measured + self.failed
        return self.slow / counted if counted else 0.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)]


def summarize(
    records: Iterable[Record],
    *,
    start: float,
    seconds: float,
    metric: Metric,
    target_seconds: float | None = None,
    percents: Sequence[int] = (50, 95, 99),
) -> Window:
    """Sum up records as one window."""
    values: list[float] = []
    pools: dict[str, int] = {}
    requests = failed = 0
    for record in records:
        requests += 1
        failed += record.failed
        if not record.failed:
            pools[record.pool] = pools.get(record.pool, 0) + 1
        if (value := record.value(metric)) is not None:
            values.append(value)
    values.sort()
    slow = 0 if target_seconds is None else sum(value > target_seconds for value in values)
    ranks = {percent: percentile(values, percent) for percent in percents}
    return Window(
        start=start,
        seconds=seconds,
        requests=requests,
        failed=failed,
        slow=slow + failed,
        measured=len(values),
        percentiles={percent: value for percent, value in ranks.items() if value is not None},
        pools=dict(sorted(pools.items())),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """All records of a run in order of their end."""

    seconds: float
    records: tuple[Record, ...]

    @property
    def requests(self) -> int:
        return len(self.records)

    @property
    def failed(self) -> int:
        return sum(record.failed for record in self.records)

    @property
    def errors(self) -> dict[str, int]:
        """Count failures by kind."""
        kinds = [record.error for record in self.records if record.error is not None]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    @property
    def latest_start(self) -> float:
        """How late the most delayed request left, in seconds: if large, the client was the bottleneck."""
        return max((record.late for record in self.records), default=0.0)

    def between(self, start: float, end: float) -> tuple[Record, ...]:
        """Return the requests that ended within [start, end)."""
        return tuple(record for record in self.records if start <= record.ended < end)

    def shares(self, start: float = 0.0, end: float = math.inf) -> dict[str, float]:
        """Return each pool's share of the good answers that ended within [start, end)."""
        good = [record.pool for record in self.between(start, end) if not record.failed]
        return {pool: good.count(pool) / len(good) for pool in sorted(set(good))}

    def windows(
        self, seconds: float, *, metric: Metric = "EndToEndLatency", target_seconds: float | None = None
    ) -> list[Window]:
        """Cut the run into tumbling windows from time 0, by the time of the end."""
        buckets: dict[int, list[Record]] = {}
        for record in self.records:
            buckets.setdefault(int(record.ended // seconds), []).append(record)
        return [
            summarize(
                buckets.get(number, ()),
                start=number * seconds,
                seconds=seconds,
                metric=metric,
                target_seconds=target_seconds,
            )
            for number in range(max(buckets, default=-1) + 1)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"seconds": self.seconds, "records": [asdict(record) for record in self.records]}
