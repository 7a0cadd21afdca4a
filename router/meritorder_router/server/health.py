"""Whether this server knows how things are, and a clock that stands still while it does not.

A stream that was cut silently looks like one on which nothing happens. So the API server is asked for its
version every few seconds; after a break all watches start over. While the server does not know how things
are it hands out no table, and no agent's silence counts: the clock by which silence is judged stands still,
as it does while this process itself was stopped.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from meritorder_router.server.kube import Kube, KubeError
from meritorder_router.server.watch import BROKEN_SECONDS, Watch

log = logging.getLogger(__name__)

ASK_SECONDS: Final = 2.0
TICK_SECONDS: Final = 0.5


class Health:
    """The state of the watches and of the way to the API server."""

    def __init__(self, kube: Kube, watches: Sequence[Watch], *, now: Callable[[], float]) -> None:
        self._kube = kube
        self._watches = watches
        self._now = now
        self._answered_at: float | None = None
        self._ticked_at = now()
        self._seconds = 0.0
        self._known = False
        self.ever_known = False
        self.serving = False
        self.stopping = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def clock(self) -> float:
        """Seconds during which this server knew how things are."""
        return self._seconds

    @property
    def known(self) -> bool:
        """Whether tables may be handed out now."""
        now = self._now()
        return (
            self._answered_at is not None
            and now - self._answered_at < BROKEN_SECONDS
            and all(watch.trusted(now) for watch in self._watches)
        )

    @property
    def away(self) -> bool:
        """Whether the API server did not answer when it was last asked."""
        return self._answered_at is None or self._now() - self._answered_at > 2 * ASK_SECONDS

    def complaint(self) -> str:
        """Why no table is handed out."""
        now = self._now()
        missing = [watch.path for watch in self._watches if not watch.synced]
        broken = [watch.path for watch in self._watches if watch.synced and not watch.trusted(now)]
        if self._answered_at is None or now - self._answered_at >= BROKEN_SECONDS:
            return "the API server has not answered for 10 s; keep what you have"
        if missing:
            return f"not synced yet: {', '.join(missing)}; keep what you have"
        return f"watches broken for 10 s: {', '.join(broken)}; keep what you have"

    async def ask(self) -> None:
        """Ask the API server for a sign of life, for ever; after a break let all watches start over."""
        while True:
            started = self._now()
            try:
                await self._kube.request("GET", "/version", timeout_seconds=ASK_SECONDS)
            except KubeError as error:
                if not self.away:
                    log.debug("no sign of life: %s", error)
            else:
                now = self._now()
                if self._answered_at is not None and now - self._answered_at >= BROKEN_SECONDS:
                    log.warning("the API server answers again after %.0f s", now - self._answered_at)
                    for watch in self._watches:
                        watch.start_over()
                self._answered_at = now
            await asyncio.sleep(max(0.1, ASK_SECONDS - (self._now() - started)))

    async def tick(self) -> None:
        """Let the clock run while this server knows how things are, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.step()

    def step(self) -> None:
        """One step of the clock: at most two ticks' time, however long this process was stopped."""
        now = self._now()
        elapsed, self._ticked_at = now - self._ticked_at, now
        known = self.known
        self.ever_known = self.ever_known or known
        if known and self._known:
            self._seconds += min(elapsed, 2 * TICK_SECONDS)
        if known != self._known:
            log.log(
                logging.INFO if known else logging.WARNING, "tables: %s", "on" if known else self.complaint()
            )
            self._known = known
            self.on_change()
