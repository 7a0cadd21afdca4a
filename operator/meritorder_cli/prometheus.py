"""What a Prometheus knows and our Envoy does not: engines' own metrics, and prices that are queries.

Pools with `metrics.engine: Router` stay with the counters that are read here, exact and a second old. To what
an engine says of itself comes what only the Envoy in front of it can know: attempts that failed, and that
requests were completed which the engine does not count.
"""

import re
from dataclasses import replace
from types import TracebackType
from typing import Self

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.pool import Engine, Pool
from meritorder_api.resource import InferencePolicy
from meritorder_cli.complaint import WrongUse
from meritorder_cli.measure import Ring
from meritorder_core.inputs import Counts, Inputs, Observation, PoolInputs, Sample
from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.queries import PRESETS
from meritorder_operator.prometheus.samples import FROZEN_COMPLETIONS, stands_still
from meritorder_operator.prometheus.source import PolicyRequest, PrometheusSource

_URL = re.compile(r"https?://[^\s@]+")


def wants(pool: Pool) -> list[str]:
    """What of a pool only a Prometheus can tell, in words."""
    found = []
    if pool.metrics.engine is not Engine.ROUTER:
        found.append(f"metrics of {pool.metrics.engine.value}")
    if pool.cost.query is not None:
        found.append("its price")
    return found


def ignored(policy: InferencePolicy) -> list[tuple[str, str]]:
    """What is not known without a Prometheus: (pool, sentence)."""
    return [
        (pool.name, f"{pool.name}: {' and '.join(wants(pool))} would need --prometheus-url")
        for pool in policy.spec.pools
        if wants(pool)
    ]


def check_url(url: str) -> None:
    """Refuse what cannot be a server's URL."""
    if not _URL.fullmatch(url):
        raise WrongUse(f"`--prometheus-url` must be http://HOST:PORT or https://..., is `{url}`")


class FromPrometheus:
    """Puts into each pass's inputs what the server knows."""

    def __init__(self, policy: InferencePolicy, url: str) -> None:
        self._policy = policy
        self._server = Server(url=url)
        self._source = PrometheusSource()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._source.close()

    async def __call__(self, inputs: Inputs, ring: Ring) -> Inputs:
        """The same inputs, with the pools that want it as Prometheus has them."""
        policy = self._policy
        if not any(wants(pool) for pool in policy.spec.pools):
            return inputs
        request = PolicyRequest(
            namespace=policy.metadata.namespace,
            name=policy.metadata.name,
            spec=policy.spec,
            server=self._server,
            ready={
                name: pool.ready_replicas
                for name, pool in inputs.pools.items()
                if pool.ready_replicas is not None
            },
        )
        theirs = (await self._source.gather([request], inputs.now))[request.key]
        engines = any(pool.metrics.engine is not Engine.ROUTER for pool in policy.spec.pools)
        return replace(
            inputs,
            pools={
                pool.name: _merged(pool, inputs.pools[pool.name], theirs.pools[pool.name], ring, policy.spec)
                for pool in policy.spec.pools
            },
            effective_interval_seconds=max(
                inputs.effective_interval_seconds, theirs.effective_interval_seconds if engines else 0.0
            ),
        )


def _merged(
    pool: Pool, ours: PoolInputs, theirs: PoolInputs, ring: Ring, spec: InferencePolicySpec
) -> PoolInputs:
    """What is known here, with the observation or the price that only Prometheus has."""
    price = ours.price if pool.cost.query is None else theirs.price
    if pool.metrics.engine is Engine.ROUTER:
        return replace(ours, price=price)
    observation = theirs.observation
    if pool.metrics.engine in PRESETS and isinstance(observation, Sample):
        observation = _completed_here(pool, observation, ring, spec)
    return replace(ours, observation=observation, price=price)


def _completed_here(pool: Pool, sample: Sample, ring: Ring, spec: InferencePolicySpec) -> Observation:
    """An engine's sample with the attempts that failed in front of it; or that it counts nothing."""
    window = spec.sla.window_seconds
    if sample.window.total <= 0:
        # Up to the engine's newest scrape: what was completed since then, it cannot have told.
        well = ring.increase("total", pool.name, window, until=sample.at) - ring.increase(
            "slow", pool.name, window, until=sample.at
        )
        if well >= FROZEN_COMPLETIONS:
            return stands_still(pool, well, window)

    def with_failed(counts: Counts) -> Counts:
        failed = ring.increase("failed_attempts", pool.name, counts.seconds)
        return replace(counts, total=counts.total + failed, slow=counts.slow + failed)

    return replace(sample, window=with_failed(sample.window), recent=with_failed(sample.recent))
