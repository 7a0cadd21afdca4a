"""What Envoy counts for each kind of outcome, exactly (design 4, "What counts as a sample")."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from meritorder_api import metric_names as names
from meritorder_router.agent.embedded import EmbeddedRouter
from meritorder_router.agent.scrape import PoolCounters, Scrape, samples
from support.fakepool import Behaviour, FakePool
from support.ports import free_port
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
TARGET = 400
FAST, SLOW = Behaviour(), Behaviour(seconds=0.6, chunks=0)
TIMEOUTS = {"connectSeconds": 1, "responseHeadersSeconds": 1, "streamIdleSeconds": 300}


@dataclass(frozen=True)
class Outcome:
    """What the pools do, and what then must have been counted: (samples, slow, failed) per pool, (all, slow)
    client."""

    a: Behaviour
    b: Behaviour = FAST
    body: dict[str, object] = field(default_factory=dict)
    path: str = CHAT
    method: str = "POST"
    abort_after: float | None = None
    counted_a: tuple[int, int, int] = (0, 0, 0)
    counted_b: tuple[int, int, int] = (0, 0, 0)
    client: tuple[int, int] = (1, 0)
    times: int = 3


OUTCOMES = {
    "good": Outcome(FAST, counted_a=(1, 0, 0)),
    "good stream": Outcome(FAST, body={"stream": True}, counted_a=(1, 0, 0)),
    "slow": Outcome(SLOW, counted_a=(1, 1, 0), client=(1, 1)),
    "slow stream": Outcome(
        Behaviour(chunks=3, chunk_seconds=0.2), body={"stream": True}, counted_a=(1, 1, 0), client=(1, 1)
    ),
    "500, then good": Outcome(Behaviour(kind="500"), counted_a=(1, 1, 1)),
    "503, then good": Outcome(Behaviour(kind="503"), counted_a=(1, 1, 1)),
    "501, not tried again": Outcome(Behaviour(kind="501"), counted_a=(1, 1, 1), client=(1, 1)),
    "the pool's own 429": Outcome(Behaviour(kind="429"), counted_a=(1, 1, 1)),
    "reset": Outcome(Behaviour(kind="reset"), counted_a=(1, 1, 1)),
    "hang": Outcome(Behaviour(kind="hang"), counted_a=(1, 1, 1), client=(1, 1)),
    "503, then slow": Outcome(Behaviour(kind="503"), SLOW, counted_a=(1, 1, 1), client=(1, 1)),
    "all fail": Outcome(
        # Three tries: a, b, and b once more as the last pool.
        Behaviour(kind="503"),
        Behaviour(kind="503"),
        counted_a=(1, 1, 1),
        counted_b=(2, 2, 2),
        client=(1, 1),
        times=1,  # five failures in a row would eject it
    ),
    "400": Outcome(Behaviour(kind="400"), client=(0, 0)),
    "404 of the pool": Outcome(Behaviour(kind="404"), client=(0, 0)),
    "cut stream": Outcome(
        Behaviour(kind="truncate", chunks=4), body={"stream": True}, counted_a=(1, 1, 1), client=(1, 1)
    ),
    "young abort": Outcome(Behaviour(kind="hang"), abort_after=0.15, client=(0, 0)),
    "old abort": Outcome(SLOW, abort_after=0.5, counted_a=(1, 1, 0), client=(1, 1)),
    "old abort of a stream": Outcome(
        Behaviour(chunks=50, chunk_seconds=0.1),
        body={"stream": True},
        abort_after=0.6,
        counted_a=(1, 1, 0),
        client=(1, 1),
    ),
    "old abort of a second try": Outcome(
        Behaviour(kind="503"), SLOW, abort_after=0.5, counted_a=(1, 1, 1), client=(1, 1)
    ),
    "models": Outcome(FAST, path="/models", method="GET", client=(0, 0)),
    "models, failed": Outcome(Behaviour(kind="503"), path="/models", method="GET", client=(0, 0)),
    "unknown path": Outcome(FAST, path="/files", client=(0, 0)),
}


async def scrape(router: EmbeddedRouter) -> Scrape:
    found = await router.scrape()
    assert found is not None
    return found


def counted(counters: PoolCounters) -> tuple[int, int, int]:
    return counters.samples, counters.samples_slow, counters.failed_attempts


async def ask(client: httpx.AsyncClient, outcome: Outcome) -> None:
    timeout = httpx.Timeout(30 if outcome.abort_after is None else outcome.abort_after)
    request = client.build_request(outcome.method, outcome.path, json=outcome.body, timeout=timeout)
    with contextlib.suppress(httpx.TransportError, TimeoutError):
        async with asyncio.timeout(outcome.abort_after):
            response = await client.send(request, stream=True)
            await response.aread()
    with contextlib.suppress(UnboundLocalError):
        await response.aclose()


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
async def test_counts_each_outcome_once_where_it_belongs(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, outcome: Outcome
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 1000), pool(b)], target=TARGET, timeouts=TIMEOUTS))
    a.behaviour, b.behaviour = outcome.a, outcome.b

    for _ in range(outcome.times):
        await ask(client, outcome)

    async def all_logged() -> bool:
        found = await scrape(router)
        return sum(found.requests.values()) == outcome.times and all(
            p.in_flight == 0 for p in found.pools.values()
        )

    await until(all_logged, 5, "all requests logged")
    found = await scrape(router)
    assert counted(found.pools["a"]) == tuple(outcome.times * n for n in outcome.counted_a)
    assert counted(found.pools["b"]) == tuple(outcome.times * n for n in outcome.counted_b)
    assert (found.client_requests, found.client_slow) == tuple(outcome.times * n for n in outcome.client)


async def test_counts_a_refused_connection_against_the_pool(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 1000), pool(b)], target=TARGET))
    await a.stop()

    assert (await client.post(CHAT, json={})).status_code == 200

    found = await scrape(router)
    assert counted(found.pools["a"]) == (1, 1, 1)
    assert counted(found.pools["b"]) == (0, 0, 0)
    assert (found.client_requests, found.client_slow) == (1, 0)


async def test_counts_shed_requests_as_slow_for_the_clients_only(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a, 0)], shed=True))

    assert (await client.post(CHAT, json={})).status_code == 429

    found = await scrape(router)
    assert counted(found.pools["a"]) == (0, 0, 0)
    assert (found.client_requests, found.client_slow) == (1, 1)
    assert found.requests == {("-", "429", "NC"): 1}


async def test_follows_an_edited_target_with_the_listener_untouched(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.behaviour = Behaviour(seconds=0.2, chunks=0)
    expected = 0
    for sequence, (target, slow) in enumerate(((100, True), (400, False), (150, True), (5000, False))):
        await router.apply(table([pool(a)], target=target, sequence=sequence))
        for _ in range(3):
            await client.post(CHAT, json={})
        expected += 3 * slow

        found = await scrape(router)

        assert found.pools["a"].samples_slow == expected
        assert found.client_slow == expected
    assert found.pools["a"].samples == 12
    added = await router.admin.stats(r"^listener_manager\.listener_(added|modified)$")
    assert all(value in (0, 4) for value in added.values())


async def test_sums_the_time_in_the_pool_to_the_mean_in_flight(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour, b.behaviour = Behaviour(kind="503", seconds=0.1), Behaviour(seconds=0.2, chunks=0)
    await router.apply(table([pool(a, 1000), pool(b)]))

    await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(4)))

    # What b answered at the second try is no sample, and yet it was busy with it.
    found = await scrape(router)
    assert found.pools["b"].samples == 0
    assert 4 * 195 <= found.pools["b"].pool_milliseconds < 4 * 300
    assert 4 * 95 <= found.pools["a"].pool_milliseconds < 4 * 200


async def test_shows_deciding_counters_at_zero_from_the_start(
    router: EmbeddedRouter, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 5), pool(b)]))

    lines = list(samples(await router.admin.prometheus()))

    for name in (
        names.SAMPLES,
        names.SAMPLES_SLOW,
        names.FAILED_ATTEMPTS,
        names.POOL_MILLISECONDS,
        names.IN_FLIGHT,
    ):
        found = {labels["pool"]: value for series, labels, value in lines if series == name}
        assert found == {"a": 0, "b": 0}
    for name in (names.CLIENT_REQUESTS, names.CLIENT_SLOW):
        assert [value for series, _, value in lines if series == name] == [0]
    assert all(labels["policy"] == "chat" for _, labels, _ in lines)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
async def test_counts_tokens_by_usage(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, stream: bool
) -> None:
    a = await start_pool("a")
    a.behaviour = Behaviour(chunks=5)
    await router.apply(table([pool(a)]))
    for _ in range(4):
        await client.post(CHAT, json={"stream": stream}, headers={"accept-encoding": "gzip"})
    a.behaviour = Behaviour(chunks=5, usage=False)
    await client.post(CHAT, json={"stream": stream})

    found = await scrape(router)

    assert (found.pools["a"].prompt_tokens, found.pools["a"].completion_tokens) == (28, 20)
    assert found.pools["a"].samples == 5


@pytest.mark.parametrize("comment", [False, True], ids=["plain", "comment first"])
async def test_judges_time_to_first_token_on_streams_only(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, comment: bool
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a)], metric="ttft", target=300))
    for seconds, times in ((0.0, 2), (0.5, 3)):
        a.behaviour = Behaviour(seconds=seconds, chunks=3, chunk_seconds=0.15, comment_first=comment)
        for _ in range(times):
            response = await client.post(CHAT, json={"stream": True})
            assert response.text.endswith("[DONE]\n\n")
    a.behaviour = Behaviour(seconds=0.5, chunks=0)
    await client.post(CHAT, json={})

    found = await scrape(router)

    assert counted(found.pools["a"]) == (5, 3, 0)
    assert (found.client_requests, found.client_slow) == (5, 3)


async def test_counts_failures_and_late_aborts_under_a_time_to_first_token(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    await router.apply(table([pool(a, 1000), pool(b)], metric="ttft", target=300))
    a.behaviour = Behaviour(kind="503")
    await ask(client, Outcome(FAST, body={"stream": True}))
    # Headers come at once; the first token would not.
    a.behaviour = Behaviour(seconds=5)
    await ask(client, Outcome(FAST, body={"stream": True}, abort_after=0.5))
    await ask(client, Outcome(FAST, body={"stream": True}, abort_after=0.1))

    async def all_logged() -> bool:
        return sum((await scrape(router)).requests.values()) == 3

    await until(all_logged, 5, "all requests logged")
    found = await scrape(router)
    assert counted(found.pools["a"]) == (2, 2, 1)
    assert (found.client_requests, found.client_slow) == (2, 1)


async def test_judges_time_per_output_token_by_usage(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    await router.apply(table([pool(a)], metric="tpot", target=60))
    for gap, times in ((0.02, 2), (0.1, 3)):
        a.behaviour = Behaviour(seconds=0.3, chunks=4, chunk_seconds=gap)
        for _ in range(times):
            await client.post(CHAT, json={"stream": True})
    # No usage, and one token only: neither counts.
    for behaviour in (Behaviour(chunks=4, chunk_seconds=0.1, usage=False), Behaviour(chunks=1)):
        a.behaviour = behaviour
        await client.post(CHAT, json={"stream": True})

    found = await scrape(router)

    assert counted(found.pools["a"]) == (5, 3, 0)


async def test_changes_the_metric_of_the_sla_while_running(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.behaviour = Behaviour(seconds=0.0, chunks=4, chunk_seconds=0.1)
    seen = []
    for sequence, metric in enumerate(("e2e", "ttft", "tpot", "e2e")):
        await router.apply(
            table([pool(a)], metric=metric, target=200 if metric != "tpot" else 50, sequence=sequence)
        )
        await client.post(CHAT, json={"stream": True})
        found = await scrape(router)
        seen.append((found.pools["a"].samples, found.pools["a"].samples_slow))

    assert seen == [(1, 1), (2, 1), (3, 2), (4, 3)]


async def test_stays_within_500_series_with_four_pools(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    pools = [await start_pool(name) for name in ("a", "b", "c", "d")]
    for sequence, first in enumerate(pools):
        await router.apply(
            table([pool(first, 1), *(pool(p) for p in pools if p is not first)], sequence=sequence)
        )
        for kind in ("ok", "503", "400", "reset", "500", "429"):
            first.behaviour = Behaviour(kind=kind)
            await client.post(CHAT, json={"stream": True})
        first.behaviour = Behaviour()

    async def histograms() -> bool:
        return names.LATENCY_BUCKET in await router.admin.prometheus()

    await until(histograms, 5, "histograms")
    assert len(list(samples(await router.admin.prometheus()))) <= 500


async def test_gives_out_nothing_but_metrics_and_readiness(router: EmbeddedRouter, tmp_path: Path) -> None:
    base = f"http://{router.metrics_address}"
    async with httpx.AsyncClient(base_url=base) as client:
        codes = {
            path: (await client.get(path)).status_code
            for path in (
                "/metrics",
                "/ready",
                "/ready/table",
                "/config_dump",
                "/stats",
                "/metrics/../config_dump",
                "/",
            )
        }
        quit_code = (await client.post("/quitquitquit")).status_code
        posted = (await client.post("/metrics")).status_code

    assert codes == {
        "/metrics": 200,
        "/ready": 200,
        "/ready/table": 503,
        "/config_dump": 404,
        "/stats": 404,
        "/metrics/../config_dump": 404,
        "/": 404,
    }
    assert (quit_code, posted) == (404, 404)


async def test_centres_the_histogram_on_the_target(tmp_path: Path, start_pool: StartPool) -> None:
    a = await start_pool("a")
    first = table([pool(a)], target=1000)
    async with (
        EmbeddedRouter(
            listen=f"127.0.0.1:{free_port()}", policy="chat", sla=first.sla, directory=tmp_path / "r"
        ) as router,
        httpx.AsyncClient(base_url=router.base_url) as client,
    ):
        await router.apply(first)
        await client.post(CHAT, json={})

        async def bounds() -> list[float]:
            return sorted((await scrape(router)).pools["a"].latency_buckets)

        found = await until(bounds, 5, "the histogram")

    assert len(found) <= 21
    assert {700.0, 800.0, 900.0, 1000.0, 1100.0, 1250.0} <= set(found)
