"""A try that does not answer within the delay may be overtaken by another one; everything is counted once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from meritorder_router.agent.embedded import EmbeddedRouter
from meritorder_router.agent.scrape import PoolCounters, Scrape
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
DELAY, TARGET = 200, 500
HEDGED = {
    "connectSeconds": 1,
    "responseHeadersSeconds": 2,
    "streamIdleSeconds": 2,
    "hedgeMilliseconds": DELAY,
}


def answers(seconds: float = 0.0) -> Behaviour:
    """A whole answer after so many seconds; a stream's headers come no sooner."""
    return Behaviour(seconds=seconds, chunks=0, late_headers=True)


FAST, LATE, SLOW, VERY_SLOW = answers(), answers(0.3), answers(0.8), answers(1.5)
HANGS, FAILS = Behaviour(kind="hang"), Behaviour(kind="503")


@dataclass(frozen=True)
class Outcome:
    """What pools a and b do, b being the last; who answers; and what then must have been counted: (samples,
    slow, failed) per pool, (all, slow) for the clients.
    """

    a: Behaviour
    b: Behaviour
    by: str
    counted_a: tuple[int, int, int]
    counted_b: tuple[int, int, int]
    client: tuple[int, int]
    body: dict[str, object] = field(default_factory=dict)


OUTCOMES = {
    "fast": Outcome(FAST, FAST, "a", (1, 0, 0), (0, 0, 0), (1, 0)),
    "overtaken": Outcome(SLOW, FAST, "b", (1, 1, 1), (0, 0, 0), (1, 0)),
    # At 200 ms b is tried, at 400 ms once more.
    "overtaken, and yet slow": Outcome(VERY_SLOW, answers(0.5), "b", (1, 1, 1), (1, 1, 1), (1, 1)),
    "late, but first": Outcome(LATE, VERY_SLOW, "a", (1, 0, 0), (0, 0, 0), (1, 0)),
    "slow, but first": Outcome(SLOW, HANGS, "a", (1, 1, 0), (2, 2, 2), (1, 1)),
    "hangs": Outcome(HANGS, FAST, "b", (1, 1, 1), (0, 0, 0), (1, 0)),
    "fails at once": Outcome(FAILS, FAST, "b", (1, 1, 1), (0, 0, 0), (1, 0)),
    "fails after the delay": Outcome(
        Behaviour(kind="503", seconds=0.3), answers(0.15), "b", (1, 1, 1), (0, 0, 0), (1, 0)
    ),
    "late, and the others fail": Outcome(LATE, FAILS, "a", (1, 0, 0), (2, 2, 2), (1, 0)),
    "a stream, overtaken": Outcome(SLOW, FAST, "b", (1, 1, 1), (0, 0, 0), (1, 0), body={"stream": True}),
    "a stream, late, but first": Outcome(
        LATE, VERY_SLOW, "a", (1, 0, 0), (0, 0, 0), (1, 0), body={"stream": True}
    ),
    "a stream whose headers came in time": Outcome(
        Behaviour(seconds=0.8), FAST, "a", (1, 1, 0), (0, 0, 0), (1, 1), body={"stream": True}
    ),
    "a stream that does not go on": Outcome(
        Behaviour(chunks=2, chunk_seconds=20), FAST, "a", (1, 1, 1), (0, 0, 0), (1, 1), body={"stream": True}
    ),
}


async def scrape(router: EmbeddedRouter) -> Scrape:
    found = await router.scrape()
    assert found is not None
    return found


def counted(counters: PoolCounters) -> tuple[int, int, int]:
    return counters.samples, counters.samples_slow, counters.failed_attempts


async def all_logged(router: EmbeddedRouter, times: int) -> Scrape:
    """What was counted, once all of so many requests are over."""

    async def over() -> bool:
        found = await scrape(router)
        return sum(found.requests.values()) == times and all(p.in_flight == 0 for p in found.pools.values())

    await until(over, 5, "all requests logged")
    return await scrape(router)


