"""A failed try goes to the next pool inside the same request: clients see nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from meritorder_router.agent.embedded import EmbeddedRouter
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
TIMEOUTS = {"connectSeconds": 1, "responseHeadersSeconds": 1, "streamIdleSeconds": 300}


async def errors(client: httpx.AsyncClient, clients: int = 20, each: int = 5) -> int:
    """Requests that failed in the client's eyes, half of them streams."""
    failed = 0

    async def one(number: int) -> None:
        nonlocal failed
        for _ in range(each):
            response = await client.post(CHAT, json={"stream": number % 2 == 0})
            failed += response.status_code != 200

    await asyncio.gather(*(one(number) for number in range(clients)))
    return failed


@pytest.mark.parametrize(
    "kind", ["refused", "503", "500", "429", "reset", "hang", "no-endpoints", "unhealthy"]
)
async def test_hides_a_fault_of_the_first_pool(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, kind: str
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    first = pool(a, 1000)
    if kind == "refused":
        await a.stop()
    elif kind == "no-endpoints":
        first["endpoints"] = []
    elif kind == "unhealthy":
        a.behaviour = Behaviour(health_status=503)
    else:
        a.behaviour = Behaviour(kind=kind)
    await router.apply(table([first, pool(b, 1000), pool(c)], timeouts=TIMEOUTS))

    assert await errors(client) == 0

    assert b.requests == 100
    assert c.requests == 0
    assert a.requests == 0 or kind not in ("refused", "no-endpoints", "unhealthy")


async def test_tries_a_third_pool_when_two_fail(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    a.behaviour, b.behaviour = Behaviour(kind="503"), Behaviour(kind="reset")
    await router.apply(table([pool(a, 1000), pool(b, 1000), pool(c)]))

    assert await errors(client) == 0
    assert c.requests == 100


async def test_passes_on_the_last_pools_own_answer_when_all_fail(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour, b.behaviour = Behaviour(kind="503"), Behaviour(kind="429")
    await router.apply(table([pool(a, 1000), pool(b)]))

    response = await client.post(CHAT, json={})

    assert (response.status_code, response.json()) == (429, {"error": {"message": "b says 429"}})


async def test_answers_in_openais_shape_when_no_pool_can(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 1000), pool(b)]))
    await a.stop()
    await b.stop()

    response = await client.post(CHAT, json={})

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "no_pool_answered"


async def test_replays_a_body_of_8_mib(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = Behaviour(kind="503")
    b.keep = True
    await router.apply(table([pool(a, 1000), pool(b)]))
    body = b"x" * (8 * 1024 * 1024)

    response = await client.post(CHAT, content=body)

    assert response.status_code == 200
    assert b.bodies == [body]


async def test_loses_only_the_streams_of_a_pool_that_dies(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = b.behaviour = Behaviour(chunks=10, chunk_seconds=0.1)
    await router.apply(table([pool(a, 10), pool(b)]))
    outcomes: list[tuple[str, bool]] = []

    async def one() -> None:
        async with client.stream("POST", CHAT, json={"stream": True}) as response:
            name = response.headers["x-meritorder-answered-by"]
            try:
                text = "".join([part async for part in response.aiter_text()])
            except httpx.TransportError:
                text = ""
            outcomes.append((name, text.endswith("[DONE]\n\n")))

    streams = [asyncio.create_task(one()) for _ in range(20)]
    await until(lambda: a.in_flight >= 10, 5, "streams on the first pool")
    in_flight = a.in_flight
    await a.stop()
    more = await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(20)))
    await asyncio.gather(*streams)

    assert [response.status_code for response in more] == [200] * 20
    assert outcomes.count(("a", False)) == in_flight
    assert outcomes.count(("b", True)) == 20 - in_flight


async def test_uses_every_server_of_a_pool_evenly(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    replicas = [await start_pool("a") for _ in range(4)]
    for replica in replicas:
        replica.behaviour = Behaviour(seconds=0.1, chunks=0)
    last = await start_pool("b")
    entry = pool(replicas[0], 16)
    entry["endpoints"] = [{"address": "127.0.0.1", "port": replica.port} for replica in replicas]
    await router.apply(table([entry, pool(last)]))

    # Cold connections first: a request that waits for its connection is not counted on its server yet.
    assert await errors(client, clients=16, each=2) == 0
    for replica in replicas:
        replica.most_in_flight = replica.requests = 0
    assert await errors(client, clients=16, each=10) == 0

    assert max(replica.most_in_flight for replica in replicas) <= 6
    assert min(replica.requests for replica in replicas) >= 25


async def test_sends_a_body_over_16_mib_once(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = Behaviour(kind="503")
    await router.apply(table([pool(a, 1000), pool(b)]))

    response = await client.post(CHAT, content=b"x" * (17 * 1024 * 1024))

    assert response.status_code == 503
    assert (a.requests, b.requests) == (1, 0)


async def test_names_no_pool_on_an_answer_of_its_own(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a, 0)], shed=True))

    shed, unknown = await client.post(CHAT, json={}), await client.get("/files")

    assert (shed.status_code, unknown.status_code) == (429, 404)
    assert "x-meritorder-answered-by" not in shed.headers
    assert "x-meritorder-answered-by" not in unknown.headers
    assert unknown.json()["error"]["code"] == "not_found"
