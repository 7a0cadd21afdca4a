"""An Envoy inside another program: started as its child, given tables by call, asked for its counters.

    async with EmbeddedRouter(listen="127.0.0.1:8089", policy="chat") as router:
        result = await router.apply(table)
        scrape = await router.scrape()

It listens, and answers 503, before the first table; a table that is applied between `prepare` and `start`
is served from the first request on. If Envoy dies it is started again from its files.
"""

import asyncio
import contextlib
import ctypes
import logging
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from meritorder_api.table import PoolProblem, RoutingTable, TableSLA
from meritorder_router.agent.admin import Admin, Unreachable
from meritorder_router.agent.applier import Applied, Applier
from meritorder_router.agent.envoy import (
    DEFAULT_CONCURRENCY,
    NoEnvoy,
    Taken,
    envoy_command,
    find_envoy,
    refuse_taken,
    trusted_certificates,
)
from meritorder_router.agent.envoy_log import NAME
from meritorder_router.agent.scrape import Scrape, read
from meritorder_router.agent.validate import Refused, check_order
from meritorder_router.agent.watch import Watcher
from meritorder_router.render.files import render_bootstrap
from meritorder_router.render.place import BOOTSTRAP, Address, Place

log = logging.getLogger("meritorder.router")

START_SECONDS = 15.0


class CannotStart(Exception):
    """Envoy could not be started; the sentence says why."""


def _die_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return ask


