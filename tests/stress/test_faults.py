"""A fault of the first pool under load: clients see nothing of it, but for streams on what was killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from meritorder_router.agent.applier import Applied
from meritorder_router.agent.embedded import EmbeddedRouter
from stress.load import PATH, Load, Request, errors, milliseconds
from stress.plugin import StartPools
from stress.pools import Pools, entry
from stress.record import FAULTS, Book, none, told
from support.tables import table
from support.waiting import until

TIMEOUTS = {"connectSeconds": 1, "responseHeadersSeconds": 2, "streamIdleSeconds": 300}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes and times."""

    streams: int
    rate: float
    """JSON requests a second."""
    limit: int
    """Of each of the two limited pools."""
    tokens: int
    before: float
    during: float
    after: float


LONG = Plan(streams=200, rate=200, limit=150, tokens=25, before=5, during=10, after=5)
SHORT = Plan(streams=40, rate=50, limit=30, tokens=8, before=1, during=3, after=1)


@dataclass
class Scene:
    """Three pools behind one Envoy; the first has four servers, in two processes."""

    router: EmbeddedRouter
    halves: tuple[Pools, Pools]
    others: Pools
    plan: Plan
    killed_at: float | None = None
    killed: set[str] = field(default_factory=set)
    sequence: int = 0

    async def route(self, *first: dict[str, Any], servers: list[dict[str, Any]] | None = None) -> None:
        """Bring a table into force: what comes `first`, then the three pools."""
        self.sequence += 1
        limit = self.plan.limit
        applied = await self.router.apply(
            table(
                [
                    *first,
                    entry("a", self.servers() if servers is None else servers, limit),
                    entry("b", self.others.endpoints("b"), limit),
                    entry("c", self.others.endpoints("c")),
                ],
                sequence=self.sequence,
                timeouts=TIMEOUTS,
            )
        )
        assert isinstance(applied, Applied), applied

    def servers(self) -> list[dict[str, Any]]:
        """All servers of the first pool."""
        return [endpoint for half in self.halves for endpoint in half.endpoints("a")]

    async def follow(self, **changes: Any) -> None:
        """Tell all servers of the first pool what to do."""
        for half in self.halves:
            await half.follow("a", **changes)

    async def in_flight(self) -> int:
        """Requests on the first pool."""
        return sum([(await half.seen("a")).in_flight for half in self.halves])

    def kill(self, half: Pools) -> None:
        """End servers as kill -9 does."""
        self.killed_at = self.killed_at or time.monotonic()
        self.killed |= set(half.ports)
        half.kill()

    def forgiven(self, request: Request) -> bool:
        """Whether it is a stream that was in flight on what was killed."""
        return (
            request.kind == "stream"
            and request.error == "cut"
            and request.server in self.killed
            and self.killed_at is not None
            and request.sent < self.killed_at < request.ended
        )


Fault = Callable[[Scene], AbstractAsyncContextManager[None]]


def behaviour(**changes: Any) -> Fault:
    """All servers of the first pool do so for a time."""
    usual = {"kind": "ok", "listen": True, "health": 200}

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        await scene.follow(**changes)
        yield
        await scene.follow(**{name: usual[name] for name in changes})

    return fault


@asynccontextmanager
async def no_endpoints(scene: Scene) -> AsyncIterator[None]:
    await scene.route(servers=[])
    yield
    await scene.route()


@asynccontextmanager
async def unhealthy(scene: Scene) -> AsyncIterator[None]:
    await scene.follow(health=503)
    yield
    assert "a" in scene.router.dead
    await scene.follow(health=200)


@asynccontextmanager
async def killed(scene: Scene) -> AsyncIterator[None]:
    for half in scene.halves:
        scene.kill(half)
    yield
    for half in scene.halves:
        await asyncio.to_thread(half.start)
        await half.follow("a", tokens=scene.plan.tokens)


@asynccontextmanager
async def half_gone(scene: Scene) -> AsyncIterator[None]:
    """Two of four servers die, and a second later the table knows."""
    gone, left = scene.halves
    scene.kill(gone)
    await asyncio.sleep(1)
    await scene.route(servers=left.endpoints("a"))
    yield
    await asyncio.to_thread(gone.start)
    await gone.follow("a", tokens=scene.plan.tokens)
    await scene.route()


@asynccontextmanager
async def no_name(scene: Scene) -> AsyncIterator[None]:
    """A provider comes first in merit order, and its name does not resolve."""
    tls = {"serverName": "llm.example.invalid"}
    endpoints = [{"address": "llm.example.invalid", "port": 443}]
    await scene.route(entry("external", endpoints, 1000, tls=tls))
    yield
    await scene.route()


