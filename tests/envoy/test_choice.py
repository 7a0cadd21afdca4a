"""Which pool takes a request: merit order under exact limits, on a real Envoy."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable

import httpx
import pytest

from meritorder_router.agent.applier import Applied
from meritorder_router.agent.embedded import EmbeddedRouter
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"


async def load(
    client: httpx.AsyncClient, clients: int, each: int, *, stream: bool
) -> collections.Counter[str]:
    """Closed-loop clients; count the answers by pool."""
    answered: collections.Counter[str] = collections.Counter()

    async def one() -> None:
        for _ in range(each):
            response = await client.post(CHAT, json={"stream": stream})
            assert response.status_code == 200
            if stream:
                assert response.text.endswith("data: [DONE]\n\n")
            answered[response.headers["x-meritorder-answered-by"]] += 1

    await asyncio.gather(*(one() for _ in range(clients)))
    return answered


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
async def test_keeps_the_limit_under_four_times_as_many_clients(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, stream: bool
) -> None:
    cheap, dear = await start_pool("cheap"), await start_pool("dear")
    cheap.behaviour = dear.behaviour = Behaviour(seconds=0.05, chunks=5, chunk_seconds=0.01)
    await router.apply(table([pool(cheap, 20), pool(dear)]))

    answered = await load(client, clients=80, each=12, stream=stream)

    # Two workers may both see the last free place at once.
    assert 20 <= cheap.most_in_flight <= 21
    assert sum(answered.values()) == 960
    assert answered["cheap"] > 150


async def test_fills_in_merit_order_and_overflows_to_the_last(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    pools = [await start_pool(name) for name in ("a", "b", "c")]
    for each in pools:
        each.behaviour = Behaviour(seconds=0.2, chunks=0)
    a, b, c = pools
    await router.apply(table([pool(a, 3), pool(b, 5), pool(c)]))

    await load(client, clients=12, each=3, stream=False)

    assert a.most_in_flight in (3, 4)
    assert b.most_in_flight in (5, 6)
    assert 2 <= c.most_in_flight <= 4


async def test_sends_a_lone_request_to_the_first_pool_only(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 1), pool(b)]))

    assert await load(client, clients=1, each=20, stream=False) == {"a": 20}

    await router.apply(table([pool(b, 1), pool(a)], sequence=2))

    assert await load(client, clients=1, each=20, stream=False) == {"b": 20}


async def test_never_sends_to_a_drained_pool(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    await router.apply(table([pool(a, 0), pool(b, 2), pool(c)]))
    b.behaviour = Behaviour(kind="503")

    answered = await load(client, clients=5, each=10, stream=False)

    assert answered == {"c": 50}
    assert a.requests == 0


async def test_sheds_with_429_what_no_pool_takes(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = b.behaviour = Behaviour(seconds=0.5, chunks=0)
    await router.apply(table([pool(a, 2), pool(b, 3)], shed=True))

    responses = await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(20)))

    codes = collections.Counter(response.status_code for response in responses)
    assert codes[200] in (5, 6, 7)
    assert codes[429] == 20 - codes[200]
    shed = next(response for response in responses if response.status_code == 429)
    assert shed.headers["retry-after"] == "1"
    assert shed.json()["error"] == {
        "message": "Every pool is at its limit. Try again shortly.",
        "type": "rate_limit_error",
        "param": None,
        "code": "pools_saturated",
    }
    assert a.requests + b.requests == codes[200]


async def test_splits_by_weight_with_a_local_guard(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    split = table([pool(a, 50, weightPercent=70), pool(b, weightPercent=30)], fill="Split")
    await router.apply(split)

    answered = await load(client, clients=10, each=60, stream=False)

    assert 370 < answered["a"] < 470
    a.behaviour = Behaviour(seconds=0.3, chunks=0)
    await router.apply(
        table([pool(a, 2, weightPercent=70), pool(b, weightPercent=30)], sequence=2, fill="Split")
    )
    a.most_in_flight = 0

    await load(client, clients=30, each=2, stream=False)

    assert a.most_in_flight in (2, 3)


async def test_steers_by_header_only_where_the_policy_lists_it(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    for each in (a, b, c):
        each.keep = True
    pools = [pool(a, 5), pool(b, 5), pool(c)]
    await router.apply(table(pools))

    async def who(**headers: str) -> str:
        response = await client.post(
            CHAT, json={}, headers={f"x-meritorder-{k}": v for k, v in headers.items()}
        )
        assert response.status_code == 200
        return str(response.headers["x-meritorder-answered-by"])

    assert await who(pool="c") == "a"
    assert await who(exclude="a") == "a"

    listed = ["x-meritorder-pool", "x-meritorder-exclude", "x-meritorder-priority"]
    await router.apply(table(pools, sequence=2, requests={"headers": listed}))

    assert await who(pool="c") == "c"
    assert await who(pool="nobody") == "a"
    assert await who(exclude="a") == "b"
    assert await who(exclude="a, b") == "c"
    assert await who(priority="high") == "a"
    assert await who(priority="low") == "a"
    for each in (a, b, c):
        assert all("x-meritorder" not in name for seen in each.headers for name in seen)


async def test_sheds_low_priority_first(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = Behaviour(seconds=0.5, chunks=0)
    await router.apply(table([pool(a, 1), pool(b)], requests={"headers": ["x-meritorder-priority"]}))
    first = asyncio.create_task(client.post(CHAT, json={}))
    await until(lambda: a.in_flight, 5, "the first request")

    low = await client.post(CHAT, json={}, headers={"x-meritorder-priority": "low"})
    high = await client.post(CHAT, json={}, headers={"x-meritorder-priority": "high"})

    assert low.status_code == 429
    assert high.headers["x-meritorder-answered-by"] == "b"
    assert (await first).headers["x-meritorder-answered-by"] == "a"


async def test_applies_a_table_twice_as_nothing_new(router: EmbeddedRouter, start_pool: StartPool) -> None:
    a = await start_pool("a")
    same = table([pool(a)])

    first, second = await router.apply(same), await router.apply(same)

    assert isinstance(first, Applied)
    assert first.changed
    assert isinstance(second, Applied)
    assert not second.changed
