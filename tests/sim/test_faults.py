"""Everything that a pool can be told to do wrong, seen from outside."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from meritorder_sim.faults import FaultChange
from meritorder_sim.pools import SimulatedPool, SimulatedPools, apply_event, play_events
from meritorder_sim.pools_file import Event, parse_pools_file
from support.waiting import until

FILE = """
pools:
  - name: quick
    profile: {tpot: [2, 0.01, 0.01], ttft: [20, 0.01, 0.01]}
    replicas: 2
"""
BODY = {"prompt": "x", "max_tokens": 50}


@pytest.fixture
async def pool() -> AsyncIterator[SimulatedPool]:
    async with SimulatedPools(parse_pools_file(FILE)) as pools:
        yield pools["quick"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    # A connection per request: what is under test must not be confused by one kept from before.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


def url(pool: SimulatedPool, path: str, replica: int = 0) -> str:
    host, port = pool.addresses[replica]
    return f"http://{host}:{port}{path}"


async def ask(
    session: aiohttp.ClientSession, pool: SimulatedPool, replica: int = 0, **more: object
) -> tuple[int, str]:
    async with session.post(url(pool, "/v1/completions", replica), json={**BODY, **more}) as answer:
        return answer.status, await answer.text()


async def seconds_to_answer(session: aiohttp.ClientSession, pool: SimulatedPool) -> float:
    started = time.monotonic()
    assert (await ask(session, pool))[0] == 200
    return time.monotonic() - started


async def test_a_slow_pool_is_slower_by_the_factor(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    by_profile = (20 + 49 * 2) / 1000
    assert by_profile <= await seconds_to_answer(session, pool) < 20 * by_profile
    pool.set_slowdown(20)
    assert await seconds_to_answer(session, pool) >= 20 * by_profile


async def test_errors_come_at_the_given_share_with_the_given_status(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    pool.set_errors(50, status=429)
    statuses = [(await ask(session, pool, max_tokens=1))[0] for _ in range(60)]
    assert set(statuses) == {200, 429}
    assert 15 <= statuses.count(429) <= 45
    pool.set_errors(100, status=500)
    status, text = await ask(session, pool)
    assert status == 500
    assert '"message":"Simulated failure of pool \'quick\'."' in text


async def test_a_hung_pool_accepts_and_goes_on_when_healed(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    pool.set_faults(FaultChange(hang="headers"))
    asked = [asyncio.create_task(ask(session, pool, stream=stream)) for stream in (True, False)]
    await until(lambda: pool.running == 2, 10, "both requests are in the engine")
    done, _ = await asyncio.wait(asked, timeout=0.3)
    assert not done
    async with session.get(url(pool, "/health")) as answer:
        assert answer.status == 200
    pool.heal()
    assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]


async def test_a_pool_can_hang_after_its_headers(pool: SimulatedPool, session: aiohttp.ClientSession) -> None:
    pool.set_faults(FaultChange(hang="body"))
    for stream in (True, False):
        async with session.post(url(pool, "/v1/completions"), json={**BODY, "stream": stream}) as answer:
            assert answer.status == 200
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(answer.content.readany(), 0.2)


async def test_a_pool_that_hangs_everywhere_does_not_answer_its_health(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    pool.set_faults(FaultChange(hang="all"))
    for path in ("/health", "/metrics", "/v1/models"):
        with pytest.raises(asyncio.TimeoutError):
            await session.get(url(pool, path), timeout=aiohttp.ClientTimeout(total=0.2))


async def test_a_killed_replica_resets_streams_and_refuses_until_revived(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    addresses = pool.addresses
    async with session.post(
        url(pool, "/v1/completions"), json={**BODY, "max_tokens": 10_000, "stream": True}
    ) as answer:
        await answer.content.readany()
        await pool.kill(0)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(session, pool, 0)
    assert (await ask(session, pool, 1))[0] == 200
    assert pool.addresses == addresses
    await pool.revive()
    assert (await ask(session, pool, 0))[0] == 200
    async with session.get(url(pool, "/metrics")) as answer:
        assert 'finished_reason="length",model_name="quick"} 1.0' in await answer.text()


async def test_streams_and_answers_can_be_reset_midway(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    pool.set_faults(FaultChange(reset_percent=100))
    for stream in (True, False):
        async with session.post(url(pool, "/v1/completions"), json={**BODY, "stream": stream}) as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
    await until(lambda: pool.running == 0, 5, "both slots are free")


async def test_metrics_can_freeze_vanish_empty_and_turn_to_nan(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    async def page() -> tuple[int, str]:
        async with session.get(url(pool, "/metrics")) as answer:
            return answer.status, await answer.text()

    pool.set_faults(FaultChange(metrics="frozen"))
    frozen = await page()
    await ask(session, pool)
    assert await page() == frozen
    pool.set_faults(FaultChange(metrics="absent"))
    assert (await page())[0] == 404
    pool.set_faults(FaultChange(metrics="empty"))
    assert await page() == (200, "")
    pool.set_faults(FaultChange(metrics="nan"))
    assert 'vllm:num_requests_running{engine="0",model_name="quick"} NaN' in (await page())[1]
    pool.set_faults(FaultChange(metrics="live"))
    assert 'vllm:generation_tokens_total{engine="0",model_name="quick"} 50.0' in (await page())[1]


async def test_usage_can_be_left_out(pool: SimulatedPool, session: aiohttp.ClientSession) -> None:
    assert '"usage"' in (await ask(session, pool))[1]
    assert '"usage"' in (await ask(session, pool, stream=True, stream_options={"include_usage": True}))[1]
    pool.set_faults(FaultChange(usage=False))
    assert '"usage"' not in (await ask(session, pool))[1]
    assert '"usage"' not in (await ask(session, pool, stream=True, stream_options={"include_usage": True}))[1]


async def test_faults_are_set_and_shown_over_http(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    async with session.post(
        url(pool, "/sim/faults"), json={"slowdown": 3, "errorPercent": 5, "scope": "pool"}
    ) as answer:
        assert answer.status == 200
    async with session.get(url(pool, "/sim/faults", 1)) as answer:
        shown = await answer.json()
    assert (shown["slowdown"], shown["errorPercent"], shown["hang"]) == (3, 5, "none")
    async with session.post(url(pool, "/sim/faults"), json={"slowdown": 1, "scope": "replica"}):
        pass
    assert [replica.faults.slowdown for replica in pool.replicas] == [1, 3]
    async with session.post(url(pool, "/sim/faults"), json={"slow": 3}) as answer:
        assert answer.status == 400
        assert "`slow`" in (await answer.json())["error"]["message"]


async def test_a_pool_told_to_die_over_http_comes_back_when_said(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    order = {"die": True, "reviveAfterSeconds": 0.3, "scope": "replica"}
    async with session.post(url(pool, "/sim/faults"), json=order) as answer:
        assert answer.status == 200
    await until(lambda: not pool.replicas[0].alive, 5, "the replica is dead")
    assert pool.replicas[1].alive
    await until(lambda: pool.replicas[0].alive, 5, "the replica listens again")
    assert (await ask(session, pool, 0))[0] == 200


async def test_replicas_come_and_go_and_running_requests_end(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    first, second = pool.addresses
    asked = asyncio.create_task(ask(session, pool, 1, max_tokens=200))
    await until(lambda: pool.replicas[1].running == 1, 5, "the request runs on the second replica")
    await pool.set_replicas(1)
    assert pool.addresses == [first]
    with pytest.raises(aiohttp.ClientConnectorError):
        await session.get(f"http://{second.host}:{second.port}/health")
    assert (await asked)[0] == 200
    await pool.set_replicas(3)
    assert pool.addresses[:2] == [first, second]
    assert (await ask(session, pool, 2))[0] == 200


async def test_a_replica_that_returns_while_its_old_life_ends_serves_on(
    pool: SimulatedPool, session: aiohttp.ClientSession
) -> None:
    old = asyncio.create_task(ask(session, pool, 1, max_tokens=200))
    await until(lambda: pool.replicas[1].running == 1, 5, "the request runs on the second replica")
    await pool.set_replicas(1)
    await pool.set_replicas(2)
    new = asyncio.create_task(ask(session, pool, 1, max_tokens=400))
    assert [status for status, _ in (await old, await new)] == [200, 200]


async def test_closing_does_not_wait_for_what_hangs_in_a_removed_replica(
    session: aiohttp.ClientSession,
) -> None:
    loop = asyncio.get_running_loop()
    async with SimulatedPools(parse_pools_file(FILE)) as pools:
        pool = pools["quick"]
        pool.set_faults(FaultChange(hang="headers"))
        asked = asyncio.create_task(ask(session, pool, 1))
        await until(lambda: pool.replicas[1].running == 1, 5, "the request hangs in the second replica")
        await pool.set_replicas(1)
        began = loop.time()
    assert loop.time() - began < 5
    with pytest.raises(aiohttp.ClientError):
        await asked


async def test_changes_of_addresses_are_told() -> None:
    told: list[int] = []
    async with SimulatedPools(parse_pools_file(FILE)) as pools:
        pools.on_change(lambda: told.append(len(pools.addresses["quick"])))
        await pools["quick"].set_replicas(0)
        await pools["quick"].set_replicas(0)
        await pools["quick"].set_replicas(1)
    assert told == [0, 1]


async def test_events_happen_at_their_times(pool: SimulatedPool) -> None:
    now = 100.0
    seen: list[tuple[float, float, float, int]] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        seen.append((now, pool.faults.slowdown, pool.faults.error_percent, len(pool.addresses)))
        now += seconds

    events = [Event(at=60, slowdown=3), Event(at=90, slowdown=1, error_percent=20), Event(at=120, replicas=0)]
    await play_events(pool, events, start=100.0, clock=lambda: now, sleep=sleep)
    assert seen == [(100, 1, 0, 2), (160, 3, 0, 2), (190, 1, 20, 2)]
    assert now == 220
    assert pool.addresses == []
    await apply_event(pool, Event(at=0, replicas=1, error_percent=0))
    assert (len(pool.addresses), pool.faults.error_percent) == (1, 0)
    assert pool.replicas[0].faults == pool.faults


async def test_the_files_events_play_by_themselves() -> None:
    text = FILE + "    events: [{at: 0.1, slowdown: 7}]\n"
    async with SimulatedPools(parse_pools_file(text)) as pools:
        await until(lambda: pools["quick"].replicas[1].faults.slowdown == 7, 5, "the event has happened")
