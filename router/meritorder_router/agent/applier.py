"""Bringing a table into force: files are replaced in an order in which each refers only to what Envoy
already has.

New pools first (endpoints, then clusters, and a wait until Envoy has them), then the routes that use them,
then the removal of clusters that nothing refers to any more. What Envoy rejects is taken back: the files are
then those of the table before, so that a restart finds the last good thing.

A cluster is removed only once every worker thread of Envoy has it. In Envoy 1.40 a worker that is told of a
new composite cluster still reads the main thread's object of it: removed before that, it is gone, and Envoy
dies of a segmentation fault (`docs/design/007-workers-first.md`).
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import httpx

from meritorder_api.table import RoutingTable
from meritorder_router.agent.admin import Admin, Unreachable
from meritorder_router.agent.envoy_log import FLUSH_MILLISECONDS, EnvoyLog
from meritorder_router.agent.inotify import room_for
from meritorder_router.agent.mounted import Mounted
from meritorder_router.agent.mounted import look as look_at_mounted
from meritorder_router.agent.validate import Refused, parse
from meritorder_router.render.files import (
    CDS,
    EGRESS,
    RDS,
    RTDS,
    EnvoyFiles,
    render,
    render_bootstrap,
    render_empty,
)
from meritorder_router.render.loggers import POOL_HEADER
from meritorder_router.render.place import BOOTSTRAP, Place

log = logging.getLogger("meritorder.agent")

LAST_GOOD = "last-good.json"
ENDED_SECONDS = 5.0
"""An Envoy that is started again answers within a second, unless it ends over its files each time."""
ENDED = "Envoy ended with this table and did not come up again; it runs with the table before"

_VERSION_STATS: Mapping[str, str] = {
    CDS: "cluster_manager.cds",
    RDS: "http.data.rds.routes",
    EGRESS: "http.egress.rds.egress",
    RTDS: "runtime",
}
_WATCHED = (
    r"(cluster_manager\.cds|rds\.[a-z]+|^runtime)\.(version_text|update_rejected|update_failure)"
    r"|warming_clusters|active_clusters|clusters_inflated|^server\.uptime"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A table in force."""

    table: RoutingTable
    changed: bool = True
    """False where Envoy had all of it already."""


def _workers_have_all(seen: Mapping[str, int | str]) -> bool:
    """Whether every thread has as many clusters as there are.

    Clusters are only added until this is so, and only then removed: equal numbers are equal sets.
    """
    there = int(seen.get("cluster_manager.active_clusters", 0))
    return all(int(count) == there for name, count in seen.items() if name.endswith(".clusters_inflated"))