@asynccontextmanager
async def slow_bodies(scene: Scene) -> AsyncIterator[None]:
    """Clients that send a byte of their bodies now and then; they get their answers in the end."""
    host, _, port = scene.router.base_url.removeprefix("http://").partition("/")[0].partition(":")
    length = 1000
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(scene.plan.limit):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(head)
            clients.append((reader, writer))
        sent = 0

        async def trickle() -> None:
            nonlocal sent
            while True:
                for _, writer in clients:
                    writer.write(b" ")
                sent += 1
                await asyncio.sleep(0.25)

        task = asyncio.create_task(trickle())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for reader, writer in clients:
            writer.write(b" " * (length - sent))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")


KINDS: dict[str, Fault] = {
    "connection refused": behaviour(listen=False),
    "503": behaviour(kind="503"),
    "429": behaviour(kind="429"),
    "reset before headers": behaviour(kind="reset"),
    "hang before headers": behaviour(kind="hang"),
    "no endpoints": no_endpoints,
    "unhealthy": unhealthy,
    "kill -9": killed,
    "half of the endpoints gone": half_gone,
    "DNS failure of an external pool": no_name,
    "slow-loris request bodies": slow_bodies,
}
COVERED = {"connection refused", "503", "429", "reset before headers", "no endpoints", "unhealthy"}
"""Without a load of this kind, by `tests/envoy/test_failover.py`."""


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        *(pytest.param(kind, SHORT, id=f"{kind}, short") for kind in KINDS if kind not in COVERED),
        *(pytest.param(kind, LONG, id=f"{kind}, long", marks=pytest.mark.stress) for kind in KINDS),
    ],
)
async def test_is_hidden_from_clients(
    router: EmbeddedRouter, start_pools: StartPools, book: Book, kind: str, plan: Plan
) -> None:
    halves = start_pools("a.1", "a.2"), start_pools("a.3", "a.4")
    scene = Scene(router, halves, start_pools("b", "c"), plan)
    for pools, names in ((halves[0], "a"), (halves[1], "a"), (scene.others, "b"), (scene.others, "c")):
        await pools.follow(names, tokens=plan.tokens)
    await scene.route()
    with told(f"{kind}, under {plan.streams} streams and {plan.rate:g} requests/s"):
        async with Load(router.base_url) as load:
            load.keep(plan.streams, "stream", over_seconds=plan.before)
            load.at_rate(plan.rate, "json")
            await asyncio.sleep(plan.before)

            async def full() -> bool:
                return await scene.in_flight() >= 0.9 * plan.limit

            await until(full, 30, "the first pool is in use")
            await asyncio.sleep(plan.before)
            for half in halves:
                await half.reset()
            began = time.monotonic()
            async with KINDS[kind](scene):
                await asyncio.sleep(plan.during)
                met = sum([(await half.seen("a")).requests for half in halves if half.running])
                over = time.monotonic()
            await until(full, 60, "the first pool is in use again")
            await asyncio.sleep(plan.after)
            ended = await load.finish()
    await judge(scene, book, kind, ended, began, over, met)


async def judge(
    scene: Scene, book: Book, kind: str, ended: list[Request], began: float, over: float, met: int
) -> None:
    """Note what clients saw, and hold it against what they may see."""
    answers = [request for request in ended if request.kind == "json"]
    streams = [request for request in ended if request.kind == "stream"]
    before = [request for request in answers if began - scene.plan.before <= request.sent < began]
    during = [request for request in answers if began <= request.sent < over]
    forgiven = [request for request in streams if scene.forgiven(request)]
    failed, broken = errors(answers), errors(request for request in streams if not scene.forgiven(request))
    print(f"  {dict(failed + broken)}" if failed or broken else "  nothing failed")
    book.row(
        FAULTS,
        kind,
        sum(request.ok for request in answers),
        sum(failed.values()),
        sum(request.ok for request in streams),
        len(forgiven),
        sum(broken.values()),
        milliseconds(before, 0.5),
        milliseconds(during, 0.5),
        milliseconds(during, 0.99),
        met,
    )
    book.judge(
        FAULTS,
        none(f"{kind}: JSON requests that failed", sum(failed.values())),
        none(f"{kind}: streams that failed, not in flight on what was killed", sum(broken.values())),
    )
    if scene.killed_at is not None:
        assert forgiven, "nothing was in flight on what was killed"
    if kind == "slow-loris request bodies":
        assert milliseconds(during, 0.5) <= 1.5 * milliseconds(before, 0.5)
