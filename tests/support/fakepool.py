"""A pool's server whose behaviour a test sets while it runs: an OpenAI-like endpoint in the test's own event
loop.

It counts what it saw: requests, most in flight at once, and the headers of each request.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """What the server does with the next requests."""

    kind: str = "ok"
    """ok, reset (before headers), hang (before headers), truncate (a stream's middle), or a status code such
    as "503".
    """
    seconds: float = 0.0
    """From the request to the answer's first byte of body."""
    chunks: int = 3
    chunk_seconds: float = 0.0
    late_headers: bool = False
    """Streams send their headers with the first byte of body, not at once."""
    comment_first: bool = False
    """Streams begin with an SSE comment at once."""
    health_status: int = 200
    usage: bool = True


@dataclass
class FakePool:
    """`async with FakePool("a") as pool:` listens on a port of loopback."""

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    behaviour: Behaviour = field(default_factory=Behaviour)
    requests: int = 0
    health_checks: int = 0
    health_hosts: set[str] = field(default_factory=set)
    """The Hosts that health checks asked for."""
    in_flight: int = 0
    most_in_flight: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    keep: bool = False
    """Keep headers, paths and bodies of all requests."""
    gate: asyncio.Event | None = None
    """Requests wait for it before they are answered."""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; a second start takes the same port again."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=1024, ssl_context=self.tls)
        await site.start()
        if self.port == 0:
            self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and all connections."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            server = runner.server
            if server is not None:
                for connection in list(server.connections):
                    if connection.transport is not None:
                        connection.transport.abort()
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        self.health_checks += 1
        self.health_hosts.add(request.host)
        return web.Response(status=self.behaviour.health_status)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.keep:
            self.headers.append({key.lower(): value for key, value in request.headers.items()})
            self.paths.append(request.path_qs)
            self.bodies.append(body)
        behaviour = self.behaviour
        if self.gate is not None:
            await self.gate.wait()
        try:
            asked = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            asked = {}
        stream = isinstance(asked, dict) and asked.get("stream") is True
        if behaviour.kind == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if behaviour.kind == "hang":
            await asyncio.Event().wait()
        if behaviour.kind.isdigit():
            await asyncio.sleep(behaviour.seconds)
            return web.json_response(
                {"error": {"message": f"{self.name} says {behaviour.kind}"}}, status=int(behaviour.kind)
            )
        usage = {
            "prompt_tokens": 7,
            "completion_tokens": behaviour.chunks,
            "total_tokens": 7 + behaviour.chunks,
        }
        if not stream:
            await asyncio.sleep(behaviour.seconds + behaviour.chunks * behaviour.chunk_seconds)
            answer = {"id": "x", "object": "chat.completion", "model": self.name, "choices": []}
            return web.json_response(answer | ({"usage": usage} if behaviour.usage else {}))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if behaviour.late_headers:
            await asyncio.sleep(behaviour.seconds)
        await response.prepare(request)
        if behaviour.comment_first:
            await response.write(b": keep-alive\n\n")
        if not behaviour.late_headers:
            await asyncio.sleep(behaviour.seconds)
        for number in range(behaviour.chunks):
            event = {"choices": [{"index": 0, "delta": {"content": f"t{number}"}}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            if behaviour.kind == "truncate" and number == behaviour.chunks // 2:
                if request.transport is not None:
                    request.transport.abort()
                return response
            await asyncio.sleep(behaviour.chunk_seconds)
        if behaviour.usage:
            await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response
