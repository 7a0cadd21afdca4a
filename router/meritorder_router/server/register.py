"""The agents as this server knows them: by what they say to it, and by what other servers pass on.

One agent per pod UID. Of each the newest report counts, whoever heard it. Times are seconds of the clock
that stands still while this server does not know how things are (`health`).

What an agent *holds* of a pool's limit is the largest of: the slice that it reported, the slices in tables
handed to it that it has not acknowledged, and what other servers say they promised it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

from meritorder_api.table import AgentReport, PeerReport, PoolSeen, RoutingTable, TablePolicy
from meritorder_router.server.auth import AgentIdentity
from meritorder_router.server.cluster import Key
from meritorder_router.slices import Agent

SILENT_SECONDS: Final = 15.0
PROMISE_SECONDS: Final = 10.0
"""A table handed out and never acknowledged was lost on the way, or refused."""
MOST_PROMISES: Final = 16
LOST_SECONDS: Final = 5.0
"""A server that passed nothing on for so long is gone."""
GONE_SECONDS: Final = 600.0


@dataclass(slots=True, kw_only=True)
class _Promise:
    revision: str
    slices: Mapping[str, int]
    at: float


@dataclass(slots=True, kw_only=True)
class Known:
    """An agent, and the newest that is known of it."""

    identity: AgentIdentity
    report: AgentReport
    heard_at: float
    """When it last gave any sign of life, to whichever server."""
    reported_at: float
    """When it made the report; an agent may ask one server for tables and report to another."""
    direct: bool
    """Whether this server itself heard the report."""
    promises: list[_Promise] = field(default_factory=list)
    acknowledged: Mapping[str, int] = field(default_factory=dict)
    """Slices of the table that it acknowledged last, for an agent that reports none."""
    promised_by_peers: dict[str, Mapping[str, int]] = field(default_factory=dict)
    looked_at: float = 0.0
    """When its pod was last looked for."""

    def held(self, now: float) -> dict[str, int]:
        """The largest slice per pool that it may be enforcing."""
        held: dict[str, int] = dict(self.acknowledged)
        for pool, seen in self.report.pools.items():
            if seen.slice is not None:
                held[pool] = seen.slice
        for promise in self.promises:
            if now - promise.at < PROMISE_SECONDS:
                _raise(held, promise.slices)
        for slices in self.promised_by_peers.values():
            _raise(held, slices)
        return held

    def promised(self, now: float) -> dict[str, int]:
        """What this server handed to it beyond what it reported."""
        promised: dict[str, int] = {}
        for promise in self.promises:
            if now - promise.at < PROMISE_SECONDS:
                _raise(promised, promise.slices)
        return promised


class Register:
    """All agents; `on_change` is called with the policy whose agents changed in a way that moves slices."""

    def __init__(self, *, clock: Callable[[], float], on_change: Callable[[Key], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self._known: dict[str, Known] = {}
        self._by_policy: dict[Key, dict[str, Known]] = {}
        self._gone: dict[str, float] = {}
        self._servers: dict[str, float] = {}

    def of(self, key: Key) -> list[Known]:
        """The agents of a policy, by pod UID."""
        found = self._by_policy.get(key, {})
        return [found[uid] for uid in sorted(found)]

    def all(self) -> list[Known]:
        """Every agent."""
        return list(self._known.values())

    def agents(self, key: Key, policy_uid: str) -> list[Agent]:
        """The agents of a policy as the split sees them."""
        now = self._clock()
        return [
            Agent(
                uid=known.identity.uid,
                load=known.report.offered_load,
                # Slices of a policy of the same name that is no more say nothing about this one.
                held=known.held(now) if known.report.policy.uid in ("", policy_uid) else {},
                silent=self.silent(known),
            )
            for known in self.of(key)
        ]

    def silent(self, known: Known) -> bool:
        """Whether it has not been heard of for too long."""
        return self._clock() - known.heard_at >= SILENT_SECONDS

    # What is heard.

    def polled(self, identity: AgentIdentity) -> Known:
        """An agent asked for its table: it lives, if nothing else is known of it yet."""
        known = self._known.get(identity.uid)
        if known is None or key_of(known.identity) != key_of(identity):
            self._gone.pop(identity.uid, None)
            known = Known(
                identity=identity,
                report=_nothing(identity),
                heard_at=self._clock(),
                reported_at=-inf,
                direct=True,
            )
            self._put(known)
            self._on_change(key_of(identity))
        else:
            was_silent = self.silent(known)
            known.heard_at = self._clock()
            if was_silent:
                self._on_change(key_of(identity))
        return known

    def reported(self, identity: AgentIdentity, report: AgentReport) -> None:
        """An agent reported."""
        known = self.polled(identity)
        own = TablePolicy(namespace=identity.namespace, name=identity.policy, uid=report.policy.uid)
        self._take(known, report.model_copy(update={"policy": own}))
        known.reported_at, known.direct = self._clock(), True

    def handed(self, identity: AgentIdentity, table: RoutingTable) -> None:
        """A table went out to an agent."""
        known = self.polled(identity)
        slices = {pool.name: pool.limit for pool in table.pools if pool.limit is not None}
        now = self._clock()
        known.promises = [promise for promise in known.promises if now - promise.at < PROMISE_SECONDS]
        known.promises = known.promises[-MOST_PROMISES + 1 :]
        known.promises.append(_Promise(revision=table.table_revision, slices=slices, at=now))

    def passed_on(self, server: str, reports: Iterable[PeerReport]) -> None:
        """Another server passed on what it heard and promised."""
        now = self._clock()
        self._servers[server] = now
        promised: dict[str, Mapping[str, int]] = {}
        for passed in reports:
            if now - self._gone.get(passed.uid, -GONE_SECONDS) < GONE_SECONDS:
                continue
            identity = AgentIdentity(
                namespace=passed.namespace, pod=passed.pod, uid=passed.uid, policy=passed.report.policy.name
            )
            heard_at = now - passed.age_seconds
            reported_at = heard_at if _says_something(passed.report) else -inf
            known = self._known.get(passed.uid)
            if known is None:
                known = Known(
                    identity=identity,
                    report=passed.report,
                    heard_at=heard_at,
                    reported_at=reported_at,
                    direct=False,
                )
                self._put(known)
                self._on_change(key_of(identity))
            else:
                was_silent = self.silent(known)
                known.heard_at = max(known.heard_at, heard_at)
                if reported_at > known.reported_at:
                    known.reported_at, known.direct = reported_at, False
                    if key_of(known.identity) != key_of(identity):
                        self._drop(known)
                        known.identity = identity
                        self._put(known)
                    self._take(known, passed.report)
                if was_silent and not self.silent(known):
                    self._on_change(key_of(identity))
            if passed.promised:
                promised[passed.uid] = passed.promised
        for uid, known in self._known.items():
            before = known.promised_by_peers.pop(server, None)
            after = promised.get(uid)
            if after:
                known.promised_by_peers[server] = after
            if before != after:
                self._on_change(key_of(known.identity))

    def drop_lost_servers(self) -> None:
        """What servers promised that are gone no longer counts."""
        now = self._clock()
        for server in [name for name, at in self._servers.items() if now - at >= LOST_SECONDS]:
            self.passed_on(server, ())
            del self._servers[server]

    def to_pass_on(self) -> list[PeerReport]:
        """What other servers should know."""
        now = self._clock()
        return [
            PeerReport(
                namespace=known.identity.namespace,
                pod=known.identity.pod,
                uid=known.identity.uid,
                age_seconds=round(
                    max(0.0, now - (known.reported_at if known.reported_at > -inf else known.heard_at)), 3
                ),
                report=known.report,
                promised=known.promised(now),
            )
            for known in self._known.values()
            if known.direct
        ]

    def to_look_for(self, every_seconds: float) -> list[Known]:
        """Silent agents whose pods should be looked for again."""
        now = self._clock()
        found = [
            known
            for known in self._known.values()
            if self.silent(known) and now - known.looked_at >= every_seconds
        ]
        for known in found:
            known.looked_at = now
        return found

    def forget(self, uid: str) -> None:
        """An agent's pod is gone."""
        known = self._known.get(uid)
        if known is not None:
            self._drop(known)
            self._gone = {other: at for other, at in self._gone.items() if self._clock() - at < GONE_SECONDS}
            self._gone[uid] = self._clock()
            self._on_change(key_of(known.identity))

    def _put(self, known: Known) -> None:
        before = self._known.get(known.identity.uid)
        if before is not None:
            self._drop(before)
        self._known[known.identity.uid] = known
        self._by_policy.setdefault(key_of(known.identity), {})[known.identity.uid] = known

    def _drop(self, known: Known) -> None:
        uid, key = known.identity.uid, key_of(known.identity)
        del self._known[uid]
        del self._by_policy[key][uid]
        if not self._by_policy[key]:
            del self._by_policy[key]
        self._on_change(key)

    def _take(self, known: Known, report: AgentReport) -> None:
        before = known.report
        known.report = report
        places = [
            place
            for place, promise in enumerate(known.promises)
            if promise.revision == report.applied_revision
        ]
        if places:
            known.acknowledged = known.promises[places[-1]].slices
            del known.promises[: places[-1] + 1]
        if places or _settled(before) != _settled(report):
            self._on_change(key_of(known.identity))


