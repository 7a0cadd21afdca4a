"""Operator processes and policies on a real API server."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from meritorder_api.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from servers.control_plane import ControlPlane
from support.ports import free_port
from support.processes import Child
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]


class OperatorProcess(Child):
    """The operator as a process of its own, serving one namespace, with its Lease there too."""

    def __init__(
        self,
        folder: Path,
        control_plane: ControlPlane,
        namespace: str,
        *,
        name: str = "operator",
        prometheus_url: str | None = None,
        kubeconfig: Path | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        source = [f"--prometheus-url={prometheus_url}"] if prometheus_url else []
        super().__init__(
            [
                *(sys.executable, "-m", "meritorder_operator"),
                f"--kubeconfig={kubeconfig or control_plane.kubeconfig}",
                f"--namespace={namespace}",
                f"--lease-namespace={namespace}",
                f"--identity={name}",
                "--health-host=127.0.0.1",
                f"--health-port={self.port}",
                f"--metrics-port={self.port}",
                "--log-format=json",
                "--log-level=debug",
                *source,
                *flags,
            ],
            log=folder / f"{name}.log",
            name=name,
            env={"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "router"))},
        )

    def metric(self, name: str, **labels: str) -> float | None:
        """A series of its own metrics; None where it is not there."""
        from prometheus_client.parser import text_string_to_metric_families

        with contextlib.suppress(httpx.TransportError):
            text = httpx.get(f"{self.url}/metrics", trust_env=False).text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == name and labels.items() <= sample.labels.items():
                        return sample.value
        return None

    def total(self, name: str) -> float:
        """The sum over all series of one of its own metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        families = text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    @property
    def leads(self) -> bool:
        """Whether it says that it holds the Lease."""
        return self.metric("meritorder_leader") == 1

    def lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        found = []
        for line in self.log_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                found.append(json.loads(line))
        return found


class Policies:
    """The policies of one namespace, as an administrator handles them."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"

    def apply(self, name: str = "chat", **spec: Any) -> dict[str, Any]:
        """Create or change a policy; fields of the spec replace the usual ones."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": a_spec(name) | spec,
        }
        answer: dict[str, Any] = self.control_plane.request(
            "PATCH",
            f"{self._path}/{name}?fieldManager=test&force=true",
            body,
            **{"Content-Type": "application/apply-patch+yaml"},
        )
        return answer

    def get(self, name: str = "chat") -> dict[str, Any]:
        answer: dict[str, Any] = self.control_plane.request("GET", f"{self._path}/{name}")
        return answer

    def status(self, name: str = "chat") -> dict[str, Any]:
        return self.get(name).get("status") or {}

    def delete(self, name: str = "chat") -> None:
        self.control_plane.request("DELETE", f"{self._path}/{name}")

    def exists(self, name: str = "chat") -> bool:
        return self.control_plane.client.get(f"{self._path}/{name}").status_code == 200

    def condition(self, kind: str, name: str = "chat") -> dict[str, str]:
        """One condition; empty while it is not there."""
        for condition in self.status(name).get("conditions") or ():
            if condition["type"] == kind:
                return dict(condition)
        return {}

    def routed(self, name: str = "chat", deadline_seconds: float = 40) -> dict[str, Any]:
        """Wait for a routing and return the status."""
        wait_until(lambda: "routing" in self.status(name), deadline_seconds, f"policy {name} has a routing")
        return self.status(name)

    def events(self, name: str = "chat") -> list[tuple[str, str]]:
        """Type and reason of the events about a policy, the oldest first."""
        items = self.control_plane.request("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"]
        found = [item for item in items if item["involvedObject"]["name"] == name]
        found.sort(key=lambda item: int(item["metadata"]["resourceVersion"]))
        return [(item["type"], item["reason"]) for item in found]

    def programmed(self, body: Mapping[str, Any], name: str = "chat") -> None:
        """Say what agents applied, as a router server would."""
        self.control_plane.request(
            "PATCH",
            f"{self._path}/{name}/status?fieldManager=meritorder-router&force=true",
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "metadata": {"name": name, "namespace": self.namespace},
                "status": {"programmed": body},
            },
            **{"Content-Type": "application/apply-patch+yaml"},
        )


def a_spec(name: str) -> dict[str, Any]:
    """A spec with pools `l40s` and `h100`."""
    return {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000, "windowSeconds": 15},
        "pools": [
            {
                "name": pool,
                "backend": {"service": {"name": f"{name}-{pool}", "port": 8000}},
                "cost": {"perReplicaHour": price},
            }
            for pool, price in (("l40s", "1.86"), ("h100", "6.88"))
        ],
        "behavior": {"intervalSeconds": 1},
    }
