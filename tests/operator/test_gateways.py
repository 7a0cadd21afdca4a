"""Gateways on a real API server: made, owned, changed, removed, and nobody else's objects touched."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from support.waiting import wait_until

PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
}
IMAGE = "--gateway-image=example.com/meritorder:1"
Found = dict[str, Any]


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace with Pod Security `restricted`: a gateway's pods must be let in."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = control_plane.create_namespace(f"t-{secrets.token_hex(4)}", labels)
    yield name
    control_plane.delete_namespace(name)


class Objects:
    """The objects of a gateway's name."""

    def __init__(self, control_plane: ControlPlane, namespace: str, name: str = "chat-gateway") -> None:
        self._control_plane = control_plane
        self._paths = {kind: f"{path.format(namespace=namespace)}/{name}" for kind, path in PATHS.items()}

    def get(self, kind: str) -> Found | None:
        answer = self._control_plane.client.get(self._paths[kind])
        return answer.json() if answer.status_code == 200 else None

    def all(self) -> dict[str, Found]:
        found = {kind: self.get(kind) for kind in PATHS}
        return {kind: one for kind, one in found.items() if one is not None}

    def complete(self) -> bool:
        return len(self.all()) == len(PATHS)

    def delete(self, kind: str) -> None:
        self._control_plane.request("DELETE", self._paths[kind])


@pytest.fixture
def objects(control_plane: ControlPlane, namespace: str) -> Objects:
    return Objects(control_plane, namespace)


def arguments(deployment: Found) -> list[str]:
    found: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def test_a_gateway_is_made_owned_changed_and_removed(
    control_plane: ControlPlane,
    start_operator: Callable[..., OperatorProcess],
    policies: Policies,
    objects: Objects,
    namespace: str,
) -> None:
    policy = policies.apply(gateway={"replicas": 2, "allowedNamespaces": ["web"]})
    start_operator(flags=(IMAGE,))
    wait_until(objects.complete, 30, "all four are there")

    made = objects.all()
    for one in made.values():
        assert one["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "meritorder.dev/v1alpha1",
                "kind": "InferencePolicy",
                "name": "chat",
                "uid": policy["metadata"]["uid"],
                "controller": True,
            }
        ]
        assert "meritorder-operator" in {entry["manager"] for entry in one["metadata"]["managedFields"]}
    assert made["Service"]["spec"]["ports"][0]["port"] == 80
    assert made["Deployment"]["spec"]["replicas"] == 2
    assert f"--server-url=https://meritorder-router.{namespace}.svc" in arguments(made["Deployment"])

    # The controllers of Kubernetes make what it asks for, and Pod Security lets it in.
    def pods() -> list[Found]:
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector=meritorder.dev/gateway=chat"
        found: list[Found] = control_plane.request("GET", path)["items"]
        return found

    wait_until(lambda: len(pods()) == 2, 30, "two pods")
    assert all("kube-api-access" not in str(pod["spec"]) for pod in pods())

    # What somebody deletes is made again (seen below); what the policy changes, is changed.
    objects.delete("Service")
    policies.apply(gateway={"replicas": 3})

    def changed() -> bool:
        now = objects.all()
        rules = now["NetworkPolicy"]["spec"]["ingress"][0]["from"] if "NetworkPolicy" in now else []
        return now["Deployment"]["spec"]["replicas"] == 3 and rules == [{"podSelector": {}}]

    wait_until(changed, 20, "it is changed")
    wait_until(objects.complete, 45, "the Service is there again")

    # What was as it should be was not written.
    assert objects.all()["NetworkPolicy"]["metadata"]["generation"] == 2

    policies.apply()
    wait_until(lambda: not objects.all(), 30, "all are removed")


def test_a_gateway_goes_with_its_policy(
    start_operator: Callable[..., OperatorProcess], policies: Policies, objects: Objects
) -> None:
    policies.apply(gateway={"replicas": 1})
    operator = start_operator(flags=(IMAGE,))
    wait_until(objects.complete, 30, "all four are there")
    operator.kill()
    policies.delete()
    wait_until(lambda: not objects.all(), 60, "all are gone, without an operator")


def test_a_gateway_that_another_operator_made_is_removed(
    start_operator: Callable[..., OperatorProcess], policies: Policies, objects: Objects
) -> None:
    policies.apply(gateway={"replicas": 1})
    first = start_operator(flags=(IMAGE,))
    wait_until(objects.complete, 30, "all four are there")
    first.stop()
    policies.apply()
    start_operator(name="second", flags=(IMAGE,))
    wait_until(lambda: not objects.all(), 40, "all are removed")


def test_what_belongs_to_somebody_else_is_left_alone(
    control_plane: ControlPlane,
    start_operator: Callable[..., OperatorProcess],
    policies: Policies,
    objects: Objects,
    namespace: str,
) -> None:
    theirs = {"metadata": {"name": "chat-gateway"}, "spec": {"ports": [{"port": 1234}]}}
    before = control_plane.request("POST", PATHS["Service"].format(namespace=namespace), theirs)
    policies.apply(gateway={"replicas": 1})
    start_operator(flags=(IMAGE,))
    wait_until(lambda: ("Warning", "GatewayFailed") in policies.events(), 30, "it is told")
    assert objects.get("Service") == before
    policies.apply()
    wait_until(lambda: set(objects.all()) == {"Service"}, 40, "the others are removed")
    assert objects.get("Service") == before


def test_without_an_image_it_is_said(
    start_operator: Callable[..., OperatorProcess], policies: Policies, objects: Objects
) -> None:
    policies.apply(gateway={"replicas": 1})
    operator = start_operator()
    wait_until(lambda: ("Warning", "GatewayFailed") in policies.events(), 30, "it is told")
    assert "this operator has no image for gateways; start it with --gateway-image" in operator.log_text()
    assert not objects.all()


def test_keys_and_tokens_are_mounted(
    start_operator: Callable[..., OperatorProcess], policies: Policies, objects: Objects
) -> None:
    pools = [
        {
            "name": "provider",
            "backend": {
                "hosts": [{"host": "api.example.com", "port": 443, "tls": {}}],
                "apiKeySecretRef": {"name": "provider", "key": "api-key"},
            },
            "cost": {"perReplicaHour": "1"},
        }
    ]
    policies.apply(pools=pools, gateway={"replicas": 1, "auth": {"secretRef": {"name": "clients"}}})
    start_operator(flags=(IMAGE,))
    wait_until(objects.complete, 30, "all four are there")
    deployment = objects.get("Deployment")
    assert deployment is not None
    assert "--client-token-dir=/var/run/secrets/meritorder-clients" in arguments(deployment)
    volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["meritorder-clients"]["secret"]["secretName"] == "clients"
    (source,) = volumes["meritorder-keys"]["projected"]["sources"]
    assert source["secret"]["items"] == [{"key": "api-key", "path": "provider_api-key"}]
    # Without a key it may do without tokens; then they are no longer asked for.
    policies.apply(gateway={"replicas": 1})

    def open_to_all() -> bool:
        now = objects.get("Deployment")
        return now is not None and not any("client-token" in one for one in arguments(now))

    wait_until(open_to_all, 20, "no token is asked for")
