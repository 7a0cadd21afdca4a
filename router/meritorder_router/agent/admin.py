"""Envoy's admin interface, on its unix socket: what it has taken, what it counts, and its drain."""

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import httpx


class Unreachable(Exception):
    """Envoy does not answer on its admin socket: not started yet, or just died."""


class Admin:
    """A client of one Envoy's admin socket."""

    def __init__(self, socket: str, *, timeout_seconds: float = 5.0) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket),
            base_url="http://envoy",
            timeout=timeout_seconds,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str, **params: str) -> str:
        try:
            response = await self._client.request(method, path, params=params or None)
        except (httpx.TransportError, OSError) as error:
            raise Unreachable(f"Envoy does not answer on its admin socket: {error!r}") from error
        return response.text

    async def prometheus(self) -> str:
        """All series, in Prometheus's text format."""
        return await self._ask("GET", "/stats/prometheus")

    async def stats(self, pattern: str) -> Mapping[str, int | str]:
        """Counters, gauges and texts whose name matches a regular expression."""
        text = await self._ask("GET", "/stats", filter=pattern, format="json")
        found: dict[str, int | str] = {}
        for entry in json.loads(text)["stats"]:
            if "name" in entry and "value" in entry:
                found[entry["name"]] = entry["value"]
        return found

    async def is_live(self) -> bool:
        """Whether Envoy answers and has finished starting."""
        try:
            return (await self._ask("GET", "/ready")).strip() == "LIVE"
        except Unreachable:
            return False

    async def fail_readiness(self) -> None:
        await self._ask("POST", "/healthcheck/fail")

    async def drain_listeners(self) -> None:
        """Ask clients to go (`Connection: close`), while everything is still served."""
        await self._ask("POST", "/drain_listeners?graceful&skip_exit")

    async def wait_live(self, deadline_seconds: float) -> bool:
        """Wait until Envoy is live; False if it is not by then."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_seconds
        while not await self.is_live():
            if loop.time() >= end:
                return False
            await asyncio.sleep(0.05)
        return True
