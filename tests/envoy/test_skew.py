"""An agent and a server one minor version apart, for real: what the newer one says more does no harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from meritorder_api.table import RoutingTable
from support.agents import AgentProcess
from support.fakepool import FakePool
from support.tables import pool, table
from support.tableserver import TableServer
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"


def of_a_newer_server(known: RoutingTable) -> tuple[bytes, str]:
    """The table with fields that this version does not know, and the revision that they have with it."""
    document = known.dump() | {"queue": {"seconds": 5}, "tableRevision": "sha256:newer"}
    document["pools"][0] |= {"warmup": {"seconds": 30}}
    return json.dumps(document).encode(), "sha256:newer"


async def test_an_agent_serves_the_table_of_a_newer_server_and_learns_the_rest_when_it_is_as_new(
    tmp_path: Path, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    async with TableServer() as server:
        content, revision = of_a_newer_server(table([pool(a, 7), pool(b)], sequence=5))
        server.give(content, revision=revision)
        agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat")
        agent.start()
        try:
            async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:

                async def served() -> bool:
                    return (await client.post(CHAT, json={})).status_code == 200

                gone = (httpx.TransportError,)
                await until(served, 20, "the first answer", retry_on=gone)
                await until(lambda: server.reports and server.last.applied_sequence == 5, 5, "the report")
                assert (server.last.applied_revision, server.last.refused_reason) == (revision, "")
                # It has what was sent: it is not sent it again and again.
                await until(lambda: server.questions[-1].get("revision") == revision, 5, "the next question")
                asked = server.asked
                server.give(table([pool(b), pool(a, 7)], sequence=6))
                await until(lambda: server.last.applied_sequence == 6, 5, "the next table")
                assert server.asked - asked <= 2
                server.give(content.replace(b'"sequence": 5', b'"sequence": 7'), revision=revision)
                await until(lambda: server.last.applied_sequence == 7, 5, "the newer server's table")

                # An agent that is started over what an older one kept serves it, and asks for the whole.
                await asyncio.to_thread(agent.stop)
                asked = len(server.questions)
                agent.start()
                await until(served, 20, "an answer", retry_on=gone)
                await until(lambda: len(server.questions) > asked, 10, "the first question")
                assert "revision" not in server.questions[asked]
                assert server.questions[asked]["sequence"] == "7"
        finally:
            await asyncio.to_thread(agent.stop)
