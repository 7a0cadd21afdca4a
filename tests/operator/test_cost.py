"""What the operator costs with many policies: processor, memory, queries and writes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from prometheus.exporter import Exporter
from prometheus.routers import RouterSeries
from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from servers.prometheus import Prometheus
from support.processes import cpu_seconds, memory_bytes
from support.waiting import wait_until

POLICIES = 200
PRICES = {"l4": "0.71", "l40s": "1.86", "a100": "3.67", "h100": "6.88"}
INTERVAL_SECONDS = 5
MEASURED_PASSES = POLICIES * 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_policies_cost_little(
    start_operator: Callable[..., OperatorProcess],
    policies: Policies,
    prometheus: Callable[..., Prometheus],
    exporter: Exporter,
    control_plane: ControlPlane,
    namespace: str,
) -> None:
    routers = []
    for number in range(POLICIES):
        name = f"p{number}"
        pools = [
            {
                "name": pool,
                "backend": {"service": {"name": f"{name}-{pool}", "port": 8000}},
                "cost": {"perReplicaHour": price},
            }
            for pool, price in PRICES.items()
        ]
        policies.apply(name, pools=pools, behavior={"intervalSeconds": INTERVAL_SECONDS}, sla=SLA)
        routers.append(RouterSeries(exporter, policy=name))
        routers[-1].begin(*PRICES)
    server = prometheus(targets={"routers": []}, scrape_interval="5s")
    server.set_targets("routers", [exporter.address], {"namespace": namespace})
    operator = start_operator(prometheus_url=server.url, flags=("--log-level=info",))
    ready = {"sequence": 1, "agents": 1, "applied": 1, "silent": 0, "ready": dict.fromkeys(PRICES, 2)}
    for number in range(POLICIES):
        policies.routed(f"p{number}", 60)
        policies.programmed(ready, f"p{number}")

    def all_measured() -> bool:
        found = operator.metric("meritorder_observation_age_seconds", policy=f"p{POLICIES - 1}") is not None
        return found and (operator.metric("meritorder_status_writes_total") or 0) >= 2 * POLICIES

    wait_until(all_measured, 90, "all are measured", interval_seconds=1)
    # The last figures are written 30 s later; then all is at rest.
    quiet(operator, 45)

    cost = Cost(operator, control_plane)
    share = cost.over(MEASURED_PASSES)
    print(f"at rest: {share:.1%} of a core, {cost.megabytes:.0f} MB, {cost.queries:.1f} queries per interval")
    assert cost.writes == 0
    assert share < 0.15
    assert cost.megabytes < 200
    assert cost.queries < 15

    def traffic() -> None:
        for router in routers:
            for pool in PRICES:
                router.completed(pool, 20, slow=1, milliseconds=900, tokens=200)

    exporter.before_scrape = traffic
    quiet(operator, 20)
    share = cost.over(MEASURED_PASSES)
    print(
        f"in use: {share:.1%} of a core, {cost.megabytes:.0f} MB, {cost.queries:.1f} queries per interval, "
    )
    assert share < 0.3
    assert cost.megabytes < 200
    assert cost.queries < 15


SLA = {"metric": "EndToEndLatency", "targetMilliseconds": 2000, "windowSeconds": 60}


def passes(operator: OperatorProcess) -> float:
    return operator.metric("meritorder_reconcile_duration_seconds_count") or 0.0


def quiet(operator: OperatorProcess, seconds: float) -> None:
    """Let so much time pass, by the operator's own passes."""
    done = passes(operator) + POLICIES * seconds / INTERVAL_SECONDS
    wait_until(lambda: passes(operator) >= done, seconds * 3, "the passes are done", interval_seconds=10)


class Cost:
    """What one operator used over a number of passes."""

    def __init__(self, operator: OperatorProcess, control_plane: ControlPlane) -> None:
        self.operator = operator
        self.control_plane = control_plane
        self.writes = 0.0
        self.queries = 0.0
        self.megabytes = 0.0

    def over(self, count: float) -> float:
        """Processor seconds per second."""
        operator = self.operator
        done, used, began = passes(operator), cpu_seconds(operator.pid), time.monotonic()
        writes, asked = self._writes(), self._asked()
        wait_until(lambda: passes(operator) >= done + count, 200, "the passes are done", interval_seconds=10)
        seconds = time.monotonic() - began
        self.writes = self._writes() - writes
        self.queries = (self._asked() - asked) / seconds * INTERVAL_SECONDS
        self.megabytes = memory_bytes(operator.pid) / 1e6
        return (cpu_seconds(operator.pid) - used) / seconds

    def _writes(self) -> float:
        return self.operator.metric("meritorder_status_writes_total") or 0.0

    def _asked(self) -> float:
        return self.operator.total("meritorder_query_total")
