"""A router container's life: it drains, comes back from crashes and bad files, and needs no rights at all."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from meritorder_router.agent.applier import ENDED, Applied
from meritorder_router.agent.embedded import EmbeddedRouter, Refused
from meritorder_router.agent.envoy import find_envoy
from support import confined
from support.agents import ROOT, AgentProcess
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.tableserver import TableServer
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
DONE = "data: [DONE]\n\n"
NOBODY = "65532"


@pytest.fixture
async def agent(tmp_path: Path, server: TableServer) -> AsyncIterator[AgentProcess]:
    """An agent of that server, started by the test."""
    agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat")
    yield agent
    await asyncio.to_thread(agent.stop)


async def serves(client: httpx.AsyncClient, pool: str, deadline_seconds: float = 20) -> None:
    """Wait until a request is answered by that pool."""

    async def holds() -> bool:
        response = await client.post(CHAT, json={})
        return bool(response.headers.get("x-meritorder-answered-by") == pool)

    await until(holds, deadline_seconds, f"an answer by {pool}", retry_on=(httpx.TransportError,))


async def test_a_hundred_streams_of_ten_seconds_outlive_sigterm_at_the_first(
    server: TableServer, agent: AgentProcess, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a)]))
    agent.start()
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=agent.base_url, timeout=30, limits=limits) as one,
        httpx.AsyncClient(base_url=agent.base_url, timeout=30, http1=False, http2=True) as two,
    ):
        await serves(one, "a")
        await serves(two, "a")
        a.behaviour = Behaviour(chunks=20, chunk_seconds=0.5)
        began = asyncio.get_running_loop().time()
        begun = 0

        async def stream(client: httpx.AsyncClient) -> httpx.Response:
            nonlocal begun
            async with client.stream("POST", CHAT, json={"stream": True}) as response:
                begun += 1
                await response.aread()
                return response

        # Half of them have a connection each, half of them share one of HTTP/2. All have their headers before
        # the end is told: this client's HTTP/2 takes none after a GOAWAY, though the protocol allows them.
        streams = [asyncio.create_task(stream(one if number % 2 else two)) for number in range(100)]
        await until(lambda: begun == 100, 10, "streams")
        await until(lambda: asyncio.get_running_loop().time() >= began + 1, 2, "the first second")

        agent.send(signal.SIGTERM)
        ended = await asyncio.gather(*streams)
        took = asyncio.get_running_loop().time() - began

    assert sum(stream.text.endswith(DONE) for stream in ended) == 100
    assert {stream.http_version for stream in ended} == {"HTTP/1.1", "HTTP/2"}
    assert took >= 10
    assert await asyncio.to_thread(agent.wait, 5) == 0
    assert "drained in" in agent.log_text()


async def test_an_envoy_that_is_late_with_its_answers_is_waited_for(
    server: TableServer, agent: AgentProcess, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a)]))
    agent.start()
    async with httpx.AsyncClient(base_url=agent.base_url, timeout=30) as client:
        await serves(client, "a")
        a.behaviour = Behaviour(chunks=20, chunk_seconds=0.3)
        streams = [asyncio.create_task(client.post(CHAT, json={"stream": True})) for _ in range(10)]
        await until(lambda: a.in_flight == 10, 10, "streams")
        envoy = agent.child("envoy")
        assert envoy is not None
        agent.send(signal.SIGTERM)
        await until(lambda: "draining" in agent.log_text(), 5, "the drain")

        # A machine that is overloaded, for longer than the supervisor waits for an answer.
        os.kill(envoy, signal.SIGSTOP)
        stopped = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > stopped + 3, 5, "three seconds")
        os.kill(envoy, signal.SIGCONT)
        ended = await asyncio.gather(*streams)

    assert [stream.text.endswith(DONE) for stream in ended] == [True] * 10
    assert await asyncio.to_thread(agent.wait, 5) == 0


def delays(agent: AgentProcess, child: str) -> list[float]:
    """How long the supervisor waited before each start of a child anew."""
    return [
        float(text)
        for text in re.findall(rf"{child} ended with .*?; it starts again in ([\d.]+) s", agent.log_text())
    ]


async def test_an_envoy_that_cannot_start_is_tried_ever_later_until_its_files_are_good_again(
    server: TableServer, agent: AgentProcess, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a)], sequence=5))
    agent.start()
    async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
        await serves(client, "a")
        await server.stop()
        for name in ("bootstrap.json", "cds.json", "rds.json"):
            (agent.state / name).write_text("{ a disk that was full")
        agent.kill_child("envoy")
        await until(lambda: len(delays(agent, "envoy")) >= 7, 20, "a crash loop")
        assert agent.child("agent") is not None

        # The next agent writes all files anew, from the last good table: without any server.
        agent.kill_child("agent")
        await serves(client, "a")

    waited = delays(agent, "envoy")
    assert waited[:7] == [0.02 * 2**number for number in range(7)]
    assert max(waited) <= 5
    assert json.loads((agent.state / "last-good.json").read_text())["sequence"] == 5


async def test_a_table_over_which_envoy_ends_is_taken_back_and_not_tried_again(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    good = table([pool(a), pool(b)])
    assert isinstance(await router.apply(good), Applied)
    # No table that passes the checks is known to end Envoy, so the renderer is made to write one that does.
    monkeypatch.setattr("meritorder_router.render.routes.choice_script", lambda *_, **__: "os.exit(3)")
    bad = table([pool(b), pool(a)], sequence=2)

    result = await router.apply(bad)

    assert isinstance(result, Refused)
    assert result.reason == ENDED
    monkeypatch.undo()
    await serves(client, "a")
    pid = router.pid
    again = await router.apply(bad)
    assert isinstance(again, Refused)
    assert again.reason == ENDED
    assert router.table == good
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "a"
    assert router.pid == pid
    assert isinstance(await router.apply(table([pool(b), pool(a)], sequence=3)), Applied)
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "b"


async def test_an_envoy_that_is_killed_amid_changes_takes_the_newest_table(
    server: TableServer, agent: AgentProcess, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    server.give(table([pool(a), pool(b)], sequence=1))
    agent.start()
    async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
        await serves(client, "a")
        for sequence in range(2, 8):
            order = [pool(b), pool(a)] if sequence % 2 else [pool(a), pool(b)]
            agent.kill_child("envoy")
            server.give(table(order, sequence=sequence))
            await until(partial(applied, server, sequence), 15, "the table")
            assert server.last.refused_reason == ""
            await serves(client, "b" if sequence % 2 else "a")


def listening(pid: int) -> set[str]:
    """Addresses at which a process listens, and its unix sockets, as the kernel tells."""
    inodes = {
        target.removeprefix("socket:[").removesuffix("]")
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if (target := os.readlink(entry)).startswith("socket:[")
    }
    found: set[str] = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            address, port = fields[1].split(":")
            found.add(f"{socket.inet_ntoa(bytes.fromhex(address)[::-1])}:{int(port, 16)}")
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7 and fields[3] == "00010000":
            found.add(Path(fields[7]).name)
    assert "/" not in "".join(found)
    return found


async def test_admin_is_on_a_unix_socket_of_its_user_alone(
    server: TableServer, agent: AgentProcess, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a)]))
    agent.start()
    async with httpx.AsyncClient(base_url=agent.base_url) as client:
        await serves(client, "a")
    envoy, process = agent.child("envoy"), agent.child("agent")
    assert envoy is not None
    assert process is not None

    assert listening(envoy) == {
        f"127.0.0.1:{agent.listen}",
        f"127.0.0.1:{agent.metrics}",
        "admin.sock",
        "touch.sock",
        "egress.sock",
    }
    assert listening(process) == {"agent.sock"}
    assert listening(agent.pid) == set()
    assert {path.name: path.stat().st_mode & 0o777 for path in agent.state.glob("*.sock")} == dict.fromkeys(
        ("admin.sock", "touch.sock", "egress.sock", "agent.sock"), 0o600
    )
    assert agent.state.stat().st_mode & 0o077 == 0
    async with httpx.AsyncClient(base_url=agent.base_url.removesuffix("/v1")) as client:
        for path in ("/metrics", "/stats", "/config_dump", "/quitquitquit", "/ready"):
            assert (await client.get(path)).status_code == 404
            assert (await client.post(path)).status_code == 404


def why_not_confined() -> str | None:
    """What is missing here to run a program as a hardened container does."""
    if os.geteuid() != 0:
        return "only root may make a mount namespace in which the root is read-only"
    missing = [tool for tool in ("unshare", "setpriv", "mount") if shutil.which(tool) is None]
    if missing:
        return f"`{missing[0]}` is not installed (package util-linux)"
    if os.system("unshare --mount true 2>/dev/null") != 0:
        return "this kernel or container permits no mount namespace"
    return None


@pytest.fixture
def within(tmp_path: Path) -> list[str | Path]:
    """The command that confines another one, which may write to the agent's state directory alone."""
    missing = why_not_confined()
    if missing is not None:
        pytest.skip(missing)
    stdlib, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    read = {ROOT, tmp_path, Path(stdlib).parents[1], Path(packages), Path(sys.executable).parent}
    read |= {Path(find_envoy()).parent, Path(sys.prefix), Path(sys.base_prefix)}
    # The dependencies may be in an environment of the user's cache.
    read |= {path for path in map(Path, sys.path) if path.is_absolute() and path.is_dir()}
    paths = sorted({path.resolve() for path in read})
    tmp_path.chmod(0o755)
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "--"]
    command += [sys.executable, "-S", confined.__file__, NOBODY, tmp_path / "s", *paths, "--"]
    return command


