"""`/healthz`, `/readyz` and `/metrics` over plain HTTP, for kubelet and Prometheus. A standby serves them
too.

A process whose event loop hangs does not answer at all, which a probe with a timeout takes for what it is.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

Check = Callable[[], str | None]
"""What is wrong, in a sentence; None when nothing is."""


class HealthServer:
    """Serves on one port, or health and metrics on a port each."""

    def __init__(self, registry: CollectorRegistry, *, healthy: Check, ready: Check) -> None:
        self._registry = registry
        self._healthy = healthy
        self._ready = ready
        self._stack = AsyncExitStack()

    async def start(self, host: str, health_port: int, metrics_port: int) -> None:
        """Listen; OSError when a port is taken."""
        health = [
            web.get("/healthz", self._answer(self._healthy)),
            web.get("/readyz", self._answer(self._ready)),
        ]
        metrics = [web.get("/metrics", self._metrics)]
        if health_port == metrics_port:
            await self._listen(host, health_port, health + metrics)
        else:
            await self._listen(host, health_port, health)
            await self._listen(host, metrics_port, metrics)

    async def stop(self) -> None:
        """Stop listening."""
        await self._stack.aclose()

    async def _listen(self, host: str, port: int, routes: list[web.RouteDef]) -> None:
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, host, port).start()

    def _answer(self, check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            wrong = check()
            return web.Response(text=(wrong or "ok") + "\n", status=503 if wrong else 200)

        return answer

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
        )
