"""SIGTERM under load: what is in flight comes to its end."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from stress.load import Load, errors
from stress.plugin import StartPools
from stress.pools import entry
from stress.record import DRAIN, Book, none, told
from support.agents import AgentProcess
from support.tables import table


@pytest.mark.stress
async def test_lets_all_streams_finish(tmp_path: Path, start_pools: StartPools, book: Book) -> None:
    pools = start_pools("a", "b")
    for name in "ab":
        await pools.follow(name, tokens=50)
    path = tmp_path / "table.json"
    path.write_bytes(
        table([entry("a", pools.endpoints("a"), 60), entry("b", pools.endpoints("b"))]).to_json()
    )
    agent = AgentProcess(tmp_path, "--table", str(path), "--grace-seconds", "30")
    agent.start()
    try:
        async with Load(agent.base_url) as load:
            await load.served()
            with told("100 streams of 10 s, SIGTERM at 1 s"):
                began = time.monotonic()
                streams = [asyncio.create_task(load.send("stream")) for _ in range(100)]
                await asyncio.sleep(1)
                agent.send(signal.SIGTERM)
                ended = await asyncio.gather(*streams)
                code = await asyncio.to_thread(agent.wait, 10)
                took = time.monotonic() - began
            failed = sum(errors(ended).values())
            book.row(DRAIN, "SIGTERM at 1 s", len(ended), len(ended) - failed, took)
            book.judge(DRAIN, none("streams cut by SIGTERM", failed))
            assert min(request.seconds for request in ended) > 9
            assert code == 0
    finally:
        await asyncio.to_thread(agent.stop)
