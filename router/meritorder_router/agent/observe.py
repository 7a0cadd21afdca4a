"""What an agent sees of its own Envoy: requests in flight, endpoints that are well, and whether it was
started anew.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from meritorder_api.table import PoolSeen, RoutingTable
from meritorder_router.render import naming

STATS = (
    r"^cluster\.(pool|real|session)/[a-z0-9-]+\.(upstream_rq_active|upstream_rq_pending_active|membership_\w+)$"
    r"|^server\.uptime$"
)
MEAN_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at Envoy."""

    at: float
    uptime: int
    in_flight: Mapping[str, int] = field(default_factory=dict)
    healthy: Mapping[str, int] = field(default_factory=dict)
    total: Mapping[str, int] = field(default_factory=dict)


def look(stats: Mapping[str, int | str], table: RoutingTable, *, at: float) -> Seen:
    """Read Envoy's stats in terms of the table's pools. A pool is as well as the servers are found to be by
    requests without a session or by those with one, whichever is worse.
    """

    def of(cluster: str, stat: str) -> int | None:
        value = stats.get(f"cluster.{cluster}.{stat}")
        return None if value is None else int(value)

    in_flight: dict[str, int] = {}
    healthy: dict[str, int] = {}
    total: dict[str, int] = {}
    for pool in table.pools:
        plain, session = naming.servers(pool), naming.servers(pool, session=True)
        active = of(naming.way(pool), "upstream_rq_active")
        if active is not None:
            in_flight[pool.name] = (
                active
                + (of(naming.way(pool), "upstream_rq_pending_active") or 0)
                + (of(session, "upstream_rq_active") or 0)
                + (of(session, "upstream_rq_pending_active") or 0)
            )
        well, all_of_them = of(plain, "membership_healthy"), of(plain, "membership_total")
        if well is not None and all_of_them is not None:
            by_session = of(session, "membership_healthy")
            healthy[pool.name] = well if by_session is None else min(well, by_session)
            total[pool.name] = all_of_them
    return Seen(
        at=at,
        uptime=int(stats.get("server.uptime", 0)),
        in_flight=in_flight,
        healthy=healthy,
        total=total,
    )


def dead_pools(seen: Seen) -> frozenset[str]:
    """Pools none of whose endpoints is well: a request sent there would only lose time."""
    return frozenset(pool for pool, well in seen.healthy.items() if well == 0)


class Load:
    """Mean requests in flight per pool over about the last ten seconds."""

    def __init__(self) -> None:
        self._looks: deque[Seen] = deque()

    def add(self, seen: Seen) -> None:
        """Take another look into account."""
        self._looks.append(seen)
        while len(self._looks) > 1 and seen.at - self._looks[0].at > MEAN_SECONDS:
            self._looks.popleft()

    def pools(self, table: RoutingTable) -> dict[str, PoolSeen]:
        """What to report of the table's pools."""
        if not self._looks:
            return {pool.name: PoolSeen(slice=pool.limit) for pool in table.pools}
        last = self._looks[-1]
        return {
            pool.name: PoolSeen(
                in_flight=float(last.in_flight.get(pool.name, 0)),
                mean_in_flight=round(self._mean(pool.name), 2),
                slice=pool.limit,
                healthy_endpoints=last.healthy.get(pool.name),
            )
            for pool in table.pools
        }

    def _mean(self, pool: str) -> float:
        return sum(look.in_flight.get(pool, 0) for look in self._looks) / len(self._looks)

    def offered(self) -> float:
        """Mean requests in flight over all pools."""
        if not self._looks:
            return 0.0
        return round(sum(sum(look.in_flight.values()) for look in self._looks) / len(self._looks), 2)
