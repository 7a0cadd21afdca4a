"""A pool that is measured by its user's own PromQL, which Meritorder runs as it is.

Such queries say nothing of scrapes, so a sample stands for half a window: `$window` must hold at least two
scrapes for the user's `increase()`, and a window holds at least four.
"""

import math

from meritorder_api import reasons
from meritorder_api.policy import CustomQueries, InferencePolicySpec
from meritorder_core.inputs import Counts, Missing, Observation, Sample
from meritorder_operator.prometheus import queries
from meritorder_operator.prometheus.client import PrometheusClient, QueryError


class CustomPool:
    """The last observation of one pool, and how to make the next."""

    def __init__(self, asked: CustomQueries) -> None:
        self.queries = asked
        self.observation: Observation = Missing(
            reason=reasons.Missing.TOO_FEW_SAMPLES, message="its queries have not been asked yet"
        )
        self._asked_at = -math.inf
        self._failed = 0

    async def advance(
        self,
        client: PrometheusClient,
        spec: InferencePolicySpec,
        now: float,
        lag_seconds: float,
        *,
        lost: bool = False,
    ) -> None:
        """Ask again if half a window has passed; what was wrong shows in `observation`.

        Where nobody learned from the last sample (`lost`), the next reaches back over it, a window at most.
        """
        window = float(spec.sla.window_seconds)
        stretch = max(float(spec.behavior.interval_seconds), window / 2)
        wait = stretch if isinstance(self.observation, Sample) else spec.behavior.interval_seconds
        if now - self._asked_at < wait * 0.99:
            return
        self._asked_at = now
        at = round(now - lag_seconds, 3)  # as it is remembered
        seconds = stretch
        if lost and isinstance(self.observation, Sample):
            reach = at - self.observation.at + self.observation.recent.seconds
            seconds = max(stretch, min(reach, window))
        try:
            self.observation = Sample(
                at=at,
                window=await self._counts(client, window, at),
                recent=await self._counts(client, seconds, at),
                in_flight=await self._value(client, "inFlight", self.queries.in_flight, window, at),
            )
            self._failed = 0
        except QueryError as error:
            self._failed += 1
            if isinstance(self.observation, Missing) or self._failed > 1:
                self.observation = Missing(reason=error.reason, message=error.message)

    async def _counts(self, client: PrometheusClient, seconds: float, at: float) -> Counts:
        total = await self._value(client, "total", self.queries.total, seconds, at)
        slow = await self._value(client, "slow", self.queries.slow, seconds, at)
        if self.queries.latency_sum is not None:
            latency = await self._value(client, "latencySum", self.queries.latency_sum, seconds, at)
        else:
            gauge = await self._value(client, "inFlight", self.queries.in_flight, seconds, at)
            latency = gauge * seconds
        total = max(0.0, total)
        return Counts(
            seconds=seconds,
            total=total,
            slow=min(max(0.0, slow), total),
            latency_sum_seconds=max(0.0, latency),
        )

    async def _value(
        self, client: PrometheusClient, signal: str, query: str, seconds: float, at: float
    ) -> float:
        values = await client.instant("custom", queries.custom(query, seconds), at)
        if not values:
            raise QueryError(
                reasons.Missing.NO_SERIES, f"the custom query `{signal}` gives nothing; must give one value"
            )
        if len(values) > 1:
            raise QueryError(
                reasons.Missing.QUERY_REFUSED,
                f"the custom query `{signal}` gives {len(values)} series; must give one: sum them up",
            )
        if not math.isfinite(values[0]):
            raise QueryError(
                reasons.Missing.NOT_A_NUMBER,
                f"the custom query `{signal}` gives {values[0]}; must give a number",
            )
        return values[0]
