"""One replica of a simulated pool as an HTTP server: the OpenAI API, /health, /metrics, and /sim/faults.

A replica has one port, one engine and one page of metrics, as a vLLM process has. `die` and `start` again
is a restart: counters begin at 0. A client that goes away frees its slot at once. Streams get their headers
at once and then, every 50 ms or so, one event with all tokens since the last.
"""

import asyncio
import math
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from pydantic import ValidationError

from meritorder_sim import wire
from meritorder_sim.engine import Engine
from meritorder_sim.faults import FaultCommand, Faults
from meritorder_sim.metrics import ReplicaMetrics, with_nan
from meritorder_sim.profiles import LatencyProfile
from meritorder_sim.pump import STEP_SECONDS, Pump, Ticket

POOL_HEADER = "x-sim-pool"
REPLICA_HEADER = "x-sim-replica"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/health",
        "/ping",
        "/metrics",
    }
)
_MAX_BODY_BYTES = 64 * 2**20
_OUTPUT_MEDIAN_TOKENS = 150
_OUTPUT_SIGMA = 0.7
_OUTPUT_MOST_TOKENS = 2048
_LAST_WORDS_SECONDS = 0.02
_CUT_SECONDS = 0.01  # to aiohttp 0 means without limit
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends a TCP reset


class Address(NamedTuple):
    """Where a replica listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What makes a replica; `models` empty means that any model name is served."""

    pool: str
    index: int
    profile: LatencyProfile
    max_batch: int
    models: tuple[str, ...] = ()
    seed: int = 0
    step_seconds: float = STEP_SECONDS

    @property
    def listed_models(self) -> tuple[str, ...]:
        return self.models or (self.profile.name.partition("/")[0],)


class _Reset(Exception):
    """The connection of this request was reset on purpose."""


