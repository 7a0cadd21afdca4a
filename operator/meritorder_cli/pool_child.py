"""Simulated pools in a process of their own, so that their work does not slow down the loop that measures
them.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from meritorder_cli.backends import Place
from meritorder_cli.complaint import Complaint

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_IMPORT_ROOT = str(Path(__file__).resolve().parent.parent)

OnChange = Callable[[], None]


class PoolChild:
    """`meritorder pools serve` as a child that ends with its parent, whatever ends that one."""

    def __init__(self, pools_path: Path, names: Sequence[str], *, seed: int = 0) -> None:
        self._path = pools_path
        self._names = list(names)
        self._seed = seed
        self._on_change: OnChange | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._errors: list[str] = []
        self.places: dict[str, list[Place]] = {}

    async def __aenter__(self) -> Self:
        only = [part for name in self._names for part in ("--pool", name)]
        roots = [_IMPORT_ROOT, os.environ.get("PYTHONPATH", "")]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meritorder_sim", "--pools", str(self._path), "--exit-with-stdin"),
            *(*only, "--seed", str(self._seed)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))},
            # Ctrl-C goes to the whole foreground group; this child is to end after Envoy, not with it.
            start_new_session=True,
        )
        try:
            await self._listen(self._process)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def listen_to(self, on_change: OnChange) -> None:
        """Call `on_change` whenever the addresses of a pool have changed."""
        self._on_change = on_change

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self._tasks.append(asyncio.create_task(self._hear_errors(process)))
        try:
            async with asyncio.timeout(_START_SECONDS):
                while len(self.places) < len(self._names):
                    line = await process.stdout.readline()
                    if not line:
                        await self._tasks[0]
                        said = self._errors[-1] if self._errors else "it ended without a word"
                        raise Complaint(f"the simulated pools did not start: {said.removeprefix('Error: ')}")
                    self._learn(line)
        except TimeoutError as error:
            raise Complaint(f"the simulated pools did not start within {_START_SECONDS:.0f} s") from error
        self._tasks.append(asyncio.create_task(self._follow(process)))

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._learn(line)
            if self._on_change is not None:
                self._on_change()

    async def _hear_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self._errors.append(line.decode(errors="replace").strip())
            del self._errors[:-20]

    def _learn(self, line: bytes) -> None:
        said: Mapping[str, object] = json.loads(line)
        pool, endpoints = str(said["pool"]), said["endpoints"]
        assert isinstance(endpoints, list)
        self.places[pool] = [(str(one["address"]), int(one["port"])) for one in endpoints]

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if process.stdin is not None:
            process.stdin.close()
            with suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.wait_closed()