def check_confined(pid: int, *, writable: Path) -> None:
    """A process of nobody's, that may do nothing, can write nowhere else, and finds no shell."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert set(status["Uid"].split()) == {NOBODY}
    assert set(status["Gid"].split()) == {NOBODY}
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Groups"].strip() == ""
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    assert {
        fields[4]
        for fields in mounts
        if "rw" in fields[5].split(",") and not fields[4].startswith(confined.KERNELS)
    } == {str(writable)}
    for shell in ("bin/sh", "bin/bash", "bin/dash"):
        path = process / "root" / shell
        assert not path.exists() or path.is_char_device()


def applied(server: TableServer, sequence: int) -> bool:
    return bool(server.reports) and server.last.applied_sequence == sequence


def started_anew(agent: AgentProcess, name: str, old: int) -> bool:
    return agent.child(name) not in (None, old)


async def test_runs_with_a_read_only_root_as_nobody_without_capabilities_or_a_shell(
    tmp_path: Path, within: list[str | Path], start_pool: StartPool, server: TableServer
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    b.keep = True
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o755)
    (keys / "b").write_text("sk-b")
    token = tmp_path / "token"
    token.write_text("first")
    server.give(table([pool(a), pool(b, apiKeyFile="b")]))
    agent = AgentProcess(
        tmp_path,
        *("--server-url", server.url, "--policy", "chat", "--token-file", str(token), "--key-dir", str(keys)),
        within=within,
    )
    agent.start()
    try:
        async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
            await serves(client, "a")
            for name in ("agent", "envoy"):
                pid = agent.child(name)
                assert pid is not None
                check_confined(pid, writable=agent.state)

            # All that a container lives through works so, too.
            server.give(table([pool(b, apiKeyFile="b"), pool(a)], sequence=2))
            await serves(client, "b")
            assert b.headers[-1]["authorization"] == "Bearer sk-b"
            for name in ("envoy", "agent"):
                old = agent.kill_child(name)
                await until(partial(started_anew, agent, name, old), 10, f"another {name}")
                await serves(client, "b")
            server.give(table([pool(a), pool(b, apiKeyFile="b")], sequence=3))
            await serves(client, "a")
            a.behaviour = Behaviour(chunks=10, chunk_seconds=0.1)
            stream = asyncio.create_task(client.post(CHAT, json={"stream": True}))
            await until(lambda: a.in_flight == 1, 5, "the stream")
            agent.send(signal.SIGTERM)
            assert (await stream).text.endswith(DONE)
        assert await asyncio.to_thread(agent.wait, 10) == 0
    finally:
        await asyncio.to_thread(agent.stop)
