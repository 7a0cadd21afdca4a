"""A policy's own source of metrics: only what the operator allows, and only with the policy's own Secrets."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest

from prometheus.far_end import FarEnd
from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from support.waiting import wait_until

StartOperator = Callable[..., OperatorProcess]


@pytest.fixture
def far_end() -> Iterator[FarEnd]:
    far_end = FarEnd()
    far_end.body = b'{"status": "success", "data": {"resultType": "matrix", "result": []}}'
    yield far_end
    far_end.close()


def secret(control_plane: ControlPlane, namespace: str, **data: str) -> None:
    """Make Secret `source`, or change it."""
    control_plane.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/secrets/source?fieldManager=test&force=true",
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "source"},
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
        },
        **{"Content-Type": "application/apply-patch+yaml"},
    )


def source(far_end: FarEnd) -> dict[str, object]:
    url = f"http://127.0.0.1:{far_end.port}"
    return {"prometheus": {"url": url, "authSecretRef": {"name": "source"}}}


def test_a_source_that_is_not_allowed_is_never_asked(
    start_operator: StartOperator, policies: Policies, far_end: FarEnd
) -> None:
    policies.apply(metricsSource=source(far_end))
    operator = start_operator()

    wait_until(lambda: policies.condition("Accepted").get("status") == "False", 30, "it is not accepted")

    accepted = policies.condition("Accepted")
    assert accepted["reason"] == "NotAllowed"
    assert "`127.0.0.1`" in accepted["message"]
    assert "routing" not in policies.status()
    policies.apply(metricsSource=source(far_end), suspend=True)
    wait_until(lambda: policies.status()["observedGeneration"] == 2, 10, "it is looked at again")
    assert far_end.seen == []
    assert operator.running


def test_a_source_is_asked_with_the_policy_s_own_secret(
    start_operator: StartOperator,
    policies: Policies,
    control_plane: ControlPlane,
    namespace: str,
    far_end: FarEnd,
) -> None:
    policies.apply(metricsSource=source(far_end))
    start_operator(
        prometheus_url="http://127.0.0.1:9",
        flags=(f"--allowed-metrics-url=http://127.0.0.1:{far_end.port}", f"--secret-namespace={namespace}"),
    )

    def available() -> dict[str, str]:
        return policies.condition("MetricsAvailable")

    wait_until(lambda: "cannot be read" in available().get("message", ""), 30, "the Secret is missing")
    assert available()["reason"] == "PrometheusUnauthorized"
    assert f"`{namespace}/source`" in available()["message"]
    assert far_end.seen == []

    secret(control_plane, namespace, token="t0k3n")
    wait_until(lambda: far_end.seen, 90, "it is asked")
    assert {authorization for _, authorization in far_end.seen} == {"Bearer t0k3n"}
    wait_until(lambda: available().get("reason") == "NoSeries", 20, "and says that nothing is there")
