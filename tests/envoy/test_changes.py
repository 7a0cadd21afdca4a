"""Tables change under running requests: nothing breaks, and the next request follows."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from meritorder_router.agent.applier import Applied
from meritorder_router.agent.embedded import EmbeddedRouter
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"


async def outcome(client: httpx.AsyncClient) -> str:
    """How a stream came to its end."""
    try:
        response = await client.post(CHAT, json={"stream": True})
    except httpx.TransportError as error:
        return repr(error)
    if response.status_code == 200 and response.text.endswith("[DONE]\n\n"):
        return "well"
    return f"{response.status_code} {response.text[-200:]}"


async def stream(client: httpx.AsyncClient) -> bool:
    """Whether a stream came to a good end."""
    return await outcome(client) == "well"


async def test_breaks_no_stream_by_any_change_of_the_table(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b, c, d = [await start_pool(name) for name in ("a", "b", "c", "d")]
    for each in (a, b, c, d):
        each.behaviour = Behaviour(chunks=10, chunk_seconds=0.1)
    await router.apply(table([pool(a, 20), pool(b, 20), pool(c)]))
    ended: list[str] = []
    stop = asyncio.Event()

    async def keep_streaming() -> None:
        while not stop.is_set():
            ended.append(await outcome(client))

    streams = [asyncio.create_task(keep_streaming()) for _ in range(40)]
    shapes = [
        lambda: [pool(a, 5), pool(b, 30), pool(c)],  # limits
        lambda: [pool(b, 20), pool(a, 20), pool(c)],  # order
        lambda: [pool(a, 20), pool(c)],  # a pool less
        lambda: [pool(a, 20), pool(d, 20), pool(b, 20), pool(c)],  # pools more
        lambda: [pool(a, 0), pool(b, 20), pool(c)],  # drained
        lambda: [pool(a, 20) | {"endpoints": pool(d)["endpoints"]}, pool(b, 20), pool(c)],  # other servers
        lambda: [pool(a, 20) | {"endpoints": []}, pool(b, 20), pool(c)],  # no servers
        lambda: [pool(b, 20), pool(a)],  # another last pool
    ]
    sequence = 1
    while len(ended) < 120 or sequence < 60:
        sequence += 1
        target = 1000 + 100 * (sequence % 5)
        paths = {"paths": ["/v1/rerank"]} if sequence % 3 == 0 else {}
        changed = table(shapes[sequence % len(shapes)](), sequence=sequence, target=target, requests=paths)
        result = await router.apply(changed)
        assert isinstance(result, Applied), result
    stop.set()
    await asyncio.gather(*streams)

    assert Counter(ended).keys() == {"well"}, (Counter(ended), router.log_tail())


def starve_workers(pid: int) -> None:
    """Let Envoy's workers run only when nothing else wants to."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        if (thread / "comm").read_text().startswith("wrk:"):
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """More to do than processors, at the lowest priority that is above none."""
    busy = [
        subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    yield
    for each in busy:
        each.kill()
        each.wait()


async def test_survives_changes_that_its_workers_are_late_to_hear_of(
    router: EmbeddedRouter, start_pool: StartPool, busy_machine: None
) -> None:
    """Where clusters went before each worker had them, Envoy 1.40 died within 100 to 400 such changes."""
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    shapes = [
        lambda: [pool(a, 20), pool(b)],
        lambda: [pool(a, 20), pool(b, 20), pool(c)],
        lambda: [pool(c, 3), pool(a)],
    ]
    await router.apply(table(shapes[0](), sequence=1))
    pid = router.pid
    assert pid is not None
    starve_workers(pid)

    for sequence in range(2, 500):
        result = await router.apply(table(shapes[sequence % len(shapes)](), sequence=sequence))
        assert isinstance(result, Applied), result
        assert router.pid == pid, router.log_tail()


async def test_the_next_request_follows_a_change(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a), pool(b)], sequence=0))
    for sequence in range(1, 21):
        first = (a, b)[sequence % 2]
        other = (b, a)[sequence % 2]
        await router.apply(table([pool(first), pool(other)], sequence=sequence))
        response = await client.post(CHAT, json={})
        assert response.headers["x-meritorder-answered-by"] == first.name


async def test_envoy_killed_is_back_within_a_second_with_the_last_table(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a, 5)]))
    assert await stream(client)
    pid = router.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    killed = time.perf_counter()
    await until(lambda: stream(client), 5, "an answer", interval_seconds=0.01)

    assert time.perf_counter() - killed < 1.0
    found = await until(router.scrape, 5, "a scrape")
    assert found is not None
    assert found.epoch == 2
    assert router.table is not None
    assert router.table.sequence == 1


async def test_passes_over_a_pool_that_becomes_sick_and_back(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 5), pool(b)]))

    async def answered_by(name: str) -> bool:
        response = await client.post(CHAT, json={})
        assert response.status_code == 200
        return response.headers["x-meritorder-answered-by"] == name

    assert await answered_by("a")
    await a.stop()
    assert await answered_by("b")
    await a.start()
    await until(lambda: answered_by("a"), 20, "the first pool again")


async def test_ends_cleanly_with_no_process_left(router: EmbeddedRouter, start_pool: StartPool) -> None:
    pid = router.pid
    assert pid is not None

    await router.stop()

    assert router.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_overflows_to_the_last_pool_that_is_alive(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b, c = [await start_pool(name) for name in ("a", "b", "c")]
    await router.apply(table([pool(a, 1), pool(b, 1), pool(c)]))
    a.behaviour = b.behaviour = Behaviour(seconds=0.5, chunks=0)
    await c.stop()
    await until(lambda: router.dead == {"c"}, 30, "a dead pool")

    responses = await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(10)))

    assert [response.status_code for response in responses] == [200] * 10
    assert b.most_in_flight > 5
