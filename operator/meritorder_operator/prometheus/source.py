"""One policy's inputs out of what the feeds hold: a `Sample` or a `Missing` with its reason for each pool.

A sample stands for a stretch that ends at a scrape, and is replaced only once every target was scraped
again and the policy's interval has passed: `Sample.at` stands still in between. One that nobody learned from,
since what was decided could not be written, is part of the next. Availability is judged by a series that is
there from the start, so a pool without requests is idle, not missing.
"""

import asyncio
import math
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from meritorder_api import metric_names, reasons
from meritorder_api.policy import Engine, InferencePolicySpec, Pool, SLAMetric
from meritorder_core.inputs import (
    Counts,
    Inputs,
    Missing,
    Observation,
    PoolInputs,
    Sample,
)
from meritorder_operator.prometheus import queries, samples
from meritorder_operator.prometheus.client import PrometheusClient, QueryError, QueryStats, Server
from meritorder_operator.prometheus.custom import CustomPool
from meritorder_operator.prometheus.feed import LAG_SECONDS, Feed, Key
from meritorder_operator.prometheus.prices import Prices, declared_price
from meritorder_operator.prometheus.track import Mark, Track

EDIT_SECONDS: Final = 3.0
"""Until all routers judge by an edited target."""
DISPLAY_SECONDS: Final = 10.0
UNUSED_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    """A policy whose inputs are wanted."""

    namespace: str
    name: str
    spec: InferencePolicySpec
    server: Server | None
    """Where its metrics are; None when nobody configured any."""
    ready: Mapping[str, int] = field(default_factory=dict)
    """Ready replicas per pool, as far as anyone has said."""
    learned_until: Mapping[str, float] | None = None
    """`Sample.at` of the newest sample of each pool that was learned from (0 or absent: none was). One that
    was given out and is newer was lost with its pass: the next reaches back over it. None: none is lost.
    """

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class _Emitted:
    """The last samples given out, and where the next stretch begins."""

    spec: InferencePolicySpec
    mark: Mark | None = None
    observations: dict[str, Observation] = field(default_factory=dict)
    client: Counts | Missing | None = None
    engine_marks: dict[str, Mark] = field(default_factory=dict)
    starts: dict[str, Mark] = field(default_factory=dict)
    """Where the stretch of each pool's last sample began."""
    since: float | None = None
    """Router samples count from here on: before, requests were judged by another target."""


@dataclass(slots=True)
class _Attained:
    asked_at: float
    values: dict[Key, float] = field(default_factory=dict)


class _ServerState:
    """What is kept per Prometheus server."""

    def __init__(self, client: PrometheusClient, lag_seconds: float) -> None:
        self.client = client
        self.router = Feed(client, queries.ROUTER, queries.ROUTER_BY, _router_match, lag_seconds=lag_seconds)
        self.prompt = Feed(
            client, (queries.ROUTER_PROMPT,), queries.ROUTER_BY, _router_match, lag_seconds=lag_seconds
        )
        self.failed = Feed(
            client, (queries.ROUTER_FAILED,), queries.ROUTER_BY, _router_match, lag_seconds=lag_seconds
        )
        self.engines: dict[tuple[Engine, SLAMetric, tuple[str, ...]], Feed] = {}
        self.prices = Prices(client)
        self.attained: dict[tuple[SLAMetric, int, int], _Attained] = {}
        self.custom: dict[tuple[str, str], CustomPool] = {}
        self.lag_seconds = lag_seconds
        self.used_at = math.inf

    def engine(self, engine: Engine, metric: SLAMetric, labels: tuple[str, ...]) -> Feed | None:
        """The feed of one engine's pools that are picked by these labels; None where it cannot tell the
        metric.
        """
        asked = queries.PRESETS[engine].queries(metric)
        if not asked:
            return None
        which = (engine, metric, labels)
        if which not in self.engines:
            self.engines[which] = Feed(
                self.client,
                asked,
                labels,
                partial(queries.engine_match, labels),
                lag_seconds=self.lag_seconds,
            )
        return self.engines[which]


def _router_match(keys: tuple[Key, ...]) -> queries.Match:
    return queries.router_match(tuple(key[0] for key in keys), tuple(key[1] for key in keys))


