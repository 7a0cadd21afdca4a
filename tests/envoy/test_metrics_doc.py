"""The documentation of the metrics names what a scrape has, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from meritorder_api import metric_names
from meritorder_router.agent.embedded import EmbeddedRouter
from meritorder_router.agent.scrape import samples
from meritorder_router.agent.telemetry import Telemetry
from support.fakepool import Behaviour, FakePool
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


async def test_names_every_series_of_a_scrape_and_no_other(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    first = table([pool(a, 100), pool(b, model="other")])
    await router.apply(first)
    await client.post("/chat/completions", json={})
    a.behaviour = Behaviour(kind="503")
    await client.post("/chat/completions", json={})

    async def histograms() -> bool:
        return metric_names.TTFT_BUCKET in await router.admin.prometheus()

    await until(histograms, 5, "histograms")
    telemetry = Telemetry("chat")
    telemetry.in_force(first)
    text = await router.admin.prometheus() + telemetry.text()
    scraped = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _, _ in samples(text)}
    words = set(re.findall(r"`((?:envoy|meritorder_router)_[a-z_*]+)`", DOCUMENT.read_text()))
    endings = {"_update_rejected", "_update_failure"}
    prefixes = {word for word in words if any(word + end in scraped for end in endings)}
    documented = {word for word in words - prefixes if not word.endswith("*")} | {
        prefix + end for prefix in prefixes for end in endings
    }

    assert documented == scraped


def test_lists_the_names_that_the_operator_reads() -> None:
    text = DOCUMENT.read_text()
    names = [
        value
        for name, value in vars(metric_names).items()
        if name.isupper() and str(value).startswith(("envoy_", "meritorder_router_"))
    ]

    assert len(names) > 12
    assert [name for name in names if name.removesuffix("_bucket") not in text] == []
