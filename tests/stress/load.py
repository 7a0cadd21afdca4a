"""Load from one event loop that costs next to nothing: HTTP/1.1 by hand, connections kept alive.

Two kinds, beside one another: clients that send again as soon as they are answered (`keep`), and requests at
a fixed rate, whatever becomes of the earlier ones (`at_rate`). Nothing is tried again: what a client would
see is what is counted.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, cast
from urllib.parse import urlsplit

from stress.servers import SERVER_HEADER
from support.waiting import until

Kind = Literal["json", "stream"]

POOL_HEADER = "x-meritorder-answered-by"
PATH = "/v1/chat/completions"
DEADLINE_SECONDS = 60.0
_END = b"0\r\n\r\n"
_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Request:
    """One request as its client saw it; times are monotonic."""

    kind: Kind
    sent: float
    pool: str = ""
    server: str = ""
    status: int = 0
    ended: float = 0.0
    error: str | None = None
    """None once it came to a good end; empty before its end."""

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    @property
    def ok(self) -> bool:
        return self.error is None


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, idle: list[_Connection]) -> None:
        self._idle = idle
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._request: Request
        self._buffer = b""
        self._left: int | None = None
        self._last = False
        self._tail = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: Request, content: bytes) -> asyncio.Future[None]:
        """Send it; what is given back is done when the request has ended."""
        loop = asyncio.get_running_loop()
        self._request = request
        self._buffer = self._tail = b""
        self._waiter = loop.create_future()
        self._timer = loop.call_later(DEADLINE_SECONDS, self._give_up)
        self._transport.write(content)
        return self._waiter

    def close(self) -> None:
        self._transport.abort()

    def _give_up(self) -> None:
        self._end("no answer" if self._request.status == 0 else "not finished")
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self._transport.abort()
            return
        request = self._request
        if request.status == 0:
            head, found, rest = (self._buffer + data).partition(b"\r\n\r\n")
            if not found:
                self._buffer = head
                return
            self._take_head(request, head)
            data = rest
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(request.status == 200)
            return
        self._tail = (self._tail + data)[-64:]
        if self._tail.endswith(b"\r\n" + _END) or self._tail == _END:
            self._finish(request.status == 200 and (request.kind == "json" or _DONE in self._tail))

    def _take_head(self, request: Request, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        request.status = int(lines[0].split(" ")[1])
        self._left, self._last = 0, False
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            match name.lower():
                case "content-length":
                    self._left = int(value)
                case "transfer-encoding":
                    self._left = None
                case "connection":
                    self._last = value.lower() == "close"
                case _ if name == POOL_HEADER:
                    request.pool = value
                case _ if name == SERVER_HEADER:
                    request.server = value

    def _finish(self, well: bool) -> None:
        status = self._request.status
        self._end(None if well else f"status {status}" if status != 200 else "cut")
        if self._last:
            self._transport.close()
        else:
            self._idle.append(self)

    def _end(self, error: str | None) -> None:
        waiter, self._waiter = self._waiter, None
        if self._timer is not None:
            self._timer.cancel()
        if waiter is not None:
            self._request.error = error
            self._request.ended = time.monotonic()
            if not waiter.done():
                waiter.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        self._end("reset" if self._waiter is not None and self._request.status == 0 else "cut")


def body(kind: Kind, *, max_tokens: int | None = None, padding: int = 0) -> bytes:
    """A chat completion's body."""
    asked: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "x" * padding}]}
    if max_tokens is not None:
        asked["max_tokens"] = max_tokens
    if kind == "stream":
        asked["stream"] = True
    return json.dumps(asked, separators=(",", ":")).encode()


class Load:
    """`async with Load(base_url) as load:` ends what is left when it is left."""

    def __init__(self, base_url: str) -> None:
        """`base_url` is what an OpenAI client takes: it ends in /v1."""
        address = urlsplit(base_url)
        self.ended: list[Request] = []
        self.under_way: dict[int, Request] = {}
        self._host, self._port = address.hostname or "", address.port or 80
        self._idle: list[_Connection] = []
        self._connections: list[_Connection] = []
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            connection.close()

    async def _connection(self) -> _Connection:
        if self._idle:
            return self._idle.pop()
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: _Connection(self._idle), self._host, self._port)
        self._connections.append(made)
        return made

    async def send(self, kind: Kind, content: bytes | None = None) -> Request:
        """Send one request and wait for its end."""
        content = body(kind) if content is None else content
        request = Request(kind, time.monotonic(), error="")
        number = next(self._numbers)
        self.under_way[number] = request
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        try:
            connection = await self._connection()
            await connection.send(request, head.encode() + content)
        except OSError:
            request.error, request.ended = "not connected", time.monotonic()
        finally:
            del self.under_way[number]
        self.ended.append(request)
        return request

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def keep(
        self,
        clients: int,
        kind: Kind,
        contents: Sequence[bytes] = (),
        *,
        over_seconds: float = 0.0,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Clients that send again once answered; they begin one after the other over a time."""
        contents = contents or [body(kind)]

        async def one(number: int) -> None:
            await asyncio.sleep(over_seconds * number / clients)
            for turn in itertools.count(number):
                if self._stop.is_set() or (stop is not None and stop.is_set()):
                    return
                await self.send(kind, contents[turn % len(contents)])

        for number in range(clients):
            self._start(one(number))

    def at_rate(self, per_second: float, kind: Kind, contents: Sequence[bytes] = ()) -> None:
        """Requests at even distances; what is late is sent at once."""
        contents = contents or [body(kind)]

        async def one(number: int) -> None:
            await self.send(kind, contents[number % len(contents)])

        async def all_of_them() -> None:
            began = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
                if self._stop.is_set():
                    return
                self._start(one(number))

        self._start(all_of_them())

    async def served(self, deadline_seconds: float = 20) -> None:
        """Wait until a request is answered well; what was not is forgotten."""

        async def answered() -> bool:
            return (await self.send("json")).ok

        await until(answered, deadline_seconds, "an answer")
        self.ended.clear()

    async def finish(self) -> list[Request]:
        """Send nothing more, wait for what is under way, and return all."""
        self._stop.set()
        while self._tasks:
            await asyncio.gather(*self._tasks)
        return self.ended


def errors(requests: Iterable[Request]) -> Counter[str]:
    """Requests that failed in the client's eyes, by what was seen."""
    return Counter(f"{request.kind} {request.error}" for request in requests if request.error is not None)


def milliseconds(requests: Iterable[Request], share: float) -> float:
    """The time within which this share of the requests that came to a good end did so (nearest rank)."""
    times = sorted(request.seconds for request in requests if request.ok)
    return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else 0.0