class PrometheusSource:
    """Gathers inputs for many policies with few queries; one per process."""

    def __init__(
        self,
        *,
        timeout_seconds: float = 5.0,
        lag_seconds: float = LAG_SECONDS,
        reply_limit: int = 32 * 1024 * 1024,
    ) -> None:
        self.stats: dict[str, QueryStats] = {}
        self._timeout = timeout_seconds
        self._lag = lag_seconds
        self._reply_limit = reply_limit
        self._servers: dict[Server, _ServerState] = {}
        self._emitted: dict[str, _Emitted] = {}

    async def close(self) -> None:
        """Close all connections."""
        for state in self._servers.values():
            await state.client.close()

    def forget(self, key: str) -> None:
        """Drop what is kept of a policy that is gone."""
        self._emitted.pop(key, None)
        for state in self._servers.values():
            for which in [which for which in state.custom if which[0] == key]:
                del state.custom[which]

    async def gather(self, requests: Sequence[PolicyRequest], now: float) -> dict[str, Inputs]:
        """Inputs by policy key (`namespace/name`), as of `now` (unix seconds)."""
        feeds = {feed for request in requests for feed in self._feeds(request, now)}
        asked: list[Coroutine[None, None, None]] = [feed.advance(now) for feed in feeds if feed.is_due(now)]
        for request in requests:
            if request.server is not None:
                asked += self._extras(request, self._state(request.server), now)
        if asked:
            await asyncio.gather(*asked)
        await self._leave(now)
        return {request.key: self._inputs(request, now) for request in requests}

    def _state(self, server: Server) -> _ServerState:
        if server not in self._servers:
            client = PrometheusClient(
                server, timeout_seconds=self._timeout, reply_limit=self._reply_limit, stats=self.stats
            )
            self._servers[server] = _ServerState(client, self._lag)
        return self._servers[server]

    async def _leave(self, now: float) -> None:
        """Close the connections to servers that nobody asks any more, such as after new credentials."""
        for server, state in list(self._servers.items()):
            if now - state.used_at > UNUSED_SECONDS:
                del self._servers[server]
                await state.client.close()

    def _feeds(self, request: PolicyRequest, now: float) -> list[Feed]:
        if request.server is None:
            return []
        state, spec = self._state(request.server), request.spec
        state.used_at = now
        reach, interval = float(spec.sla.window_seconds), float(spec.behavior.interval_seconds)
        key = (request.namespace, request.name)
        feeds = [state.router]
        if any(pool.cost.per_million_tokens for pool in spec.pools):
            feeds.append(state.prompt)
        if any(pool.metrics.engine in queries.PRESETS for pool in spec.pools):
            feeds.append(state.failed)
        for feed in feeds:
            feed.want(key, reach=reach, interval=interval, now=now)
        for pool in spec.pools:
            if pool.metrics.engine in queries.PRESETS:
                labels, values = selector(request.namespace, pool)
                engine = state.engine(pool.metrics.engine, spec.sla.metric, labels)
                if engine is not None:
                    engine.want(values, reach=reach, interval=interval, now=now)
                    feeds.append(engine)
        return feeds

    def _extras(
        self, request: PolicyRequest, state: _ServerState, now: float
    ) -> Iterator[Coroutine[None, None, None]]:
        """Prices, custom queries, and percentiles for display, where they are due."""
        spec = request.spec
        if any(pool.cost.query for pool in spec.pools):
            yield state.prices.advance(spec, now - self._lag)
        if any(pool.metrics.custom for pool in spec.pools):
            yield self._ask_custom(request, state, now)
        which = (spec.sla.metric, spec.sla.window_seconds, spec.sla.percentile)
        attained = state.attained.setdefault(which, _Attained(-math.inf))
        if now - attained.asked_at >= max(DISPLAY_SECONDS, state.router.step):
            attained.asked_at = now  # at once: others that are due in this moment find it done
            yield self._ask_attained(spec, state, now)

    async def _ask_custom(self, request: PolicyRequest, state: _ServerState, now: float) -> None:
        for pool in request.spec.pools:
            if pool.metrics.custom is not None:
                which = (request.key, pool.name)
                kept = state.custom.get(which)
                if kept is None or kept.queries != pool.metrics.custom:
                    kept = state.custom[which] = CustomPool(pool.metrics.custom)
                lost = _is_lost(request, pool.name, kept.observation)
                await kept.advance(state.client, request.spec, now, self._lag, lost=lost)

    async def _ask_attained(self, spec: InferencePolicySpec, state: _ServerState, now: float) -> None:
        asked = queries.ROUTER_ATTAINED.get(spec.sla.metric)
        if asked is None:
            return
        kept = state.attained[(spec.sla.metric, spec.sla.window_seconds, spec.sla.percentile)]
        values: dict[Key, float] = {}
        at = now - self._lag
        try:
            for query in asked:
                text = query.render(
                    by=queries.ROUTER_BY,
                    match=queries.router_match().series,
                    window=spec.sla.window_seconds,
                    quantile=spec.sla.percentile / 100,
                )
                labels = queries.ROUTER_BY + query.extra_labels
                for row in await state.client.range(query.name, text, labels, start=at, end=at, step=1.0):
                    if math.isfinite(row.points[-1][1]):
                        values[row.key] = row.points[-1][1]
        except QueryError:
            values = {}  # for display only; what decides has its own queries and says what is wrong
        kept.values = values

    # What the feeds hold, as one policy's inputs.

    def _inputs(self, request: PolicyRequest, now: float) -> Inputs:
        spec = request.spec
        if request.server is None:
            nowhere = Missing(
                reason=reasons.Missing.UNREACHABLE,
                message="no Prometheus is configured; set `metricsSource` or the operator's --prometheus-url",
            )
            return unmeasured(request, nowhere, now)
        state = self._state(request.server)
        track = state.router.tracks.get((request.namespace, request.name))
        kept = self._emitted.get(request.key)
        if kept is None or kept.spec is not request.spec:
            kept = self._emitted[request.key] = _taken_over(kept, request, now)
        trouble = samples.trouble(state.router, track, spec, now, self._no_router(request))
        if track is not None and trouble is None:
            self._emit_router(request, state, track, kept)
        observations: dict[str, Observation] = {}
        for pool in spec.pools:
            engine = pool.metrics.engine
            if engine is Engine.ROUTER:
                observations[pool.name] = trouble or kept.observations.get(pool.name) or samples.just_begun()
            elif engine is Engine.CUSTOM:
                observations[pool.name] = state.custom[(request.key, pool.name)].observation
            else:
                observations[pool.name] = self._engine(request, state, pool, kept, now)
        interval = (track.scrape_interval() if track else None) or 0.0
        attained = state.attained.get((spec.sla.metric, spec.sla.window_seconds, spec.sla.percentile))
        shown = attained.values if attained else {}
        where = (request.namespace, request.name)
        return Inputs(
            now=now,
            pools={
                pool.name: PoolInputs(
                    observation=samples.with_attained(
                        observations[pool.name], shown.get((*where, pool.name))
                    ),
                    price=state.prices.of(pool),
                    ready_replicas=request.ready.get(pool.name),
                )
                for pool in spec.pools
            },
            client=trouble or kept.client or samples.just_begun(),
            client_attained_milliseconds=None if trouble else shown.get(where),
            effective_interval_seconds=max(float(spec.behavior.interval_seconds), round(interval, 3)),
        )

    def _no_router(self, request: PolicyRequest) -> str:
        return (
            f"no router of this policy is scraped: no series `{metric_names.APPLIED_SEQUENCE}` with "
            f'namespace="{request.namespace}", policy="{request.name}"'
        )

    def _emit_router(self, request: PolicyRequest, state: _ServerState, track: Track, kept: _Emitted) -> None:
        """Make new samples, if a stretch has ended."""
        spec = request.spec
        if kept.since is not None and track.oldest.end < kept.since:
            if track.end < kept.since:
                for pool in spec.pools:
                    if pool.metrics.engine is Engine.ROUTER:
                        kept.observations[pool.name] = samples.nothing_yet(track)
                kept.client = samples.nothing_yet(track).window
                return
            track.cut(kept.since)
            kept.mark = None
        end = samples.stretch(track, kept.mark, spec, state.router.step)
        if end is None:
            return
        prompt = state.prompt.tracks.get((request.namespace, request.name))
        for pool in spec.pools:
            if pool.metrics.engine is Engine.ROUTER:
                start = _start(request, kept, pool.name, track, end, kept.mark)
                kept.observations[pool.name] = samples.router_observation(
                    track, start, prompt, pool.name, spec
                )
        kept.client = samples.client_window(track, spec)
        kept.mark = track.now

    def _engine(
        self, request: PolicyRequest, state: _ServerState, pool: Pool, kept: _Emitted, now: float
    ) -> Observation:
        spec = request.spec
        engine = pool.metrics.engine
        labels, values = selector(request.namespace, pool)
        feed = state.engine(engine, spec.sla.metric, labels)
        if feed is None:
            return Missing(
                reason=reasons.Missing.NOT_SUPPORTED,
                message=f"pool `{pool.name}`: {engine.value} has no histogram for {spec.sla.metric.value}; "
                "use engine Router",
            )
        picked = ", ".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True))
        absent = f"pool `{pool.name}`: no series of {engine.value} with {picked} is scraped"
        track = feed.tracks.get(values)
        trouble = samples.trouble(feed, track, spec, now, absent)
        if trouble is not None or track is None:
            return trouble or samples.just_begun()
        if "" in track.not_numbers:
            return Missing(
                reason=reasons.Missing.NOT_A_NUMBER,
                message=f"pool `{pool.name}`: {engine.value}'s counters are not numbers",
            )
        before = kept.engine_marks.get(pool.name)
        end = samples.stretch(track, before, spec, feed.step)
        if end is not None:
            start = _start(request, kept, pool.name, track, end, before)
            failed = state.failed.tracks.get((request.namespace, request.name))
            kept.observations[pool.name] = samples.engine_observation(track, start, failed, pool, spec)
            kept.engine_marks[pool.name] = track.now
        frozen = samples.frozen(track, state.router.tracks.get((request.namespace, request.name)), pool, spec)
        if frozen is not None:
            kept.starts.pop(pool.name, None)  # what stood still meanwhile says nothing of the load
        return frozen or kept.observations.get(pool.name) or samples.just_begun()


