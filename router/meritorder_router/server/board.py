"""What each agent should have now: the table per agent, kept ready and renewed on every change that matters.

A view of a policy is computed when someone asks and thrown away when something under it changes: the
policy, a backend, an agent. Waiting agents are woken at once by a changed policy or backend, within 20 ms
(many reports at once are one change) by an agent's, and loads are looked at once a second.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from meritorder_api.resource import InferencePolicy
from meritorder_api.table import Fill, RoutingTable
from meritorder_router.server.backends import Resolved, resolve
from meritorder_router.server.cluster import Cluster, Key
from meritorder_router.server.register import Known, Register, healthy_hosts
from meritorder_router.slices import PoolLimit, PoolSlice, Shares, share_out
from meritorder_router.table import build, limits

log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.02
ROUND_SECONDS: Final = 1.0
MOST_TABLES: Final = 4096
SETTLE_SECONDS: Final = 5.0
"""So long after its start a server waits for the agents that it has not heard of yet."""


@dataclass(slots=True, kw_only=True)
class View:
    """A policy with everything that its agents' tables are made of."""

    policy: InferencePolicy
    resolved: Resolved
    limits: tuple[PoolLimit, ...]
    shares: Shares
    agents: Sequence[Known]
    silent: frozenset[str]
    """UIDs of the agents that were silent when this was computed."""
    missing: int
    """Agents that were there before this server started and that it has not heard of yet."""
    tables: dict[tuple[object, ...], RoutingTable | None] = field(default_factory=dict)
    """Tables by slices: agents with equal slices have equal tables."""

    def table(self, uid: str) -> RoutingTable | None:
        """The table of an agent; None while nothing is routed."""
        slices: Mapping[str, PoolSlice] = self.shares.slices.get(uid, {})
        key = (self.shares.fill, *sorted(slices.items(), key=lambda item: item[0]))
        if key not in self.tables:
            if len(self.tables) >= MOST_TABLES:
                self.tables.clear()
            self.tables[key] = build(
                self.policy, self.resolved.backends, fill=self.shares.fill, slices=slices
            )
        return self.tables[key]


class Board:
    """The views of all policies, and who waits for a change of them."""

    def __init__(
        self, *, clock: Callable[[], float], now: Callable[[], float], allowed_hosts: Sequence[str]
    ) -> None:
        """`clock` stands still while the server does not know how things are, `now` is monotonic."""
        self._clock = clock
        self._now = now
        self._allowed_hosts = allowed_hosts
        self._views: dict[Key, View] = {}
        self._stale: dict[Key, View] = {}
        self._waiting: dict[Key, asyncio.Event] = {}
        self._gathering: set[Key] = set()
        self.cluster = Cluster(on_policy=self.changed, on_service=self._service_changed)
        self.register = Register(clock=clock, on_change=self._agents_changed)
        self.changed_at: dict[Key, float] = {}
        self.waiting = 0
        """Questions that wait for a change."""

    def view(self, key: Key) -> View | None:
        """The policy's view; None when there is no such policy that could ever be read."""
        view = self._views.get(key)
        if view is None:
            view = self._look(key, self._stale.pop(key, None))
            if view is not None:
                self._views[key] = view
        return view

    async def wait(self, key: Key, seconds: float) -> None:
        """Wait for a change of the policy's view, at most so long."""
        event = self._waiting.setdefault(key, asyncio.Event())
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self.waiting -= 1

    def changed(self, key: Key) -> None:
        """The policy changed, or something under it: wake who waits for it."""
        view = self._views.pop(key, None)
        if view is not None:
            self._stale[key] = view
        self.changed_at[key] = self._now()
        if self.cluster.policy(key) is None:
            self._stale.pop(key, None)
            del self.changed_at[key]
        event = self._waiting.pop(key, None)
        if event is not None:
            event.set()

    def wake_all(self) -> None:
        """Wake everybody: tables may have come on or gone off."""
        for key in [*self._waiting]:
            self.changed(key)

    def round(self) -> None:
        """Look at the loads: renew what they change."""
        self.register.drop_lost_servers()
        for policy in self.cluster.policies():
            key = policy.metadata.namespace, policy.metadata.name
            view = self._views.get(key)
            if view is None:
                continue
            settled = view.missing and self._clock() >= SETTLE_SECONDS
            if settled or self._share(key, view.policy, view.limits) != view.shares:
                self.changed(key)

    async def rounds(self) -> None:
        """Look at the loads each second, for ever."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            self.round()

    def _service_changed(self, service: Key) -> None:
        namespace, name = service
        for policy in self.cluster.policies():
            if policy.metadata.namespace == namespace and any(
                pool.backend.service is not None and pool.backend.service.name == name
                for pool in policy.spec.pools
            ):
                self.changed((namespace, policy.metadata.name))

    def _agents_changed(self, key: Key) -> None:
        if key in self._gathering:
            return
        self._gathering.add(key)
        asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gathered, key)

    def _gathered(self, key: Key) -> None:
        self._gathering.discard(key)
        self.changed(key)

    def _look(self, key: Key, before: View | None) -> View | None:
        policy = self.cluster.policy(key)
        if policy is None:
            return None
        namespace = policy.metadata.namespace
        names = {pool.backend.service.name for pool in policy.spec.pools if pool.backend.service is not None}
        agents = self.register.of(key)
        silent = frozenset(known.identity.uid for known in agents if self.register.silent(known))
        resolved = resolve(
            policy.spec,
            services=self.cluster.services(namespace, names),
            endpoint_slices={name: self.cluster.slices(namespace, name) for name in names},
            healthy=healthy_hosts(known for known in agents if known.identity.uid not in silent),
            allowed_hosts=self._allowed_hosts,
        )
        all_limits = limits(policy, resolved.backends)
        view = View(
            policy=policy,
            resolved=resolved,
            limits=all_limits,
            shares=self._share(key, policy, all_limits),
            agents=agents,
            silent=silent,
            missing=self._missing(policy, len(agents) - len(silent)),
        )
        if before is not None and _same_tables(before, view):
            view.tables = before.tables
        return view

    def _share(self, key: Key, policy: InferencePolicy, all_limits: Sequence[PoolLimit]) -> Shares:
        agents = self.register.agents(key, policy.metadata.uid)
        programmed = policy.status.programmed
        missing = self._missing(policy, sum(not agent.silent for agent in agents))
        previous = Fill(programmed.fill) if programmed is not None and programmed.fill in list(Fill) else None
        return share_out(all_limits, agents, previous=previous, missing=missing)

    def _missing(self, policy: InferencePolicy, live: int) -> int:
        programmed = policy.status.programmed
        if programmed is None or self._clock() >= SETTLE_SECONDS:
            return 0
        return max(0, programmed.agents - programmed.silent - live)


def _same_tables(before: View, after: View) -> bool:
    """Whether equal slices give equal tables in both: nothing else that a table shows has changed."""
    return (
        before.policy.metadata.uid == after.policy.metadata.uid
        and before.policy.status.routing == after.policy.status.routing
        and before.policy.spec == after.policy.spec
        and before.resolved.backends == after.resolved.backends
    )
