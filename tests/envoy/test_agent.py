"""The agent with its supervisor and Envoy: what it takes, what it refuses, and what it survives."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from servers.pki import Authority
from support.agents import AgentProcess
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.tableserver import TableServer
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"


@pytest.fixture
async def agent(tmp_path: Path, server: TableServer) -> AsyncIterator[AgentProcess]:
    """An agent of that server, started by the test."""
    token = tmp_path / "token"
    token.write_text("first")
    agent = AgentProcess(
        tmp_path,
        "--server-url",
        server.url,
        "--policy",
        "chat",
        "--namespace",
        "ml",
        "--token-file",
        str(token),
    )
    yield agent
    await asyncio.to_thread(agent.stop)


@pytest.fixture
async def client(agent: AgentProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
        yield client


async def answers(client: httpx.AsyncClient, status: int, deadline_seconds: float = 15) -> None:
    """Wait until a request is answered so."""

    async def holds() -> bool:
        return (await client.post(CHAT, json={})).status_code == status

    await until(holds, deadline_seconds, f"an answer of {status}", retry_on=(httpx.TransportError,))


async def test_is_ready_and_answers_503_before_there_is_a_policy(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    agent.start()
    await answers(client, 503)

    response = await client.post(CHAT, json={})
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "no_routing_table"
    async with httpx.AsyncClient(base_url=agent.metrics_url) as probe:
        assert (await probe.get("/ready")).status_code == 200
        assert (await probe.get("/ready/table")).status_code == 503
        assert 'applied_sequence{policy="chat"} -1' in (await probe.get("/metrics/agent")).text

        server.give(table([pool(a, 7)], sequence=3))
        await answers(client, 200)

        await until(lambda: server.reports and server.last.applied_sequence == 3, 5, "the report")
        assert (await probe.get("/ready/table")).status_code == 200
        metrics = (await probe.get("/metrics/agent")).text
    assert 'meritorder_router_applied_sequence{policy="chat"} 3\n' in metrics
    assert 'meritorder_router_pool_limit{policy="chat",pool="a"} 7\n' in metrics
    report = server.last
    assert (report.policy.namespace, report.policy.name, report.policy.uid) == ("ml", "chat", "u-1")
    assert report.applied_revision == server.revision
    assert report.pools["a"].slice == 7


async def test_reports_load_and_health(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    b.behaviour = Behaviour(health_status=503)
    server.give(table([pool(a, 7), pool(b)]))
    agent.start()
    await answers(client, 200)
    await until(lambda: server.reports and server.last.applied_sequence == 1, 5, "the first report")
    a.behaviour = Behaviour(seconds=4, chunks=0)

    requests = [asyncio.create_task(client.post(CHAT, json={})) for _ in range(5)]
    await until(lambda: server.last.pools["a"].in_flight == 5, 5, "five in flight")
    await until(lambda: server.last.offered_load > 0.5, 5, "load")
    await until(lambda: server.last.pools["b"].healthy_endpoints == 0, 15, "the sick pool")

    assert server.last.pools["a"].healthy_endpoints == 1
    assert [response.status_code for response in await asyncio.gather(*requests)] == [200] * 5


async def test_refuses_older_and_malformed_tables_and_serves_on(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    server.give(table([pool(a)], sequence=5))
    agent.start()
    await answers(client, 200)

    older = table([pool(b)], sequence=4)
    server.give(older)
    await until(
        lambda: server.reports and server.last.refused_revision == older.table_revision, 5, "a refusal"
    )
    assert server.last.refused_reason == "sequence 4 is older than 5, which is applied; keeping that one"

    server.give(b"{}", revision="x")
    await until(lambda: "`policy`: Field required" in server.last.refused_reason, 5, "a refusal")
    assert server.last.applied_sequence == 5
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "a"

    server.give(table([pool(b)], sequence=6))
    await until(lambda: server.last.applied_sequence == 6, 5, "the good one")
    assert (server.last.refused_revision, server.last.refused_reason) == ("", "")
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "b"


async def test_says_with_each_question_which_table_is_in_force(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    agent.start()
    await until(lambda: server.questions, 15, "the first question")
    assert server.questions[0].keys() == {"waitSeconds"}

    first = table([pool(a)], sequence=5)
    server.give(first)
    await until(lambda: "sequence" in server.questions[-1], 5, "the question after the first table")
    said = {key: server.questions[-1].get(key) for key in ("revision", "uid", "sequence")}
    assert said == {"revision": first.table_revision, "uid": "u-1", "sequence": "5"}

    older = table([pool(a, 3)], sequence=4)
    server.give(older)
    await until(lambda: server.questions[-1]["revision"] == older.table_revision, 5, "a refusal of the older")
    assert server.questions[-1]["sequence"] == "5"
    await asyncio.to_thread(agent.stop)
    asked = len(server.questions)
    agent.start()
    await until(lambda: len(server.questions) > asked, 15, "the first question of the second start")
    assert (server.questions[asked]["uid"], server.questions[asked]["sequence"]) == ("u-1", "5")


async def test_serves_without_the_pools_whose_key_or_ca_is_not_mounted_and_says_which(
    server: TableServer, tmp_path: Path, start_pool: StartPool
) -> None:
    a, b, c = await start_pool("a"), await start_pool("b"), await start_pool("c")
    keys = tmp_path / "keys"
    keys.mkdir()
    tls = {"serverName": "a.example.com", "caFile": "ca_ca.crt"}
    server.give(table([pool(a, 5, tls=tls), pool(b, 5, apiKeyFile="b_key"), pool(c)]))
    agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat", "--key-dir", str(keys))
    agent.start()
    try:
        async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
            await answers(client, 200)
            assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "c"
            await until(lambda: server.reports and server.last.applied_sequence == 1, 5, "the report")
            assert server.last.refused_revision == server.revision
            assert server.last.refused_reason == (
                "CANotMounted: pool `a`: the CA certificates of its TLS (file `ca_ca.crt`) are not mounted "
                "in this pod; restart the pod (and 1 more)"
            )
            (keys / "ca_ca.crt").write_text("no certificate")
            await until(
                lambda: "holds no certificates" in server.last.refused_reason, 10, "the next sentence"
            )
            (keys / "ca_ca.crt").write_bytes(Authority(tmp_path / "ca").certificate.read_bytes())
            await until(
                lambda: (
                    server.last.refused_reason
                    == "KeyNotMounted: pool `b`: its API key is not mounted in this pod; restart the pod"
                ),
                10,
                "the sentence about the key",
            )
            assert server.last.refused_code == "KeyNotMounted"
            problem = server.last.pools["b"].problem
            assert problem is not None
            assert problem.reason == "KeyNotMounted"
            (keys / "b_key").write_text("sk-b")
            await until(lambda: server.last.refused_reason == "", 10, "nothing is lacking")
            assert server.last.refused_code == ""
            assert server.last.pools["b"].problem is None
            responses = [await client.post(CHAT, json={}) for _ in range(5)]
            assert {response.status_code for response in responses} == {200}
            assert a.requests == 0
    finally:
        await asyncio.to_thread(agent.stop)


async def test_takes_a_new_policy_of_the_same_name_from_its_first_sequence(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    server.give(table([pool(a)], sequence=50))
    agent.start()
    await answers(client, 200)

    server.give(table([pool(b)], sequence=1, uid="u-2"))

    await until(lambda: server.reports and server.last.policy.uid == "u-2", 5, "the new policy")
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "b"


async def test_keeps_the_last_table_of_a_deleted_policy_and_says_so(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a)], sequence=5))
    agent.start()
    await answers(client, 200)

    server.refuse(404)

    await until(lambda: server.reports and "PolicyGone" in server.last.refused_reason, 5, "the report")
    assert server.last.applied_sequence == 5
    assert (await client.post(CHAT, json={})).status_code == 200


async def test_shows_the_token_as_it_is_now(
    server: TableServer, agent: AgentProcess, start_pool: StartPool, tmp_path: Path
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a)]))
    agent.start()
    await until(lambda: "Bearer first" in server.tokens, 15, "the first token")

    (tmp_path / "token").write_text("second\n")
    server.give(table([pool(a)], sequence=2))

    await until(lambda: "Bearer second" in server.tokens, 5, "the second token")


async def test_goes_to_another_server_when_one_is_gone(
    server: TableServer, tmp_path: Path, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    async with TableServer() as other:
        agent = AgentProcess(
            tmp_path, "--server-url", server.url, "--server-url", other.url, "--policy", "chat"
        )
        for each in (server, other):
            each.give(table([pool(a)]))
        agent.start()
        try:
            await until(lambda: server.reports or other.reports, 15, "a report")
            first, second = (server, other) if server.reports else (other, server)
            for each in (server, other):
                each.give(table([pool(a)], sequence=2))
            await first.stop()
            await until(lambda: second.reports and second.last.applied_sequence == 2, 10, "the other server")
        finally:
            await asyncio.to_thread(agent.stop)


async def test_serves_on_while_children_die_one_by_one(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.behaviour = Behaviour(chunks=10, chunk_seconds=0.2)
    server.give(table([pool(a, 100)], sequence=5))
    agent.start()
    await answers(client, 200)
    envoy = agent.child("envoy")

    streams = [asyncio.create_task(client.post(CHAT, json={"stream": True})) for _ in range(10)]
    await until(lambda: a.in_flight == 10, 5, "streams")
    old = agent.kill_child("agent")
    ended = await asyncio.gather(*streams)

    assert all(response.text.endswith("[DONE]\n\n") for response in ended)
    assert agent.child("envoy") == envoy
    await until(lambda: agent.child("agent") not in (None, old), 5, "another agent")

    await server.stop()
    loop = asyncio.get_running_loop()
    a.behaviour = Behaviour()
    agent.kill_child("envoy")
    killed = loop.time()
    await answers(client, 200)
    assert loop.time() - killed < 1.0


async def test_starts_from_its_files_when_no_server_is_there(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    server.give(table([pool(a, 9)], sequence=5))
    agent.start()
    await answers(client, 200)
    await asyncio.to_thread(agent.stop)
    await server.stop()

    agent.start()
    await answers(client, 200)

    assert json.loads((agent.state / "last-good.json").read_text())["sequence"] == 5


async def test_drains_on_sigterm_without_cutting_a_stream(
    server: TableServer, agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.behaviour = Behaviour(chunks=15, chunk_seconds=0.2)
    server.give(table([pool(a)], sequence=5))
    agent.start()
    async with httpx.AsyncClient(base_url=agent.metrics_url) as probe:

        async def ready() -> bool:
            return (await probe.get("/ready/table")).status_code == 200

        await until(ready, 15, "a table", retry_on=(httpx.TransportError,))
        streams = [asyncio.create_task(client.post(CHAT, json={"stream": True})) for _ in range(50)]
        await until(lambda: a.in_flight == 50, 5, "streams")

        agent.send(signal.SIGTERM)

        async def unready() -> bool:
            return (await probe.get("/ready")).status_code == 503

        await until(unready, 2, "unreadiness")
    assert (await client.post(CHAT, json={"stream": True})).text.endswith("[DONE]\n\n")
    ended = await asyncio.gather(*streams)
    assert sum(response.text.endswith("[DONE]\n\n") for response in ended) == 50
    assert await asyncio.to_thread(agent.wait, 5) == 0


async def test_cuts_what_is_left_when_the_grace_time_ends(
    server: TableServer, tmp_path: Path, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    path = tmp_path / "table.json"
    path.write_bytes(table([pool(a)]).to_json())
    agent = AgentProcess(tmp_path, "--table", str(path), "--grace-seconds", "0.5")
    agent.start()
    async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
        await answers(client, 200)
        a.behaviour = Behaviour(kind="hang")
        request = asyncio.create_task(client.post(CHAT, json={}))
        await until(lambda: a.in_flight == 1, 10, "the request")
        agent.send(signal.SIGTERM)
        assert await asyncio.to_thread(agent.wait, 8) == 0
        with pytest.raises(httpx.TransportError):
            await request


async def test_follows_a_table_in_a_file(tmp_path: Path, start_pool: StartPool) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    path = tmp_path / "table.json"
    path.write_bytes(table([pool(a)], sequence=1).to_json())
    agent = AgentProcess(tmp_path, "--table", str(path))
    agent.start()
    try:
        async with httpx.AsyncClient(base_url=agent.base_url) as client:

            async def answered_by(name: str) -> bool:
                response = await client.post(CHAT, json={})
                return bool(response.headers.get("x-meritorder-answered-by") == name)

            gone = (httpx.TransportError,)
            await until(lambda: answered_by("a"), 15, "the first table", retry_on=gone)
            path.write_bytes(table([pool(b)], sequence=2).to_json())
            await until(lambda: answered_by("b"), 5, "the second table", retry_on=gone)
            path.write_text("{ not a table")
            await until(lambda: "not JSON" in agent.log_text(), 5, "the refusal")
            assert await answered_by("b")
            path.unlink()
            await until(lambda: "cannot be read" in agent.log_text(), 5, "the complaint")
            assert await answered_by("b")
            path.write_bytes(table([pool(a)], sequence=3).to_json())
            await until(lambda: answered_by("a"), 5, "the third table", retry_on=gone)
    finally:
        await asyncio.to_thread(agent.stop)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "exactly one of `--table` and `--server-url` must be given"),
        (["--table", "t", "--server-url", "https://x"], "exactly one of `--table` and `--server-url`"),
        (["--server-url", "https://x"], "`--policy` must be given with `--server-url`"),
        (["--server-url", "http://x", "--policy", "p"], "plain HTTP is for loopback only"),
        (["--table", "t", "--listen", "somewhere:1"], "`somewhere` must be an IP address"),
        (["--table", "t", "--listen", "127.0.0.1:0"], "the port must be a number from 1 to 65535"),
        (["--table", "t", "--state-dir", "/" + "x" * 120], "a socket's path must have at most 107"),
    ],
)
def test_refuses_wrong_use_in_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    agent = AgentProcess(tmp_path, *options)

    agent.start()

    assert agent.wait(10) == 2
    assert sentence in " ".join(agent.log_text().split())


async def test_says_that_its_address_is_taken(tmp_path: Path, start_pool: StartPool) -> None:
    a = await start_pool("a")
    agent = AgentProcess(tmp_path, "--table", "t", "--listen", f"127.0.0.1:{a.port}")

    agent.start()

    assert await asyncio.to_thread(agent.wait, 10) == 1
    assert f"cannot listen on 127.0.0.1:{a.port}: another process listens there" in agent.log_text()


async def test_verifies_the_server_by_the_ca_as_it_is_now(tmp_path: Path, start_pool: StartPool) -> None:
    a = await start_pool("a")
    right, wrong = Authority(tmp_path / "right"), Authority(tmp_path / "wrong")
    pair = right.issue("server", "server", names=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(wrong.certificate.read_bytes())
    async with TableServer(tls=context) as server:
        server.give(table([pool(a)]))
        agent = AgentProcess(
            tmp_path, "--server-url", server.url, "--policy", "chat", "--ca-file", str(trusted)
        )
        agent.start()
        try:
            await until(
                lambda: "certificate verify failed" in agent.log_text(), 15, "a refusal of the server"
            )
            assert server.asked == 0

            trusted.write_bytes(wrong.certificate.read_bytes() + right.certificate.read_bytes())

            await until(lambda: server.reports and server.last.applied_sequence == 1, 15, "the report")
        finally:
            await asyncio.to_thread(agent.stop)
