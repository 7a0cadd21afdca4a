"""Pools' servers that cost next to nothing: `python -m stress.servers HOST CONTROL_PORT NAME=PORT...`.

What is measured in front of them shares their processors, so they parse by hand and do nothing else. A
server's name is `POOL` or `POOL.NUMBER`; in flight is counted per pool, from the last byte of a request's
head to the last byte of its answer. The control port takes JSON:

    POST /set     {"server": "a.1", "kind": "503", ...}: fields of `Behaviour`; a pool's name means all of it
    POST /counts  what was seen since the last reset, by pool
    POST /reset   the counts begin anew
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, cast

import uvloop

SERVER_HEADER = "x-server"
_LOST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a server does with the next requests."""

    kind: str = "ok"
    """ok, reset (before headers), hang (before headers), or a status code such as "503"."""
    seconds: float = 0.05
    """From a request to its answer, where that is no stream."""
    tokens: int = 25
    token_seconds: float = 0.2
    """Streams send their headers at once, and the first token after this time too."""
    health: int = 200
    listen: bool = True
    """False: the port is closed, and a connection as soon as no request is on it."""


@dataclass(slots=True)
class Counts:
    """What a pool saw."""

    requests: int = 0
    in_flight: int = 0
    levels: Counter[int] = field(default_factory=Counter)
    """How many requests began as the how-manieth in flight."""
    since: float = field(default_factory=time.monotonic)
    changed: float = field(default_factory=time.monotonic)
    area: float = 0.0
    """Requests in flight x seconds."""

    def _to(self, in_flight: int) -> None:
        now = time.monotonic()
        self.area += self.in_flight * (now - self.changed)
        self.changed = now
        self.in_flight = in_flight

    def begin(self) -> None:
        self._to(self.in_flight + 1)
        self.requests += 1
        self.levels[self.in_flight] += 1

    def end(self) -> None:
        self._to(self.in_flight - 1)

    def reset(self) -> None:
        """Count from now on."""
        self.requests, self.area = 0, 0.0
        self.levels.clear()
        self.since = self.changed = time.monotonic()

    def dump(self) -> dict[str, Any]:
        self._to(self.in_flight)
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "levels": {str(level): count for level, count in self.levels.items()},
            "mean": self.area / max(1e-9, self.changed - self.since),
        }


class Server:
    """One server on a port of its own."""

    def __init__(self, name: str, host: str, port: int, counts: Counts) -> None:
        self.name, self.host, self.port = name, host, port
        self.counts = counts
        self.behaviour = Behaviour()
        self.connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None

    @property
    def pool(self) -> str:
        return self.name.partition(".")[0]

    async def follow(self, behaviour: Behaviour) -> None:
        """Do so from now on."""
        self.behaviour = behaviour
        if behaviour.listen and self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                partial(Connection, self), self.host, self.port, backlog=4096
            )
        elif not behaviour.listen and self._listener is not None:
            self._listener.close()
            self._listener = None
            for connection in list(self.connections):
                connection.close_if_idle()


class _Http(asyncio.Protocol, ABC):
    """One connection: requests one after the other, bodies with a length or in chunks."""

    def __init__(self) -> None:
        self._buffer = b""
        self._head = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            if not self._head:
                head, found, rest = self._buffer.partition(b"\r\n\r\n")
                if not found:
                    return
                self._head, self._buffer = head.lower(), rest
                self.began()
            body = self._body()
            if body is None:
                return
            head, self._head = self._head, b""
            self.asked(head.split(b" ", 2)[1].decode(), body)

    def _body(self) -> bytes | None:
        """The whole body; None while it is not there yet."""
        if b"\r\ntransfer-encoding: chunked" in self._head:
            whole, found, rest = self._buffer.partition(b"0\r\n\r\n")
            if not found:
                return None
            self._buffer = rest
            return whole
        _, found, rest = self._head.partition(b"\r\ncontent-length:")
        length = int(rest.split(b"\r\n", 1)[0]) if found else 0
        if len(self._buffer) < length:
            return None
        whole, self._buffer = self._buffer[:length], self._buffer[length:]
        return whole

    def began(self) -> None:
        """A request's head is there."""

    @abstractmethod
    def asked(self, path: str, body: bytes) -> None:
        """A request is there."""

    def answer(self, status: int, body: bytes, *headers: str) -> None:
        """Write a whole answer."""
        lines = [f"HTTP/1.1 {status} -", "content-type: application/json", *headers]
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
        self.transport.write(head.encode() + body)


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


