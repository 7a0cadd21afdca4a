"""What was measured while nothing could be written is learned from afterwards, and once.

The passes are called one by one, on a real API server behind a proxy that can be cut and a real Prometheus.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from meritorder_api import metric_names as m
from meritorder_core.learned import Learned
from meritorder_operator.cluster import Cluster, Unreachable
from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.source import PrometheusSource
from meritorder_operator.reconcile import Reconciler
from meritorder_operator.settings import Settings
from meritorder_operator.sources import Sources
from meritorder_operator.view import PolicyView
from prometheus.routers import RouterSeries
from servers.control_plane import ControlPlane
from servers.operator_process import Policies
from servers.prometheus import Prometheus
from servers.tcp_proxy import TcpProxy
from support.waiting import until

READY = {"sequence": 1, "agents": 1, "applied": 1, "silent": 0, "ready": {"l40s": 2, "h100": 1}}


class Passes:
    """An operator's passes over one policy. Its clock goes a minute with each, so that each would write."""

    def __init__(
        self, control_plane: ControlPlane, way: TcpProxy, policies: Policies, metrics: Prometheus
    ) -> None:
        settings = Settings(identity="test", prometheus=Server(url=metrics.url))
        self.cluster = Cluster.connect(control_plane.admin_kubeconfig_by(way.url()))
        self.source = PrometheusSource(timeout_seconds=3)
        self.reconciler = self.another(settings, self.cluster)
        self.settings = settings
        self.view = PolicyView(policies.get())
        self.failed: list[float] = []
        """When passes failed, as Unix seconds."""
        self._clock = 0.0

    def another(self, settings: Settings, cluster: Cluster) -> Reconciler:
        """A reconciler with the same source of metrics."""
        return Reconciler(
            cluster=cluster,
            source=self.source,
            sources=Sources(cluster, settings, clock=time.monotonic),
            settings=settings,
            shared=lambda view: None,
            clock=self._now,
            wall=time.time,
        )

    def _now(self) -> float:
        self._clock += 60
        return self._clock

    async def one(self) -> bool:
        """Do one pass; False if it could not be written."""
        try:
            await self.reconciler.reconcile(self.view)
        except Unreachable:
            self.failed.append(time.time())
            return False
        return True

    async def until(self, wanted: Callable[[], bool], what: str) -> None:
        """Do passes until it is so."""

        async def done() -> bool:
            await self.one()
            return wanted()

        await until(done, 30, what, interval_seconds=0.1)

    def learned(self) -> float:
        """Requests to the cheap pool that were learned from since its limit last changed."""
        return fresh(self.view.memory.learned)


def fresh(learned: Learned | None) -> float:
    assert learned is not None
    return learned.pools["l40s"].main.fresh


@asynccontextmanager
async def passes(
    control_plane: ControlPlane, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> AsyncIterator[tuple[Passes, TcpProxy]]:
    """Passes over a policy that has learned from its first requests."""
    policies.apply()
    with TcpProxy("127.0.0.1", control_plane.port) as way:
        each = Passes(control_plane, way, policies, metrics)
        try:
            await each.one()
            policies.programmed(READY)
            each.view.take(policies.get())
            await each.until(
                lambda: "Idle" in [pool.get("state") for pool in each.view.status["pools"]], "metrics"
            )
            router.completed("l40s", 5, milliseconds=100)
            await each.until(lambda: each.learned() == 5, "the first requests are learned from")
            yield each, way
        finally:
            await each.source.close()
            await each.cluster.close()


async def scraped(each: Passes, router: RouterSeries, times: int) -> None:
    """Do passes over some more scrapes."""
    seen = len(router.exporter.scrapes)
    await each.until(lambda: len(router.exporter.scrapes) >= seen + times, "more scrapes")


async def test_what_was_measured_while_the_api_server_was_away_is_learned_from_once(
    control_plane: ControlPlane, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> None:
    async with passes(control_plane, policies, metrics, router) as (each, way):
        way.cut()
        router.completed("l40s", 7, slow=1, milliseconds=100)
        await scraped(each, router, 5)
        assert len(each.failed) >= 2
        assert each.failed[-1] - each.failed[0] > 2  # samples came and went meanwhile
        assert each.learned() == 5

        way.heal()
        router.completed("l40s", 3, milliseconds=100)
        await each.until(lambda: each.learned() >= 15, "all is learned from")
        await scraped(each, router, 3)

        told = router.exporter.told(m.SAMPLES, policy="chat", pool="l40s")[-1]
        assert (each.learned(), told) == (15, 15)
        learned = each.view.memory.learned
        assert learned is not None
        assert learned.pools["l40s"].main.fresh_slow == 1


async def test_what_a_write_holds_whose_answer_was_lost_is_not_learned_from_again(
    control_plane: ControlPlane, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> None:
    async with passes(control_plane, policies, metrics, router) as (each, way):
        way.cut()
        router.completed("l40s", 7, milliseconds=100)
        await scraped(each, router, 3)
        assert each.failed

        # What was decided reaches the object, and this view does not hear of it.
        cluster = Cluster.connect(control_plane.kubeconfig)
        unheard = PolicyView(policies.get())
        await each.another(each.settings, cluster).reconcile(unheard)
        await cluster.close()
        assert fresh(Learned.decode(policies.status()["learned"])) == pytest.approx(12)
        assert each.learned() == 5

        way.heal()
        router.completed("l40s", 3, milliseconds=100)
        await each.until(lambda: each.learned() >= 15, "all is learned from")
        await scraped(each, router, 3)
        assert each.learned() == 15
