"""From a policy to its status, on a real API server and a real Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meritorder_api.resource import InferencePolicy
from prometheus.routers import RouterSeries
from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from servers.prometheus import Prometheus
from support.waiting import wait_until

StartOperator = Callable[..., OperatorProcess]

READY = {"sequence": 1, "agents": 1, "applied": 1, "silent": 0, "ready": {"l40s": 2, "h100": 1}}
PASSES = "meritorder_reconcile_duration_seconds_count"


def passes(operator: OperatorProcess) -> float:
    return operator.metric(PASSES) or 0.0


def measured(policies: Policies, name: str = "chat") -> None:
    """Wait until metrics are there."""
    wait_until(
        lambda: policies.condition("MetricsAvailable", name).get("status") == "True",
        40,
        "metrics are available",
    )


def full(router: RouterSeries) -> None:
    """Be a second in which the cheap pool was as full as it may be, and the other one took the rest."""
    router.completed("l40s", 20, milliseconds=100)
    router.completed("h100", 10, milliseconds=50)


def limit(policies: Policies, field: str = "routing") -> float:
    """What the cheap pool may take."""
    pools = policies.status()[field]["pools"]
    return float(next(pool for pool in pools if pool["name"] == "l40s")["limitPerReplica"])


def test_routes_before_anything_was_measured(start_operator: StartOperator, policies: Policies) -> None:
    policies.apply()
    start_operator()

    status = policies.routed()

    routing = status["routing"]
    assert routing["sequence"] == 1
    limits = [(pool["name"], pool.get("limitPerReplica")) for pool in routing["pools"]]
    assert limits == [("l40s", "1"), ("h100", None)]
    assert status["fallbackPool"] == "h100"
    assert policies.condition("Accepted")["status"] == "True"
    wait_until(
        lambda: policies.condition("MetricsAvailable").get("reason") == "PrometheusUnreachable",
        10,
        "it says that there is no Prometheus",
    )
    parsed = InferencePolicy.parse(policies.get())
    assert parsed.status.observed_generation == 1
    assert parsed.status.learned


def test_writes_and_tells_nothing_at_rest(
    start_operator: StartOperator, policies: Policies, metrics: Prometheus
) -> None:
    policies.apply()
    operator = start_operator(prometheus_url=metrics.url)
    policies.routed()
    policies.programmed(READY)
    measured(policies)

    def ready() -> bool:
        # As a router server would, go on saying which routing is applied: knowing the replicas changed it.
        policies.programmed(READY | {"sequence": policies.status()["routing"]["sequence"]})
        return policies.condition("Ready").get("status") == "True"

    wait_until(ready, 20, "the policy is ready")
    # Figures may still be written once, 30 s after the last write.
    done = passes(operator)
    wait_until(lambda: passes(operator) >= done + 33, 60, "33 passes", interval_seconds=1)
    before, events = policies.get(), policies.events()

    done = passes(operator)
    wait_until(lambda: passes(operator) >= done + 33, 60, "33 more passes", interval_seconds=1)

    assert policies.get() == before
    assert policies.events() == events
    assert policies.condition("SLAMet")["status"] == "Unknown"
    assert policies.condition("SLAMet")["reason"] == "NoTraffic"
    assert [pool["state"] for pool in policies.status()["pools"]] == ["Idle", "Idle"]


def test_limits_follow_what_is_measured(
    start_operator: StartOperator, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> None:
    policies.apply()
    operator = start_operator(prometheus_url=metrics.url)
    policies.routed()
    policies.programmed(READY)
    measured(policies)
    router.exporter.before_scrape = lambda: full(router)

    wait_until(lambda: limit(policies) > 1, 60, "the limit grows")

    status = policies.status()
    assert status["routing"]["sequence"] > 1
    assert status["history"][0]["action"] in ("Grow", "Start")
    assert (operator.metric("meritorder_pool_limit", pool="l40s") or 0) > 1
    wait_until(lambda: ("Normal", status["history"][0]["reason"]) in policies.events(), 5, "it is told")


def test_recommends_without_touching_the_routing(
    start_operator: StartOperator, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> None:
    policies.apply(mode="Recommend")
    start_operator(prometheus_url=metrics.url)
    routing = policies.routed()["routing"]
    assert [pool["name"] for pool in routing["pools"]] == ["h100"]
    policies.programmed(READY)
    router.exporter.before_scrape = lambda: router.completed("l40s", 20, milliseconds=1000)

    wait_until(lambda: limit(policies, "recommendation") > 1, 60, "a higher limit is recommended")

    assert policies.status()["routing"] == routing


def test_suspension_keeps_the_routing(
    start_operator: StartOperator, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> None:
    policies.apply()
    operator = start_operator(prometheus_url=metrics.url)
    policies.routed()
    policies.programmed(READY)
    measured(policies)
    policies.apply(suspend=True)
    wait_until(lambda: policies.status()["observedGeneration"] == 2, 10, "the suspension is seen")
    routing = policies.status()["routing"]

    router.exporter.before_scrape = lambda: full(router)
    done = passes(operator)
    wait_until(lambda: passes(operator) >= done + 10, 30, "10 passes with traffic")

    assert policies.status()["routing"] == routing
    assert "suspend" in policies.status()["decision"]["reason"].lower()


def test_goes_on_where_the_last_operator_stopped(
    start_operator: StartOperator, policies: Policies, metrics: Prometheus, router: RouterSeries
) -> None:
    policies.apply()
    first = start_operator(prometheus_url=metrics.url)
    policies.routed()
    policies.programmed(READY)
    measured(policies)
    router.exporter.before_scrape = lambda: full(router)
    wait_until(lambda: limit(policies) > 1, 60, "the limit grows")

    first.kill()
    sequence, before = policies.status()["routing"]["sequence"], limit(policies)
    start_operator(name="second", prometheus_url=metrics.url)
    wait_until(
        lambda: policies.status()["decision"]["evaluatedAt"] > policies.status()["history"][0]["evaluatedAt"],
        40,
        "the second operator decides",
    )

    assert policies.status()["routing"]["sequence"] >= sequence
    assert limit(policies) >= before


def test_a_policy_is_deleted_at_once_when_no_operator_is_there(
    start_operator: StartOperator, policies: Policies
) -> None:
    policies.apply()
    operator = start_operator()
    policies.routed()
    operator.kill()
    metadata = policies.get()["metadata"]
    assert "finalizers" not in metadata
    assert "annotations" not in metadata

    policies.delete()

    assert not policies.exists()


def test_a_deleted_policy_leaves_no_series(
    start_operator: StartOperator, policies: Policies, metrics: Prometheus
) -> None:
    policies.apply()
    operator = start_operator(prometheus_url=metrics.url)
    policies.routed()
    wait_until(lambda: operator.metric("meritorder_sla_target_seconds", policy="chat") == 2, 10, "its series")

    policies.delete()

    wait_until(
        lambda: operator.metric("meritorder_sla_target_seconds", policy="chat") is None,
        10,
        "its series are gone",
    )


def test_two_policies_that_name_one_service_are_told_so(
    start_operator: StartOperator, policies: Policies
) -> None:
    policies.apply("chat")
    policies.apply("mail", pools=policies.get("chat")["spec"]["pools"])
    start_operator()

    def shared(name: str) -> bool:
        told = ("Warning", "PoolShared") in policies.events(name)
        return told and policies.condition("Accepted", name)["reason"] == "PoolShared"

    wait_until(lambda: shared("chat") and shared("mail"), 30, "both are told", retry_on=(KeyError,))
    for name, other in (("chat", "mail"), ("mail", "chat")):
        accepted = policies.condition("Accepted", name)
        assert accepted["status"] == "True"
        assert f"`{other}`" in accepted["message"]


def without_rules(crd: dict[str, Any]) -> dict[str, Any]:
    """The CRD without the rules that cross fields."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "x-kubernetes-validations"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    stripped: dict[str, Any] = strip(crd)
    return stripped


