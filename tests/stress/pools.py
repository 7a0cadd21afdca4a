"""Processes of `stress.servers` as a test holds them: told what to do, asked what they saw, and killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stress.servers import order
from support.ports import free_ports
from support.processes import Child

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pool's servers of one process saw since the last reset."""

    requests: int
    in_flight: int
    levels: dict[int, int]
    mean: float
    """Requests in flight, on average over time."""

    @property
    def most(self) -> int:
        """In flight at once."""
        return max(self.levels, default=0)

    def over(self, limit: int) -> int:
        """Requests that made it more than the limit."""
        return sum(count for level, count in self.levels.items() if level > limit)


class Pools(Child):
    """One process with the servers of one or more pools; a second `start` takes the same ports."""

    def __init__(self, folder: Path, *names: str, host: str = "127.0.0.1") -> None:
        """`names` are `POOL` or `POOL.NUMBER`."""
        self.host = host
        self._control, *ports = free_ports(len(names) + 1)
        self.ports = dict(zip(names, ports, strict=True))
        super().__init__(
            [
                *(sys.executable, "-m", "stress.servers", host, str(self._control)),
                *(f"{name}={port}" for name, port in self.ports.items()),
            ],
            log=folder / f"pools-{names[0]}.log",
            name=f"pools {' '.join(names)}",
            env={"PYTHONPATH": str(TESTS)},
        )

    def start(self) -> Pools:
        super().start()
        url = f"http://127.0.0.1:{self._control}/counts"
        self.wait_for(
            lambda: httpx.post(url, trust_env=False).status_code == 200,
            20,
            "its servers listen",
            retry_on=(httpx.TransportError,),
        )
        return self

    async def _ask(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Seen]:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            answer = await client.post(f"http://127.0.0.1:{self._control}/{what}", json=body or {})
        answer.raise_for_status()
        return {
            pool: Seen(
                requests=found["requests"],
                in_flight=found["in_flight"],
                levels={int(level): count for level, count in found["levels"].items()},
                mean=found["mean"],
            )
            for pool, found in answer.json().items()
        }

    async def follow(self, server: str, **changes: Any) -> None:
        """Tell a server, or all of a pool, what to do; fields of `stress.servers.Behaviour`."""
        await self._ask("set", order(server, **changes))

    async def reset(self) -> None:
        """Count from now on."""
        await self._ask("reset")

    async def seen(self, pool: str) -> Seen:
        """What the pool saw since the last reset."""
        return (await self._ask("counts"))[pool]

    def endpoints(self, pool: str) -> list[dict[str, Any]]:
        """The pool's servers of this process, as a table lists them."""
        return [
            {"address": self.host, "port": port}
            for name, port in self.ports.items()
            if name.partition(".")[0] == pool
        ]


def entry(
    name: str, endpoints: Sequence[dict[str, Any]], limit: int | None = None, **more: Any
) -> dict[str, Any]:
    """A pool of a table."""
    limited = {} if limit is None else {"limit": limit}
    return {"name": name, "endpoints": list(endpoints), **limited, **more}
