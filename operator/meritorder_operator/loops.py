"""One loop per policy: our own tasks, fed by what is seen of the objects, each at its own moment of the
interval.

Metrics are asked for on a grid shared by all policies of a server, so that one batch of queries serves them
all. A loop begins a moment after the grid, spread over part of the interval by the hash of its name: few
policies decide as soon as figures are there, many do not crowd.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from meritorder_api.policy import InferencePolicySpec
from meritorder_operator.cluster import Cluster, ClusterError, LeaseLost
from meritorder_operator.prometheus.feed import LAG_SECONDS
from meritorder_operator.reconcile import Reconciler
from meritorder_operator.telemetry import Durations
from meritorder_operator.view import Manifest, PolicyView

log = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 300.0
"""All policies are listed this often: a deletion that no watch told of is found so."""
SPREAD_SECONDS_EACH: Final = 0.02
SPREAD_MOST: Final = 0.8
"""Of the interval."""
TOGETHER: Final = 16
"""Passes that are made one right after the other: a pass alone finds the processor's caches full of other
programs' work and takes nearly twice as long."""
AFTER_GRID_SECONDS: Final = 0.02
SLOWEST_RETRY_SECONDS: Final = 30.0
IDLE_INTERVAL_SECONDS: Final = 30.0
"""How often a policy is looked at whose spec is not acted on."""
STUCK_SECONDS: Final = 60.0
STUCK_INTERVALS: Final = 10
"""Without a pass of any policy for so long, something hangs that will not come back by itself."""


