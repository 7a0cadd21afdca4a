"""Bad input, from servers and from clients: refused in clear words, and everything else serves on."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from meritorder_api.table import RoutingTable
from meritorder_router.agent.embedded import EmbeddedRouter
from meritorder_router.agent.validate import Refused, parse
from support.agents import AgentProcess
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.tableserver import TableServer
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
DONE = b"data: [DONE]\n\n"
VARIANTS = 50
MODEL = {"model": "small"}


def malformed(good: RoutingTable, count: int, seed: int) -> list[tuple[str, bytes]]:
    """So many different documents that are no tables, with the revision that each is offered under."""
    chance = random.Random(seed)
    junk: list[Any] = [None, True, -1, 0.5, 10**30, "", "\x00", "a b", "x" * 100_000, [], {}, [[]], {"a": 1}]
    found: dict[bytes, str] = {}
    while len(found) < count:
        revision = f"bad-{len(found)}"
        document: Any = copy.deepcopy(good.dump()) | {"tableRevision": revision}
        for _ in range(chance.randint(1, 3)):
            node = document
            while True:
                keys = list(node) if isinstance(node, dict) else range(len(node))
                key = chance.choice([key for key in keys if key != "tableRevision"] or [None])
                if key is None:
                    break
                if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
                    node = node[key]
                    continue
                node[key] = chance.choice(junk)
                break
        content = json.dumps(document).encode()
        if chance.random() < 0.1:
            content = content[: chance.randrange(len(content))]
        elif chance.random() < 0.05:
            content = content.replace(b'"pools"', b'"po\xffols"')
        if isinstance(parse(content, current=good), Refused):
            found.setdefault(content, revision)
    return [(revision, content) for content, revision in found.items()]


def refused_with(server: TableServer, reason: str) -> bool:
    return server.last.refused_reason == reason


def applied(server: TableServer, sequence: int) -> bool:
    return bool(server.reports) and server.last.applied_sequence == sequence


async def test_fifty_malformed_tables_are_refused_one_by_one_while_the_old_one_serves(
    tmp_path: Path, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    tls = {"serverName": "api.example.com"}
    more: dict[str, Any] = {"tls": tls, "model": "m", "pathPrefix": "/p", "limit": 0}
    entries = [pool(a, 100), pool(b, **more), pool(b, 5) | {"name": "c"}]
    good = table(entries, sequence=1)
    statuses: dict[int, int] = {}
    told: set[str] = set()
    async with TableServer() as server:
        server.give(good)
        agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat")
        agent.start()
        try:
            async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:

                async def served() -> bool:
                    return (await client.post(CHAT, json={})).status_code == 200

                await until(served, 20, "the first answer", retry_on=(httpx.TransportError,))
                await until(lambda: server.reports and server.last.applied_sequence == 1, 5, "the report")
                envoy, process = agent.child("envoy"), agent.child("agent")

                async def ask_on() -> None:
                    while True:
                        response = await client.post(CHAT, json={})
                        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1

                asking = asyncio.create_task(ask_on())
                for number, (revision, content) in enumerate(malformed(good, VARIANTS, seed=4), 2):
                    server.give(content, revision=revision)
                    refused = parse(content, current=good)
                    assert isinstance(refused, Refused)
                    reason = refused.reason
                    await until(partial(refused_with, server, reason), 20, reason)
                    assert server.last.applied_sequence == number - 1
                    assert "\n" not in reason
                    assert len(reason) < 500
                    told.add(reason)
                    server.give(table(entries, sequence=number))
                    await until(partial(applied, server, number), 20, "the good one")
                    assert server.last.refused_reason == ""
                asking.cancel()
                assert (agent.child("envoy"), agent.child("agent")) == (envoy, process)
                # Who offers what is no table at all is not asked again and again at once.
                asked = server.asked
                server.give(b"no table")
                await until(lambda: "not JSON" in server.last.refused_reason, 10, "the refusal")
                assert server.asked - asked <= 10
        finally:
            await asyncio.to_thread(agent.stop)

    assert set(statuses) == {200}
    assert statuses[200] > VARIANTS
    assert len(told) > 15


def address(router: EmbeddedRouter) -> tuple[str, int]:
    host, port = router.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)


LARGE = [{"x-large": "x" * 70_000}, {f"x-{number}": "y" for number in range(150)}]
FITS = {f"x-large-{number}": "x" * 8_000 for number in range(6)}


async def test_headers_that_are_too_large_are_refused_in_a_sentence(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a)]))

    assert (await client.post(CHAT, json={}, headers=FITS)).status_code == 200
    for headers in LARGE:
        refused = await client.post(CHAT, json={}, headers=headers)
        assert (refused.status_code, refused.headers["content-type"]) == (431, "application/json")
        assert refused.json()["error"]["code"] == "headers_too_large"
    assert (await client.post(CHAT, json={})).status_code == 200
    assert a.requests == 2


@pytest.mark.parametrize("headers", LARGE, ids=["one", "many"])
async def test_headers_that_are_too_large_end_their_own_http2_stream_alone(
    router: EmbeddedRouter, start_pool: StartPool, headers: dict[str, str]
) -> None:
    a = await start_pool("a")
    a.behaviour = Behaviour(chunks=5, chunk_seconds=0.2)
    await router.apply(table([pool(a)]))
    # By hand: the clients at hand give up a connection over one stream that was reset.
    reader, writer = await asyncio.open_connection(*address(router))
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    head = [(":method", "POST"), (":path", "/v1" + CHAT), (":scheme", "http"), (":authority", "x")]

    def send(stream: int, more: dict[str, str], body: bytes) -> None:
        connection.send_headers(stream, [*head, *more.items()])
        connection.send_data(stream, body, end_stream=True)
        writer.write(connection.data_to_send())

    send(1, FITS, b'{"stream": true}')
    await until(lambda: a.in_flight == 1, 5, "the stream")
    send(3, headers, b"{}")
    seen: list[h2.events.Event] = []
    async with asyncio.timeout(10):
        while not any(isinstance(event, h2.events.StreamEnded) for event in seen):
            seen += connection.receive_data(await reader.read(65536))
            writer.write(connection.data_to_send())
    writer.close()

    # HTTP/2 has no room for an answer to headers half read.
    assert [event.stream_id for event in seen if isinstance(event, h2.events.StreamReset)] == [3]
    assert not [event for event in seen if isinstance(event, h2.events.ConnectionTerminated)]
    assert b"".join(e.data or b"" for e in seen if isinstance(e, h2.events.DataReceived)).endswith(DONE)
    assert a.requests == 1


WIRE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
    "no verb": b"GARBAGE\r\n\r\n",
    "no Host": b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
    "negative length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{}",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"content-length: 3\r\n\r\n{}",
    "smuggling": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "bad chunk": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"zz\r\n{}",
    "NUL in header": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: b\x00c\r\n"
    b"content-length: 2\r\n\r\n{}",
    "bad HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
}


@pytest.mark.parametrize("what", WIRE)
async def test_what_is_no_request_is_refused_without_reaching_a_pool(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, what: str
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a)]))
    pid = router.pid
    reader, writer = await asyncio.open_connection(*address(router))
    writer.write(WIRE[what])

    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()

    assert b" 200 " not in answer
    assert answer.startswith(b"HTTP/1.1 400 ") or what == "bad HTTP/2", answer
    assert a.requests == 0
    assert (await client.post(CHAT, json={})).status_code == 200
    assert router.pid == pid


@pytest.mark.parametrize(
    ("pool_has", "requests"),
    [({"model": "theirs"}, {}), ({}, {"addUsage": True})],
    ids=["model", "addUsage"],
)
async def test_a_body_too_large_to_be_rewritten_is_refused_in_a_sentence(
    router: EmbeddedRouter,
    client: httpx.AsyncClient,
    start_pool: StartPool,
    pool_has: dict[str, Any],
    requests: dict[str, Any],
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 5, **pool_has), pool(b)], requests=requests))

    fits = await client.post(CHAT, json=MODEL | {"prompt": "x" * 15_000_000})
    refused = await client.post(CHAT, json=MODEL | {"prompt": "x" * 17_000_000})

    assert (fits.status_code, refused.status_code) == (200, 413)
    assert refused.headers["content-type"] == "application/json"
    assert refused.json()["error"]["code"] == "body_too_large"
    assert (a.requests, b.requests) == (1, 0)


BODIES = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b'{"model": "small", "model": 7, "max_tokens": "many"}',
    json.dumps(MODEL | {"max_tokens": -1}).encode(),
    json.dumps(MODEL | {"max_tokens": 10**400}).encode(),
    b'{"max_tokens": 1e999, "stream": "yes"}',
    b'{"stream": true, "stream_options": 7}',
    b'{"model": "' + b"\\" * 9_999,
    b'{"model": "\\ud800", "messages": "\x00"}',
]


@pytest.mark.parametrize("rewrites", [False, True], ids=["plain", "rewrites"])
async def test_bodies_that_are_no_requests_go_to_the_pool_which_says_so(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, rewrites: bool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.keep = True
    a.behaviour = Behaviour(kind="400")
    more: dict[str, Any] = {"model": "theirs"} if rewrites else {}
    await router.apply(table([pool(a, 5, **more), pool(b)], requests={"addUsage": rewrites}))
    pid = router.pid

    for body in BODIES:
        response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
        # The pool's own words, and no other pool is bothered.
        assert (response.status_code, response.json()["error"]["message"]) == (400, "a says 400")

    assert b.requests == 0
    assert len(a.bodies) == len(BODIES)
    changed = [(sent, seen) for sent, seen in zip(BODIES, a.bodies, strict=True) if sent != seen]
    assert all(rewrites and b"theirs" in seen for _, seen in changed)
    a.behaviour = Behaviour()
    assert (await client.post(CHAT, json=MODEL)).status_code == 200
    assert router.pid == pid