class ReplicaServer:
    """A replica that can be started, stopped gently, killed and started again, on the same port.

    `on_command` gets what clients post to /sim/faults; without it the replica applies it to itself.
    """

    def __init__(
        self,
        settings: ReplicaSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        on_command: "Callable[[ReplicaServer, FaultCommand], Awaitable[None]] | None" = None,
    ) -> None:
        self.settings = settings
        self.address: Address | None = None
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_command = on_command
        self._faults = Faults()
        self._rng = random.Random(f"{settings.seed}/{settings.pool}/{settings.index}")
        self._numbers = 0
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._retired: list[web.Server] = []
        self._frozen_page: str | None = None
        self._unhung = asyncio.Event()
        self._unhung.set()
        self._headers = {POOL_HEADER: settings.pool, REPLICA_HEADER: str(settings.index)}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump, self._metrics = self._new_life()

    @property
    def alive(self) -> bool:
        return self._listener is not None

    @property
    def faults(self) -> Faults:
        return self._faults

    @property
    def running(self) -> int:
        return self._pump.engine.running

    @property
    def waiting(self) -> int:
        return self._pump.engine.waiting

    async def start(self, host: str, port: int = 0) -> Address:
        """Listen; port 0 takes the port of the life before, else a free one."""
        loop = asyncio.get_running_loop()
        self._pump, self._metrics = self._new_life()
        self._frozen_page = None
        self.set_faults(self._faults)
        server = web.Server(
            self._handle, request_factory=self._request, handler_cancellation=True, access_log=None
        )
        wanted = port or (self.address.port if self.address else 0)
        try:
            listener = await loop.create_server(server, host, wanted, backlog=1024, reuse_address=True)
        except OSError:
            if port or not wanted:
                raise
            listener = await loop.create_server(server, host, 0, backlog=1024, reuse_address=True)
        self._server, self._listener = server, listener
        self.address = Address(host, listener.sockets[0].getsockname()[1])
        return self.address

    async def stop(self) -> None:
        """Stop listening and cut what runs, in earlier lives too."""
        server, pump = self._withdraw()
        if server is not None:
            self._retired.append(server)
        await asyncio.gather(*(retired.shutdown(_CUT_SECONDS) for retired in self._retired))
        self._retired.clear()
        pump.close()

    def retire(self, *, grace_seconds: float) -> Coroutine[None, None, None]:
        """Stop listening now; the coroutine lets what runs end for up to `grace_seconds`, then cuts it.

        The next life may begin at once, beside the one that ends. Cancelled, it leaves the cut to `stop`.
        """
        server, pump = self._withdraw()
        if server is not None:
            server.pre_shutdown()
            self._retired.append(server)
        return self._end(server, pump, grace_seconds)

    async def die(self) -> None:
        """Go as a killed process goes: nothing listens and every connection is reset."""
        server, pump = self._withdraw()
        if server is not None:
            for connection in server.connections:
                _reset(connection.transport)
            await server.shutdown(_CUT_SECONDS)
        pump.close()

    def _withdraw(self) -> tuple[web.Server | None, Pump]:
        """Close the listener and hand over the life that ends."""
        server, listener = self._server, self._listener
        self._server = self._listener = None
        if listener is not None:
            listener.close()
        return server, self._pump

    async def _end(self, server: web.Server | None, pump: Pump, grace_seconds: float) -> None:
        if server is not None:
            await server.shutdown(max(grace_seconds, _CUT_SECONDS))
            self._retired.remove(server)
        pump.close()

    def set_faults(self, faults: Faults) -> None:
        """Misbehave like this from now on."""
        if faults.metrics == "frozen" and self._frozen_page is None:
            self._frozen_page = self._page()
        elif faults.metrics != "frozen":
            self._frozen_page = None
        self._faults = faults
        self._pump.set_slowdown(faults.slowdown)
        self._pump.set_paused(faults.hang != "none")
        if faults.hang == "none":
            self._unhung.set()
        else:
            self._unhung.clear()

    def _new_life(self) -> tuple[Pump, ReplicaMetrics]:
        settings = self.settings
        clock = self._clock
        engine = Engine(settings.profile, max_batch=settings.max_batch, now=clock())
        metrics = ReplicaMetrics(
            model=settings.listed_models[0],
            max_batch=settings.max_batch,
            kv_cache_tokens=settings.profile.kv_cache_tokens,
            created_at=self._wall_clock(),
        )

        def started(ticket: Ticket) -> None:
            metrics.started(ticket.job)

        def finished(ticket: Ticket) -> None:
            asked = ticket.asked
            metrics.finished(ticket.job, reason=asked.finish_reason, max_tokens=asked.max_tokens)

        pump = Pump(
            engine, clock=clock, on_started=started, on_finished=finished, step_seconds=settings.step_seconds
        )
        return pump, metrics

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        metrics = self._metrics
        try:
            response = await self._route(request)
        except wire.BadRequest as error:
            response = self._json(
                wire.error_body(error.message, status=error.status, type=error.type, param=error.param),
                error.status,
            )
        except _Reset:
            await _until_disconnected()
        if not request.path.startswith("/sim/"):
            handler = request.path if request.path in _PATHS else "none"
            metrics.answered(handler=handler, method=request.method, status=response.status)
        return response

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return await self._infer(request, "chat")
            case "POST", "/v1/completions":
                return await self._infer(request, "completion")
            case "POST", "/v1/embeddings":
                return await self._infer(request, "embedding")
            case "GET", "/sim/faults":
                return self._json(self._faults.model_dump_json(by_alias=True).encode())
            case "POST", "/sim/faults":
                return await self._command(request)
        if self._faults.hang == "all":
            await self._unhung.wait()
        match request.method, request.path:
            case "GET", "/v1/models":
                return self._json(wire.models_body(self.settings.listed_models, int(self._wall_clock())))
            case "GET", "/health" | "/ping":
                return web.Response(headers=self._headers)
            case "GET", "/metrics":
                return self._metrics_page()
        raise wire.BadRequest(
            f"No such path: {request.method} {request.path}", status=404, type="NotFoundError"
        )

    async def _infer(self, request: web.BaseRequest, kind: wire.Kind) -> web.StreamResponse:
        body = await request.read()
        settings, faults = self.settings, self._faults
        if faults.error_percent and self._rng.random() * 100 < faults.error_percent:
            return self._failure(faults.error_status)
        asked = wire.understand(
            kind,
            body,
            request.headers,
            default_model=settings.listed_models[0],
            draw_output_tokens=self._draw_output_tokens,
        )
        if settings.models and asked.model not in settings.models:
            message = f"The model `{asked.model}` does not exist."
            raise wire.BadRequest(message, status=404, type="NotFoundError", param="model")
        resets = bool(faults.reset_percent) and self._rng.random() * 100 < faults.reset_percent
        pump, metrics = self._pump, self._metrics
        ticket = pump.submit(asked)
        try:
            if asked.stream:
                return await self._stream(request, ticket, resets=resets)
            return await self._whole(request, ticket, resets=resets)
        finally:
            if not ticket.finished and pump.cancel(ticket):
                metrics.aborted(ticket.job, ticket.tokens, pump.refresh())

    async def _whole(self, request: web.BaseRequest, ticket: Ticket, *, resets: bool) -> web.StreamResponse:
        asked = ticket.asked
        early = await self._open(request, "application/json") if self._faults.hang == "body" else None
        await ticket.news(asked.output_tokens)
        body = wire.embedding_body(asked) if asked.kind == "embedding" else self._answer(asked).whole()
        if resets:
            response = early or await self._open(request, "application/json")
            await response.write(body[: len(body) // 2])
            _reset_and_raise(request.transport)
        if early is not None:
            await early.write(body)
            await early.write_eof()
            return early
        return self._json(body)

    async def _stream(self, request: web.BaseRequest, ticket: Ticket, *, resets: bool) -> web.StreamResponse:
        if self._faults.hang in ("headers", "all"):
            await self._unhung.wait()
        response = await self._open(request, "text/event-stream; charset=utf-8")
        asked = ticket.asked
        answer = self._answer(asked)
        seen = 0
        while seen < asked.output_tokens:
            tokens = await ticket.news(seen)
            if resets and tokens * 2 >= asked.output_tokens:
                _reset_and_raise(request.transport)
            await response.write(answer.piece(seen, tokens))
            seen = tokens
        await response.write_eof()
        return response

    async def _open(self, request: web.BaseRequest, content_type: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={**self._headers, "Content-Type": content_type})
        await response.prepare(request)
        return response

    def _answer(self, asked: wire.Asked) -> wire.Answer:
        self._numbers += 1
        name = f"{self.settings.pool}-{self.settings.index}-{self._numbers}"
        return wire.Answer(asked, name=name, created=int(self._wall_clock()), usage=self._faults.usage)

    def _draw_output_tokens(self) -> int:
        drawn = self._rng.lognormvariate(math.log(_OUTPUT_MEDIAN_TOKENS), _OUTPUT_SIGMA)
        return max(1, min(round(drawn), _OUTPUT_MOST_TOKENS))

    def _failure(self, status: int) -> web.Response:
        kind = "RateLimitError" if status == 429 else "InternalServerError"
        body = wire.error_body(f"Simulated failure of pool '{self.settings.pool}'.", status=status, type=kind)
        response = self._json(body, status)
        if status in (429, 503):
            response.headers["Retry-After"] = "1"
        return response

    def _page(self) -> str:
        now = self._pump.refresh()
        return self._metrics.render(self._pump.engine, now)

    def _metrics_page(self) -> web.Response:
        match self._faults.metrics:
            case "absent":
                raise wire.BadRequest("No such path: GET /metrics", status=404, type="NotFoundError")
            case "empty":
                page = ""
            case "nan":
                page = with_nan(self._page())
            case "frozen":
                page = self._frozen_page or self._page()
            case _:
                page = self._page()
        return web.Response(body=page.encode(), headers={**self._headers, "Content-Type": METRICS_TYPE})

    async def _command(self, request: web.BaseRequest) -> web.Response:
        try:
            command = FaultCommand.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise wire.BadRequest(f"`{field}`: {first['msg']}.", param=field) from error
        if command.die:
            # The answer leaves first; who asked must know that the order arrived.
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._begin, command)
        else:
            await self._obey(command)
        return self._json(self._faults.model_dump_json(by_alias=True).encode())

    def _begin(self, command: FaultCommand) -> None:
        task = asyncio.get_running_loop().create_task(self._obey(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _obey(self, command: FaultCommand) -> None:
        if self._on_command is not None:
            await self._on_command(self, command)
            return
        self.set_faults(command.apply_to(self._faults))
        if command.die:
            await self.die_for(command.revive_after_seconds)

    async def die_for(self, seconds: float | None) -> None:
        """Die, and live again on the same port after `seconds`; None is for good."""
        await self.die()
        if seconds is None or self.address is None:
            return
        await asyncio.sleep(seconds)
        if not self.alive:
            await self.start(self.address.host)

    def _json(self, body: bytes, status: int = 200) -> web.Response:
        return web.Response(
            body=body, status=status, headers={**self._headers, "Content-Type": "application/json"}
        )


def _reset(transport: asyncio.BaseTransport | None) -> None:
    if transport is None or transport.is_closing():
        return
    own: socket.socket | None = transport.get_extra_info("socket")
    if own is not None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    # A stream transport of any loop can abort; uvloop's is no subclass of asyncio.Transport.
    cast(asyncio.Transport, transport).abort()


def _reset_and_raise(transport: asyncio.BaseTransport | None) -> NoReturn:
    _reset(transport)
    raise _Reset


async def _until_disconnected() -> NoReturn:
    """Wait for the server to cancel this handler, which it does once the connection is gone."""
    await asyncio.get_running_loop().create_future()
    raise asyncio.CancelledError
