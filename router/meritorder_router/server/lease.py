"""One at a time: a Lease that one of the servers holds.

Whoever holds it renews it every 4 s; one that did not for 15 s has lost it, and knows so by its own
monotonic clock before any other server can have taken it over: a server that was stopped and goes on writes
nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from meritorder_router.server.kube import Kube, KubeError, Refused

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 4.0
RETRY_SECONDS: Final = 2.0
MARGIN_SECONDS: Final = 3.0
"""It counts as lost so long before others may take it."""


class Lease:
    """A Lease in one namespace. `now` is monotonic, `wall` is Unix time."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        holder: str,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._name = name
        self._holder = holder
        self._now = now
        self._wall = wall
        self._held_until = 0.0
        self._seen: tuple[str, float] = ("", 0.0)

    @property
    def held(self) -> bool:
        """Whether it is ours, surely."""
        return self._now() < self._held_until

    async def run(self) -> None:
        """Try to get it and keep it, for ever."""
        was_held = False
        while True:
            try:
                await self._try()
            except KubeError as error:
                log.debug("lease `%s`: %s", self._name, error)
            if self.held != was_held:
                was_held = self.held
                log.info("lease `%s` %s", self._name, "gained" if was_held else "lost")
            await asyncio.sleep(RENEW_SECONDS if self.held else RETRY_SECONDS)

    async def release(self) -> None:
        """Give it up, so that another server need not wait."""
        if not self.held:
            return
        self._held_until = 0.0
        try:
            lease = await self._kube.request("GET", self._path, timeout_seconds=2)
            if lease["spec"].get("holderIdentity") == self._holder:
                lease["spec"]["holderIdentity"] = ""
                lease["spec"]["leaseDurationSeconds"] = 1
                await self._kube.request("PUT", self._path, lease, timeout_seconds=2)
        except KubeError as error:
            log.info("lease `%s` was not given up, it runs out: %s", self._name, error)

    async def _try(self) -> None:
        asked_at = self._now()
        try:
            lease = await self._kube.request("GET", self._path, timeout_seconds=RENEW_SECONDS)
        except Refused as error:
            if error.status != 404:
                raise
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": self._spec({}),
            }
            await self._kube.request("POST", self._collection, body, timeout_seconds=RENEW_SECONDS)
            self._gained(asked_at)
            return
        spec: dict[str, Any] = lease.get("spec") or {}
        if spec.get("holderIdentity") not in ("", None, self._holder) and not self._run_out(lease, asked_at):
            return
        lease["spec"] = self._spec(spec)
        try:
            await self._kube.request("PUT", self._path, lease, timeout_seconds=RENEW_SECONDS)
        except Refused as error:
            if error.status != 409:
                raise
            return
        self._gained(asked_at)

    def _gained(self, asked_at: float) -> None:
        self._held_until = asked_at + LEASE_SECONDS - MARGIN_SECONDS

    def _run_out(self, lease: dict[str, Any], now: float) -> bool:
        """Whether it has not changed for its duration, by our own clock: no two clocks need to agree."""
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, now)
            return False
        duration = (lease.get("spec") or {}).get("leaseDurationSeconds") or LEASE_SECONDS
        return now - self._seen[1] >= float(duration)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        moment = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = before.get("holderIdentity") == self._holder
        return {
            **before,
            "holderIdentity": self._holder,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": before.get("acquireTime", moment) if same else moment,
            "renewTime": moment,
            "leaseTransitions": (before.get("leaseTransitions") or 0) + (0 if same else 1),
        }
