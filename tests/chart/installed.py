"""The parts of a release as processes: told what its Deployments say, with the rights of its accounts.

What only a kubelet could do is done here instead: files of Secrets are written, tokens asked for, variables
put into arguments. What only a pod has is given last, so that it holds: a kubeconfig, ports of this machine.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from chart.objects import container_of
from servers.control_plane import ControlPlane
from support.ports import free_port
from support.processes import Child
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in ("operator", "router"))


class Release:
    """An installed release."""

    def __init__(self, cluster: ControlPlane, namespace: str, fullname: str, folder: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.fullname = fullname
        self.folder = folder
        self.server_name = f"{fullname}-router.{namespace}.svc"

    def deployment(self, component: str) -> dict[str, Any]:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.fullname}-{component}"
        found: dict[str, Any] = self.cluster.request("GET", path)
        return found

    def account(self, component: str) -> str:
        return str(self.deployment(component)["spec"]["template"]["spec"]["serviceAccountName"])

    def secret(self, name: str) -> dict[str, bytes]:
        """The data of a Secret; empty while it is not there."""
        answer = self.cluster.client.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        data = answer.json()["data"] if answer.status_code == 200 else {}
        return {key: base64.b64decode(text) for key, text in data.items()}

    def mounted(self) -> Path:
        """The servers' certificate as files, once it is there."""
        files = wait_until(
            lambda: self.secret(f"{self.fullname}-router-tls"), 30, "the servers have a certificate"
        )
        folder = self.folder / "tls"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    def operator(self, *, name: str = "operator-0") -> Operator:
        """The operator's process."""
        return Operator(self, name)

    def server(self, *, name: str = "router-0") -> Server:
        """A router server's process; the certificate must be there."""
        return Server(self, name)

    def command(
        self, component: str, module: str, pod: str, overrides: Sequence[str]
    ) -> tuple[list[str], dict[str, str]]:
        """What the Deployment's container runs, and its environment."""
        container = container_of(self.deployment(component))
        program, *subcommand = container["command"]
        assert program == f"meritorder-{component}"
        known = {"metadata.name": pod, "metadata.namespace": self.namespace, "status.podIP": "192.0.2.7"}
        environment = {
            one["name"]: one["value"] if "value" in one else known[one["valueFrom"]["fieldRef"]["fieldPath"]]
            for one in container["env"]
        }
        arguments = [_expanded(argument, environment) for argument in container["args"]]
        kubeconfig = self.cluster.kubeconfig_for(self.namespace, self.account(component))
        command = [sys.executable, "-m", module, *subcommand, *arguments, f"--kubeconfig={kubeconfig}"]
        return [*command, *overrides], {**environment, "PYTHONPATH": PYTHONPATH}


class Operator(Child):
    """An operator of a release."""

    def __init__(self, release: Release, pod: str) -> None:
        port = free_port()
        self.metrics_url = f"http://127.0.0.1:{port}/metrics"
        overrides = ("--health-host=127.0.0.1", f"--health-port={port}", f"--metrics-port={port}")
        command, environment = release.command("operator", "meritorder_operator", pod, overrides)
        super().__init__(command, log=release.folder / f"{pod}.log", name=pod, env=environment)


class Server(Child):
    """A router server of a release."""

    def __init__(self, release: Release, pod: str) -> None:
        self.port, metrics_port = free_port(), free_port()
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.url = f"https://127.0.0.1:{self.port}"
        self.tls = release.mounted()
        token = release.folder / f"{pod}.token"
        account = release.account("router")
        token.write_text(release.cluster.token_for(release.namespace, account, audiences=["meritorder"]))
        overrides = (
            f"--listen=127.0.0.1:{self.port}",
            f"--metrics-listen=127.0.0.1:{metrics_port}",
            f"--tls-cert={self.tls / 'tls.crt'}",
            f"--tls-key={self.tls / 'tls.key'}",
            f"--peer-ca={self.tls / 'ca.crt'}",
            f"--token-file={token}",
        )
        command, environment = release.command("router", "meritorder_router", pod, overrides)
        super().__init__(command, log=release.folder / f"{pod}.log", name=pod, env=environment)

    def await_ready(self) -> None:
        ready = self.metrics_url.replace("/metrics", "/readyz")
        self.wait_for(
            lambda: httpx.get(ready, trust_env=False).status_code == 200,
            30,
            f"{self.name} is ready",
            retry_on=(httpx.TransportError,),
        )


class ByName(httpx.AsyncHTTPTransport):
    """Reaches a server at its address and verifies it by the name in its certificate."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        request.extensions = {**request.extensions, "sni_hostname": self._name}
        return await super().handle_async_request(request)


def _expanded(argument: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        argument = argument.replace(f"$({name})", value)
    return argument
