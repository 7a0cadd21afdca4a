"""A router server's HTTP face for tests of agents: hands out what the test sets, and keeps the reports."""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType
from typing import Self

from aiohttp import web

from meritorder_api.table import AgentReport, RoutingTable


class TableServer:
    """`async with TableServer() as server:`; `server.give(table)` wakes whoever waits."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.content: bytes | None = None
        self.revision = ""
        self.status: int | None = None
        """An answer to everything instead of a table."""
        self.reports: list[AgentReport] = []
        self.tokens: list[str] = []
        self.questions: list[dict[str, str]] = []
        self.asked = 0
        self.heard = asyncio.Event()
        """Set with each question; cleared by who waits for one."""
        self.port = 0
        self._tls = tls
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def give(self, table: RoutingTable | bytes, *, revision: str | None = None) -> None:
        """Hand out a table, or bytes that may be none."""
        if isinstance(table, RoutingTable):
            self.content, self.revision = table.to_json(), table.table_revision
        else:
            self.content, self.revision = table, revision or ""
        self._wake()

    def refuse(self, status: int | None) -> None:
        """Answer every question with this status from now on."""
        self.status = status
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def last(self) -> AgentReport:
        """The newest report."""
        return self.reports[-1]

    async def _table(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.tokens.append(request.headers.get("Authorization", ""))
        self.questions.append(dict(request.query))
        self.heard.set()
        end = asyncio.get_running_loop().time() + float(request.query.get("waitSeconds", "0"))
        while True:
            if self.status is not None:
                return web.json_response({"reason": "Told", "message": "told to"}, status=self.status)
            if self.content is not None and (
                not self.revision or self.revision != request.query.get("revision")
            ):
                return web.Response(body=self.content, content_type="application/json")
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                if self.content is None:
                    return web.json_response({"reason": "PolicyGone", "message": "no policy"}, status=404)
                return web.Response(status=304)

    async def _report(self, request: web.Request) -> web.Response:
        self.reports.append(AgentReport.model_validate_json(await request.read()))
        return web.Response(status=204)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; a second start takes the same port again."""
        app = web.Application()
        app.router.add_get("/v1/table", self._table)
        app.router.add_post("/v1/report", self._report)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and all connections."""
        runner, self._runner = self._runner, None
        if runner is not None:
            if runner.server is not None:
                for connection in list(runner.server.connections):
                    if connection.transport is not None:
                        connection.transport.abort()
            await runner.cleanup()
