"""Watching one kind of object: list once, then follow, for as long as the process lives.

A stream that ends is taken up where it ended. After a longer break, or when the API server no longer knows
the place (410), everything is listed again.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from meritorder_router.server.kube import Kube, KubeError, Manifest, Refused

log = logging.getLogger(__name__)

STREAM_SECONDS: Final = (240, 300)
"""A stream ends by itself after so long: it moves on to an API server that came back."""
FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 3.0
BROKEN_SECONDS: Final = 10.0
"""A watch broken for so long says nothing any more of how things are."""


class Watch:
    """A list and what happened since; `replace` gets the whole list, `change` each event."""

    def __init__(
        self,
        kube: Kube,
        path: str,
        *,
        replace: Callable[[list[Manifest]], None],
        change: Callable[[str, Manifest], None],
        now: Callable[[], float],
        selector: str = "",
    ) -> None:
        """`selector`: only objects with these labels."""
        self.path = path
        self._selector = selector
        self._kube = kube
        self._replace = replace
        self._change = change
        self._now = now
        self._version: str | None = None
        self._broken_since: float | None = now()
        self._wait = FIRST_WAIT_SECONDS
        self._following: asyncio.Task[None] | None = None
        self.synced = False
        self.last_error = ""

    def trusted(self, now: float) -> bool:
        """Whether what was seen is how things are, give or take 10 s."""
        if not self.synced:
            return False
        return self._broken_since is None or now - self._broken_since < BROKEN_SECONDS

    def start_over(self) -> None:
        """Forget the place and list again: after a break that the stream itself may not have noticed."""
        self.synced = False
        self._version = None
        if self._following is not None:
            self._following.cancel()

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            self._following = asyncio.create_task(self._follow())
            try:
                await asyncio.wait([self._following])
            finally:
                self._following.cancel()
            if self._following.cancelled():
                continue
            error = self._following.exception()
            if error is None:
                continue
            if not isinstance(error, KubeError):
                raise error
            await self._rest(error)

    async def _rest(self, error: KubeError) -> None:
        now = self._now()
        if isinstance(error, Refused) and error.status == 410:
            self._version = None
        if self._broken_since is None:
            self._broken_since = now
        elif now - self._broken_since >= BROKEN_SECONDS:
            self._version = None
        if str(error) != self.last_error:
            log.warning("watch broken: %s", error)
        self.last_error = str(error)
        await asyncio.sleep(self._wait * random.uniform(0.8, 1.2))
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS)

    async def _follow(self) -> None:
        if self._version is None:
            items, version = await self._kube.list_all(self.path, selector=self._selector)
            self._replace(items)
            self._version = version
        seconds = random.randint(*STREAM_SECONDS)
        opened = self._now()
        events = self._kube.watch(self.path, self._version, seconds=seconds, selector=self._selector)
        async for kind, manifest in events:
            if kind == "OPENED":
                if self.last_error:
                    log.info("watch of %s is back", self.path)
                self.synced, self._broken_since, self.last_error = True, None, ""
                continue
            if kind == "ERROR":
                raise Refused(
                    int(manifest.get("code", 500)), f"watch of {self.path}: {manifest.get('message')}"
                )
            self._wait = FIRST_WAIT_SECONDS
            self._version = manifest["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                self._change(kind, manifest)
        if self._now() - opened < 1.0:
            await asyncio.sleep(self._wait)
            self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS)
        else:
            self._wait = FIRST_WAIT_SECONDS