def test_a_bad_spec_that_bypassed_validation_leaves_the_last_routing(
    start_operator: StartOperator, policies: Policies, control_plane: ControlPlane
) -> None:
    policies.apply()
    operator = start_operator()
    routing = policies.routed()["routing"]
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferencepolicies.meritorder.dev"
    strict = control_plane.request("GET", path)
    control_plane.request("PUT", path, without_rules(strict))
    try:
        wait_until(
            lambda: policies.apply(fallbackPool="nosuch"), 30, "the rules are off", retry_on=(Exception,)
        )
    finally:
        current = control_plane.request("GET", path)
        control_plane.request("PUT", path, {**current, "spec": strict["spec"]})

    wait_until(lambda: policies.condition("Accepted").get("status") == "False", 20, "it is not accepted")

    accepted = policies.condition("Accepted")
    assert accepted["reason"] == "InvalidSpec"
    assert "fallbackPool" in accepted["message"]
    assert policies.condition("Ready")["status"] == "False"
    assert policies.status()["routing"] == routing
    assert policies.status()["observedGeneration"] == policies.get()["metadata"]["generation"]
    wait_until(lambda: ("Warning", "InvalidSpec") in policies.events(), 5, "it is told")

    policies.apply(fallbackPool="l40s")
    wait_until(lambda: policies.condition("Accepted").get("status") == "True", 20, "it is accepted again")
    assert operator.running


def test_decides_again_when_the_object_changed_meanwhile(
    start_operator: StartOperator, policies: Policies
) -> None:
    policies.apply()
    operator = start_operator()
    policies.routed()
    target = 2000

    def conflicted() -> bool:
        nonlocal target
        target += 1
        policies.apply(sla={"metric": "EndToEndLatency", "targetMilliseconds": target, "windowSeconds": 15})
        for number in range(20):
            policies.programmed({**READY, "agents": number})
        return (operator.metric("meritorder_status_conflicts_total") or 0) > 0

    wait_until(conflicted, 60, "a write met a newer object")

    generation = policies.get()["metadata"]["generation"]
    wait_until(
        lambda: policies.status()["observedGeneration"] == generation, 10, "the newest spec is acted on"
    )
    assert policies.status()["programmed"]["agents"] == 19
