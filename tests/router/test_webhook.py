"""Pods created through the real API server, with the real server as its webhook, and what they run."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_api.container import RouterSettings
from meritorder_api.policy import Gateway, InferencePolicySpec
from meritorder_operator import gateway
from servers.control_plane import ControlPlane
from servers.pki import Authority
from servers.pods import ensure_node
from servers.router_container import run_container
from servers.router_server import Policy, Server, StartServer
from support.mounts import mount
from support.ports import free_ports
from support.processes import Child
from support.waiting import wait_until

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
NEW_PODS = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}


def webhook(name: str, server: Server, authority: Authority, namespaces: list[str]) -> dict[str, Any]:
    """A configuration as the chart has it, for some namespaces and a server outside of the cluster."""
    bundle = base64.b64encode(authority.certificate.read_bytes()).decode()
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "required.injection.meritorder.dev",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "timeoutSeconds": 10,
                "clientConfig": {"url": f"{server.url}/inject", "caBundle": bundle},
                "rules": [NEW_PODS],
                "objectSelector": {"matchLabels": {"meritorder.dev/inject": "true"}},
                "namespaceSelector": {
                    "matchExpressions": [
                        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces}
                    ]
                },
            }
        ],
    }


@pytest.fixture(scope="module")
def home(control_plane: ControlPlane) -> Iterator[str]:
    """The namespace of the applications of this file."""
    name = control_plane.create_namespace(f"t-{secrets.token_hex(4)}")
    yield name
    control_plane.delete_namespace(name)


@pytest.fixture(scope="module")
def server(
    control_plane: ControlPlane, injecting_server: Server, authority: Authority, home: str
) -> Iterator[Server]:
    """A server that the API server asks about pods of `home`."""
    name = injecting_server.namespace
    control_plane.request("POST", CONFIGURATIONS, webhook(name, injecting_server, authority, [home]))
    # The API server itself sees it a moment later.
    wait_until(
        lambda: _create(control_plane, home, a_pod("probe"), dry=True)["spec"].get("initContainers"),
        20,
        "the webhook is asked",
    )
    yield injecting_server
    control_plane.request("DELETE", f"{CONFIGURATIONS}/{name}")


def a_pod(name: str, policy: str | None = "chat", **spec: Any) -> dict[str, Any]:
    annotations = {"meritorder.dev/policy": policy} if policy is not None else {}
    return {
        "metadata": {"name": name, "labels": {"meritorder.dev/inject": "true"}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "example.invalid/app"}], **spec},
    }


def _create(
    control_plane: ControlPlane, namespace: str, pod: dict[str, Any], *, dry: bool = False
) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{namespace}/pods" + ("?dryRun=All" if dry else "")
    created: dict[str, Any] = control_plane.request("POST", path, pod)
    return created


def router_of(pod: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = pod["spec"]["initContainers"][0]
    assert first["name"] == "meritorder-router"
    return first


def test_a_pod_gets_its_router(control_plane: ControlPlane, server: Server, home: str) -> None:
    pod = _create(control_plane, home, a_pod("web"))
    assert router_of(pod)["restartPolicy"] == "Always"
    assert {"name": "OPENAI_BASE_URL", "value": "http://127.0.0.1:8089/v1"} in (
        pod["spec"]["containers"][0]["env"]
    )
    # The API token goes to the application alone.
    assert "kube-api-access" in str(pod["spec"]["containers"][0]["volumeMounts"])
    assert "kube-api-access" not in str(router_of(pod)["volumeMounts"])
    assert server.metric('meritorder_server_injections_total{outcome="injected"}') >= 1


def test_pods_of_a_deployment_and_of_a_job_get_theirs(
    control_plane: ControlPlane, server: Server, home: str
) -> None:
    template = a_pod("")
    template["metadata"].pop("name")
    template["metadata"]["labels"]["app"] = "web"
    deployment = {
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    }
    job_template = json.loads(json.dumps(template))
    job_template["metadata"]["labels"]["app"] = "batch"
    job_template["spec"]["restartPolicy"] = "Never"
    job = {"metadata": {"name": "batch"}, "spec": {"template": job_template}}
    control_plane.request("POST", f"/apis/apps/v1/namespaces/{home}/deployments", deployment)
    control_plane.request("POST", f"/apis/batch/v1/namespaces/{home}/jobs", job)

    def pods(app: str) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{home}/pods?labelSelector=app={app}"
        found: list[dict[str, Any]] = control_plane.request("GET", path)["items"]
        return found

    wait_until(lambda: len(pods("web")) == 2 and len(pods("batch")) == 1, 30, "there are three pods")
    assert all(router_of(pod) for pod in (*pods("web"), *pods("batch")))


def test_the_keys_of_a_policy_created_a_moment_before_are_mounted(
    control_plane: ControlPlane, server: Server, home: str
) -> None:
    policy = Policy(control_plane, home, "keyed")
    spec = {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
        "pools": [
            {
                "name": "provider",
                "backend": {
                    "hosts": [{"host": "192.0.2.1", "port": 443}],
                    "apiKeySecretRef": {"name": "provider", "key": "api-key"},
                },
                "cost": {"perReplicaHour": "1"},
            }
        ],
    }
    control_plane.request(
        "POST",
        policy.path.rpartition("/")[0],
        {
            "apiVersion": "meritorder.dev/v1alpha1",
            "kind": "InferencePolicy",
            "metadata": {"name": "keyed"},
            "spec": spec,
        },
    )
    pod = _create(control_plane, home, a_pod("keyed", "keyed"))
    assert "--key-dir=/var/run/secrets/meritorder-keys" in router_of(pod)["args"]
    volume = next(one for one in pod["spec"]["volumes"] if one["name"] == "meritorder-keys")
    assert volume["projected"]["sources"] == [
        {
            "secret": {
                "name": "provider",
                "items": [{"key": "api-key", "path": "provider_api-key"}],
                "optional": True,
            }
        }
    ]


@pytest.mark.parametrize(
    ("name", "policy", "spec", "sentence"),
    [
        (
            "nodes",
            "chat",
            {"hostNetwork": True},
            "is on its node's network, where its router would be open to every other such pod; take "
            "`hostNetwork` away, or its label `meritorder.dev/inject` and use the policy's gateway",
        ),
        ("nameless", None, {}, "names no policy; set its annotation `meritorder.dev/policy`"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    control_plane: ControlPlane,
    server: Server,
    home: str,
    name: str,
    policy: str | None,
    spec: dict[str, Any],
    sentence: str,
) -> None:
    answer = control_plane.client.post(f"/api/v1/namespaces/{home}/pods", json=a_pod(name, policy, **spec))
    assert answer.status_code == 403
    assert answer.json()["message"] == (
        'admission webhook "required.injection.meritorder.dev" denied the request: '
        f"pod `{home}/{name}` {sentence}"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"apiVersion": "admission.k8s.io/v1", "request": {"uid": ""}}',
        b'{"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "1"}}',
        b'{"apiVersion": "admission.k8s.io/v1", "request": {"uid": "1", "resource": {"resource": "pods"}, '
        b'"operation": "CREATE", "object": []}}',
    ],
)
def test_what_is_no_review_is_refused(server: Server, body: bytes) -> None:
    answer = httpx.post(f"{server.url}/inject", content=body, verify=server.context, trust_env=False)
    assert answer.status_code == 400
    assert answer.json() == {
        "reason": "BadReview",
        "message": "the request is no AdmissionReview of admission.k8s.io/v1 about a pod",
    }


def test_what_is_no_new_pod_is_let_through(server: Server) -> None:
    body = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "operation": "UPDATE",
            "resource": {"group": "", "version": "v1", "resource": "pods"},
        },
    }
    answer = httpx.post(f"{server.url}/inject", json=body, verify=server.context, trust_env=False)
    assert answer.json()["response"] == {"uid": "1", "allowed": True}


def test_pods_of_namespaces_that_are_not_served_are_left_alone(serve: StartServer, namespace: str) -> None:
    server = serve(options=("--sidecar-image", "example.com/meritorder:1", "--namespace", namespace))
    for place, patched in ((namespace, True), ("elsewhere", False)):
        body = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "operation": "CREATE",
                "namespace": place,
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "object": a_pod("web"),
            },
        }
        answer = httpx.post(f"{server.url}/inject", json=body, verify=server.context, trust_env=False)
        assert answer.json()["response"]["allowed"]
        assert ("patch" in answer.json()["response"]) is patched


def test_a_server_without_an_image_says_so(serve: StartServer) -> None:
    server = serve()
    answer = httpx.post(f"{server.url}/inject", json={}, verify=server.context, trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["reason"] == "NotConfigured"


def test_a_pod_without_its_router_is_told_of(
    control_plane: ControlPlane, server: Server, namespace: str
) -> None:
    # The webhook is not asked about this namespace.
    _create(control_plane, namespace, a_pod("bare"))

    def events() -> list[dict[str, Any]]:
        found = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return [one for one in found if one["reason"] == "NotInjected"]

    wait_until(events, 20, "an event tells")
    assert events()[0]["type"] == "Warning"
    assert events()[0]["message"] == (
        f"Pod `{namespace}/bare` has the label `meritorder.dev/inject`, but was created without a router: "
        "the webhook was not asked. Its requests go where its client's default leads; delete the pod, so "
        "that it is created again."
    )
    series = f'meritorder_server_uninjected_pods{{namespace="{namespace}"}}'
    wait_until(lambda: server.metric(series) == 1, 10, "a metric tells")
    control_plane.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/bare?gracePeriodSeconds=0")

    def gone() -> bool:
        try:
            server.metric(series)
        except KeyError:
            return True
        return False

    wait_until(gone, 10, "nothing is told of what is gone")
    assert len(events()) == 1


def test_the_injected_router_runs(
    control_plane: ControlPlane,
    server: Server,
    authority: Authority,
    home: str,
    tmp_path: Path,
) -> None:
    policy = routed(control_plane, home, "runs")
    listen, metrics = free_ports(2)
    body = a_pod("runs", "runs", nodeName=ensure_node(control_plane))
    body["metadata"]["annotations"] |= {
        "meritorder.dev/port": str(listen),
        "meritorder.dev/metrics-port": str(metrics),
    }
    pod = _create(control_plane, home, body)
    identity = tmp_path / "identity"
    token = control_plane.token_for(home, "default", audiences=["meritorder"], pod="runs")
    mount(identity, {"token": token})
    mounts = {"/var/run/secrets/meritorder": identity, "/run/meritorder": tmp_path / "run"}
    with run_container(router_of(pod), tmp_path, mounts) as router:
        ready = f"http://127.0.0.1:{metrics}{router_of(pod)['readinessProbe']['httpGet']['path']}"
        wait_ready(router, ready)
        url = pod["spec"]["containers"][0]["env"][0]["value"]
        answer = httpx.post(f"{url}/chat/completions", json={}, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_routing_table")
        # The operator has made the ConfigMap, and kubelet has brought it.
        mount(identity, {"token": token, "ca.crt": authority.certificate.read_text()})
        wait_until(lambda: policy.programmed().get("applied") == 1, 40, "it has applied the table")
        other = httpx.get(f"{url}/nothing", trust_env=False)
        assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")


def test_the_router_of_a_gateway_runs(
    control_plane: ControlPlane, server: Server, authority: Authority, home: str, tmp_path: Path
) -> None:
    policy = routed(control_plane, home, "shared")
    spec = InferencePolicySpec.model_validate(policy.read()["spec"])
    wanted = Gateway.model_validate({"auth": {"secretRef": {"name": "clients"}}})
    metadata = {"namespace": home, "name": "shared", "uid": "u-1"}
    settings = RouterSettings(image="example.com/meritorder:1", server_urls=(server.url,))
    template = gateway.objects(metadata, spec, wanted, settings)[gateway.DEPLOYMENT]["spec"]["template"]
    body = {"metadata": {"name": "shared", **template["metadata"]}, "spec": dict(template["spec"])}
    body["spec"] |= {"nodeName": ensure_node(control_plane)}
    pod = _create(control_plane, home, body)
    container = pod["spec"]["containers"][0]
    # Its ports are the same in each pod; here another test may have them.
    listen, metrics = free_ports(2)
    container["args"] = [
        one.replace(":8089", f":{listen}").replace(":9902", f":{metrics}") for one in container["args"]
    ]
    token = control_plane.token_for(home, "default", audiences=["meritorder"], pod="shared")
    mount(tmp_path / "identity", {"token": token, "ca.crt": authority.certificate.read_text()})
    mount(tmp_path / "clients", {"web": "a-token"})
    mounts = {
        "/var/run/secrets/meritorder": tmp_path / "identity",
        "/var/run/secrets/meritorder-clients": tmp_path / "clients",
        "/run/meritorder": tmp_path / "run",
    }
    with run_container(container, tmp_path, mounts) as router:
        wait_ready(router, f"http://127.0.0.1:{metrics}{container['readinessProbe']['httpGet']['path']}")
        url = f"http://127.0.0.1:{listen}/v1/nothing"
        assert httpx.get(url, trust_env=False).status_code == 401
        known = httpx.get(url, headers={"authorization": "Bearer a-token"}, trust_env=False)
        assert known.status_code == 404
        wait_until(lambda: policy.programmed().get("applied") == 1, 40, "it has applied the table")
        router.kill()  # it would serve on for a while


def routed(control_plane: ControlPlane, namespace: str, name: str) -> Policy:
    """A policy with a routing."""
    policy = Policy(control_plane, namespace, name).create()
    policy.endpoints("l40s", "192.0.2.1")
    policy.endpoints("h100", "192.0.2.9")
    policy.route(1, "20")
    return policy


def wait_ready(router: Child, url: str) -> None:
    router.wait_for(
        lambda: httpx.get(url, trust_env=False).status_code == 200,
        30,
        "it is ready",
        retry_on=(httpx.TransportError,),
    )
