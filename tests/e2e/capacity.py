"""What one pool can carry within the target: the best fixed limit, measured on a twin of the pool with
nothing between."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import aiohttp

SETTLE_SECONDS = 2.5
MEASURE_SECONDS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLimit:
    """The largest number in flight at which the percentile meets the target, and the rate it then
    completes."""

    in_flight: int
    requests_per_second: float
    quantile_seconds: float


async def _closed_loop(url: str, in_flight: int, tokens: int, percentile: int) -> FixedLimit:
    """Keep so many requests in flight for a while; measure those that end after the first moments."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    end = start + SETTLE_SECONDS + MEASURE_SECONDS
    times: list[float] = []
    body = {
        "model": "llama",
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "x" * 400}],
    }

    async def one_client(session: aiohttp.ClientSession) -> None:
        while (sent := loop.time()) < end:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                answer.raise_for_status()
            done = loop.time()
            if start + SETTLE_SECONDS <= done < end:
                times.append(done - sent)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(one_client(session) for _ in range(in_flight)))
    times.sort()
    return FixedLimit(
        in_flight=in_flight,
        requests_per_second=len(times) / MEASURE_SECONDS,
        quantile_seconds=times[min(len(times) - 1, math.floor(percentile / 100 * len(times)))],
    )


async def _search(
    url: str, *, low: int, high: int, tokens: int, target_seconds: float, percentile: int
) -> FixedLimit:
    best: FixedLimit | None = None
    while low <= high:
        middle = (low + high) // 2
        tried = await _closed_loop(url, middle, tokens, percentile)
        if tried.quantile_seconds <= target_seconds:
            best, low = tried, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise ValueError(f"{url} misses {target_seconds} s at every number in flight tried")
    return best


def best_fixed_limit(
    url: str, *, low: int, high: int, tokens: int, target_seconds: float, percentile: int
) -> FixedLimit:
    """Search between `low` and `high` in flight by halving; about 6.5 s a step."""
    started = time.monotonic()
    found = asyncio.run(
        _search(url, low=low, high=high, tokens=tokens, target_seconds=target_seconds, percentile=percentile)
    )
    print(f"best fixed limit {found} after {time.monotonic() - started:.0f} s")
    return found