def _start(
    request: PolicyRequest, kept: _Emitted, pool: str, track: Track, end: Mark, last: Mark | None
) -> Mark:
    """Where the stretch of a pool's new sample begins: at the `end` of the one before, or where that one
    began if nobody learned from it.

    But no further back than a window: a mean over all the loads of a long outage would say little of any.
    `last` is the mark that the last sample ended with.
    """
    start, before = end, kept.starts.get(pool)
    if before is not None and end is last and _is_lost(request, pool, kept.observations.get(pool)):
        oldest = track.before(request.spec.sla.window_seconds)
        start = before if before.end >= oldest.end else min(oldest, end, key=lambda mark: mark.end)
    kept.starts[pool] = start
    return start


def _is_lost(request: PolicyRequest, pool: str, last: Observation | None) -> bool:
    """Whether the last sample given out was never learned from."""
    if request.learned_until is None or not isinstance(last, Sample):
        return False
    return last.at > request.learned_until.get(pool, 0.0)


def unmeasured(request: PolicyRequest, missing: Missing, now: float) -> Inputs:
    """Inputs of a policy of which nothing is known but its prices and replicas, for this reason."""
    unpriced = Missing(reason=reasons.Missing.NO_PRICE, message=missing.message)
    return Inputs(
        now=now,
        pools={
            pool.name: PoolInputs(
                observation=missing,
                price=declared_price(pool) or unpriced,
                ready_replicas=request.ready.get(pool.name),
            )
            for pool in request.spec.pools
        },
        client=missing,
        effective_interval_seconds=float(request.spec.behavior.interval_seconds),
    )


def selector(namespace: str, pool: Pool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Label names and values that pick the series of a pool's engine."""
    chosen = pool.metrics.selector
    if not chosen:
        service = pool.backend.service
        chosen = {"namespace": namespace, "service": service.name if service else ""}
    names = tuple(sorted(chosen))
    return names, tuple(chosen[name] for name in names)


def _taken_over(kept: _Emitted | None, request: PolicyRequest, now: float) -> _Emitted:
    """What stays when the spec was edited: with another target, nothing."""
    fresh = _Emitted(spec=request.spec)
    if kept is None:
        return fresh
    if kept.spec.sla == request.spec.sla:
        return replace(kept, spec=request.spec)
    if (kept.spec.sla.metric, kept.spec.sla.target_milliseconds) != (
        request.spec.sla.metric,
        request.spec.sla.target_milliseconds,
    ):
        fresh.since = now + EDIT_SECONDS
    else:
        fresh.since = kept.since
    return fresh
