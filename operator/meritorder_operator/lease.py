"""One leader at a time: a Lease that is renewed every 2 s and may be taken over once it stood still for 12 s.

Who holds it stops counting on it well before any other may take it, by a clock that runs on while the
process is stopped: a leader that was paused past its lease finds so before its next write. Time on the
Lease itself is for people; each candidate judges by its own clock how long the Lease stood still, so no two
clocks need to agree.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from meritorder_operator.cluster import Cluster, ClusterError, Conflict, LeaseLost, Refused

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 12
RENEW_SECONDS: Final = 2.0
MARGIN_SECONDS: Final = 3.0
"""It counts as lost so long before others may take it."""
REQUEST_SECONDS: Final = 3.0


def boot_clock() -> float:
    """Seconds on a clock that never goes back and runs on while process or machine sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """A Lease in one namespace."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        holder: str,
        *,
        clock: Callable[[], float] = boot_clock,
        wall: Callable[[], float] = time.time,
        seconds: int = LEASE_SECONDS,
    ) -> None:
        self.holder = holder
        self._cluster = cluster
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._clock = clock
        self._wall = wall
        self._seconds = seconds
        self._held_until = 0.0
        self._seen: tuple[str, float] = ("", 0.0)
        self._last_problem = ""

    @property
    def held(self) -> bool:
        """Whether it is ours, surely."""
        return self._clock() < self._held_until

    async def gain(self) -> None:
        """Wait until it is ours."""
        while True:
            if await self._try():
                break
            await asyncio.sleep(RENEW_SECONDS)
        log.info("leading: lease `%s` is held by %s", self._name, self.holder)

    async def keep(self) -> None:
        """Renew it for ever; LeaseLost once it is no longer surely ours."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await self._try()
            if not self.held:
                raise LeaseLost(f"lease `{self._name}` is lost; another may lead now")

    async def release(self) -> None:
        """Give it up, so that a standby need not wait."""
        if not self.held:
            return
        self._held_until = 0.0
        try:
            lease = await self._cluster.request("GET", self._path, timeout_seconds=REQUEST_SECONDS)
            if lease["spec"].get("holderIdentity") == self.holder:
                lease["spec"]["holderIdentity"] = ""
                await self._cluster.request("PUT", self._path, lease, timeout_seconds=REQUEST_SECONDS)
        except ClusterError as error:
            log.info("lease `%s` was not given up, it runs out: %s", self._name, error)

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self._name}"

    async def _try(self) -> bool:
        try:
            gained = await self._once()
        except Conflict:
            return False
        except ClusterError as error:
            if str(error) != self._last_problem:
                log.warning("lease `%s`: %s", self._name, error)
            self._last_problem = str(error)
            return False
        self._last_problem = ""
        return gained

    async def _once(self) -> bool:
        asked_at = self._clock()
        try:
            lease = await self._cluster.request("GET", self._path, timeout_seconds=REQUEST_SECONDS)
        except Refused as error:
            if error.status != 404:
                raise
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": self._spec({}),
            }
            await self._cluster.request("POST", self._collection, body, timeout_seconds=REQUEST_SECONDS)
            return self._gained(asked_at)
        spec: dict[str, Any] = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if holder == self.holder and not self.held and self._held_until:
            # Ours by name, but it was not renewed in time: what ran meanwhile is not known. Begin anew.
            self._held_until = 0.0
            return False
        if holder not in ("", None, self.holder) and not self._stood_still(lease, asked_at):
            return False
        lease["spec"] = self._spec(spec)
        await self._cluster.request("PUT", self._path, lease, timeout_seconds=REQUEST_SECONDS)
        return self._gained(asked_at)

    def _gained(self, asked_at: float) -> bool:
        self._held_until = asked_at + self._seconds - MARGIN_SECONDS
        return self.held

    def _stood_still(self, lease: dict[str, Any], now: float) -> bool:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, now)
            return False
        duration = (lease.get("spec") or {}).get("leaseDurationSeconds") or self._seconds
        return now - self._seen[1] >= float(duration)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = before.get("holderIdentity") == self.holder
        return {
            **before,
            "holderIdentity": self.holder,
            "leaseDurationSeconds": self._seconds,
            "acquireTime": before.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if same else 1),
        }
