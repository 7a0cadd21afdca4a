"""The agent process: keeps Envoy's files in step with the newest table that can be served, and reports.

Three tasks beside one another: `follow` the source, watch Envoy, `tell` the server. None of them stops for
the others' troubles: without a server, Envoy serves the last table; without an Envoy, tables are still
taken, and it starts with them.
"""

import asyncio
import logging
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meritorder_api.table import AgentReport, PoolSeen, RoutingTable, TablePolicy
from meritorder_router.agent.applier import Applier
from meritorder_router.agent.clients import Clients
from meritorder_router.agent.envoy import trusted_certificates
from meritorder_router.agent.sources import FileSource, Gone, ServerSource, Source, Unavailable
from meritorder_router.agent.telemetry import Telemetry
from meritorder_router.agent.validate import Refused, parse
from meritorder_router.agent.watch import LOOK_SECONDS, Watcher
from meritorder_router.render.place import Address, Place

log = logging.getLogger("meritorder.agent")

FIRST_TABLE_SECONDS = 1.0
"""How long Envoy's start waits for the first table, so that the histograms' bounds fit its target."""
AT_REST_SECONDS = 4.0
"""A report at least so often; a change is told within a second."""
RETRY_SECONDS = (0.2, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    state_dir: Path
    listen: Address
    metrics: Address | None
    policy: str
    namespace: str
    table: Path | None = None
    server_urls: tuple[str, ...] = ()
    token_file: Path | None = None
    ca_file: Path | None = None
    keys: Path | None = None
    clients: Path | None = None
    version: str = ""


def source_of(settings: Settings, chance: random.Random) -> Source:
    """The source that the settings name."""
    if settings.table is not None:
        return FileSource(settings.table)
    return ServerSource(
        settings.server_urls, token_file=settings.token_file, ca_file=settings.ca_file, chance=chance
    )


class Agent:
    """One agent: its applier, its source, and what it has to tell."""

    def __init__(self, settings: Settings, source: Source, *, chance: random.Random) -> None:
        self._settings = settings
        self._source = source
        self._chance = chance
        self._refused = Refused(reason="")
        self._changed = asyncio.Event()
        self._first = asyncio.Event()
        self._said: str | None = None
        place = Place(
            directory=PurePosixPath(settings.state_dir),
            listen=settings.listen,
            metrics=settings.metrics,
            policy=settings.policy,
            keys=PurePosixPath(settings.keys) if settings.keys is not None else None,
            clients=settings.clients is not None,
            trust=trusted_certificates(),
        )
        self.applier = Applier(place)
        self.clients = (
            Clients(settings.clients, Path(place.clients_file)) if settings.clients is not None else None
        )
        self.watcher = Watcher(self.applier, chance=chance, changed=self._changed.set)
        self.telemetry = Telemetry(settings.policy)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        self.applier.prepare()
        if self.clients is not None:
            self.clients.look()
        if self.applier.current is not None:
            self._in_force(self.applier.current)
        await self.telemetry.serve(self.applier.place.agent_socket)
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [
                    tasks.create_task(self._follow(), name="follow"),
                    tasks.create_task(self._start_envoy(), name="start"),
                    tasks.create_task(self.watcher.run(), name="watch"),
                    tasks.create_task(self._tell(), name="tell"),
                ]
                if self.clients is not None:
                    work.append(tasks.create_task(self.clients.run(), name="clients"))
                await stop.wait()
                for task in work:
                    task.cancel()
        finally:
            await self.telemetry.close()
            await self.applier.close()
            await self._source.close()

    async def _start_envoy(self) -> None:
        """Write the bootstrap: the supervisor starts Envoy as soon as there is one."""
        try:
            async with asyncio.timeout(FIRST_TABLE_SECONDS):
                await self._first.wait()
        except TimeoutError:
            log.info("no table yet; Envoy starts and answers 503 until there is one")
        self.applier.write_bootstrap()

    def _say(self, level: int, sentence: str) -> None:
        """Log what is news."""
        if sentence != self._said:
            self._said = sentence
            log.log(level, sentence)

    async def _follow(self) -> None:
        least, most = RETRY_SECONDS
        delay = least
        skipped = ""
        while True:
            current = self.applier.current
            # A refused table is not asked for at once again; only after a wait in which no other one came.
            revision = skipped or (current.table_revision if current is not None else "")
            skipped = ""
            try:
                if current is None:
                    found = await self._source.next(revision)
                else:
                    found = await self._source.next(
                        revision, uid=current.policy.uid, sequence=current.sequence
                    )
            except Unavailable as error:
                self._say(logging.WARNING, f"no table to be had, serving on: {error}")
            except Gone as gone:
                self.telemetry.contact = time.time()
                self._say(logging.WARNING, f"{gone}; the last table is kept")
                self._refuse(Refused(reason=f"PolicyGone: {gone}"[:300]))
            else:
                self.telemetry.contact = time.time()
                if found is None or await self._take(found.content):
                    delay = least
                    self._clear_refusal()
                else:
                    skipped = self._refused.revision
                    if not skipped:
                        # Whoever gave it cannot be told that it is not wanted, and gives it at once again.
                        await self._pause(delay)
                        delay = min(delay * 2, most)
                continue
            await self._pause(delay)
            delay = min(delay * 2, most)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._chance.uniform(0.5, 1.5))

    async def _take(self, content: bytes) -> bool:
        table = parse(content, current=self.applier.current)
        if isinstance(table, Refused):
            self._refuse(table)
            return False
        result = await self.applier.apply(table)
        if isinstance(result, Refused):
            self._refuse(result)
            return False
        if result.changed:
            self.telemetry.applied += 1
            limits = ", ".join(
                f"{pool.name}={'unlimited' if pool.limit is None else pool.limit}" for pool in table.pools
            )
            self._said = None
            log.info("table in force: sequence %d, limits %s", table.sequence, limits)
        self._in_force(table)
        return True

    def _in_force(self, table: RoutingTable) -> None:
        self.telemetry.in_force(table)
        self._first.set()
        self._changed.set()

    def _refuse(self, refused: Refused) -> None:
        if refused != self._refused:
            self._refused = refused
            self.telemetry.refused += 1
            self._changed.set()
            if not refused.reason.startswith("PolicyGone"):
                log.error("table refused, the one before serves on: %s", refused.reason)

    def _clear_refusal(self) -> None:
        if self._refused.reason:
            self._refused = Refused(reason="")
            self._changed.set()

    def report(self) -> AgentReport:
        """What the server is told."""
        table = self.applier.current
        policy = (
            table.policy
            if table is not None
            else TablePolicy(namespace=self._settings.namespace, name=self._settings.policy, uid="")
        )
        refused = self._refused
        lacking = self.applier.mounted.lacking
        code = ""
        if table is not None and lacking and not refused.reason:
            # The table is in force, without these pools.
            first = min(lacking)
            code = lacking[first].reason
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            sentence = f"{code}: pool `{first}`: {lacking[first].message}{more}"
            refused = Refused(reason=sentence, revision=table.table_revision)
        return AgentReport(
            agent_version=self._settings.version,
            policy=policy,
            applied_sequence=table.sequence if table is not None else -1,
            applied_revision=table.table_revision if table is not None else "",
            refused_revision=refused.revision,
            refused_reason=refused.reason,
            refused_code=code,
            offered_load=self.watcher.load.offered(),
            pools=self._pools(table) if table is not None else {},
        )

    def _pools(self, table: RoutingTable) -> dict[str, PoolSeen]:
        problems = self.watcher.problems
        return {
            name: seen.model_copy(update={"problem": problems.get(name)})
            for name, seen in self.watcher.load.pools(table).items()
        }

    async def _tell(self) -> None:
        """Report a change soon, and otherwise every few seconds; never more than about once a second."""
        last: AgentReport | None = None
        quiet = 0.0
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                quiet += LOOK_SECONDS
            self._changed.clear()
            report = self.report()
            if report == last and quiet < AT_REST_SECONDS:
                continue
            try:
                await self._source.report(report)
                last, quiet = report, 0.0
            except Unavailable as error:
                self._say(logging.WARNING, f"not reported: {error}")
                await self._pause(1.0)
            await asyncio.sleep(0.1)


async def run(settings: Settings) -> None:
    """Run an agent until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    chance = random.Random()
    await Agent(settings, source_of(settings, chance), chance=chance).run(stop)
