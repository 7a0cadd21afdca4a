"""Two operators, one leader: who acts, how soon another takes over, and what a stopped leader may not do."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from support.waiting import wait_until

StartOperator = Callable[..., OperatorProcess]
TAKEOVER_SECONDS = 20


@pytest.fixture
def pair(start_operator: StartOperator, policies: Policies) -> tuple[OperatorProcess, OperatorProcess]:
    """A leader that has acted, and a standby."""
    policies.apply()
    leader = start_operator(name="one")
    policies.routed()
    standby = start_operator(name="two")
    wait_until(lambda: standby.metric("meritorder_leader") == 0, 20, "the standby stands by")
    return leader, standby


def test_a_standby_serves_health_and_acts_on_nothing(pair: tuple[OperatorProcess, OperatorProcess]) -> None:
    leader, standby = pair

    for operator in pair:
        for path in ("healthz", "readyz"):
            assert httpx.get(f"{operator.url}/{path}", trust_env=False).status_code == 200
    assert leader.leads
    assert standby.metric("meritorder_policies") == 0
    assert standby.metric("meritorder_status_writes_total") == 0


def test_a_stopped_leader_is_replaced_and_writes_nothing_when_it_goes_on(
    pair: tuple[OperatorProcess, OperatorProcess], policies: Policies
) -> None:
    leader, standby = pair
    leader.pause()
    stopped = time.monotonic()

    # An edit that the stopped leader will want to act on, too.
    policies.apply(mode="Recommend")
    wait_until(lambda: policies.status()["observedGeneration"] == 2, 30, "the standby acts on the edit")
    assert time.monotonic() - stopped < TAKEOVER_SECONDS
    assert standby.leads
    written = standby.metric("meritorder_status_writes_total")
    version = policies.get()["metadata"]["resourceVersion"]

    leader.resume()
    assert leader.wait(15) == 1
    assert any("lease" in line["message"] and line["level"] == "error" for line in leader.lines())
    assert policies.get()["metadata"]["resourceVersion"] == version
    assert standby.metric("meritorder_status_writes_total") == written
    assert standby.leads


def test_a_leader_that_is_told_to_stop_hands_over_at_once(
    pair: tuple[OperatorProcess, OperatorProcess], policies: Policies
) -> None:
    leader, standby = pair
    leader.stop()

    wait_until(lambda: standby.leads, 10, "the standby leads, sooner than the lease runs out")
    assert leader.exit_code == 0
    policies.apply(suspend=True)
    wait_until(lambda: policies.status()["observedGeneration"] == 2, 10, "the new leader acts")


def test_a_standby_takes_over_from_a_killed_leader(
    pair: tuple[OperatorProcess, OperatorProcess], policies: Policies
) -> None:
    leader, standby = pair
    leader.kill()

    policies.apply(suspend=True)

    wait_until(lambda: policies.status()["observedGeneration"] == 2, TAKEOVER_SECONDS, "the standby acts")
    assert standby.leads


def test_the_lease_tells_who_leads(
    pair: tuple[OperatorProcess, OperatorProcess], control_plane: ControlPlane, namespace: str
) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/meritorder-operator"
    spec = control_plane.request("GET", path)["spec"]

    assert spec["holderIdentity"].startswith("one_")
    assert spec["leaseDurationSeconds"] <= 15
    before = spec["renewTime"]
    wait_until(lambda: control_plane.request("GET", path)["spec"]["renewTime"] > before, 5, "it is renewed")