def key_of(identity: AgentIdentity) -> Key:
    """Namespace and name of the policy that an agent serves."""
    return identity.namespace, identity.policy


def _settled(report: AgentReport) -> object:
    """The part of a report whose change should act at once; loads may wait for the next round."""
    return (
        report.policy.uid,
        report.applied_revision,
        report.refused_revision,
        report.refused_reason,
        {name: (seen.slice, seen.healthy_endpoints, seen.problem) for name, seen in report.pools.items()},
    )


def _says_something(report: AgentReport) -> bool:
    """An agent that has only asked yet is passed on with a report that says nothing: it must not hide a
    real one.
    """
    return report.applied_sequence >= 0 or bool(report.pools or report.refused_revision)


def _nothing(identity: AgentIdentity) -> AgentReport:
    return AgentReport(policy=TablePolicy(namespace=identity.namespace, name=identity.policy, uid=""))


def _raise(held: dict[str, int], slices: Mapping[str, int]) -> None:
    for pool, part in slices.items():
        held[pool] = max(held.get(pool, 0), part)


def healthy_hosts(known: Iterable[Known]) -> dict[str, int]:
    """How many hosts of each pool the agents' health checks find well: the most that any of them does."""
    healthy: dict[str, int] = {}
    for agent in known:
        for pool, seen in agent.report.pools.items():
            if isinstance(seen, PoolSeen) and seen.healthy_endpoints is not None:
                healthy[pool] = max(healthy.get(pool, 0), seen.healthy_endpoints)
    return healthy
