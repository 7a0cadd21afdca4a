"""Fixtures: router servers with exactly the rights that they need, policies and agents."""

from __future__ import annotations

import contextlib
import secrets
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from servers.control_plane import ControlPlane
from servers.pki import Authority
from servers.pods import create_pod
from servers.router_server import Agent, Policy, Server, StartAgent, StartServer
from support.ports import free_ports
from support.processes import Child

ACCOUNT = "meritorder-router"

RIGHTS: list[dict[str, list[str]]] = [
    {"apiGroups": ["meritorder.dev"], "resources": ["inferencepolicies"], "verbs": ["list", "watch"]},
    {"apiGroups": ["meritorder.dev"], "resources": ["inferencepolicies/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
]
LEASE_RIGHTS: list[dict[str, list[str]]] = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
]


@pytest.fixture
def policy(control_plane: ControlPlane, namespace: str) -> Policy:
    """A policy with two ready L40S and one ready H100, nothing routed yet."""
    made = Policy(control_plane, namespace).create()
    made.endpoints("l40s", "192.0.2.1", "192.0.2.2")
    made.endpoints("h100", "192.0.2.9")
    return made


@pytest.fixture(scope="session")
def server_rights(control_plane: ControlPlane) -> str:
    """A ClusterRole with what a server may do: nothing more may be needed."""
    name = "meritorder-router-tests"
    body = {"metadata": {"name": name}, "rules": RIGHTS}
    control_plane.request("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", body)
    return name


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the servers' certificates."""
    return Authority(tmp_path_factory.mktemp("router-pki"), "meritorder-ca")


@pytest.fixture
def serve(
    control_plane: ControlPlane, namespace: str, server_rights: str, authority: Authority, tmp_path: Path
) -> Iterator[StartServer]:
    """Start servers by `serve(name, peers=..., api=...)`; `api` is another way to the API server."""
    with serving(control_plane, namespace, server_rights, authority, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def server(
    control_plane: ControlPlane,
    server_rights: str,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """One server for all tests of a file that do nothing to it; it runs in a namespace of its own."""
    home = control_plane.create_namespace(f"t-{secrets.token_hex(4)}")
    with serving(control_plane, home, server_rights, authority, tmp_path_factory.mktemp("server")) as start:
        yield start()
    control_plane.delete_namespace(home)


@pytest.fixture(scope="module")
def injecting_server(
    control_plane: ControlPlane,
    server_rights: str,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The same, and it gives routers to pods."""
    home = control_plane.create_namespace(f"t-{secrets.token_hex(4)}")
    options = ("--sidecar-image", "example.com/meritorder:1", "--sidecar-server-url", "SERVER_URL")
    with serving(control_plane, home, server_rights, authority, tmp_path_factory.mktemp("server")) as start:
        yield start(options=options)
    control_plane.delete_namespace(home)


@contextlib.contextmanager
def serving(
    control_plane: ControlPlane, namespace: str, server_rights: str, authority: Authority, folder: Path
) -> Iterator[StartServer]:
    """Give servers their account and rights in a namespace, and the means to start them."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    control_plane.request(
        "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": ACCOUNT}}
    )
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    binding = {
        "metadata": {"name": f"router-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": server_rights},
        "subjects": [subject],
    }
    control_plane.request("POST", f"{rbac}/clusterrolebindings", binding)
    role = {"metadata": {"name": "leases"}, "rules": LEASE_RIGHTS}
    control_plane.request("POST", f"{rbac}/namespaces/{namespace}/roles", role)
    control_plane.request(
        "POST",
        f"{rbac}/namespaces/{namespace}/rolebindings",
        {
            "metadata": {"name": "leases"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leases"},
            "subjects": [subject],
        },
    )
    token = folder / "token"
    token.write_text(control_plane.token_for(namespace, ACCOUNT, audiences=["meritorder"]))
    pair = authority.issue("server", "meritorder-router", names=["127.0.0.1", "localhost"])
    started: list[Server] = []
    ports: dict[str, tuple[int, ...]] = {}

    def start(
        name: str = "server-1",
        *,
        peers: Sequence[str] = (),
        api: str | None = None,
        wait: bool = True,
        options: Sequence[str] = (),
    ) -> Server:
        # `SERVER_URL` in an option stands for the server's own.
        for one in (name, *peers):
            ports.setdefault(one, free_ports(2))
        port, metrics_port = ports[name]
        command: list[str | Path] = [
            *(sys.executable, "-m", "meritorder_router.server"),
            *("--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics_port}"),
            *("--tls-cert", pair.certificate, "--tls-key", pair.key, "--peer-ca", authority.certificate),
            *("--kubeconfig", control_plane.kubeconfig_for(namespace, ACCOUNT, server=api)),
            *("--own-namespace", namespace, "--name", name, "--token-file", token, "--log-format", "pretty"),
            *(option.replace("SERVER_URL", f"https://127.0.0.1:{port}") for option in options),
        ]
        for other in peers:
            command += ["--peers", f"https://127.0.0.1:{ports[other][0]}"]
        child = Child(command, log=folder / f"{name}.log", name=name).start()
        context = ssl.create_default_context(cafile=str(authority.certificate))
        server = Server(
            child, name, f"https://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", context, namespace
        )
        started.append(server)
        if wait:
            child.wait_for(server.ready, 20, f"{name} is ready", retry_on=(httpx.TransportError,))
        return server

    try:
        yield start
    finally:
        for server in started:
            server.child.stop()
    if control_plane.api_server.running:
        control_plane.request("DELETE", f"{rbac}/clusterrolebindings/router-{namespace}")


@pytest.fixture
async def agent(control_plane: ControlPlane, namespace: str) -> AsyncIterator[StartAgent]:
    """Make agents by `agent(server, "pod-1")`: a pod that names the policy, and its bound token."""
    clients: list[httpx.AsyncClient] = []

    def make(server: Server, pod: str = "pod-1", *, policy: str = "chat") -> Agent:
        create_pod(control_plane, namespace, pod, annotations={"meritorder.dev/policy": policy})
        bound = control_plane.token_for(namespace, "default", audiences=["meritorder"], pod=pod)
        client = httpx.AsyncClient(verify=server.context, trust_env=False)
        clients.append(client)
        return Agent(client, server, pod, bound)

    yield make
    for client in clients:
        await client.aclose()