def replace_file(path: Path, content: bytes) -> bool:
    """Put content in a file's place at once; False if it is there already."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return False
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
    os.replace(temporary, path)
    return True


def _union(old: bytes, new: bytes) -> bytes:
    """The new clusters, and those old ones that are not among them."""
    before, after = json.loads(old)["resources"], json.loads(new)
    names = {cluster["name"] for cluster in after["resources"]}
    gone = [cluster for cluster in before if cluster["name"] not in names]
    if not gone:
        return new
    version = after["version_info"] + "-and-" + json.loads(old)["version_info"]
    return json.dumps(
        {"version_info": version[:64], "resources": [*after["resources"], *gone]},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def _more_watched(old: bytes | None, new: bytes) -> int:
    """How many more files Envoy will watch: one per cluster that has its endpoints in a file."""

    def names(cds: bytes) -> set[str]:
        return {cluster["name"] for cluster in json.loads(cds)["resources"] if cluster.get("type") == "EDS"}

    return len(names(new) - (names(old) if old is not None else set()))


class Applier:
    """Keeps one Envoy's files in step with the table in force."""

    def __init__(
        self,
        place: Place,
        *,
        wait_seconds: float = 10.0,
    ) -> None:
        self.place = place
        self.current: RoutingTable | None = None
        self.dead: frozenset[str] = frozenset()
        """Pools that are passed over: no endpoint is well, or what they need is not mounted."""
        self.mounted = Mounted()
        self.admin = Admin(place.admin_socket)
        self._touch = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=place.touch_socket), base_url="http://envoy", timeout=2
        )
        self._directory = Path(place.directory)
        self.log = EnvoyLog(self._directory)
        self._wait_seconds = wait_seconds
        self._lock = asyncio.Lock()
        self._touched: set[str] = set()
        self._seen: Mapping[str, int | str] = {}
        self._fatal: set[str] = set()
        """Revisions of tables with which Envoy ended and did not come up: they are not tried again."""

    async def close(self) -> None:
        await self.admin.close()
        await self._touch.aclose()

    def prepare(self) -> None:
        """Make the directory fit for an Envoy to start: with the last good table, else with none."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log.skip()
        last = self._read(LAST_GOOD)
        if last is not None:
            table = parse(last)
            if isinstance(table, Refused):
                log.warning(f"the last table kept on disk is refused: {table.reason}")
            elif table.seal().table_revision == table.table_revision:
                self.current = table
            else:
                # An agent of another version kept it, without fields that it did not know: it serves, and is
                # asked for again.
                self.current = table.model_copy(update={"table_revision": ""})
        if self.current is None:
            files = render_empty(self.place)
        else:
            self.mounted = look_at_mounted(self.place.keys, self.current, self.mounted)
            self.dead = frozenset(self.mounted.lacking)
            files = self._render(self.current, self.dead, self.mounted)
        for name, content in files.all().items():
            replace_file(self._directory / name, content)
        self._forget_endpoints(files)

    def write_bootstrap(self) -> None:
        """Write what Envoy is started with; it takes effect with Envoy's next start."""
        sla = self.current.sla if self.current is not None else None
        replace_file(self._directory / BOOTSTRAP, render_bootstrap(self.place, sla))

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes) -> bool:
        return replace_file(self._directory / name, content)

    def _forget_endpoints(self, files: EnvoyFiles) -> None:
        for path in self._directory.glob("eds.*.json"):
            if path.name not in files.endpoints:
                path.unlink(missing_ok=True)

    async def apply(self, table: RoutingTable) -> Applied | Refused:
        """Bring a table into force, whether Envoy runs (it is waited for) or not (it will start with it)."""
        async with self._lock:
            if self.current is not None and table.table_revision == self.current.table_revision:
                return Applied(table=table, changed=False)
            if table.table_revision in self._fatal:
                return Refused(reason=ENDED, revision=table.table_revision, sequence=table.sequence)
            mounted = look_at_mounted(self.place.keys, table, self.mounted)
            # What was only not mounted may be well: it is for the next look to say.
            ill = (self.dead - self.mounted.lacking.keys()) & {pool.name for pool in table.pools}
            dead = ill | mounted.lacking.keys()
            refused = await self._switch(self._render(table, dead, mounted))
            if refused is not None:
                if refused == ENDED:
                    self._fatal.add(table.table_revision)
                return Refused(reason=refused, revision=table.table_revision, sequence=table.sequence)
            self.current, self.dead, self.mounted = table, dead, mounted
            self._write(LAST_GOOD, table.to_json())
            await self.touch()
            return Applied(table=table)

    def _render(self, table: RoutingTable, dead: Set[str], mounted: Mounted) -> EnvoyFiles:
        return render(self.place, table, dead=dead, authorities=mounted.authorities)

    async def mark_dead(self, ill: Set[str]) -> bool:
        """Pass over pools without a healthy endpoint, and those that lack what must be mounted, until they
        have it again; False if nothing is new.
        """
        async with self._lock:
            if self.current is None:
                return False
            mounted = look_at_mounted(self.place.keys, self.current, self.mounted)
            dead = frozenset(ill | mounted.lacking.keys())
            if dead == self.dead and mounted == self.mounted:
                return False
            if await self._switch(self._render(self.current, dead, mounted)) is not None:
                return False
            self.dead, self.mounted = dead, mounted
            return True

    async def _switch(self, files: EnvoyFiles) -> str | None:
        """Replace the files; return why Envoy refused them, after putting the old ones back."""
        before = {name: self._read(name) for name in files.all()}
        old_cds = before[CDS]
        first_cds = files.cds if old_cds is None else _union(old_cds, files.cds)
        if first_cds != old_cds and not room_for(more := _more_watched(old_cds, first_cds)):
            return (
                f"Envoy would have to watch {more} more files, and its user's inotify instances are used up "
                "on this node; raise fs.inotify.max_user_instances there"
            )
        for name, content in files.endpoints.items():
            self._write(name, content)
        reason: str | None = None
        if first_cds != old_cds:
            reason = await self._step({CDS: first_cds})
        if reason is None:
            reason = await self._step({EGRESS: files.egress, RTDS: files.rtds, RDS: files.rds})
        if reason is None and first_cds != files.cds:
            if not await self._reach_workers():
                log.warning("Envoy's workers are late; what is needed no more goes with a later change")
                return None
            reason = await self._step({CDS: files.cds})
        if reason is None:
            self._forget_endpoints(files)
            return None
        await self._reach_workers()
        for name in (RDS, RTDS, EGRESS, CDS, *files.endpoints):
            old = before[name]
            if old is not None:
                self._write(name, old)
            elif name in files.endpoints:
                (self._directory / name).unlink(missing_ok=True)
        return reason

    async def _step(self, contents: Mapping[str, bytes]) -> str | None:
        """Replace some files and wait until Envoy has taken them; return why it has not."""
        self.log.rejected = None
        written = {name for name, content in contents.items() if self._write(name, content)}
        if not written:
            return None
        return await self._taken({name: json.loads(contents[name])["version_info"] for name in written})

    async def confirm(self) -> str | None:
        """Wait until an Envoy that was just started has what its files say; return why it has not."""
        async with self._lock:
            if self.current is None:
                return None
            versions = self._render(self.current, self.dead, self.mounted).versions
            return await self._taken({name: versions[name] for name in _VERSION_STATS})

    async def _taken(self, wanted: Mapping[str, str]) -> str | None:
        """Wait until Envoy has these versions of its files; return why it has not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_seconds
        pause = 0.002
        gone_at: float | None = None
        while True:
            try:
                seen = await self.admin.stats(_WATCHED)
            except Unreachable:
                if not self._seen:
                    return None  # It does not run yet: it starts from these files.
                # It ended just now, or over these files: it is started again, and shows which.
                gone_at = loop.time() if gone_at is None else gone_at
                if loop.time() - gone_at >= ENDED_SECONDS:
                    return ENDED
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.05)
                continue
            before, self._seen = self._seen, seen
            if int(seen.get("server.uptime", 0)) < int(before.get("server.uptime", 0)):
                before = {}  # Another process: its counters began at 0.
            late = [n for n in wanted if seen.get(f"{_VERSION_STATS[n]}.version_text") != wanted[n]]
            for name in late:
                for stat in (
                    f"{_VERSION_STATS[name]}.update_rejected",
                    f"{_VERSION_STATS[name]}.update_failure",
                ):
                    if int(seen.get(stat, 0)) > int(before.get(stat, 0)):
                        return f"Envoy rejected {name}: {await self._why()}"
            ready = not int(seen.get("cluster_manager.warming_clusters", 0)) and _workers_have_all(seen)
            if not late and (ready or CDS not in wanted):
                return None
            if loop.time() >= end:
                if late:
                    return f"Envoy has not taken {', '.join(sorted(late))} within {self._wait_seconds:g} s"
                log.warning("some clusters are not ready yet; going on")
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    async def _reach_workers(self) -> bool:
        """Wait until all workers have all clusters; False if they do not in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_seconds
        while True:
            try:
                if _workers_have_all(await self.admin.stats(_WATCHED)):
                    return True
            except Unreachable:
                return True  # There are no workers.
            if loop.time() >= end:
                return False
            await asyncio.sleep(0.01)

    async def _why(self) -> str:
        """What Envoy's log says about the rejection just seen; it comes there a moment later."""
        for _ in range(20):
            self.log.pass_on()
            if self.log.rejected is not None:
                return self.log.rejected
            await asyncio.sleep(2 * FLUSH_MILLISECONDS / 1000 / 20)
        return "Envoy's log says why"

    async def touch(self, *, anew: bool = False) -> None:
        """Bring the series of all pools into being, at 0, so that the first requests are an increase.

        `anew`: this Envoy was just started, and has none of them.
        """
        if anew:
            self._touched.clear()
        if self.current is None:
            return
        try:
            for pool in self.current.pools:
                if pool.name not in self._touched:
                    await self._touch.get("/", headers={POOL_HEADER: pool.name})
                    self._touched.add(pool.name)
        except (httpx.TransportError, OSError) as error:
            # It does not run (yet); whoever starts it, or sees it again, asks anew.
            log.debug("the series of the pools could not be prepared: %r", error)
