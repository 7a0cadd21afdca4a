"""Size classes: known before the pool is chosen, held to their own limits, and counted apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_api import metric_names as names
from meritorder_cli.measure import by_class, difference
from meritorder_cli.readings import Meter
from meritorder_router.agent.embedded import EmbeddedRouter
from meritorder_router.agent.scrape import Scrape, samples
from meritorder_router.agent.telemetry import Telemetry
from meritorder_router.render.sizes import READ_BYTES, SIZES
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
HEADER = "x-meritorder-class"
NO_CLASS = 0
FILL = "x" * 1500
"""Of a body that has some 1,600 bytes with it: class 512 by its length."""


async def scrape(router: EmbeddedRouter) -> Scrape:
    found = await router.scrape()
    assert found is not None
    return found


async def counted(router: EmbeddedRouter, name: str = "a") -> dict[int, int]:
    """Samples of a pool by size class; those without one are what is missing to its total."""
    found = (await scrape(router)).pools[name]
    by_size = {size: part.samples for size, part in found.classes.items() if part.samples}
    rest = found.samples - sum(by_size.values())
    return by_size | ({NO_CLASS: rest} if rest else {})


def asking(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": FILL, **fields}).encode()


NESTED = {"metadata": {"max_tokens": 5}, "tools": [{"properties": {"max_tokens": {"type": "integer"}}}]}
BODIES: dict[str, tuple[bytes, int]] = {
    "1": (asking(max_tokens=1), 32),
    "at the edge": (asking(max_tokens=32), 32),
    "over the edge": (asking(max_tokens=33), 64),
    "100": (asking(max_tokens=100), 128),
    "the largest class": (asking(max_tokens=4096), 4096),
    "larger than any class": (asking(max_tokens=200_000), 4096),
    "the newer key": (asking(max_completion_tokens=200), 256),
    "both keys": (asking(max_tokens=2000, max_completion_tokens=40), 64),
    "the newer key null": (asking(max_completion_tokens=None, max_tokens=40), 64),
    "the key of /responses": (asking(max_output_tokens=900), 1024),
    "first of all keys": (b'{ "max_tokens" : 60 , "prompt": "' + FILL.encode() + b'"}', 64),
    "between messages with brackets": (
        asking(messages=[{"role": "user", "content": '}]"\\{'}], max_tokens=60),
        64,
    ),
    "in the middle": (asking(max_tokens=60, user='\\" }' * 500, stop=["]", "{"]), 64),
    "after one further inside": (asking(**NESTED, max_tokens=60), 64),
    "before one further inside": (asking(max_tokens=60, **NESTED), 64),
    "not the last word": (asking(max_tokens=60) + b" \n", 64),
    "large but read": (asking(long="y" * (READ_BYTES - 2000), max_tokens=60), 64),
    # What comes after the key need not be right, which is for the pool to say.
    "again and again": (b'{"max_tokens":5,' * 12_000, 32),
    # From here on the length decides.
    "no key": (asking(), 512),
    "negative": (asking(max_tokens=-5), 512),
    "zero": (asking(max_tokens=0), 512),
    "huge": (asking(max_tokens=10**30), 512),
    "a digit too many": (asking(max_tokens=10**7), 512),
    "a fraction": (asking(max_tokens=12.5), 512),
    "an exponent": (b'{"max_tokens": 1e3, "prompt": "' + FILL.encode() + b'"}', 512),
    "a leading zero": (b'{"max_tokens": 0064, "prompt": "' + FILL.encode() + b'"}', 512),
    "text": (asking(max_tokens="64"), 512),
    "true": (asking(max_tokens=True), 512),
    "null": (asking(max_tokens=None), 512),
    "a list": (asking(max_tokens=[64]), 512),
    "an object": (asking(max_tokens={"max_tokens": 64}), 512),
    "only further inside": (asking(**NESTED), 512),
    "in the prompt": (asking(user='","max_tokens": 5, "'), 512),
    "a value like the key": (asking(user="max_tokens"), 512),
    "further inside, at the end": (asking(metadata={"max_tokens": 5}), 512),
    "further inside, at the beginning": (
        json.dumps({"metadata": {"max_tokens": 5}, "prompt": FILL}).encode(),
        512,
    ),
    "in the prompt, ended there": (asking(user='\\"max_tokens": 5, "x'), 512),
    "not ended well": (asking(max_tokens=60)[:-1] + b"]", 512),
    "more than the object": (asking(max_tokens=60) + b"}", 512),
    "in a list": (b'[{"max_tokens": 5}, "' + FILL.encode() + b'"]', 512),
    "no JSON": (b"max_tokens: 64 " + FILL.encode(), 512),
    "not ended": (b'{"prompt": "' + FILL.encode() + b'", "max_tokens": 64', 512),
    "no value": (b'{"prompt": "' + FILL.encode() + b'", "max_tokens":', 512),
    "not ended in a string": (b'{"max_tokens": 5x, "prompt": "' + FILL.encode(), 512),
    "not text": (bytes(range(256)) * 6, 512),
    "zeros": (b"\0" * 1500, 512),
    "only brackets": (b'{"max_tokens":' + b"[{" * 60_000, 4096),
    "brackets before it": (b'{"a":' + b"[" * 120_000 + b',"max_tokens":5,' + b"[" * 120_000, 4096),
    "escapes before it": (
        b'{"a":"' + b'\\"' * 60_000 + b'","max_tokens":5,"b":"' + b'\\"' * 60_000 + b'"}',
        4096,
    ),
    "only quotes": (b'{"max_tokens"' * 400, 2048),
    "only backslashes": (b'{"max_tokens": "' + b"\\" * 120_000, 4096),
    "empty": (b"", 32),
    "too large to be read": (asking(long="y" * READ_BYTES, max_tokens=60), 4096),
}


async def test_reads_the_class_from_the_body_or_from_its_length(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.keep = True
    await router.apply(table([pool(a)], sizeClasses=True))
    before = await counted(router)
    found: dict[str, dict[int, int]] = {}

    for name, (body, _) in BODIES.items():
        response = await client.post(CHAT, content=body)
        assert response.status_code == 200, name
        after = await counted(router)
        found[name] = {size: count - before.get(size, 0) for size, count in after.items()}
        before = after

    seen = {name: [size for size, more in sizes.items() if more] for name, sizes in found.items()}
    assert seen == {name: [size] for name, (_, size) in BODIES.items()}
    assert a.bodies == [body for body, _ in BODIES.values()]


async def test_gives_no_class_to_a_request_of_unknown_length(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.keep = True
    await router.apply(table([pool(a)], sizeClasses=True))

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"max_tokens": 5, "prompt": "'
        yield b"x" * 300_000 + b'"}'

    assert (await client.post(CHAT, content=parts())).status_code == 200

    assert await counted(router) == {NO_CLASS: 1}
    assert len(a.bodies[0]) == 300_031


@pytest.mark.parametrize("model", [None, "other"], ids=["direct", "rewritten"])
async def test_takes_no_ones_word_for_the_class_and_shows_it_to_no_pool(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, model: str | None
) -> None:
    a = await start_pool("a")
    a.keep = True
    limits = [{"maxTokens": 32, "limit": 0}]
    entry = pool(a, 5, classLimits=limits, **({"model": model} if model else {}))
    spoofed = {HEADER: "32"}
    for sequence, classes in enumerate((True, False)):
        await router.apply(table([entry], sequence=sequence, sizeClasses=classes, shed=True))

        for headers in (spoofed, {HEADER.title(): "32"}, {HEADER: "32, 64"}, {}):
            answer = await client.post(CHAT, content=asking(max_tokens=100), headers=headers)
            assert answer.status_code == 200
        assert (await client.get("/models", headers=spoofed)).status_code == 200
        assert (await client.post("/other", headers=spoofed, content=asking())).status_code == 404

    assert await counted(router) == {128: 4, NO_CLASS: 4}
    assert len(a.headers) == 10
    assert all(HEADER not in seen for seen in a.headers)


def sized(size: int, inspected: bool, **fields: Any) -> bytes:
    """A body of that class, by what it says or by its length."""
    if inspected:
        return json.dumps({"max_tokens": size, **fields}).encode()
    body = json.dumps({**fields, "prompt": ""}).encode()
    return body.replace(b'"prompt": "', b'"prompt": "' + b"x" * (4 * size - len(body)))


LIMITS = [{"maxTokens": 64, "limit": 12}, {"maxTokens": 512, "limit": 5}, {"maxTokens": 4096, "limit": 0}]


@pytest.mark.parametrize("inspected", [True, False], ids=["by the body", "by its length"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
async def test_holds_each_class_to_its_own_limit_over_the_pools_total(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, stream: bool, inspected: bool
) -> None:
    cheap, dear = await start_pool("cheap"), await start_pool("dear")
    await router.apply(table([pool(cheap, 2, classLimits=LIMITS), pool(dear)], sizeClasses=True))

    async def burst(*sizes: int) -> tuple[int, set[tuple[int, str]]]:
        """Most in flight in the cheap pool, and who answered which class; no answer before all have come."""
        gate = cheap.gate = dear.gate = asyncio.Event()
        cheap.most_in_flight = 0
        asked = [
            asyncio.create_task(client.post(CHAT, content=sized(size, inspected, stream=stream)))
            for size in sizes
        ]
        await until(lambda: cheap.in_flight + dear.in_flight == len(sizes), 30, "all have come")
        gate.set()
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers if stream)
        by = [answer.headers["x-meritorder-answered-by"] for answer in answers]
        return cheap.most_in_flight, set(zip(sizes, by, strict=True))

    # Two workers may both see the last free place at once.
    assert (await burst(*[64] * 48))[0] in (12, 13)
    assert (await burst(*[512] * 20))[0] in (5, 6)
    assert (await burst(*[4096] * 8)) == (0, {(4096, "dear")})
    most, answered = await burst(*[2048, 512, 64] * 16)
    assert most in (12, 13)
    assert {size for size, by in answered if by == "cheap"} <= {64, 512}


async def test_keeps_the_limit_of_a_class_while_requests_come_and_go(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    cheap, dear = await start_pool("cheap"), await start_pool("dear")
    cheap.behaviour = dear.behaviour = Behaviour(seconds=0.1, chunks=0)
    await router.apply(table([pool(cheap, 2, classLimits=LIMITS), pool(dear)], sizeClasses=True))

    async def one(size: int) -> None:
        for _ in range(4):
            assert (await client.post(CHAT, json={"max_tokens": size})).status_code == 200

    await asyncio.gather(*(one((64, 512, 2048)[number % 3]) for number in range(48)))

    assert 5 <= cheap.most_in_flight <= 13
    assert cheap.requests + dear.requests == 192


def test_shows_the_limits_of_classes_where_they_act() -> None:
    a: dict[str, Any] = {"name": "a", "limit": 3, "classLimits": [{"maxTokens": 64, "limit": 9}]}
    telemetry = Telemetry("chat")

    def shown(*, classes: bool) -> dict[tuple[str, str | None], float]:
        telemetry.in_force(table([a, {"name": "b"}], sizeClasses=classes))
        lines = [
            (labels, value) for series, labels, value in samples(telemetry.text()) if series == names.LIMIT
        ]
        return {(labels["pool"], labels.get("class")): value for labels, value in lines}

    assert shown(classes=True) == {("a", None): 3, ("a", "64"): 9, ("b", None): float("inf")}
    assert shown(classes=False) == {("a", None): 3, ("b", None): float("inf")}


async def test_lets_a_class_in_by_what_all_classes_have_in_flight(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    cheap, dear = await start_pool("cheap"), await start_pool("dear")
    cheap.behaviour = Behaviour(kind="hang")
    limits = [{"maxTokens": 64, "limit": 4}, {"maxTokens": 256, "limit": 2}]
    await router.apply(table([pool(cheap, 3, classLimits=limits), pool(dear)], sizeClasses=True))

    async def who(size: int | None) -> str:
        """Which pool takes it: the cheap one does not answer."""
        before = cheap.requests
        body = {} if size is None else {"max_tokens": size}
        asked = asyncio.create_task(client.post(CHAT, content=json.dumps(body | {"prompt": "x" * 9000})))
        hung.append(asked)
        await until(lambda: asked.done() or cheap.requests > before, 5, "it is somewhere")
        return "dear" if asked.done() else "cheap"

    hung: list[asyncio.Task[httpx.Response]] = []
    try:
        assert [await who(256) for _ in range(3)] == ["cheap", "cheap", "dear"]
        # Of a class that has no limit: the pool's own (here 4096, by its length).
        assert [await who(None) for _ in range(2)] == ["cheap", "dear"]
        assert [await who(128), await who(33), await who(64)] == ["dear", "cheap", "dear"]
    finally:
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)


async def test_keeps_the_limit_though_bodies_come_slowly_and_all_end_at_once(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    cheap, dear = await start_pool("cheap"), await start_pool("dear")
    cheap.behaviour = dear.behaviour = Behaviour(seconds=1, chunks=0)
    limits = [{"maxTokens": 64, "limit": 6}]
    await router.apply(table([pool(cheap, 2, classLimits=limits), pool(dear)], sizeClasses=True))
    body = asking(max_tokens=50)
    begun, go_on = 0, asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal begun
        yield body[:100]
        begun += 1
        await go_on.wait()
        yield body[100:]

    length = {"content-length": str(len(body))}
    slow = [asyncio.create_task(client.post(CHAT, content=slowly(), headers=length)) for _ in range(40)]
    await until(lambda: begun == 40, 10, "all have begun")
    # They disturb nobody, and take nobody's place.
    others = await asyncio.gather(*(client.post(CHAT, content=body) for _ in range(5)))
    assert {answer.headers["x-meritorder-answered-by"] for answer in others} == {"cheap"}
    assert cheap.requests == 5
    go_on.set()

    answers = await asyncio.gather(*slow)

    assert [answer.status_code for answer in answers] == [200] * 40
    assert 6 <= cheap.most_in_flight <= 7
    assert cheap.requests + dear.requests == 45


async def test_counts_each_class_exactly_also_slow_and_failed_ones(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    meter = Meter()
    seconds = 0.2

    async def send(sequence: int, target: int, **times: int) -> None:
        entries = [pool(a, 500), pool(b)]
        await router.apply(table(entries, sequence=sequence, target=target, sizeClasses=True))
        asked = [int(size[1:]) for size, count in times.items() for _ in range(count)]
        answers = await asyncio.gather(*(client.post(CHAT, json={"max_tokens": size}) for size in asked))
        assert {answer.status_code for answer in answers} == {200}

    await router.apply(table([pool(a, 500), pool(b)], sizeClasses=True))
    start = meter.read(await scrape(router), 0.0)
    a.behaviour = Behaviour(seconds=seconds, chunks=2)
    await send(2, 100, s32=3, s100=2)  # all are slow
    await send(3, 5000, s32=4, s900=5)
    await send(4, 150, s900=1)
    a.behaviour = Behaviour(kind="503")
    await send(5, 5000, s900=2)  # b answers, which is no sample of b

    end = meter.read(await scrape(router), 1.0)
    of_a, of_b = by_class(end, start, "a"), by_class(end, start, "b")
    assert {size: (n.total, n.slow) for size, n in of_a.items()} == {32: (7, 3), 128: (2, 2), 1024: (8, 3)}
    assert {size: n.completion_tokens for size, n in of_a.items()} == {32: 14, 128: 4, 1024: 12}
    assert {size: (n.total, n.slow) for size, n in of_b.items()} in ({}, {1024: (0, 0)})
    whole = difference(end, start, "a")
    assert (whole.total, whole.slow) == (17, 8)
    for size, times in ((32, 7), (128, 2), (1024, 6)):
        assert times * seconds * 0.99 <= of_a[size].latency_sum_seconds < times * seconds * 2.5
    in_classes = sum(counts.latency_sum_seconds for counts in of_a.values())
    assert whole.latency_sum_seconds == pytest.approx(in_classes)


@pytest.mark.parametrize("size", [3_000, 8_000_000], ids=["read", "not read"])
async def test_replays_the_body_when_a_pool_fails(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, size: int
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.keep = b.keep = True
    limits = [{"maxTokens": 64, "limit": 5}]
    await router.apply(table([pool(a, 5, classLimits=limits), pool(b)], sizeClasses=True))
    body = json.dumps({"prompt": "x" * size, "max_tokens": 50}).encode()
    for kind in ("503", "reset"):
        a.behaviour = Behaviour(kind=kind)

        answer = await client.post(CHAT, content=body)

        assert answer.headers["x-meritorder-answered-by"] == "b"
    assert b.bodies == [body, body]


async def test_passes_bodies_too_large_to_be_kept(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.keep = True
    await router.apply(table([pool(a)], sizeClasses=True))
    body = asking(long="y" * 20_000_000, max_tokens=5)

    assert (await client.post(CHAT, content=body)).status_code == 200

    assert [len(seen) for seen in a.bodies] == [len(body)]
    assert await counted(router) == {4096: 1}


async def test_asks_for_usage_and_knows_the_class_of_the_same_body(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.keep = True
    await router.apply(table([pool(a)], sizeClasses=True, requests={"addUsage": True}))

    assert (await client.post(CHAT, content=asking(stream=True, max_tokens=50))).status_code == 200
    assert (await client.post(CHAT, content=asking(stream=True))).status_code == 200

    asked = [json.loads(body) for body in a.bodies]
    assert [each["stream_options"] for each in asked] == [{"include_usage": True}] * 2
    assert await counted(router) == {64: 1, 512: 1}


async def test_begins_and_ceases_with_the_table_and_leaves_the_listener_as_it_is(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    for sequence, classes in enumerate((False, True, False, True)):
        await router.apply(table([pool(a)], sequence=sequence, sizeClasses=classes))
        await client.post(CHAT, content=asking(max_tokens=50))

    assert await counted(router) == {64: 2, NO_CLASS: 2}
    added = await router.admin.stats(r"^listener_manager\.listener_(added|modified)$")
    assert all(value in (0, 4) for value in added.values())


def written(directory: Path) -> bytes:
    """All files: Envoy's configuration and its log."""
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_keeps_to_500_series_with_four_pools_and_shows_no_prompt(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, tmp_path: Path
) -> None:
    pools = [await start_pool(name) for name in ("a", "b", "c", "d")]
    listed = [pool(each, 50) for each in pools[:-1]] + [pool(pools[-1])]
    headers = {"headers": ["x-meritorder-pool"]}
    await router.apply(table(listed, sizeClasses=True, requests=headers))
    secret = "the-prompt-of-somebody"
    for each in pools:
        for kind in ("ok", "503"):
            each.behaviour = Behaviour(kind=kind)
            for size in SIZES:
                body = {"max_tokens": size, "prompt": secret}
                await client.post(CHAT, json=body, headers={"x-meritorder-pool": each.name})

    async def histograms() -> bool:
        return names.TTFT_BUCKET in await router.admin.prometheus()

    await until(histograms, 5, "histograms")
    text = await router.admin.prometheus()
    found = list(samples(text))
    classes = {labels.get("class") for series, labels, _ in found if series == names.SAMPLES}
    assert classes == {"", *map(str, SIZES)}
    assert len(found) <= 500
    assert secret not in text
    assert secret.encode() not in written(tmp_path)
