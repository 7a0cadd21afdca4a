"""A pool's limit holds under four times as many clients, however their requests are read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meritorder_router.agent.applier import Applied
from meritorder_router.agent.embedded import EmbeddedRouter
from stress.load import Kind, Load, body, errors
from stress.plugin import StartPools
from stress.pools import entry
from stress.record import LIMITS, Book, at_most, none, told
from support.tables import table

READINGS: dict[str, dict[str, Any]] = {
    "body not read": {},
    "usage asked for": {"metric": "ttft", "target": 200, "requests": {"addUsage": True}},
    "size classes": {"sizeClasses": True},
}
"""What of a table makes Envoy wait for a request's body before it chooses."""
SIZES = (None, 16, 64, 128, 500, 4000)


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        pytest.param(2, 20, id="short"),
        pytest.param(60, 50, id="long", marks=[pytest.mark.stress, pytest.mark.timeout(300)]),
    ],
)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", ["json", "stream"])
async def test_is_kept_under_four_times_as_many_clients(
    router: EmbeddedRouter,
    start_pools: StartPools,
    book: Book,
    kind: Kind,
    reading: str,
    seconds: float,
    limit: int,
) -> None:
    pools = start_pools("cheap", "dear")
    await pools.follow("cheap", seconds=0.2, tokens=5, token_seconds=0.1)
    await pools.follow("dear", seconds=0.2, tokens=5, token_seconds=0.1)
    cheap: dict[str, Any] = entry("cheap", pools.endpoints("cheap"), limit)
    if reading == "size classes":
        cheap["classLimits"] = [{"maxTokens": size, "limit": limit} for size in (64, 256, 1024)]
    applied = await router.apply(table([cheap, entry("dear", pools.endpoints("dear"))], **READINGS[reading]))
    assert isinstance(applied, Applied), applied
    contents = [body(kind, max_tokens=size) for size in SIZES]
    await pools.reset()
    with told(f"{kind}, {reading}: {4 * limit} clients for {seconds} s"):
        async with Load(router.base_url) as load:
            load.keep(4 * limit, kind, contents)
            await asyncio.sleep(seconds)
            seen = await pools.seen("cheap")
            ended = await load.finish()
    failed = errors(ended)
    what = f"{kind}, {reading}"
    book.row(LIMITS, what, limit, seen.most, seen.over(limit), seen.mean, len(ended), sum(failed.values()))
    book.judge(
        LIMITS,
        at_most(f"{what}: most in flight", seen.most, limit + 1),
        none(f"{what}: requests that failed", sum(failed.values())),
    )
    assert seen.most >= limit, "the limit was not reached, so it was not tried"
