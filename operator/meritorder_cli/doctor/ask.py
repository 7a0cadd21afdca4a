"""What Prometheus has of a policy: asks, and judges nothing. Names, labels and queries are the operator's own
(`queries`).
"""

import math
from collections.abc import Callable, Collection
from typing import Final

from meritorder_api import metric_names as m
from meritorder_api.policy import Pool
from meritorder_api.resource import InferencePolicy
from meritorder_cli.doctor.facts import PolicyMetrics, PoolMetrics
from meritorder_core.inputs import Missing
from meritorder_operator.prometheus import queries
from meritorder_operator.prometheus.client import PrometheusClient, QueryError
from meritorder_operator.prometheus.feed import LAG_SECONDS
from meritorder_operator.prometheus.prices import Prices
from meritorder_operator.prometheus.queries import PRESETS, Signal
from meritorder_operator.prometheus.source import selector

AHEAD_SECONDS: Final = 240.0
"""How far into the future a scrape is looked for: a query sees 5 minutes back."""
_NAME: Final = "__name__"

Rows = dict[tuple[str, ...], float]


class Questions:
    """Questions to one server, as of one moment."""

    def __init__(self, client: PrometheusClient, now: float) -> None:
        self._client = client
        self._now = now

    async def rows(self, query: str, labels: tuple[str, ...], *, at: float | None = None) -> Rows:
        """Values by labels."""
        moment = self._now if at is None else at
        found = await self._client.range("doctor", query, labels, start=moment, end=moment, step=1.0)
        return {row.key: row.points[-1][1] for row in found if row.points}

    async def policy(self, policy: InferencePolicy, known: Collection[str]) -> PolicyMetrics:
        """What is there of a policy; `known` are the keys of all policies."""
        shown = self._client.server.shown
        try:
            return await self._policy(policy, known, shown)
        except QueryError as error:
            return PolicyMetrics(server=shown, failure=error.reason, said=error.message)

    async def _policy(self, policy: InferencePolicy, known: Collection[str], shown: str) -> PolicyMetrics:
        namespace, name, spec = policy.metadata.namespace, policy.metadata.name, policy.spec
        window = float(spec.sla.window_seconds)
        match = queries.router_match((namespace,), (name,))

        def rendered(signal: Signal) -> str:
            query = next(one for one in queries.ROUTER if one.signal is signal)
            return query.render(by=queries.ROUTER_BY, match=match.series, where=match.targets, step=window)

        agents = await self.rows(
            f"count by ({m.LABEL_NAMESPACE}) "
            f"({m.APPLIED_SEQUENCE}{{{queries.one_of(m.LABEL_POLICY, (name,))}}})",
            (m.LABEL_NAMESPACE,),
        )
        scrapes = await self.rows(rendered(Signal.SCRAPES), queries.ROUTER_BY)
        newest = [
            at
            for ahead in (0.0, AHEAD_SECONDS)
            for at in (await self.rows(rendered(Signal.AT), queries.ROUTER_BY, at=self._now + ahead)).values()
        ]
        pools = {pool.name: await self._pool(policy, pool) for pool in spec.pools}
        return PolicyMetrics(
            server=shown,
            routers=int(agents.get((namespace,), 0)),
            foreign=sum(int(count) for (where,), count in agents.items() if f"{where}/{name}" not in known),
            uncounted=bool(await self.rows(rendered(Signal.UNCOUNTED), queries.ROUTER_BY)),
            scrapes=min(scrapes.values(), default=None),
            newest=max(newest, default=None),
            pools=pools,
        )

    async def _pool(self, policy: InferencePolicy, pool: Pool) -> PoolMetrics:
        price = None
        if pool.cost.query is not None:
            prices = Prices(self._client)
            await prices.advance(policy.spec, self._now - LAG_SECONDS)
            value = prices.of(pool)
            price = value.message if isinstance(value, Missing) else None
        if pool.metrics.custom is not None:
            return PoolMetrics(custom=await self._custom(policy, pool), no_price=price)
        preset = PRESETS.get(pool.metrics.engine)
        if preset is None:
            return PoolMetrics(no_price=price)
        labels, values = selector(policy.metadata.namespace, pool)
        match = queries.engine_match(labels, (values,)).series
        picked = ", ".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True))
        series = await self._count(preset.up, match)
        if not series:
            others = {one: other for one, other in PRESETS.items() if one is not pool.metrics.engine}
            there = [one for one, other in others.items() if await self._count(other.up, match)]
            by = tuple(dict.fromkeys((*labels, "namespace", "service", "job")))
            elsewhere = await self.rows(
                f"count by ({', '.join(by)}) ({{{queries.one_of(_NAME, preset.up)}}})", by
            )
            return PoolMetrics(
                picked=picked,
                series=0,
                other_engine=there[0] if there else None,
                elsewhere=tuple(dict(zip(by, key, strict=True)) for key in sorted(elsewhere)),
                no_price=price,
            )
        bounds: tuple[float, ...] | None = None
        histogram = preset.histograms.get(policy.spec.sla.metric)
        if histogram is not None:
            bounds = ()
            for name in histogram.names:  # where two names are there, the first counts
                if not bounds:
                    found = await self.rows(f"count by (le) ({name}_bucket{{{match}}})", ("le",))
                    bounds = tuple(sorted(b for b in (float(le) for (le,) in found) if math.isfinite(b)))
        return PoolMetrics(picked=picked, series=series, bounds=bounds, no_price=price)

    async def _count(self, names: tuple[str, ...], match: str) -> int:
        found = await self.rows(f"count({{{queries.one_of(_NAME, names)},{match}}})", ())
        return int(sum(found.values()))

    async def _custom(self, policy: InferencePolicy, pool: Pool) -> dict[str, float | str]:
        assert pool.metrics.custom is not None
        given = pool.metrics.custom.dump()
        asked: Callable[[str], str] = lambda query: queries.custom(query, policy.spec.sla.window_seconds)  # noqa: E731
        found: dict[str, float | str] = {}
        for name, query in given.items():
            try:
                values = await self._client.instant("doctor", asked(query), self._now)
            except QueryError as error:
                found[name] = f"`{name}` has no answer: {error.message}"
                continue
            if len(values) == 1 and math.isfinite(values[0]):
                found[name] = values[0]
            else:
                seen = f"{len(values)} series" if len(values) != 1 else f"{values[0]}"
                found[name] = f"`{name}` gives {seen}; must give one value that is a number"
        return found
