"""The series of many policies' routers on one port, with counters that move: `python -m bench.exporter PORT`.

Each router of each policy is a target of its own: `/metrics/POLICY/ROUTER` (two numbers). Names and labels
are those that the agents render (`meritorder_api.metric_names`). `POST /rest` ends all traffic, `POST
/traffic` begins it again.
"""

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from meritorder_api import metric_names as m

POOLS: Final = ("l40s", "l4", "a100", "h100")
BOUNDS: Final = (
    100, 200, 300, 450, 650, 800, 1000, 1200, 1400, 1600, 1800, 2000, 2200, 2500, 3000, 4000, 6000, 9000,
    15000, 30000,
)  # fmt: skip
"""Of the histogram, in ms: as many as an agent renders."""
WAVE_SECONDS: Final = 240.0
SCATTER: Final = 0.35
"""Sigma of the latencies' logarithm."""


@dataclass(frozen=True, slots=True)
class Habit:
    """A pool's part of a policy's traffic."""

    per_second: float
    milliseconds: float


HABITS: Final = {
    "l40s": Habit(4.0, 900.0),
    "l4": Habit(1.5, 1000.0),
    "a100": Habit(1.0, 700.0),
    "h100": Habit(0.5, 500.0),
}
"""Per router. The target is 2 s: some 1 % of the requests are slow on the slower pools."""


def share_within(milliseconds: float, median: float) -> float:
    """Share of a pool's requests that take at most so long."""
    return 0.5 * (1 + math.erf(math.log(milliseconds / median) / SCATTER / math.sqrt(2)))


@dataclass(slots=True)
class PoolCounters:
    """What one router counted of one pool."""

    habit: Habit
    total: int = 0
    slow: int = 0
    milliseconds: int = 0
    in_flight: int = 0
    tokens: int = 0

    def pass_time(self, seconds: float, rate: float, chance: random.Random) -> None:
        """Count what came in some seconds; `rate` is a factor of the usual."""
        expected = self.habit.per_second * rate * seconds
        came = max(0, round(chance.gauss(expected, math.sqrt(expected)))) if expected else 0
        likely = 1 - share_within(2000, self.habit.milliseconds)
        self.total += came
        self.slow += sum(chance.random() < likely for _ in range(came))
        self.milliseconds += round(came * self.habit.milliseconds * chance.uniform(0.95, 1.15))
        self.tokens += came * 200
        self.in_flight = round(self.habit.per_second * rate * self.habit.milliseconds / 1000)


@dataclass(slots=True)
class Router:
    """One router: its counters move whenever it is scraped."""

    policy: str
    phase: float
    chance: random.Random
    pools: dict[str, PoolCounters] = field(
        default_factory=lambda: {name: PoolCounters(habit) for name, habit in HABITS.items()}
    )
    looked_at: float | None = None

    def pass_time(self, now: float, *, is_busy: bool) -> None:
        """Count what came since the last time."""
        seconds = 0.0 if self.looked_at is None else now - self.looked_at
        self.looked_at = now
        rate = 1 + 0.4 * math.sin(2 * math.pi * (now / WAVE_SECONDS + self.phase)) if is_busy else 0.0
        for pool in self.pools.values():
            pool.pass_time(seconds, rate, self.chance)

    def lines(self) -> Iterator[str]:
        """The series."""
        own = f'{m.LABEL_POLICY}="{self.policy}"'
        total = slow = 0
        for name, pool in self.pools.items():
            labels = f'{own},{m.LABEL_POOL}="{name}"'
            total, slow = total + pool.total, slow + pool.slow
            yield f"{m.SAMPLES}{{{labels}}} {pool.total}"
            yield f"{m.SAMPLES_SLOW}{{{labels}}} {pool.slow}"
            yield f"{m.FAILED_ATTEMPTS}{{{labels}}} 0"
            yield f"{m.POOL_MILLISECONDS}{{{labels}}} {pool.milliseconds}"
            yield f"{m.IN_FLIGHT}{{{labels}}} {pool.in_flight}"
            yield f"{m.ENDPOINTS_HEALTHY}{{{labels}}} 2"
            yield f'{m.REQUESTS}{{{labels},{m.LABEL_CODE}="200",{m.LABEL_FLAGS}="-"}} {pool.total}'
            yield f"{m.PROMPT_TOKENS}{{{labels}}} {pool.tokens * 5}"
            yield f"{m.COMPLETION_TOKENS}{{{labels}}} {pool.tokens}"
            for bound in BOUNDS:
                within = math.floor(pool.total * share_within(bound, pool.habit.milliseconds))
                yield f'{m.LATENCY_BUCKET}{{{labels},le="{bound}"}} {within}'
            yield f'{m.LATENCY_BUCKET}{{{labels},le="+Inf"}} {pool.total}'
            yield f"{m.LIMIT}{{{labels}}} 64"
        yield f"{m.CLIENT_REQUESTS}{{{own}}} {total}"
        yield f"{m.CLIENT_SLOW}{{{own}}} {slow}"
        yield f"{m.APPLIED_SEQUENCE}{{{own}}} 1"


def policy_name(number: int) -> str:
    """The name of a policy by its number."""
    return f"policy-{number:03}"


class Exporter:
    """All routers."""

    def __init__(self) -> None:
        self._routers: dict[tuple[int, int], Router] = {}
        self._is_busy = True

    def app(self) -> web.Application:
        """What is served."""
        app = web.Application()
        app.router.add_get("/metrics/{policy}/{router}", self._metrics)
        app.router.add_post("/rest", self._switch)
        app.router.add_post("/traffic", self._switch)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        place = int(request.match_info["policy"]), int(request.match_info["router"])
        router = self._routers.get(place)
        if router is None:
            chance = random.Random(hash(place))
            router = self._routers[place] = Router(policy_name(place[0]), place[0] / 17, chance)
        router.pass_time(time.monotonic(), is_busy=self._is_busy)
        return web.Response(text="\n".join(router.lines()) + "\n", content_type="text/plain")

    async def _switch(self, request: web.Request) -> web.Response:
        self._is_busy = request.path == "/traffic"
        return web.Response(text="ok\n")


if __name__ == "__main__":
    web.run_app(
        Exporter().app(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=lambda _: None
    )
