"""Each pool as an OS process of its own: what a test needs that kills a pool with signal 9.

A process ends with its parent (it watches its stdin), so nothing is left behind when a test run is killed.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from meritorder_sim.pools_file import PoolsFile, PoolsFileError, load_pools_file
from meritorder_sim.server import Address

START_DEADLINE_SECONDS = 30.0
_IMPORT_ROOT = str(Path(__file__).resolve().parent.parent)


class PoolProcess:
    """One pool of a pools file in its own process. Started again, it takes the same ports."""

    def __init__(
        self,
        pools_path: Path,
        name: str,
        *,
        host: str = "127.0.0.1",
        ports: Sequence[int] = (),
        models: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.name = name
        self.addresses: list[Address] = []
        self.models: list[str] = []
        self._pools_path = pools_path
        self._host = host
        self._ports = list(ports)
        self._models = models
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> list[Address]:
        """Start the process and return its addresses once it listens; PoolsFileError if it does not."""
        ports = self._ports or [address.port for address in self.addresses]
        options = ["--pools", str(self._pools_path), "--pool", self.name, "--host", self._host]
        options += ["--seed", str(self._seed), "--exit-with-stdin"]
        if ports:
            options += ["--port", f"{self.name}={','.join(map(str, ports))}"]
        for model in self._models:
            options += ["--model", model]
        # Where this very code was imported from must be found there too.
        roots = [
            _IMPORT_ROOT,
            *os.environ.get("PYTHONPATH", "").split(os.pathsep),
        ]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "meritorder_sim",
            *options,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C goes to the whole foreground group; who started a pool also ends it.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))},
        )
        try:
            async with asyncio.timeout(START_DEADLINE_SECONDS):
                line = await self._first_line(self._process)
        except BaseException:
            await self.kill()
            raise
        self._learn(line)
        self._reader = asyncio.create_task(self._follow(self._process))
        return self.addresses

    async def kill(self) -> None:
        """Kill the process with signal 9."""
        await self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """End the process in the polite way."""
        await self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the process without ending it (SIGSTOP): connections open, nothing answers."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    async def set_faults(self, **change: Any) -> dict[str, Any]:
        """Post a change to /sim/faults of the first replica; for the whole pool unless `scope` says else."""
        host, port = self.addresses[0]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{_in_url(host)}:{port}/sim/faults", json=change) as answer,
        ):
            body: dict[str, Any] = await answer.json()
            if answer.status != 200:
                raise PoolsFileError(f"pool '{self.name}': {body['error']['message']}")
            return body

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._send(signal.SIGCONT)
        self._send(number)
        await self._process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None
        # The transport of an ended process still owns our end of its stdin.
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def _first_line(self, process: asyncio.subprocess.Process) -> bytes:
        """Return the first announcement, or raise with the last thing that the process said."""
        assert process.stdout is not None
        assert process.stderr is not None
        if line := await process.stdout.readline():
            return line
        words = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise PoolsFileError(f"pool '{self.name}' did not start: {words[-1] if words else 'no reason given'}")

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Take in later announcements and keep both pipes empty."""
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        while line := await process.stdout.readline():
            self._learn(line)
        await errors

    def _learn(self, line: bytes) -> None:
        said = json.loads(line)
        self.addresses = [Address(entry["address"], entry["port"]) for entry in said["endpoints"]]
        self.models = list(said["models"])


class ProcessPools(Mapping[str, PoolProcess]):
    """All pools of a pools file, each in a process of its own, while the context is open."""

    def __init__(
        self,
        pools_path: Path,
        *,
        host: str = "127.0.0.1",
        hosts: Mapping[str, str] | None = None,
        models: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.file: PoolsFile = load_pools_file(pools_path)
        self._processes = {
            spec.name: PoolProcess(
                pools_path, spec.name, host=(hosts or {}).get(spec.name, host), models=models, seed=seed
            )
            for spec in self.file.pools
        }

    def __getitem__(self, name: str) -> PoolProcess:
        return self._processes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._processes)

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def addresses(self) -> dict[str, list[Address]]:
        return {name: process.addresses for name, process in self._processes.items()}

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(process.start() for process in self._processes.values()))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes.values()))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
