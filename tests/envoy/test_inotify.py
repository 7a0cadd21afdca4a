"""A node whose inotify instances are used up: Envoy would abort over a new pool, so it gets none."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from meritorder_router.agent.inotify import room_for
from support.agents import AgentProcess
from support.fakepool import FakePool
from support.required import cannot_run
from support.tables import pool, table
from support.tableserver import TableServer
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
ENOUGH_FOR = 5
"""Envoy's routes (two), clusters and runtime, and one pool."""


def limited(instances: int) -> list[str]:
    """The begin of a command that has so many inotify instances: in a user namespace of its own, since what
    is left of the machine's is for all."""
    unshare = shutil.which("unshare")
    setting = "/proc/sys/user/max_inotify_instances"
    if unshare is None:
        cannot_run("no `unshare` here; install util-linux")
    command = [
        *(unshare, "--user", "--map-root-user"),
        *("sh", "-c", f'echo {instances} > {setting} && exec "$@"', "sh"),
    ]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        cannot_run(f"no user namespace to limit inotify in; run as root: {tried.stderr.strip()}")
    return command


def test_sees_whether_there_is_room() -> None:
    assert room_for(0)
    assert not room_for(1_000_000)


async def test_refuses_more_pools_than_can_be_watched_and_serves_on(
    tmp_path: Path, start_pool: StartPool
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    async with TableServer() as server:
        agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat")
        agent.command = [*limited(ENOUGH_FOR), *agent.command]
        server.give(table([pool(a)], sequence=1))
        agent.start()
        try:
            async with httpx.AsyncClient(base_url=agent.base_url) as client:

                async def answered_by(name: str) -> bool:
                    response = await client.post("/chat/completions", json={})
                    return bool(response.headers.get("x-meritorder-answered-by") == name)

                await until(lambda: answered_by("a"), 20, "an answer", retry_on=(httpx.TransportError,))
                envoy = agent.child("envoy")
                more = table([pool(b, 1), pool(a), pool(c)], sequence=2)
                server.give(more)
                await until(lambda: server.last.refused_revision == more.table_revision, 10, "a refusal")
                assert server.last.refused_reason == (
                    "Envoy would have to watch 2 more files, and its user's inotify instances are used up "
                    "on this node; raise fs.inotify.max_user_instances there"
                )
                assert await answered_by("a")
                server.give(table([pool(a, 5)], sequence=3))
                await until(lambda: server.last.applied_sequence == 3, 10, "a table that can be served")
                assert agent.child("envoy") == envoy
        finally:
            await asyncio.to_thread(agent.stop)