class Loops:
    """The running loops, by policy."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        namespaces: tuple[str, ...],
        forget: Callable[[str], None],
        durations: Durations,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._namespaces = namespaces
        self._forget = forget
        self._durations = durations
        self._clock = clock
        self._wall = wall
        self._passed_at = -math.inf
        """When a pass of any policy last ended, well or not; on the clock."""
        self._views: dict[tuple[str, str], PolicyView] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] | None = None
        self._reconciler: Reconciler | None = None
        self.changes = 0
        """Grows whenever a policy comes, goes or has its spec edited."""

    def begin(self, reconciler: Reconciler) -> None:
        """Say who does the passes; must precede everything that is seen."""
        self._reconciler = reconciler
        self._failed = asyncio.get_running_loop().create_future()

    def stuck(self) -> str | None:
        """A sentence if policies are there and none of them has had a pass for too long; else None."""
        if not self._views:
            return None
        shortest = min(interval_of(view) for view in self._views.values())
        allowed = max(STUCK_SECONDS, STUCK_INTERVALS * shortest)
        past = self._clock() - self._passed_at
        if past <= allowed:
            return None
        return f"no policy has had a pass for {past:.0f} s; there must be one within {allowed:.0f} s"

    @property
    def views(self) -> list[PolicyView]:
        """All policies that are there."""
        return list(self._views.values())

    def saw(self, kind: str | None, manifest: Manifest) -> None:
        """See an object: `kind` is that of the watch event, None for one from a list."""
        metadata = manifest["metadata"]
        place = (str(metadata["namespace"]), str(metadata["name"]))
        if kind == "DELETED":
            self._drop(place, uid=str(metadata.get("uid", "")))
            return
        view = self._views.get(place)
        if view is not None:
            before = (view.uid, view.generation)
            view.take(manifest)
            self.changes += before != (view.uid, view.generation)
            return
        self.changes += 1
        if not self._views:
            self._passed_at = self._clock()  # from here on, passes are due
        view = self._views[place] = PolicyView(manifest)
        self._tasks[place] = asyncio.create_task(self._run(view), name=f"policy {view.key}")
        self._tasks[place].add_done_callback(self._ended)

    def _drop(self, place: tuple[str, str], uid: str | None = None) -> None:
        view = self._views.get(place)
        if view is None or (uid is not None and uid != view.uid):
            return
        view.gone = True
        self.changes += 1
        del self._views[place]
        self._forget(view.key)
        task = self._tasks.pop(place, None)
        if task is not None:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._failed is None or self._failed.done():
            return
        error = task.exception()
        if error is not None:
            self._failed.set_exception(error)

    async def run(self) -> None:
        """List all policies again from time to time, for ever; raises what ended a loop."""
        assert self._failed is not None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._failed), RESYNC_SECONDS)
            try:
                self.resync(await self._cluster.policies(self._namespaces))
            except ClusterError as error:
                log.warning("policies could not be listed: %s", error)

    def resync(self, manifests: Iterable[Manifest]) -> None:
        """See all that are there; drop what is not among them."""
        present: set[tuple[str, str]] = set()
        for manifest in manifests:
            present.add((manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
            self.saw(None, manifest)
        for place in [place for place in self._views if place not in present]:
            self._drop(place)

    async def stop(self) -> None:
        """End all loops; a write that is under way is waited for no longer than it takes to cancel it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, view: PolicyView) -> None:
        assert self._reconciler is not None
        failures = 0
        while not view.gone:
            view.wake.clear()
            at_once = False
            try:
                with self._durations.reconcile.time():
                    at_once = await self._reconciler.reconcile(view)
                failures = 0
            except LeaseLost:
                raise
            except ClusterError as error:
                failures += 1
                log.warning("%s: not written, tried again: %s", view.key, error)
            except Exception as error:
                failures += 1
                # The same again is one line: a fault in one policy must not drown what the others say.
                log.error("%s: the pass failed: %r", view.key, error, exc_info=failures == 1)
            self._passed_at = self._clock()
            if view.gone:
                break
            if not at_once or failures:
                await self._wait(view, failures)
        self._drop((view.namespace, view.name), uid=view.uid)

    async def _wait(self, view: PolicyView, failures: int) -> None:
        delay = until_next(self._wall(), interval_of(view), view.key, len(self._views))
        if failures:
            delay = min(SLOWEST_RETRY_SECONDS, max(delay, 0.5 * 2 ** min(failures, 8)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(view.wake.wait(), delay)


def interval_of(view: PolicyView) -> float:
    """Seconds between a policy's passes."""
    spec = view.spec
    if isinstance(spec, InferencePolicySpec):
        return float(spec.behavior.interval_seconds)
    return IDLE_INTERVAL_SECONDS


def until_next(now: float, interval: float, key: str, policies: int) -> float:
    """Seconds until a policy's next pass, at the same moment of each interval."""
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) / 2**32
    spread = min(interval * SPREAD_MOST, SPREAD_SECONDS_EACH * policies)
    groups = max(1, policies // TOGETHER)
    moment = LAG_SECONDS + AFTER_GRID_SECONDS + math.floor(share * groups) / groups * spread
    grid = math.floor((now - moment) / interval) * interval + moment
    following = grid + interval
    # A pass that ended just before its moment has had its figures already.
    return following - now if following - now > interval * 0.1 else following + interval - now


class Sharing:
    """Which policies name one and the same Service."""

    def __init__(self, loops: Callable[[], Loops]) -> None:
        self._loops = loops
        self._seen = -1
        self._users: dict[tuple[str, str, int], list[str]] = {}
        self._said: dict[str, str | None] = {}

    def of(self, view: PolicyView) -> str | None:
        """A sentence naming the first Service that another policy names too; None where there is none."""
        self._refresh()
        if view.key not in self._said:
            self._said[view.key] = self._look(view)
        return self._said[view.key]

    def _look(self, view: PolicyView) -> str | None:
        spec = view.spec
        if not isinstance(spec, InferencePolicySpec):
            return None
        for service in _services(view, spec):
            others = [user for user in self._users.get(service, ()) if user != view.name]
            if others:
                return (
                    f"Service `{service[1]}` is named by policy `{others[0]}` too: each fills it without "
                    "knowing of the other; name it in one policy only"
                )
        return None

    def _refresh(self) -> None:
        loops = self._loops()
        if loops.changes == self._seen:
            return
        self._seen = loops.changes
        self._said = {}
        users: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for view in loops.views:
            spec = view.spec
            if isinstance(spec, InferencePolicySpec):
                for service in _services(view, spec):
                    users[service].append(view.name)
        self._users = {service: sorted(set(listed)) for service, listed in users.items()}


def _services(view: PolicyView, spec: InferencePolicySpec) -> Iterator[tuple[str, str, int]]:
    for pool in spec.pools:
        service: Any = pool.backend.service
        if service is not None:
            yield view.namespace, service.name, service.port
