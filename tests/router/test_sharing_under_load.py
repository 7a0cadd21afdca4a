"""Three agents with an Envoy each, at two servers, keep a pool's limit between them under unequal load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from servers.control_plane import ControlPlane
from servers.pki import Authority
from servers.pods import set_endpoints
from servers.router_server import Policy, Server, StartServer, start_agent
from servers.tcp_proxy import TcpProxy
from stress.load import Load, errors
from stress.plugin import StartPools
from stress.pools import Pools, Seen
from stress.record import SHARING, Book, at_most, none, told
from support.agents import AgentProcess
from support.waiting import until

LIMIT = 60
ALLOWED = 66
"""At each of three Envoys two workers may see the last free place at once; and as much again."""
USED = 0.9
TWO = ("server-1", "server-2")


@dataclass
class Fleet:
    """Three agents, their clients, and the pool that they share."""

    policy: Policy
    pools: Pools
    servers: list[Server]
    agents: list[AgentProcess]
    ways: list[TcpProxy]
    """The second agent's ways to the servers."""
    loads: list[Load]
    clients: tuple[int, ...] = ()
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _counted: int = 0
    excess: int = 0
    """The most that `status.programmed` has shown since the last look."""

    def ask(self, *clients: int) -> None:
        """Have so many clients at each agent."""
        self._stop.set()
        self._stop = asyncio.Event()
        self.clients = clients
        for load, number in zip(self.loads, clients, strict=True):
            load.keep(number, "json", stop=self._stop)

    async def programmed(self) -> dict[str, object]:
        """`status.programmed` now."""
        found = await asyncio.to_thread(self.policy.programmed)
        self.excess = max(self.excess, (found.get("possibleExcess") or {}).get("l40s", 0))
        return found

    async def watch(self, seconds: float) -> Seen:
        """What the pool sees for a time."""
        await self.pools.reset()
        self.excess = 0
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await self.programmed()
            await asyncio.sleep(min(0.5, left))
        return await self.pools.seen("l40s")

    async def full(self) -> bool:
        """Whether the pool is used, and no more than it may be, for two seconds."""
        seen = await self.watch(2)
        return seen.mean >= USED * LIMIT and seen.most <= ALLOWED

    def row(self, book: Book, what: str, seen: Seen, allowed: int) -> None:
        """Note a phase, and hold it against what is allowed."""
        ended = [request for load in self.loads for request in load.ended]
        failed = sum(errors(ended[self._counted :]).values())
        clients = " / ".join(map(str, self.clients))
        book.row(SHARING, what, clients, seen.most, allowed, seen.mean, len(ended) - self._counted, failed)
        self._counted = len(ended)
        book.judge(
            SHARING,
            at_most(f"{what}: most in flight", seen.most, allowed),
            none(f"{what}: requests that failed", failed),
        )

    def used(self, book: Book, what: str, seen: Seen) -> None:
        """Hold what was used against what may stay unused."""
        book.judge(
            SHARING,
            at_most(f"{what}: unused of the limit", 100 * (1 - seen.mean / LIMIT), 100 * (1 - USED), "%"),
        )


@pytest.fixture
async def fleet(
    control_plane: ControlPlane,
    policy: Policy,
    serve: StartServer,
    authority: Authority,
    start_pools: StartPools,
    machine_address: str,
    tmp_path: Path,
) -> AsyncIterator[Fleet]:
    """All of it, started, with the limit shared and no load yet."""
    pools = start_pools("l40s", "h100", host=machine_address)
    for name in ("l40s", "h100"):
        address = (machine_address, pools.ports[name])
        set_endpoints(control_plane, policy.namespace, f"{policy.name}-{name}", [address])
        await pools.follow(name, seconds=0.4)
    policy.route(1, str(LIMIT))
    servers = [serve(name, peers=TWO) for name in TWO]
    direct = [server.url for server in servers]
    with ExitStack() as stack:
        ways = [stack.enter_context(TcpProxy("127.0.0.1", int(url.rpartition(":")[2]))) for url in direct]
        agents: list[AgentProcess] = []
        for pod, urls in (
            ("pod-1", direct[:1] + direct[1:]),
            ("pod-2", [way.url() for way in ways]),
            ("pod-3", direct[1:] + direct[:1]),
        ):
            agents.append(start_agent(control_plane, policy, urls, tmp_path, pod, authority.certificate))
            stack.callback(agents[-1].stop)
        fleet = Fleet(policy, pools, servers, agents, ways, [Load(agent.base_url) for agent in agents])

        async def applied() -> bool:
            found = await fleet.programmed()
            return (found.get("sequence"), found.get("applied"), found.get("fill")) == (1, 3, "Fill")

        await until(applied, 40, "three agents applied the table", interval_seconds=0.3)
        for load in fleet.loads:
            await load.served()
        try:
            yield fleet
        finally:
            for load in fleet.loads:
                await load.__aexit__(None, None, None)
            for way in ways:
                way.heal()


async def test_three_agents_fill_a_limit_and_keep_it(fleet: Fleet, book: Book) -> None:
    fleet.ask(70, 30, 10)
    await until(fleet.full, 40, "the slices follow the load")
    seen = await fleet.watch(3)
    fleet.row(book, "settled", seen, ALLOWED)
    fleet.used(book, "settled", seen)


@pytest.mark.stress
@pytest.mark.timeout(600)
async def test_the_excess_stays_within_what_is_shown(fleet: Fleet, book: Book) -> None:
    with told("three agents with 70, 30 and 10 clients"):
        fleet.ask(70, 30, 10)
        await until(fleet.full, 60, "the slices follow the load")
        seen = await fleet.watch(60)
        fleet.row(book, "settled", seen, ALLOWED)
        fleet.used(book, "settled", seen)
    with told("the load moves to 10, 30 and 70"):
        fleet.ask(10, 30, 70)
        seen = await fleet.watch(20)
        fleet.row(book, "while the load moves", seen, ALLOWED)
        await until(fleet.full, 60, "the slices follow the load")
    with told("the load has moved"):
        seen = await fleet.watch(20)
        fleet.row(book, "the load moved", seen, ALLOWED)
        fleet.used(book, "the load moved", seen)
    with told("the second agent is cut off from both servers"):
        for way in fleet.ways:
            way.stall()
        seen = await fleet.watch(45)
        assert fleet.excess > 0, "no excess is shown"
        fleet.row(book, "an agent cut off", seen, ALLOWED + fleet.excess)
        assert (await fleet.programmed())["silent"] == 1
    with told("a server is killed beside that"):
        fleet.servers[0].child.kill()
        seen = await fleet.watch(45)
        assert fleet.excess > 0, "no excess is shown"
        fleet.row(book, "a server killed", seen, ALLOWED + fleet.excess)
    with told("both are back"):
        await asyncio.to_thread(fleet.servers[0].child.start)
        for way in fleet.ways:
            way.heal()

        async def settled() -> bool:
            found = await fleet.programmed()
            return (found.get("applied"), found.get("silent")) == (3, 0) and await fleet.full()

        await until(settled, 90, "three agents are counted, and share the limit")
        seen = await fleet.watch(20)
        fleet.row(book, "all back", seen, ALLOWED)
        fleet.used(book, "all back", seen)
