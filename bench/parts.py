"""The real parts that benchmarks start, each with exactly the rights that the end-to-end test gives it."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import httpx

from servers.control_plane import ControlPlane
from servers.envoy import accepts
from servers.pki import Authority
from servers.pods import create_pod
from support.ports import free_port
from support.processes import Child

ROOT: Final = Path(__file__).parents[1]
RIGHTS: Final = ROOT / "tests" / "e2e" / "rbac.yaml"
NAMESPACE: Final = "ml"
SYSTEM_NAMESPACE: Final = "meritorder-system"
POLICIES: Final = f"/apis/meritorder.dev/v1alpha1/namespaces/{NAMESPACE}/inferencepolicies"
APPLY: Final = {"Content-Type": "application/apply-patch+yaml"}


def control_plane(stack: ExitStack, folder: Path) -> ControlPlane:
    """Start etcd, API server and controller manager with our CRDs, namespaces and rights."""
    started = stack.enter_context(ControlPlane(folder / "control-plane"))
    started.apply_crds(ROOT / "crds")
    started.kubectl("apply", "--server-side", "-f", str(RIGHTS))
    return started


def create_policy(plane: ControlPlane, name: str, spec: Mapping[str, Any]) -> None:
    """Create a policy."""
    body = {
        "apiVersion": "meritorder.dev/v1alpha1",
        "kind": "InferencePolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }
    plane.request("POST", POLICIES, body)


def status_patch(name: str, status: Mapping[str, Any], manager: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a server-side apply of a part of a policy's status."""
    body = {
        "apiVersion": "meritorder.dev/v1alpha1",
        "kind": "InferencePolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "status": status,
    }
    return f"{POLICIES}/{name}/status?fieldManager={manager}&force=true", body


class RouterServer:
    """One `meritorder-router serve` over TLS."""

    def __init__(self, stack: ExitStack, plane: ControlPlane, folder: Path) -> None:
        self.authority = Authority(folder / "pki", "meritorder-ca")
        pair = self.authority.issue("router-server", "meritorder-router", names=["127.0.0.1"])
        token = folder / "router-server.token"
        token.write_text(plane.token_for(SYSTEM_NAMESPACE, "meritorder-router", audiences=["meritorder"]))
        port, metrics_port = free_port(), free_port()
        self.url = f"https://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        command = _command(
            ("meritorder_router", "serve"),
            ("--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics_port}"),
            ("--tls-cert", pair.certificate, "--tls-key", pair.key, "--token-file", token),
            ("--kubeconfig", plane.kubeconfig_for(SYSTEM_NAMESPACE, "meritorder-router")),
            ("--own-namespace", SYSTEM_NAMESPACE, "--name", "server-0", "--log-format", "json"),
        )
        self.child = start(stack, command, folder / "log" / "router-server.log")
        self.child.wait_for(
            lambda: httpx.get(f"{self.metrics_url}/readyz", trust_env=False).status_code == 200,
            60,
            "the router server is ready",
            retry_on=(httpx.TransportError,),
        )

    def metric(self, name: str) -> float:
        """One value of its own metrics; LookupError when there is no such series."""
        return only(metric_lines(f"{self.metrics_url}/metrics"), name)


class RouterAgent:
    """One `meritorder-router agent` with its Envoy, known by a token that is bound to its pod."""

    def __init__(
        self, stack: ExitStack, plane: ControlPlane, server: RouterServer, folder: Path, policy: str
    ) -> None:
        create_pod(
            plane, NAMESPACE, "app-0", service_account="app", annotations={"meritorder.dev/policy": policy}
        )
        token = folder / "app-0.token"
        token.write_text(plane.token_for(NAMESPACE, "app", audiences=["meritorder"], pod="app-0"))
        self.port, metrics_port = free_port(), free_port()
        self.state = folder / "app-0"
        command = _command(
            ("meritorder_router", "agent", "--server-url", server.url),
            ("--ca-file", server.authority.certificate, "--token-file", token),
            ("--policy", policy, "--namespace", NAMESPACE, "--state-dir", self.state),
            ("--listen", f"127.0.0.1:{self.port}", "--metrics-listen", f"127.0.0.1:{metrics_port}"),
            ("--log-format", "json", "--grace-seconds", "1"),
        )
        self.child = start(stack, command, folder / "log" / "router-agent.log", gracefully=True)
        self.child.wait_for(lambda: accepts("127.0.0.1", self.port), 60, "Envoy listens")


class Operator:
    """One `meritorder-operator`."""

    def __init__(self, stack: ExitStack, plane: ControlPlane, prometheus_url: str, folder: Path) -> None:
        health_port, metrics_port = free_port(), free_port()
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._health_url = f"http://127.0.0.1:{health_port}/readyz"
        self.restarts = 0
        command = _command(
            ("meritorder_operator", "--kubeconfig"),
            (plane.kubeconfig_for(SYSTEM_NAMESPACE, "meritorder-operator"),),
            ("--lease-namespace", SYSTEM_NAMESPACE, "--prometheus-url", prometheus_url),
            ("--health-host", "127.0.0.1", "--health-port", str(health_port)),
            ("--metrics-port", str(metrics_port), "--log-format", "json"),
        )
        self.child = start(stack, command, folder / "log" / "operator.log")
        self._await()

    def _await(self) -> None:
        self.child.wait_for(
            lambda: httpx.get(self._health_url, trust_env=False).status_code == 200,
            60,
            "the operator is ready",
            retry_on=(httpx.TransportError,),
        )

    def check(self, *, measured: bool) -> bool:
        """Start it again when it has ended, as a kubelet would, and return whether that was so; while it is
        measured, fail.
        """
        if self.child.running:
            return False
        if measured:
            raise click.ClickException(
                f"the operator ended with exit code {self.child.exit_code} while it was measured\n"
                f"{self.child.log_tail(1)}"
            )
        self.restarts += 1
        self.child.start()
        self._await()
        return True


def metric_lines(url: str) -> list[tuple[str, float]]:
    """Every series of a page of metrics: its name with labels as written, and its value."""
    text = httpx.get(url, trust_env=False).raise_for_status().text
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return [(name, float(value)) for name, _, value in lines]


def only(lines: Sequence[tuple[str, float]], name: str) -> float:
    """The sum over the series of a name; LookupError when there is none, so that a wrong name is no 0."""
    found = [value for series, value in lines if series.partition("{")[0] == name]
    if not found:
        raise LookupError(f"there is no series `{name}`")
    return sum(found)


def start(stack: ExitStack, command: Sequence[str | Path], log: Path, *, gracefully: bool = False) -> Child:
    """Start a process of ours; it ends with the benchmark."""
    path = f"{ROOT / 'operator'}:{ROOT / 'router'}"
    child = Child(command, log=log, name=log.stem, env={"PYTHONPATH": path})
    stack.callback(child.stop if gracefully else child.kill)
    return child.start()


def _command(*parts: Sequence[str | Path]) -> list[str | Path]:
    return [sys.executable, "-m", *(word for part in parts for word in part)]
