"""What a replica costs: as the spec states, or as its query gives it.

A price moves seldom, so it is asked for once a minute for all policies with the same query, and outlives a
Prometheus that is away for a while.
"""

import math
from dataclasses import dataclass
from typing import Final

from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec, Pool
from meritorder_core.inputs import Missing, PerMillionTokens, Price, ReplicaHour
from meritorder_operator.prometheus.client import PrometheusClient, QueryError

PRICE_SECONDS: Final = 60.0
"""Prices are asked for this often."""
UNPRICED_SECONDS: Final = 5.0
"""The same while there is none."""
PRICE_STALE_SECONDS: Final = 900.0
"""A price that cannot be had anew is taken for so long."""


@dataclass(slots=True)
class _Kept:
    value: Price
    asked_at: float = -math.inf
    known_at: float = -math.inf


class Prices:
    """The prices that one server gives, by query."""

    def __init__(self, client: PrometheusClient) -> None:
        self._client = client
        self._kept: dict[str, _Kept] = {}

    async def advance(self, spec: InferencePolicySpec, now: float) -> None:
        """Ask for the prices that are due."""
        for pool in spec.pools:
            if pool.cost.query is not None:
                await self._ask(pool.cost.query, now)

    async def _ask(self, query: str, now: float) -> None:
        kept = self._kept.setdefault(
            query, _Kept(Missing(reason=reasons.Missing.NO_PRICE, message="its price was not asked for yet"))
        )
        if now - kept.asked_at < (UNPRICED_SECONDS if isinstance(kept.value, Missing) else PRICE_SECONDS):
            return
        kept.asked_at = now
        try:
            fresh = _price_of(await self._client.instant("price", query, now))
        except QueryError as error:
            fresh = Missing(reason=reasons.Missing.NO_PRICE, message=f"its price: {error.message}")
        if not isinstance(fresh, Missing):
            kept.known_at = now
        elif now - kept.known_at < PRICE_STALE_SECONDS:
            return
        kept.value = fresh

    def of(self, pool: Pool) -> Price:
        """A pool's price as it is known now."""
        if pool.cost.query is not None:
            return self._kept[pool.cost.query].value
        declared = declared_price(pool)
        assert declared is not None
        return declared


def declared_price(pool: Pool) -> Price | None:
    """The price that the spec states; None where it is a query."""
    cost = pool.cost
    if cost.per_replica_hour is not None:
        return ReplicaHour(dollars=float(cost.per_replica_hour))
    if cost.per_million_tokens is not None:
        return PerMillionTokens(
            input=float(cost.per_million_tokens.input), output=float(cost.per_million_tokens.output)
        )
    return None


def _price_of(values: list[float]) -> Price:
    if len(values) == 1 and math.isfinite(values[0]) and values[0] >= 0:
        return ReplicaHour(dollars=values[0])
    seen = f"{len(values)} series" if len(values) != 1 else "a negative value or none"
    return Missing(
        reason=reasons.Missing.NO_PRICE,
        message=f"the query of its price gives {seen}; must give one value that is 0 or more",
    )
