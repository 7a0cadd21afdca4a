"""Routers as Prometheus sees them, and policies that ask for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meritorder_api import metric_names as m
from meritorder_api.policy import InferencePolicySpec
from meritorder_core.inputs import Inputs, Missing, Observation, Sample
from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.source import PolicyRequest, PrometheusSource
from prometheus.exporter import Exporter
from servers.prometheus import Prometheus
from support.waiting import until

NAMESPACE = "ml"
POLICY = "chat"


def a_spec(
    *,
    window: int = 15,
    interval: int = 1,
    staleness: int = 60,
    minimum_samples: int = 50,
    sla: dict[str, Any] | None = None,
    pools: dict[str, dict[str, Any]] | None = None,
) -> InferencePolicySpec:
    """A spec with pools `l40s` and `h100`; `pools` maps names to fields that replace the usual ones."""
    listed = pools if pools is not None else {"l40s": {}, "h100": {}}
    return InferencePolicySpec.model_validate(
        {
            "sla": {
                "metric": "EndToEndLatency",
                "targetMilliseconds": 2000,
                "windowSeconds": window,
                "minimumSamples": minimum_samples,
                **(sla or {}),
            },
            "pools": [
                {
                    "name": name,
                    "backend": {"service": {"name": f"{POLICY}-{name}", "port": 8000}},
                    "cost": {"perReplicaHour": "1.86"},
                    **fields,
                }
                for name, fields in listed.items()
            ],
            "behavior": {"intervalSeconds": interval, "stalenessSeconds": staleness},
        }
    )


def a_request(
    server: Server | None, spec: InferencePolicySpec | None = None, *, name: str = POLICY
) -> PolicyRequest:
    return PolicyRequest(namespace=NAMESPACE, name=name, spec=spec or a_spec(), server=server)


class RouterSeries:
    """The series of one router of a policy."""

    def __init__(self, exporter: Exporter, *, policy: str = POLICY) -> None:
        self.exporter = exporter
        self._own = {"policy": policy}  # the namespace is the target's own label

    def begin(self, *pools: str, sequence: int = 1) -> None:
        """Have applied a table with these pools: their counters are there, at 0."""
        self.exporter.set(m.APPLIED_SEQUENCE, sequence, **self._own)
        for pool in pools:
            for name in (m.SAMPLES, m.SAMPLES_SLOW, m.POOL_MILLISECONDS):
                self.exporter.set(name, 0, pool=pool, **self._own)
            self.exporter.set(m.IN_FLIGHT, 0, pool=pool, **self._own)
        self.exporter.set(m.CLIENT_REQUESTS, 0, **self._own)
        self.exporter.set(m.CLIENT_SLOW, 0, **self._own)

    def completed(
        self,
        pool: str,
        total: float,
        *,
        slow: float = 0,
        milliseconds: float = 1000,
        size: str = "",
        tokens: float = 0,
    ) -> None:
        """Count requests, `milliseconds` each, of a size class if given; with `usage` if they tell tokens."""
        own = {**self._own, "pool": pool}
        sized = {**own, "class": size} if size else own
        self.exporter.add(m.SAMPLES, total, **sized)
        self.exporter.add(m.SAMPLES_SLOW, slow, **sized)
        self.exporter.add(m.POOL_MILLISECONDS, total * milliseconds, **own)
        if tokens:
            self.exporter.add(m.PROMPT_TOKENS, total * tokens * 5, **own)
            self.exporter.add(m.COMPLETION_TOKENS, total * tokens, **own)
        self.exporter.add(m.CLIENT_REQUESTS, total, **self._own)
        self.exporter.add(m.CLIENT_SLOW, slow, **self._own)

    def streamed_without_usage(self, pool: str, total: float) -> None:
        """Serve streams of which no tokens are told: their time in the pool is all that counts."""
        self.exporter.add(m.POOL_MILLISECONDS, total * 1000, **self._own, pool=pool)

    def in_flight(self, pool: str, value: float) -> None:
        self.exporter.set(m.IN_FLIGHT, value, **self._own, pool=pool)


class Watcher:
    """Gathers again and again, and keeps every new sample of each pool."""

    def __init__(self, source: PrometheusSource, request: PolicyRequest) -> None:
        self.source = source
        self.request = request
        self.inputs: Inputs | None = None
        self.samples: dict[str, list[Sample]] = {}

    async def look(self) -> Inputs:
        """Gather once."""
        inputs = (await self.source.gather([self.request], time.time()))[self.request.key]
        for name, pool in inputs.pools.items():
            seen = self.samples.setdefault(name, [])
            if isinstance(pool.observation, Sample) and (not seen or seen[-1].at < pool.observation.at):
                seen.append(pool.observation)
        self.inputs = inputs
        return inputs

    async def until(
        self, wanted: Callable[[Inputs], bool], what: str, deadline_seconds: float = 30
    ) -> Inputs:
        """Gather, as a policy's loop does, until the inputs are as wanted."""

        async def found() -> Inputs | None:
            inputs = await self.look()
            return inputs if wanted(inputs) else None

        inputs = await until(found, deadline_seconds, what, interval_seconds=0.1)
        assert inputs is not None
        return inputs

    async def sees(self, pool: str, wanted: Callable[[Observation], bool], what: str) -> Observation:
        """Gather until one pool's observation is as wanted; return it."""
        inputs = await self.until(lambda inputs: wanted(inputs.pools[pool].observation), what)
        return inputs.pools[pool].observation

    async def misses(self, pool: str, reason: str) -> Missing:
        """Gather until a pool is missing for this reason; return what is said of it."""
        seen = await self.sees(
            pool, lambda o: isinstance(o, Missing) and o.reason == reason, f"{pool} is {reason}"
        )
        assert isinstance(seen, Missing)
        return seen


class Learner(Watcher):
    """Learns from each new sample of one pool while it may, and says how far it got."""

    def __init__(self, source: PrometheusSource, request: PolicyRequest, pool: str) -> None:
        super().__init__(source, replace(request, learned_until={}))
        self.pool = pool
        self.may = True
        self.learned: list[Sample] = []
        self.lost = 0
        """Samples that were given out while nothing could be learned."""

    async def look(self) -> Inputs:
        """Gather once, and learn."""
        before = len(self.samples.get(self.pool, ()))
        inputs = await super().look()
        new = self.samples[self.pool][before:]
        if not self.may:
            self.lost += len(new)
            return inputs
        observation = inputs.pools[self.pool].observation
        until = self.request.learned_until or {}
        if isinstance(observation, Sample) and observation.at > until.get(self.pool, 0.0):
            self.learned.append(observation)
            self.request = replace(self.request, learned_until={self.pool: observation.at})
        return inputs

    @property
    def total(self) -> float:
        """Requests learned from."""
        return sum(sample.recent.total for sample in self.learned)

    async def loses(self, samples: int) -> None:
        """Learn from none of so many samples."""
        self.may, self.lost = False, 0
        await self.until(lambda _: self.lost >= samples, f"{samples} samples are lost")
        self.may = True


def scraping(prometheus: Callable[..., Prometheus], addresses: list[str], interval: str = "1s") -> Prometheus:
    """Start a Prometheus that scrapes routers of the tests' namespace."""
    server = prometheus(targets={"routers": []}, scrape_interval=interval)
    server.set_targets("routers", addresses, {"namespace": NAMESPACE})
    return server


def sampled(observation: Observation) -> bool:
    return isinstance(observation, Sample)