class EmbeddedRouter:
    """One Envoy with its files in a directory of its own (a temporary one unless given)."""

    def __init__(
        self,
        *,
        listen: Address | str,
        metrics: Address | str | None = None,
        policy: str = "",
        sla: TableSLA | None = None,
        directory: Path | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        envoy: str | None = None,
        keys: Path | None = None,
    ) -> None:
        """`sla` chooses the bounds of the histograms that are fixed at the start; tables may have another."""
        self._listen = Address.parse(listen) if isinstance(listen, str) else listen
        self._metrics = Address.parse(metrics) if isinstance(metrics, str) else metrics
        self._policy = policy
        self._sla = sla
        self._given = directory
        self._concurrency = concurrency
        self._binary = envoy
        self._keys = keys
        self._applier: Applier | None = None
        self._watcher: Watcher | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._directory: Path | None = None
        self._found = ""
        self._starts = 0
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its `base_url`."""
        return f"http://{self._listen.local}/v1"

    @property
    def metrics_address(self) -> Address | None:
        """Where `/metrics` is served, if anywhere."""
        return self._metrics

    @property
    def dead(self) -> frozenset[str]:
        """Pools that are passed over now, since none of their endpoints is well."""
        return self._running().dead

    @property
    def problems(self) -> Mapping[str, PoolProblem]:
        """By pool: why nothing is sent there, as far as it is known."""
        if self._watcher is not None:
            return self._watcher.problems
        return self._running().mounted.lacking

    @property
    def place(self) -> Place:
        """Where Envoy's files and sockets are."""
        return self._running().place

    @property
    def table(self) -> RoutingTable | None:
        """The table in force."""
        return self._applier.current if self._applier is not None else None

    @property
    def pid(self) -> int | None:
        """Envoy's process, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def admin(self) -> Admin:
        return self._running().admin

    def _running(self) -> Applier:
        if self._applier is None:
            raise RuntimeError("the router is not started")
        return self._applier

    def prepare(self) -> None:
        """Make everything ready but Envoy itself, so that a table can be applied before it listens;
        CannotStart says why it never would.
        """
        try:
            self._found = find_envoy(self._binary)
        except NoEnvoy as error:
            raise CannotStart(str(error)) from None
        for address in (self._listen, self._metrics):
            if address is not None:
                try:
                    refuse_taken(address)
                except Taken as error:
                    raise CannotStart(str(error)) from None
        self._directory = self._given or Path(tempfile.mkdtemp(prefix="meritorder-"))
        place = Place(
            directory=PurePosixPath(self._directory),
            listen=self._listen,
            metrics=self._metrics,
            policy=self._policy,
            keys=PurePosixPath(self._keys) if self._keys is not None else None,
            trust=trusted_certificates(),
        )
        self._applier = Applier(place)
        self._applier.prepare()

    async def start(self) -> None:
        """Start Envoy and wait until it listens; CannotStart says why it does not."""
        if self._applier is None:
            self.prepare()
        applier, directory = self._running(), self._directory or Path()
        sla = applier.current.sla if applier.current is not None else self._sla
        (directory / BOOTSTRAP).write_bytes(render_bootstrap(applier.place, sla))
        command = envoy_command(self._found, directory, concurrency=self._concurrency)
        self._stopping = False
        try:
            await self._spawn(command)
            if not await applier.admin.wait_live(START_SECONDS):
                raise CannotStart(
                    f"Envoy did not start within {START_SECONDS:g} s; its log: {self.log_tail()}"
                )
            refused = await applier.confirm()
            if refused is not None:
                raise CannotStart(f"Envoy refuses the routing table: {refused}")
            await applier.touch()
        except BaseException:
            await self.stop()
            raise
        self._watcher = Watcher(applier, chance=random.Random())
        self._tasks = [
            asyncio.create_task(self._keep(command), name="envoy-keeper"),
            asyncio.create_task(self._watcher.run(), name="envoy-watcher"),
        ]

    def _log_path(self) -> Path:
        return (self._directory or Path()) / NAME

    def log_tail(self) -> str:
        """The last lines that Envoy wrote, of this start and of those before it."""
        with contextlib.suppress(FileNotFoundError):
            return " | ".join(self._log_path().read_text(errors="replace").splitlines()[-5:])
        return "(none)"

    async def _spawn(self, command: list[str]) -> None:
        with self._log_path().open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )
        self._starts += 1

    async def _keep(self, command: list[str]) -> None:
        """Start Envoy again whenever it ends by itself."""
        delay = 0.02
        loop = asyncio.get_running_loop()
        while self._process is not None:
            began = loop.time()
            code = await self._process.wait()
            if self._stopping:
                return
            log.warning("Envoy ended with %s; starting it again", code)
            if loop.time() - began > 10:
                delay = 0.02
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)
            await self._spawn(command)

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """End Envoy; with a grace time, what is in flight is waited for that long."""
        self._stopping = True
        applier, self._applier = self._applier, None
        process, self._process = self._process, self._process
        if applier is not None and process is not None and process.returncode is None and grace_seconds > 0:
            await drain(applier.admin, grace_seconds)
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if applier is not None:
            await applier.close()
        if self._directory is not None and self._given is None:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def apply(self, table: RoutingTable) -> Applied | Refused:
        """Bring a table into force, or have Envoy start with it; an older sequence of the same policy is
        refused.
        """
        applier = self._running()
        checked = check_order(table if table.table_revision else table.seal(), applier.current)
        return checked if isinstance(checked, Refused) else await applier.apply(checked)

    async def scrape(self) -> Scrape | None:
        """What Envoy counted so far; None while it does not answer."""
        epoch = self._starts
        try:
            text = await self._running().admin.prometheus()
        except Unreachable:
            return None
        return read(text, epoch=epoch) if epoch == self._starts else None


async def drain(admin: Admin, grace_seconds: float) -> bool:
    """Fail readiness, let clients go, and wait until no request is in flight; False if some still are."""
    loop = asyncio.get_running_loop()
    end = loop.time() + grace_seconds
    stat = "http.data.downstream_rq_active"
    try:
        await admin.fail_readiness()
        await admin.drain_listeners()
        while True:
            active = (await admin.stats(f"^{stat}$".replace(".", r"\."))).get(stat, 0)
            if int(active) == 0:
                return True
            if loop.time() >= end:
                return False
            await asyncio.sleep(0.1)
    except Unreachable:
        return True


__all__ = ["Applied", "CannotStart", "EmbeddedRouter", "Refused", "drain"]