@pytest.mark.parametrize("rewrites", [{}, {"model": "other"}], ids=["direct", "rewritten"])
@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
async def test_counts_each_outcome_once_where_it_belongs(
    router: EmbeddedRouter,
    client: httpx.AsyncClient,
    start_pool: StartPool,
    outcome: Outcome,
    rewrites: dict[str, Any],
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    pools = [pool(a, 1000, **rewrites), pool(b, **rewrites)]
    await router.apply(table(pools, target=TARGET, timeouts=HEDGED))
    a.behaviour, b.behaviour = outcome.a, outcome.b

    async def ask() -> str:
        async with client.stream("POST", CHAT, json=outcome.body) as response:
            assert response.status_code == 200
            with contextlib.suppress(httpx.RemoteProtocolError):  # a stream that was cut
                await response.aread()
            return str(response.headers["x-meritorder-answered-by"])

    assert set(await asyncio.gather(ask(), ask(), ask())) == {outcome.by}

    found = await all_logged(router, 3)
    assert counted(found.pools["a"]) == tuple(3 * n for n in outcome.counted_a)
    assert counted(found.pools["b"]) == tuple(3 * n for n in outcome.counted_b)
    assert (found.client_requests, found.client_slow) == tuple(3 * n for n in outcome.client)
    # What lost is not worked on any longer.
    await until(lambda: a.in_flight + b.in_flight == 0, 2, "nothing in flight")


@pytest.mark.parametrize(("metric", "target"), [("ttft", 250), ("tpot", 60)])
async def test_judges_streams_that_were_hedged(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, metric: str, target: int
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 1000), pool(b)], metric=metric, target=target, timeouts=HEDGED))
    b.behaviour = HANGS
    a.behaviour = Behaviour(seconds=0.3, chunks=4, chunk_seconds=0.1, late_headers=True)

    response = await client.post(CHAT, json={"stream": True})

    assert response.headers["x-meritorder-answered-by"] == "a"
    found = await all_logged(router, 1)
    assert counted(found.pools["a"]) == (1, 1, 0)
    assert counted(found.pools["b"]) == (0, 0, 0)
    assert (found.client_requests, found.client_slow) == (1, 1)


async def test_answers_as_soon_as_the_next_pool_does(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    pools = [pool(a, 1000), pool(b)]
    a.behaviour = VERY_SLOW
    await router.apply(table(pools, timeouts=HEDGED))
    loop = asyncio.get_running_loop()

    began = loop.time()
    hedged = await client.post(CHAT, json={})
    took = loop.time() - began

    assert hedged.headers["x-meritorder-answered-by"] == "b"
    assert DELAY / 1000 <= took < 1
    await router.apply(table(pools, sequence=2))
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "a"


async def test_ends_a_request_that_no_pool_answers(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = b.behaviour = HANGS
    await router.apply(table([pool(a, 1000), pool(b)], timeouts=HEDGED))

    response = await client.post(CHAT, json={})

    assert response.status_code == 504
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "no_pool_answered"
    found = await all_logged(router, 1)
    assert counted(found.pools["a"]) == (1, 1, 1)
    assert counted(found.pools["b"]) == (2, 2, 2)
    assert (found.client_requests, found.client_slow) == (1, 1)


@pytest.mark.parametrize("last", ["no endpoints", "unhealthy", "refused"])
async def test_waits_for_the_tries_that_go_on_when_there_is_none_to_hedge_with(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, last: str
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    a.behaviour = b.behaviour = SLOW
    c.behaviour = Behaviour(kind="503", health_status=503)
    if last == "refused":
        await c.stop()
    pools = [pool(a, 1000), pool(b, 1000), pool(c)]
    if last == "no endpoints":
        pools[-1]["endpoints"] = []
    await router.apply(table(pools, timeouts=HEDGED))

    responses = await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(30)))
    if last != "no endpoints":
        await until(lambda: router.dead == {"c"}, 20, "the last pool is passed over")
    responses += await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(30)))

    assert {response.status_code for response in responses} == {200}


async def test_does_not_take_a_slow_server_for_a_failed_one(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = SLOW
    await router.apply(table([pool(a, 1000), pool(b)], timeouts=HEDGED))

    for _ in range(3):
        await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(10)))

    assert a.requests == 30
    assert router.dead == frozenset()
    a.behaviour = FAILS

    async def passed_over() -> bool:
        await client.post(CHAT, json={})
        return router.dead == {"a"}

    await until(passed_over, 10, "a server that fails is passed over")


async def test_exceeds_a_limit_by_no_more_than_the_requests_of_the_pool_before(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    a.behaviour, b.behaviour, c.behaviour = VERY_SLOW, answers(0.4), answers(0.1)
    # No third try within the time, so that b's are a's and its own.
    timeouts = HEDGED | {"hedgeMilliseconds": 900}
    await router.apply(table([pool(a, 10), pool(b, 12), pool(c)], timeouts=timeouts))

    async def one() -> None:
        for _ in range(12):
            assert (await client.post(CHAT, json={})).status_code == 200

    await asyncio.gather(*(one() for _ in range(40)))

    # Two workers may both see the last free place at once.
    assert 10 <= a.most_in_flight <= 11
    assert 12 <= b.most_in_flight <= 12 + 10 + 2
