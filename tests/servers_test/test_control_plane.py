"""The control plane that other tests trust: that it is what it says, and that its faults are faults."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from servers.control_plane import ISSUER, ControlPlane
from servers.kubectl import Kubectl, KubectlFailed
from servers.pods import create_pod, create_service, delete_pod, set_endpoints, set_pod_ready
from servers.tcp_proxy import TcpProxy
from support.waiting import wait_until

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


def review(control_plane: ControlPlane, token: str, audience: str) -> dict[str, Any]:
    body = {"spec": {"token": token, "audiences": [audience]}}
    status: dict[str, Any] = control_plane.request("POST", REVIEWS, body)["status"]
    return status


def endpoints_of(control_plane: ControlPlane, namespace: str, service: str) -> set[tuple[str, int]]:
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    label = f"kubernetes.io/service-name={service}"
    return {
        (endpoint["addresses"][0], endpoint_slice["ports"][0]["port"])
        for endpoint_slice in control_plane.request("GET", f"{path}?labelSelector={label}")["items"]
        for endpoint in endpoint_slice["endpoints"] or []
        if endpoint["conditions"]["ready"]
    }


def test_tells_the_version_it_was_built_from(control_plane: ControlPlane, kubectl: Kubectl) -> None:
    assert control_plane.version == "v1.36.3"
    assert kubectl.json("version")["serverVersion"]["gitVersion"] == "v1.36.3"


def test_service_without_a_selector_has_the_endpoints_a_test_gives_it(
    control_plane: ControlPlane, namespace: str, machine_address: str
) -> None:
    create_service(control_plane, namespace, "pool", ports={"http": 8000})
    set_endpoints(control_plane, namespace, "pool", [(machine_address, 21_001), (machine_address, 21_002)])
    assert endpoints_of(control_plane, namespace, "pool") == {
        (machine_address, 21_001),
        (machine_address, 21_002),
    }
    set_endpoints(
        control_plane,
        namespace,
        "pool",
        [(machine_address, 21_002)],
        not_ready=[(machine_address, 21_003)],
    )
    assert endpoints_of(control_plane, namespace, "pool") == {(machine_address, 21_002)}


def test_loopback_addresses_are_refused_as_endpoints(control_plane: ControlPlane, namespace: str) -> None:
    create_service(control_plane, namespace, "pool", ports={"http": 8000})
    with pytest.raises(httpx.HTTPStatusError, match="may not be in the loopback range"):
        set_endpoints(control_plane, namespace, "pool", [("127.0.0.1", 8000)])


def test_ready_pods_become_endpoints_of_the_service_that_selects_them(
    control_plane: ControlPlane, namespace: str
) -> None:
    create_service(control_plane, namespace, "pool", ports={"http": 8000}, selector={"app": "pool"})
    create_pod(control_plane, namespace, "a", ip="203.0.113.11", labels={"app": "pool"})
    create_pod(control_plane, namespace, "b", ip="203.0.113.12", labels={"app": "pool"})
    both = {("203.0.113.11", 8000), ("203.0.113.12", 8000)}
    wait_until(lambda: endpoints_of(control_plane, namespace, "pool") == both, 20, "both pods are endpoints")
    set_pod_ready(control_plane, namespace, "a", ip="203.0.113.11", ready=False)
    one = {("203.0.113.12", 8000)}
    wait_until(lambda: endpoints_of(control_plane, namespace, "pool") == one, 20, "the unready pod left")


def test_pod_bound_token_of_our_audience_is_reviewed_with_its_pod(
    control_plane: ControlPlane, namespace: str
) -> None:
    pod = create_pod(control_plane, namespace, "app")
    token = control_plane.token_for(namespace, "default", audiences=["meritorder"], pod="app")
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (claims["iss"], claims["aud"]) == (ISSUER, ["meritorder"])

    status = review(control_plane, token, "meritorder")
    assert status["authenticated"] is True
    assert status["audiences"] == ["meritorder"]
    assert status["user"]["username"] == f"system:serviceaccount:{namespace}:default"
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["app"]
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]


def test_token_is_refused_for_another_audience_and_when_its_pod_is_gone(
    control_plane: ControlPlane, namespace: str
) -> None:
    create_pod(control_plane, namespace, "app")
    token = control_plane.token_for(namespace, "default", audiences=["meritorder"], pod="app")
    assert "authenticated" not in review(control_plane, token, "somebody-else")
    delete_pod(control_plane, namespace, "app")
    wait_until(
        lambda: "authenticated" not in review(control_plane, token, "meritorder"),
        20,
        "the token of a deleted pod is refused",
    )


def test_objects_go_with_their_owner(control_plane: ControlPlane, namespace: str, kubectl: Kubectl) -> None:
    owner = control_plane.request(
        "POST", f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "owner"}}
    )
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    create_pod(control_plane, namespace, "owned", owner_references=[reference])
    kubectl("delete", "configmap", "owner", "-n", namespace)

    def is_gone() -> bool:
        return kubectl.run("get", "pod", "owned", "-n", namespace).returncode == 1

    wait_until(is_gone, 30, "the owned pod is collected")


def test_service_account_may_only_do_what_it_was_granted(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl
) -> None:
    kubectl("create", "serviceaccount", "reader", "-n", namespace)
    reader = Kubectl(control_plane.kubeconfig_for(namespace, "reader"))
    with pytest.raises(KubectlFailed, match="is forbidden"):
        reader("get", "pods")
    kubectl("create", "role", "reads", "--verb=list", "--resource=pods", "-n", namespace)
    kubectl(
        *("create", "rolebinding", "reads", "--role=reads", "-n", namespace),
        f"--serviceaccount={namespace}:reader",
    )
    wait_until(lambda: reader("get", "pods", "-o", "name") == "", 10, "reads", retry_on=(KubectlFailed,))


def test_bad_object_is_refused_with_the_rule_it_breaks(kubectl: Kubectl, namespace: str) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "UPPER"}}
    with pytest.raises(KubectlFailed, match="Invalid value"):
        kubectl.apply(service, namespace=namespace)


def test_cut_proxy_takes_one_way_to_the_api_server_and_leaves_the_others(
    control_plane: ControlPlane, kubectl: Kubectl
) -> None:
    with TcpProxy("127.0.0.1", control_plane.port) as way:
        by_proxy = Kubectl(control_plane.admin_kubeconfig_by(way.url()))
        assert by_proxy("get", "--raw", "/readyz") == "ok"
        way.cut()
        assert "refused" in by_proxy.run("get", "--raw", "/readyz").stderr
        assert kubectl("get", "--raw", "/readyz") == "ok"
        way.heal()
        assert by_proxy("get", "--raw", "/readyz") == "ok"


def test_stalled_proxy_keeps_the_connection_and_answers_nothing(control_plane: ControlPlane) -> None:
    with (
        TcpProxy("127.0.0.1", control_plane.port) as way,
        httpx.Client(base_url=way.url(), verify=control_plane.tls, timeout=0.5, trust_env=False) as client,
    ):
        assert client.get("/readyz").text == "ok"
        way.stall()
        with pytest.raises(httpx.ReadTimeout):
            client.get("/readyz")


def test_counts_requests_by_verb_and_resource(control_plane: ControlPlane, namespace: str) -> None:
    before = control_plane.request_counts().get(("POST", "configmaps"), 0)
    for name in ("a", "b"):
        body = {"metadata": {"name": name}}
        control_plane.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
    assert control_plane.request_counts()["POST", "configmaps"] >= before + 2


def test_frozen_api_server_answers_nothing_until_it_goes_on(control_plane: ControlPlane) -> None:
    control_plane.pause_api_server()
    try:
        with pytest.raises(httpx.ReadTimeout):
            control_plane.client.get("/readyz", timeout=0.5)
    finally:
        control_plane.resume_api_server()
    control_plane.wait_ready()


def test_restarted_api_server_keeps_its_objects(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    control_plane.request("POST", path, {"metadata": {"name": "kept"}})
    control_plane.stop_api_server()
    with pytest.raises(httpx.ConnectError):
        control_plane.client.get("/readyz")
    control_plane.start_api_server()
    assert control_plane.request("GET", f"{path}/kept")["metadata"]["name"] == "kept"