_TOKEN = _chunk(b'data: {"choices":[{"index":0,"delta":{"content":"token"}}]}\n\n')


class Connection(_Http):
    """Answers as its server is told to."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._counted = False
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0
        self._header = f"{SERVER_HEADER}: {server.name}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._ended()

    def close_if_idle(self) -> None:
        """Go, unless a request is under way."""
        if not self._head and not self._counted:
            self.transport.close()

    def began(self) -> None:
        if b" /health " not in self._head[:40]:
            self._counted = True
            self._server.counts.begin()

    def _ended(self) -> None:
        if self._counted:
            self._counted = False
            self._server.counts.end()

    def _done(self) -> None:
        self._timer = None
        self._ended()
        if not self._server.behaviour.listen:
            self.transport.close()

    def asked(self, path: str, body: bytes) -> None:
        behaviour = self._server.behaviour
        if path == "/health":
            self.answer(behaviour.health, b"{}")
        elif behaviour.kind == "reset":
            self.transport.abort()
        elif behaviour.kind == "hang":
            self._after(_LOST_SECONDS, self.transport.abort)
        elif behaviour.kind.isdigit():
            self.answer(int(behaviour.kind), b'{"error":{"message":"told to"}}', self._header)
            self._done()
        elif b'"stream":true' in body:
            head = f"HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n{self._header}\r\n"
            self.transport.write(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
            self._left = behaviour.tokens
            self._after(behaviour.token_seconds, self._token)
        else:
            self._after(behaviour.seconds, self._whole)

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, call)

    def _whole(self) -> None:
        usage = b'"usage":{"prompt_tokens":7,"completion_tokens":5}'
        self.answer(200, b'{"object":"chat.completion","choices":[],%s}' % usage, self._header)
        self._done()

    def _token(self) -> None:
        behaviour = self._server.behaviour
        self._left -= 1
        if self._left > 0:
            self.transport.write(_TOKEN)
            self._after(behaviour.token_seconds, self._token)
            return
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":%d}}\n\n'
        last = _chunk(usage % behaviour.tokens + b"data: [DONE]\n\n")
        self.transport.write(_TOKEN + last + b"0\r\n\r\n")
        self._done()


class Control(_Http):
    """Takes orders."""

    def __init__(self, servers: dict[str, Server]) -> None:
        super().__init__()
        self._servers = servers
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, path: str, body: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._obey(path, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _obey(self, path: str, body: bytes) -> None:
        if path == "/set":
            order = json.loads(body)
            wanted = order.pop("server")
            for server in self._servers.values():
                if wanted in (server.name, server.pool):
                    await server.follow(replace(server.behaviour, **order))
        pools = {server.pool: server.counts for server in self._servers.values()}
        if path == "/reset":
            for counts in pools.values():
                counts.reset()
        found = {pool: counts.dump() for pool, counts in pools.items()}
        self.answer(200, json.dumps(found).encode())


async def serve(host: str, control: int, named: dict[str, int]) -> None:
    """Serve all for ever."""
    counts = {name.partition(".")[0]: Counts() for name in named}
    servers = {name: Server(name, host, port, counts[name.partition(".")[0]]) for name, port in named.items()}
    for server in servers.values():
        await server.follow(Behaviour())
    loop = asyncio.get_running_loop()
    # Last, so that who reaches it reaches all.
    listener = await loop.create_server(partial(Control, servers), "127.0.0.1", control)
    await listener.serve_forever()


def order(server: str, **changes: Any) -> dict[str, Any]:
    """The body of `/set`; raises TypeError for what is no field of `Behaviour`."""
    unknown = changes.keys() - asdict(Behaviour()).keys()
    if unknown:
        raise TypeError(f"a server has no `{min(unknown)}`")
    return {"server": server, **changes}


if __name__ == "__main__":
    pairs = (argument.split("=", 1) for argument in sys.argv[3:])
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), {name: int(port) for name, port in pairs}))
