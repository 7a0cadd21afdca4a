"""`serve_pools`: simulated pools as a process of their own, each announced by one line of JSON on stdout.

```json
{"pool": "l40s", "endpoints": [{"address": "127.0.0.1", "port": 41234}], "models": ["llama-3.1-8b"]}
```
A pool's line is written again whenever its endpoints change.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from meritorder_sim.pools import SimulatedPool, SimulatedPools
from meritorder_sim.pools_file import PoolsFile


def announcement(pool: SimulatedPool) -> str:
    """Describe where a pool listens, as one line of JSON."""
    endpoints = [{"address": host, "port": port} for host, port in pool.addresses]
    return json.dumps({"pool": pool.name, "endpoints": endpoints, "models": list(pool.models)})


async def serve_pools(
    file: PoolsFile,
    *,
    host: str = "127.0.0.1",
    ports: Mapping[str, Sequence[int]] | None = None,
    models: Sequence[str] = (),
    seed: int = 0,
    out: TextIO = sys.stdout,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGINT, SIGTERM or `stop`. OSError (a port that is taken) and PoolsFileError rise."""
    stopped = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    said: dict[str, str] = {}

    def announce() -> None:
        for pool in pools.values():
            line = announcement(pool)
            if said.get(pool.name) != line:
                said[pool.name] = line
                out.write(line + "\n")
        out.flush()

    try:
        async with SimulatedPools(file, host=host, ports=ports, models=models, seed=seed) as pools:
            announce()
            pools.on_change(announce)
            await stopped.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def until_stdin_ends(stop: asyncio.Event) -> None:
    """Set `stop` when stdin is closed, which is how a parent's death is seen."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(4096):
        continue
    stop.set()
