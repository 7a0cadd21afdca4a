"""A well installation for `doctor`: its objects on a real API server, its series in a real Prometheus. A test
takes one thing out of order."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from meritorder_api import metric_names as m
from meritorder_api.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from meritorder_cli.doctor.diagnosis import diagnose
from meritorder_cli.doctor.findings import Finding, Report
from meritorder_cli.doctor.gather import gather
from meritorder_operator.cluster import Cluster
from prometheus.exporter import Exporter
from servers.control_plane import ControlPlane
from servers.pods import create_pod
from servers.prometheus import Prometheus

SYSTEM = "meritorder-system"
WEBHOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
POLICY: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "chat"},
    "spec": {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2500, "windowSeconds": 5},
        "behavior": {"intervalSeconds": 1},
        "pools": [
            {
                "name": "l40s",
                "backend": {"service": {"name": "chat-l40s", "port": 8000}},
                "cost": {"perReplicaHour": "1.86"},
                "metrics": {"engine": "VLLM"},
            },
            {
                "name": "h100",
                "backend": {"service": {"name": "chat-h100", "port": 8000}},
                "cost": {"query": "gpu_price"},
            },
        ],
    },
}
BOUNDS = ("0.3", "0.5", "1.0", "2.5", "5.0", "10.0", "60.0", "+Inf")
VLLM = "vllm:e2e_request_latency_seconds"
OPERATOR_RIGHTS = (
    ("meritorder.dev", "inferencepolicies", "get list watch"),
    ("meritorder.dev", "inferencepolicies/status", "patch"),
    ("", "events", "create"),
    ("", "configmaps", "get create patch"),
    ("coordination.k8s.io", "leases", "get create update"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "get patch"),
)
ROUTER_RIGHTS = (
    ("meritorder.dev", "inferencepolicies", "list watch"),
    ("meritorder.dev", "inferencepolicies/status", "patch"),
    ("", "services", "list watch"),
    ("discovery.k8s.io", "endpointslices", "list watch"),
    ("", "pods", "get list watch"),
    ("", "events", "create"),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("coordination.k8s.io", "leases", "get create update"),
)


class World:
    """One namespace `ml-...` with a policy, under one installation."""

    def __init__(self, control_plane: ControlPlane, prometheus: Prometheus) -> None:
        self.plane = control_plane
        self.prometheus = prometheus
        self.namespace = ""

    # The installation, once.

    def install(self) -> None:
        """Operator and router servers as the chart has them, without pods."""
        self.plane.create_namespace(SYSTEM)
        for component, rights in (("operator", OPERATOR_RIGHTS), ("router", ROUTER_RIGHTS)):
            self._deploy(component)
            self._grant(component, rights)
            self.lease(component, age=0)
        self._service(SYSTEM, "meritorder-router", 443)
        self.endpoints(SYSTEM, "meritorder-router", "192.0.2.9")
        self.plane.request("POST", WEBHOOK, webhook())

    def _deploy(self, component: str) -> None:
        name = f"meritorder-{component}"
        labels = {"app.kubernetes.io/part-of": "meritorder", "app.kubernetes.io/component": component}
        arguments = {
            "operator": [f"--prometheus-url={self.prometheus.url}", "--webhook=meritorder-injection"],
            "router": ["--listen=0.0.0.0:8443"],
        }
        container = {
            "name": component,
            "image": "example.invalid/none",
            "args": arguments[component],
            "env": [{"name": "MERITORDER_SIDECAR_IMAGE", "value": "example.invalid/none"}],
        }
        self.plane.request(
            "POST", f"/api/v1/namespaces/{SYSTEM}/serviceaccounts", {"metadata": {"name": name}}
        )
        template = {
            "metadata": {"labels": labels},
            "spec": {"serviceAccountName": name, "containers": [container]},
        }
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        self.plane.request("POST", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", body)

    def _grant(self, component: str, rights: tuple[tuple[str, str, str], ...]) -> None:
        name = f"meritorder-{component}"
        rules = [
            {"apiGroups": [group], "resources": [resource], "verbs": verbs.split()}
            for group, resource, verbs in rights
        ]
        api = "/apis/rbac.authorization.k8s.io/v1"
        self.plane.request("POST", f"{api}/clusterroles", {"metadata": {"name": name}, "rules": rules})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
        self.plane.request("POST", f"{api}/clusterrolebindings", binding)

    def lease(self, component: str, *, age: float) -> None:
        """Make a Lease that was renewed so many seconds ago."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
        name = f"meritorder-{component}"
        renewed = datetime.now(UTC) - timedelta(seconds=age)
        spec = {
            "holderIdentity": f"{component}-0",
            "leaseDurationSeconds": 600,  # the tests take longer than a real one
            "renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        if self.plane.client.get(f"{path}/{name}").status_code == 200:
            self.plane.client.delete(f"{path}/{name}").raise_for_status()
        self.plane.request("POST", path, {"metadata": {"name": name}, "spec": spec})

    # A policy and its surroundings, per test.

    def settle(self, namespace: str, policy: dict[str, Any] = POLICY) -> None:
        """A policy in that namespace with all that it needs."""
        self.namespace = namespace
        for name, address in (("chat-l40s", "192.0.2.1"), ("chat-h100", "192.0.2.2")):
            self._service(namespace, name, 8000)
            self.endpoints(namespace, name, address)
        body = {"metadata": {"name": "meritorder-ca"}, "data": {"ca.crt": "a certificate"}}
        self.plane.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
        self.policy(policy)

    def policy(self, policy: dict[str, Any], **programmed: Any) -> None:
        """Make a policy that an operator decided on and that two agents serve."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"
        self.plane.request("POST", path, policy)
        self.status(policy["metadata"]["name"], **programmed)

    def status(self, name: str = "chat", **programmed: Any) -> None:
        """Write its status."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}"
        made = self.plane.request("GET", path)
        made["status"] = {
            "observedGeneration": made["metadata"]["generation"],
            "routing": {"sequence": 4, "revision": "r", "pools": [{"name": "l40s"}, {"name": "h100"}]},
            "programmed": {"sequence": 4, "agents": 2, "applied": 2, "silent": 0, **programmed},
        }
        self.plane.request("PUT", f"{path}/status", made)

    def edit(self, body: dict[str, Any], name: str = "chat") -> None:
        """Merge into the policy, which the operator then acts on."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}"
        self.patch(path, body)
        self.status(name)

    def patch(self, path: str, body: dict[str, Any]) -> None:
        headers = {"content-type": "application/merge-patch+json"}
        answer = self.plane.client.patch(
            path, content=httpx.Request("PATCH", "http://x", json=body).content, headers=headers
        )
        assert not answer.is_error, answer.text

    def pools(self, **changes: dict[str, Any]) -> None:
        """Change pools, by name."""
        pools = deepcopy(POLICY["spec"]["pools"])
        for pool in pools:
            pool.update(changes.get(pool["name"], {}))
        self.edit({"spec": {"pools": pools}})

    def _service(self, namespace: str, name: str, port: int) -> None:
        body = {"metadata": {"name": name}, "spec": {"ports": [{"port": port, "name": "http"}]}}
        self.plane.request("POST", f"/api/v1/namespaces/{namespace}/services", body)

    def endpoints(self, namespace: str, service: str, *addresses: str) -> None:
        """Ready endpoints of a Service."""
        body = {
            "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8000}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        }
        self.plane.request("POST", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", body)

    def remove(self, path: str) -> None:
        """Delete an object of the test's namespace."""
        self.plane.client.delete(path.replace("NS", self.namespace)).raise_for_status()

    def pod(self, name: str, **labels: str) -> None:
        create_pod(self.plane, self.namespace, name, labels=labels)

    @contextmanager
    def without(self, path: str) -> Iterator[None]:
        """Delete an object for a while."""
        kept = self.plane.request("GET", path)
        self.plane.client.delete(path).raise_for_status()
        try:
            yield
        finally:
            for name in ("resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"):
                kept["metadata"].pop(name, None)
            if self.plane.client.get(path).status_code == 404:
                self.plane.request("POST", path.rpartition("/")[0], kept)

    # Its findings.

    def findings(self, **options: Any) -> tuple[Finding, ...]:
        """What doctor finds in this namespace and in the installation."""
        return tuple(self.report(**options).findings)

    def report(self, **options: Any) -> Report:
        async def ask() -> Report:
            cluster = Cluster.connect(self.plane.kubeconfig)
            given = {"prometheus_url": None, "prometheus_token_file": None, "installed_in": None, **options}
            try:
                return diagnose(await gather(cluster, namespace=self.namespace, **given))
            finally:
                await cluster.close()

        return asyncio.run(ask())


def webhook() -> dict[str, Any]:
    """The chart's configuration, with what the operator writes."""
    return {
        "metadata": {"name": "meritorder-injection"},
        "webhooks": [_hook("optional", "NotIn", "Ignore"), _hook("required", "In", "Fail")],
    }


def _hook(kind: str, operator: str, policy: str) -> dict[str, Any]:
    pem = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"
    service = {"name": "meritorder-router", "namespace": SYSTEM, "path": "/inject", "port": 443}
    return {
        "name": f"{kind}.injection.meritorder.dev",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": policy,
        "clientConfig": {"service": service, "caBundle": base64.b64encode(pem.encode()).decode()},
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        ],
        "objectSelector": {"matchLabels": {"meritorder.dev/inject": "true"}},
        # Here it must never be asked: nobody would answer.
        "namespaceSelector": {
            "matchLabels": {"never": "true"},
            "matchExpressions": [
                {"key": "meritorder.dev/injection", "operator": operator, "values": ["required"]}
            ],
        },
    }


def router_series(exporter: Exporter, name: str = "chat") -> None:
    """What a router of a policy tells."""
    exporter.set(m.APPLIED_SEQUENCE, 4, policy=name)
    for pool in ("l40s", "h100"):
        exporter.set(m.SAMPLES, 0, policy=name, pool=pool)


def engine_series(exporter: Exporter, *, milliseconds: bool = False) -> None:
    """What a vLLM tells."""
    exporter.set("vllm:num_requests_running", 0)
    for bound in BOUNDS:
        shown = bound if bound == "+Inf" or not milliseconds else f"{float(bound) * 1000}"
        exporter.set(f"{VLLM}_bucket", 0, le=shown)
