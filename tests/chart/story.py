"""From `helm install` to a decision that is served: what an installed release does, with its own rights."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from chart import audit
from chart.installed import ByName, Operator, Release
from chart.installed import Server as InstalledServer
from chart.objects import container_of
from chart.reference import CHART
from meritorder_api.names import OPERATOR_LEASE
from servers import router_server
from servers.control_plane import ControlPlane
from servers.helm import Helm
from servers.operator_process import Policies
from servers.pods import create_pod, create_service, set_endpoints
from support.waiting import wait_until

NOWHERE = "http://127.0.0.1:9"
"""A Prometheus that is not there: decisions are made, and say so."""


class Story:
    """One release, a namespace with a policy and a pod that has a router, and the parts as processes."""

    def __init__(
        self,
        cluster: ControlPlane,
        helm: Helm,
        folder: Path,
        *,
        release: str,
        namespace: str,
        policies: str,
        chart: Path = CHART,
        arguments: Sequence[str] = (),
    ) -> None:
        """`policies` is the namespace of the policy."""
        self.cluster = cluster
        self.helm = helm
        self.name, self.namespace, self.home = release, namespace, policies
        self._folder = folder
        self._stack = ExitStack()
        cluster.create_namespace(policies)
        self.policies = Policies(cluster, policies)
        helm("install", release, chart, "-n", namespace, "--create-namespace", *arguments)
        self.release = Release(cluster, namespace, f"{release}", folder)

    def run(self) -> None:
        """Bring it to where the policy's first routing is served."""
        self._application()
        self.operator = self.start_operator("operator-0")
        self.policies.apply("chat")
        self.policies.routed("chat")
        self.server = self.release.server()
        self._stack.callback(self.server.kill)
        self.server.start()
        self.server.await_ready()
        asyncio.run(self._serve())
        wait_until(
            lambda: self.policies.condition("Programmed").get("status") == "True",
            30,
            "the policy is programmed",
        )

    def start_operator(self, name: str) -> Operator:
        operator = self.release.operator(name=name)
        self._stack.callback(operator.kill)
        operator.start()
        return operator

    def close(self) -> None:
        """End the processes, uninstall the release if it is there, and delete the policies' namespace."""
        self._stack.close()
        self.helm.run("uninstall", self.name, "-n", self.namespace, "--ignore-not-found")
        self.cluster.delete_namespace(self.home)

    def _application(self) -> None:
        for pool in ("l40s", "h100"):
            create_service(self.cluster, self.home, f"chat-{pool}", ports={"http": 8000})
            set_endpoints(self.cluster, self.home, f"chat-{pool}", [("192.0.2.1", 8000)])
        create_pod(self.cluster, self.home, "app-0", annotations={"meritorder.dev/policy": "chat"})

    async def _serve(self) -> None:
        """A router by hand: it takes its table, and says that it applied it, until that is in the status."""
        token = self.cluster.token_for(self.home, "default", audiences=["meritorder"], pod="app-0")
        path = f"/api/v1/namespaces/{self.home}/configmaps/meritorder-ca"
        wait_until(lambda: self.cluster.client.get(path).is_success, 30, "the operator tells whom to trust")
        bundle = self.cluster.request("GET", path)
        context = ssl.create_default_context(cadata=bundle["data"]["ca.crt"])
        transport = ByName(self.release.server_name, verify=context)
        server = as_server(self.server, context, self.namespace)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            agent = router_server.Agent(client, server, "app-0", token)
            for _ in range(60):
                await agent.turn(wait=1.0)
                if self.policies.status("chat").get("programmed", {}).get("applied") == 1:
                    break
            assert agent.table is not None
            self.table = agent.table

    # What makes the parts use their rarer rights.

    def name_a_source_with_credentials(self) -> None:
        """A policy whose own Prometheus wants a token."""
        self.cluster.request(
            "POST",
            f"/api/v1/namespaces/{self.home}/secrets",
            {"metadata": {"name": "prometheus"}, "stringData": {"token": "t"}},
        )
        source = {"prometheus": {"url": f"{NOWHERE}/own", "authSecretRef": {"name": "prometheus"}}}
        self.policies.apply("own-source", metricsSource=source)
        self.policies.routed("own-source")

    def have_a_gateway_for_a_while(self) -> None:
        """A policy that asks for a gateway, and then no longer."""
        path = f"/apis/apps/v1/namespaces/{self.home}/deployments/chat-gateway"

        def there() -> bool:
            return self.cluster.client.get(path).status_code == 200

        self.policies.apply("chat", gateway={"replicas": 1})
        wait_until(there, 30, "the gateway is there")
        router = self.cluster.request("GET", path)["spec"]["template"]["spec"]["containers"][0]
        assert router["image"] == container_of(self.release.deployment("operator"))["image"]
        assert f"--server-url=https://{self.release.server_name}" in router["args"]
        self.policies.apply("chat")
        wait_until(lambda: not there(), 30, "the gateway is gone")

    def create_a_pod_that_is_not_injected(self) -> None:
        """A pod that asks for a router where no webhook answers: there is no network to the servers here."""
        annotations = {"meritorder.dev/policy": "chat"}
        labels = {"meritorder.dev/inject": "true"}
        create_pod(self.cluster, self.home, "app-1", labels=labels, annotations=annotations)
        path = f"/api/v1/namespaces/{self.home}/events?fieldSelector=reason=NotInjected"
        wait_until(lambda: self.cluster.request("GET", path)["items"], 30, "it is told of")

    def spoil_the_secrets(self) -> None:
        """Somebody overwrites both Secrets; the next operator makes them anew."""
        secrets = f"/api/v1/namespaces/{self.namespace}/secrets"
        server = f"{self.release.fullname}-router-tls"
        broken = base64.b64encode(b"broken").decode()
        for name, key in (("meritorder-ca", "current.crt"), (server, "tls.crt")):
            headers = {"Content-Type": "application/merge-patch+json"}
            self.cluster.request("PATCH", f"{secrets}/{name}", {"data": {key: broken}}, **headers)
        self.operator.stop()
        self.operator = self.start_operator("operator-1")
        wait_until(lambda: self.release.secret(server)["tls.crt"] != b"broken", 30, "the Secrets are mended")

    def edit_until_a_write_is_stale(self) -> None:
        """Change the policy so often that the operator's write meets a newer version."""
        targets = iter(range(1000, 100_000))

        def stale() -> bool:
            for _ in range(20):
                sla = {"metric": "EndToEndLatency", "targetMilliseconds": next(targets), "windowSeconds": 15}
                self.policies.apply("chat", sla=sla)
            return any(deed.right.verb == "get" for deed in self.deeds("operator") if _is_policy(deed))

        wait_until(stale, 60, "the operator reads a policy again")

    def leave(self) -> None:
        """Both parts end well: they give their Leases up."""
        self.operator.stop()
        self.server.stop()

    # What is asked of it.

    def deeds(self, component: str) -> list[audit.Deed]:
        log = self.cluster.audit_log
        assert log is not None
        return audit.deeds(log, self.namespace, self.release.account(component))

    def granted(self, component: str) -> set[audit.Right]:
        return audit.granted(self.cluster, self.namespace, self.release.account(component))

    def lease_holder(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/{OPERATOR_LEASE}"
        return str(self.cluster.request("GET", path)["spec"].get("holderIdentity"))


def _is_policy(deed: audit.Deed) -> bool:
    return deed.right.resource == "inferencepolicies"


def as_server(server: InstalledServer, context: ssl.SSLContext, namespace: str) -> router_server.Server:
    return router_server.Server(server, server.name or "", server.url, server.metrics_url, context, namespace)


def policy_of(cluster: ControlPlane, namespace: str, name: str) -> Mapping[str, Any]:
    found: dict[str, Any] = cluster.request(
        "GET", f"/apis/meritorder.dev/v1alpha1/namespaces/{namespace}/inferencepolicies/{name}"
    )
    return found
