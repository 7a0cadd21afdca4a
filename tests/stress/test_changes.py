"""The table changes all the time under streams: none breaks, and nothing grows."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_api.table import RoutingTable
from stress.load import Load, errors
from stress.plugin import StartPools
from stress.pools import Pools, entry
from stress.record import CHANGES, Book, at_most, none, told
from support.agents import AgentProcess
from support.processes import memory_bytes
from support.tables import table
from support.tableserver import TableServer
from support.waiting import until

SAMPLES = 10
MIB = 2**20
APPLIED = "meritorder_router_tables_applied_total"
REFUSED = "meritorder_router_tables_refused_total"


@pytest.fixture
async def server() -> AsyncIterator[TableServer]:
    async with TableServer() as server:
        yield server


@pytest.fixture
async def agent(tmp_path: Path, server: TableServer) -> AsyncIterator[AgentProcess]:
    """The real agent of that server, started by the test."""
    agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat", "--grace-seconds", "0.5")
    yield agent
    await asyncio.to_thread(agent.stop)


def shapes(pools: Pools) -> list[Callable[[int], list[dict[str, Any]]]]:
    """Tables that differ in all that may change; the number varies a limit too."""
    a, b, c, d, e = (pools.endpoints(name) for name in "abcde")
    return [
        lambda n: [entry("a", a, 50 + n % 7), entry("b", b, 100), entry("c", c)],
        lambda n: [entry("a", a, 100), entry("b", b, 50 + n % 7), entry("c", c)],
        lambda n: [entry("b", b, 100), entry("a", a, 100 + n % 7), entry("c", c)],
        lambda n: [entry("a", a, 100), entry("c", c)],
        lambda n: [entry("a", a, 100), entry("d", d, 50 + n % 7), entry("b", b, 100), entry("c", c)],
        lambda n: [entry("a", a, 0), entry("b", b, 100 + n % 7), entry("c", c)],
        lambda n: [entry("a", d, 100), entry("b", b, 100 + n % 7), entry("c", c)],
        lambda n: [entry("a", [], 100), entry("b", b, 100 + n % 7), entry("c", c)],
        lambda n: [entry("b", b, 100), entry("a", a)],
        lambda n: [entry("e", e, 20), entry("d", d, 30), entry("a", a, 50), entry("b", b, 50), entry("c", c)],
    ]


@dataclass
class Changing:
    """One agent that is given table after table."""

    server: TableServer
    agent: AgentProcess
    tables: Sequence[Callable[[int], list[dict[str, Any]]]]
    sequence: int = 0
    seconds: list[float] = field(default_factory=list)
    """Per change, until the agent asks for the next."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Of Envoy and of the agent, in bytes, at even distances."""

    def next(self) -> RoutingTable:
        """Another table than the one before."""
        self.sequence += 1
        n = self.sequence
        paths = {"paths": ["/v1/rerank"]} if n % 3 == 0 else {}
        return table(
            self.tables[n % len(self.tables)](n), sequence=n, target=1000 + 100 * (n % 5), requests=paths
        )

    async def give(self, content: bytes, revision: str) -> None:
        """Hand out a table, and wait until the agent has it and asks for the next."""
        began = time.monotonic()
        self.server.give(content, revision=revision)
        async with asyncio.timeout(30):
            while self.server.questions[-1].get("revision") != revision:
                self.server.heard.clear()
                await self.server.heard.wait()
        self.seconds.append(time.monotonic() - began)

    async def run(self, changes: int, over_seconds: float = 0.0) -> float:
        """So many changes, at even distances over a time; return the seconds that they took."""
        self.seconds, self.memory = [], []
        envoy, agent = self.agent.child("envoy"), self.agent.child("agent")
        assert envoy is not None
        assert agent is not None
        tables = [(one.to_json(), one.table_revision) for one in (self.next() for _ in range(changes))]
        began = time.monotonic()
        for number, (content, revision) in enumerate(tables):
            await asyncio.sleep(max(0.0, began + over_seconds * number / changes - time.monotonic()))
            await self.give(content, revision)
            if number % max(1, changes // 100) == 0:
                self.look(envoy, agent)
        took = time.monotonic() - began
        assert self.agent.child("envoy") == envoy, "Envoy died"
        assert self.agent.child("agent") == agent, "the agent died"
        return took

    def look(self, envoy: int, agent: int) -> None:
        """Note what memory the two have."""
        try:
            self.memory.append((memory_bytes(envoy), memory_bytes(agent)))
        except FileNotFoundError as error:
            raise AssertionError(f"Envoy or the agent died at table {self.sequence}") from error

    async def count(self, name: str) -> int:
        """A counter of the agent."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{self.agent.metrics_url}/metrics/agent")).text
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))

    def ends(self, which: int) -> tuple[float, float]:
        """Memory in MiB at the beginning and at the end of a run: medians of some samples."""
        seen = [sample[which] / MIB for sample in self.memory]
        return statistics.median(seen[:SAMPLES]), statistics.median(seen[-SAMPLES:])

    def growth(self, which: int) -> float:
        """How much memory grew, in percent."""
        first, last = self.ends(which)
        return 100 * (last / first - 1)

    def told_memory(self, which: int) -> str:
        first, last = self.ends(which)
        return f"{first:.1f} → {last:.1f}"

    def share(self, share: float) -> float:
        """Milliseconds within which this share of the changes was made."""
        times = sorted(self.seconds)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))]


@pytest.mark.parametrize(
    ("changes", "seconds", "streams", "more"),
    [
        pytest.param(60, 4.0, 40, 0, id="short"),
        pytest.param(1000, 60.0, 300, 5000, id="long", marks=[pytest.mark.stress, pytest.mark.timeout(1200)]),
    ],
)
async def test_break_no_stream_and_leave_nothing_behind(
    server: TableServer,
    agent: AgentProcess,
    start_pools: StartPools,
    book: Book,
    changes: int,
    seconds: float,
    streams: int,
    more: int,
) -> None:
    pools = start_pools("a", "b", "c", "d", "e")
    for name in "abcde":
        await pools.follow(name, tokens=15)
    changing = Changing(server, agent, shapes(pools))
    server.give(changing.next())
    agent.start()
    await until(lambda: server.reports and server.last.applied_sequence == 1, 20, "the first table")
    async with Load(agent.base_url) as load:
        await load.served()
        load.keep(streams, "stream", over_seconds=3)
        await until(lambda: len(load.under_way) == streams, 20, "all streams run")
        what = "1,000 changes in 60 s"
        with told(f"{changes} changes in {seconds:g} s under {streams} streams"):
            before = await changing.count(APPLIED)
            took = await changing.run(changes, over_seconds=0.97 * seconds)
            applied = await changing.count(APPLIED) - before
        note(book, what, changing, applied, took, load)
        checks = [
            at_most(f"{what}: changes that were not made", changes - applied, 0),
            at_most(f"{what}: time", took, seconds, "s"),
            none(f"{what}: tables refused", await changing.count(REFUSED)),
            none(f"{what}: streams broken", sum(errors(load.ended).values())),
        ]
        if more:
            what = "5,000 more, as fast as they go"
            load.ended.clear()
            with told(f"{more} more changes"):
                took = await changing.run(more)
            note(book, what, changing, more, took, load)
            checks += [
                at_most(f"{what}: growth of Envoy's memory", changing.growth(0), 10, "%"),
                at_most(f"{what}: growth of the agent's memory", changing.growth(1), 10, "%"),
                none(f"{what}: tables refused", await changing.count(REFUSED)),
                none(f"{what}: streams broken", sum(errors(load.ended).values())),
            ]
        load.ended.clear()
        last = await load.finish()
        checks.append(none("streams broken after the last change", sum(errors(last).values())))
    book.judge(CHANGES, *checks)


def note(book: Book, what: str, changing: Changing, changes: int, took: float, load: Load) -> None:
    """One line of the table."""
    broken = errors(load.ended)
    if broken:
        print(f"  {dict(broken)}")
    book.row(
        CHANGES,
        what,
        changes,
        took,
        changing.share(0.5),
        changing.share(0.99),
        sum(request.ok for request in load.ended),
        sum(broken.values()),
        changing.told_memory(0),
        changing.told_memory(1),
    )
