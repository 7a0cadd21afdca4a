"""The process: a standby until it holds the Lease, then the leader until it loses it or is told to stop.

Everything is made here once and passed down. When the Lease is lost the process ends: what it had in mind
may be stale, and whoever runs it starts it again as a standby.
"""

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry

from meritorder_api import names
from meritorder_api.container import RouterSettings, servers_at
from meritorder_operator import handlers
from meritorder_operator.cluster import Cluster, ClusterError, LeaseLost
from meritorder_operator.gateways import Gateways
from meritorder_operator.health import HealthServer
from meritorder_operator.lease import Lease
from meritorder_operator.loops import Loops, Sharing
from meritorder_operator.prometheus.source import PrometheusSource
from meritorder_operator.reconcile import Reconciler
from meritorder_operator.settings import Settings
from meritorder_operator.sources import Sources
from meritorder_operator.telemetry import Durations, Telemetry, Writes
from meritorder_operator.trust import Trust

log = logging.getLogger(__name__)

CRD_SECONDS: Final = 5.0


class Operator:
    """One operator process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cluster = Cluster.connect(settings.kubeconfig, may_write=lambda: self.lease.held)
        # A way of its own: whoever leads must be able to say so while everything else waits.
        self._lease_cluster = Cluster(self.cluster.config)
        self.lease = Lease(
            self._lease_cluster,
            settings.lease_namespace or self.cluster.namespace,
            names.OPERATOR_LEASE,
            f"{settings.identity}_{secrets.token_hex(4)}",
        )
        self.source = PrometheusSource()
        self.registry = CollectorRegistry()
        self.loops = Loops(
            cluster=self.cluster,
            namespaces=settings.namespaces,
            forget=self.source.forget,
            durations=Durations(self.registry),
            clock=time.monotonic,
            wall=time.time,
        )
        self.reconciler = Reconciler(
            cluster=self.cluster,
            source=self.source,
            sources=Sources(self.cluster, settings, clock=time.monotonic),
            settings=settings,
            shared=Sharing(lambda: self.loops).of,
            clock=time.monotonic,
            wall=time.time,
        )
        self.registry.register(
            Telemetry(
                views=lambda: self.loops.views,
                queries=lambda: self.source.stats,
                writes=lambda: Writes(written=self.reconciler.written, conflicts=self.reconciler.conflicts),
                is_leader=lambda: self.lease.held,
                wall=time.time,
            )
        )
        self.trust = Trust(
            cluster=self.cluster,
            namespace=self.cluster.namespace
            if settings.lease_namespace is None
            else settings.lease_namespace,
            ca_secret=settings.ca_secret,
            server_secret=settings.server_secret,
            server_names=settings.server_names,
            webhook=settings.webhook,
            policy_namespaces=lambda: {view.namespace for view in self.loops.views},
            clock=time.monotonic,
            wall=time.time,
        )
        self.gateways = Gateways(
            cluster=self.cluster,
            settings=_gateway_settings(settings, self.cluster.namespace),
            namespaces=settings.namespaces,
            views=lambda: self.loops.views,
            tell=self.reconciler.tell,
            clock=time.monotonic,
        )
        self.watching = asyncio.Event()

    async def run(self) -> int:
        """Run until told to stop (0) or until the lease is lost (1)."""
        health = HealthServer(self.registry, healthy=self.loops.stuck, ready=self._unready)
        await health.start(self.settings.health_host, self.settings.health_port, self.settings.metrics_port)
        try:
            stop = asyncio.Event()
            _stop_on_signals(stop)
            await _first(stop.wait(), self._crd_is_there())
            if not stop.is_set():
                await _first(stop.wait(), self.lease.gain())
            if not stop.is_set():
                await self._lead(stop)
            if not stop.is_set():
                log.error("policies are no longer watched; ending, so that another may lead")
                return 1
            return 0
        except LeaseLost as error:
            log.error("%s", error)
            return 1
        finally:
            await self.lease.release()
            await health.stop()
            await self.source.close()
            await self.cluster.close()
            await self._lease_cluster.close()

    async def _lead(self, stop: asyncio.Event) -> None:
        self.loops.begin(self.reconciler)
        watching = handlers.watch(
            self.cluster.config,
            self.settings.namespaces,
            self.loops.saw,
            self.watching,
            partial(_stop_on_signals, stop),
        )
        tasks = [self.lease.keep(), watching, self.loops.run(), self.gateways.run()]
        if self.settings.certificates or self.settings.ca_secret is not None:
            tasks.append(self.trust.run())
        try:
            await _first(stop.wait(), *tasks)
        finally:
            await self.loops.stop()

    async def _crd_is_there(self) -> None:
        """Wait for the CRD: a watch that began without it would never see it."""
        told = False
        while True:
            try:
                await self.cluster.request("GET", f"/apis/{names.GROUP}/{names.VERSION}")
                return
            except ClusterError as error:
                if not told:
                    log.warning("waiting for the API server and the CRD of %s: %s", names.KIND, error)
                told = True
            await asyncio.sleep(CRD_SECONDS)

    def _unready(self) -> str | None:
        """A standby is ready; a leader once it watches."""
        if self.lease.held and not self.watching.is_set():
            return "leading, but policies are not watched yet"
        return None


def _gateway_settings(settings: Settings, namespace: str) -> RouterSettings | None:
    if settings.gateway is None or settings.gateway.server_urls:
        return settings.gateway
    return replace(settings.gateway, server_urls=(servers_at(settings.lease_namespace or namespace),))


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set the event."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _first(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run until the first ends, end the others, and raise what it raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
