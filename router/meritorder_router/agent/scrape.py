"""What an Envoy counted, read from its metrics in Prometheus's text format, for use without a Prometheus.

All numbers are totals since that Envoy started; whoever compares two scrapes looks at `epoch`, which changes
when Envoy was started anew and its counters began again.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meritorder_api import metric_names as names


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounters:
    """One size class's part of a pool's totals; times in ms."""

    samples: int = 0
    samples_slow: int = 0
    pool_milliseconds: int = 0
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounters:
    """One pool's totals, over all size classes; times in ms."""

    samples: int = 0
    samples_slow: int = 0
    failed_attempts: int = 0
    pool_milliseconds: int = 0
    in_flight: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    endpoints_healthy: int | None = None
    latency_buckets: Mapping[float, int] = field(default_factory=dict)
    """Cumulative counts by upper bound in ms; `inf` is all."""
    ttft_buckets: Mapping[float, int] = field(default_factory=dict)
    classes: Mapping[int, ClassCounters] = field(default_factory=dict)
    """By the most tokens of the class; those of which something was counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """All that was read at once."""

    epoch: int
    """Number of starts of Envoy so far."""
    client_requests: int = 0
    client_slow: int = 0
    pools: Mapping[str, PoolCounters] = field(default_factory=dict)
    requests: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """By pool ("-": none), code and response flags."""


_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each line of an exposition."""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            labels = dict(_LABEL.findall(match[2])) if match[2] else {}
            yield match[1], labels, float(match[3])


_COUNTS: Mapping[str, str] = {
    names.SAMPLES: "samples",
    names.SAMPLES_SLOW: "samples_slow",
    names.FAILED_ATTEMPTS: "failed_attempts",
    names.POOL_MILLISECONDS: "pool_milliseconds",
    names.IN_FLIGHT: "in_flight",
    names.PROMPT_TOKENS: "prompt_tokens",
    names.COMPLETION_TOKENS: "completion_tokens",
    names.ENDPOINTS_HEALTHY: "endpoints_healthy",
}
_BUCKETS: Mapping[str, str] = {names.LATENCY_BUCKET: "latency_buckets", names.TTFT_BUCKET: "ttft_buckets"}


def read(text: str, *, epoch: int) -> Scrape:
    """Read an exposition of Envoy's."""
    counts: dict[str, dict[str, int]] = {}
    classes: dict[str, dict[int, dict[str, int]]] = {}
    buckets: dict[str, dict[str, dict[float, int]]] = {}
    requests: dict[tuple[str, str, str], int] = {}
    client = {names.CLIENT_REQUESTS: 0, names.CLIENT_SLOW: 0}
    for name, labels, value in samples(text):
        pool = labels.get(names.LABEL_POOL) or "-"
        if name in client:
            client[name] += int(value)
        elif name == names.REQUESTS:
            key = (pool, labels.get(names.LABEL_CODE, ""), labels.get(names.LABEL_FLAGS, ""))
            requests[key] = requests.get(key, 0) + int(value)
        elif pool == "-":
            continue
        elif name in _COUNTS:
            counted, what = counts.setdefault(pool, {}), _COUNTS[name]
            # There are series of their own for size classes and, of gauges, for requests with a session.
            if name != names.ENDPOINTS_HEALTHY:
                counted[what] = counted.get(what, 0) + int(value)
            elif names.LABEL_AFFINITY not in labels:
                counted[what] = int(value)
            size = labels.get(names.LABEL_CLASS, "")
            if size.isdecimal():
                classes.setdefault(pool, {}).setdefault(int(size), {})[what] = int(value)
        elif name in _BUCKETS:
            of_pool = buckets.setdefault(pool, {}).setdefault(_BUCKETS[name], {})
            of_pool[float(labels["le"])] = int(value)
    return Scrape(
        epoch=epoch,
        client_requests=client[names.CLIENT_REQUESTS],
        client_slow=client[names.CLIENT_SLOW],
        requests=requests,
        pools={
            pool: PoolCounters(
                **of_pool,
                latency_buckets=buckets.get(pool, {}).get("latency_buckets", {}),
                ttft_buckets=buckets.get(pool, {}).get("ttft_buckets", {}),
                classes={size: ClassCounters(**part) for size, part in sorted(classes.get(pool, {}).items())},
            )
            for pool, of_pool in sorted(counts.items())
        },
    )
