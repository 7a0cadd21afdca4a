"""Watching one Envoy: whether it is a new one, what it has in flight, which pools are dead and why, and what
it logs.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Set

from meritorder_api.table import PoolProblem, RoutingTable, TablePool
from meritorder_router.agent.admin import Unreachable
from meritorder_router.agent.applier import Applier
from meritorder_router.agent.observe import STATS, Load, dead_pools, look
from meritorder_router.agent.reach import why_unwell, worth_a_look

log = logging.getLogger("meritorder.agent")

LOOK_SECONDS = 1.0
ASK_AGAIN_SECONDS = 15.0
"""So often is looked again why a pool's servers are not well."""


class Watcher:
    """Looks at Envoy about once a second."""

    def __init__(
        self, applier: Applier, *, chance: random.Random, changed: Callable[[], None] = lambda: None
    ) -> None:
        """`changed` is called when a pool died or came back, and when it is known why."""
        self.load = Load()
        self._applier = applier
        self._chance = chance
        self._changed = changed
        self._uptime = 0
        self._unwell: dict[str, tuple[TablePool, PoolProblem]] = {}
        self._asked_at: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._ill_before: Set[str] = frozenset()

    @property
    def problems(self) -> Mapping[str, PoolProblem]:
        """By pool of the table in force: why nothing is sent there, as far as it is known."""
        table = self._applier.current
        found: dict[str, PoolProblem] = {}
        for pool in table.pools if table is not None else ():
            was, problem = self._unwell.get(pool.name, (None, None))
            # Said of the pool as it was: another address or CA needs another look.
            if was is not None and problem is not None and _same_way(was, pool):
                found[pool.name] = problem
        return {**found, **self._applier.mounted.lacking}

    async def run(self) -> None:
        """Watch for ever, whether Envoy runs or not."""
        try:
            await self._watch()
        finally:
            for task in self._asking.values():
                task.cancel()

    async def _watch(self) -> None:
        while True:
            while not await self._applier.admin.wait_live(LOOK_SECONDS):
                self._applier.log.pass_on()
            await self._applier.touch(anew=True)
            try:
                while True:
                    await self._look()
                    await asyncio.sleep(LOOK_SECONDS * self._chance.uniform(0.9, 1.1))
            except (Unreachable, ValueError):
                self._uptime = 0

    async def _look(self) -> None:
        self._applier.log.pass_on()
        stats = await self._applier.admin.stats(STATS)
        table = self._applier.current
        if table is None:
            return
        seen = look(stats, table, at=asyncio.get_running_loop().time())
        if seen.uptime < self._uptime:
            await self._applier.touch(anew=True)
        self._uptime = seen.uptime
        self.load.add(seen)
        ill = dead_pools(seen)
        if await self._applier.mark_dead(ill):
            log.warning("pools passed over: %s", ", ".join(sorted(self._applier.dead)) or "none")
            for name, problem in self._applier.mounted.lacking.items():
                _say(name, problem)
            self._changed()
        self._ask_why(table, ill - self._applier.mounted.lacking.keys(), now=seen.at)

    def _ask_why(self, table: RoutingTable, ill: Set[str], *, now: float) -> None:
        """Have a look at the pools whose servers are not well, one task for each. Those of a new pool are not
        well yet until they were asked: only who is ill twice in a row is looked at.
        """
        ill, self._ill_before = ill & self._ill_before, ill
        for name in self._unwell.keys() | self._asked_at.keys():
            if name not in ill:
                self._asked_at.pop(name, None)
                if self._unwell.pop(name, None) is not None:
                    self._changed()
        for pool in table.pools:
            name = pool.name
            known = self._unwell.get(name)
            due = now - self._asked_at.get(name, -ASK_AGAIN_SECONDS) >= ASK_AGAIN_SECONDS
            due = due or (known is not None and not _same_way(known[0], pool))
            if due and name in ill and name not in self._asking and worth_a_look(pool):
                self._asked_at[name] = now
                self._asking[name] = asyncio.create_task(self._ask(pool), name=f"why-{name}")

    async def _ask(self, pool: TablePool) -> None:
        try:
            authorities = self._applier.mounted.authorities
            problem = await why_unwell(pool, authorities=authorities, trust=self._applier.place.trust)
        finally:
            del self._asking[pool.name]
        # Well again meanwhile: what was seen is of the past.
        if pool.name not in self._asked_at:
            return
        before = self._unwell.get(pool.name)
        self._unwell[pool.name] = (pool, problem)
        if before is None or before[1] != problem:
            _say(pool.name, problem)
            self._changed()


def _same_way(one: TablePool, other: TablePool) -> bool:
    return (one.endpoints, one.tls) == (other.endpoints, other.tls)


def _say(pool: str, problem: PoolProblem) -> None:
    log.warning("%s: pool `%s`: %s", problem.reason, pool, problem.message)
