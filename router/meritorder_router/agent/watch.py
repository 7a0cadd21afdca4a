"""Watching one Envoy: whether it is a new one, what it has in flight, which pools are dead, and what it
logs.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from meritorder_router.agent.admin import Unreachable
from meritorder_router.agent.applier import Applier
from meritorder_router.agent.observe import STATS, Load, dead_pools, look

log = logging.getLogger("meritorder.agent")

LOOK_SECONDS = 1.0


class Watcher:
    """Looks at Envoy about once a second."""

    def __init__(
        self, applier: Applier, *, chance: random.Random, changed: Callable[[], None] = lambda: None
    ) -> None:
        """`changed` is called when a pool died or came back."""
        self.load = Load()
        self._applier = applier
        self._chance = chance
        self._changed = changed
        self._uptime = 0

    async def run(self) -> None:
        """Watch for ever, whether Envoy runs or not."""
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
        if await self._applier.mark_dead(dead_pools(seen)):
            log.warning("pools passed over: %s", ", ".join(sorted(self._applier.dead)) or "none")
            for sentence in self._applier.mounted.lacking.values():
                log.warning(sentence)
            self._changed()
