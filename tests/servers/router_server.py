"""A router server as a process, a policy with the operator's hand on its status, and agents by hand."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from meritorder_api.table import AgentReport, PoolSeen, RoutingTable, TablePolicy
from servers.control_plane import ControlPlane
from servers.pods import create_pod, create_service, set_endpoints
from support.agents import AgentProcess
from support.processes import Child
from support.waiting import until

POLICIES = "/apis/meritorder.dev/v1alpha1/namespaces"


class Policy:
    """An InferencePolicy of two pools in the API server, with the hand of the operator on its status."""

    def __init__(self, control_plane: ControlPlane, namespace: str, name: str = "chat") -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.name = name
        self.path = f"{POLICIES}/{namespace}/inferencepolicies/{name}"

    def create(self) -> Policy:
        pools = [
            {
                "name": name,
                "backend": {"service": {"name": f"{self.name}-{name}", "port": 8000}},
                "cost": {"perReplicaHour": price},
            }
            for name, price in (("l40s", "1.86"), ("h100", "6.88"))
        ]
        self.control_plane.request(
            "POST",
            self.path.rpartition("/")[0],
            {
                "apiVersion": "meritorder.dev/v1alpha1",
                "kind": "InferencePolicy",
                "metadata": {"name": self.name},
                "spec": {"sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000}, "pools": pools},
            },
        )
        return self

    def endpoints(self, pool: str, *addresses: str, not_ready: tuple[str, ...] = ()) -> None:
        service = f"{self.name}-{pool}"
        found = self.control_plane.client.get(f"/api/v1/namespaces/{self.namespace}/services/{service}")
        if found.status_code == 404:
            create_service(self.control_plane, self.namespace, service, ports={"http": 8000})
        set_endpoints(
            self.control_plane,
            self.namespace,
            service,
            [(address, 8000) for address in addresses],
            not_ready=[(address, 8000) for address in not_ready],
        )

    def route(self, sequence: int, per_replica: str | None, **pool: Any) -> None:
        """Write `status.routing` as the operator does."""
        cheap = {"name": "l40s", **({} if per_replica is None else {"limitPerReplica": per_replica}), **pool}
        routing = {"sequence": sequence, "revision": f"r{sequence}", "pools": [cheap, {"name": "h100"}]}
        self.control_plane.request(
            "PATCH",
            f"{self.path}/status?fieldManager=meritorder-operator&force=true",
            {
                "apiVersion": "meritorder.dev/v1alpha1",
                "kind": "InferencePolicy",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "status": {"routing": routing},
            },
            **{"Content-Type": "application/apply-patch+yaml"},
        )

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control_plane.request("GET", self.path)
        return found

    def programmed(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read().get("status", {}).get("programmed", {})
        return found

    def delete(self) -> None:
        self.control_plane.request("DELETE", self.path)


@dataclass
class Server:
    """A router server's process."""

    child: Child
    name: str
    url: str
    metrics_url: str
    context: ssl.SSLContext
    namespace: str
    """Where it runs, under an account of its own."""

    def ready(self) -> bool:
        return httpx.get(f"{self.metrics_url}/readyz", trust_env=False).status_code == 200

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.metrics_url}/metrics", trust_env=False).text
        for line in text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)


@dataclass
class Agent:
    """An agent by hand: it polls and reports when told to, and enforces what it was given last."""

    client: httpx.AsyncClient
    server: Server
    pod: str
    token: str
    table: RoutingTable | None = None
    load: float = 0.0
    refused: tuple[str, str] = ("", "")
    says_sequence: bool = True
    answers: list[int] = field(default_factory=list)

    async def ask(self, *, wait: float = 0.0, revision: str | None = None) -> httpx.Response:
        have = self.table.table_revision if self.table is not None else ""
        params = {"revision": have if revision is None else revision, "waitSeconds": str(wait)}
        if self.table is not None and self.says_sequence:
            params |= {"uid": self.table.policy.uid, "sequence": str(self.table.sequence)}
        return await self.client.get(
            f"{self.server.url}/v1/table",
            params=params,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=wait + 10,
        )

    async def poll(self, *, wait: float = 0.0) -> int:
        answer = await self.ask(wait=wait)
        if answer.status_code == 200:
            self.table = RoutingTable.model_validate_json(answer.content)
        self.answers.append(answer.status_code)
        return answer.status_code

    def say(self) -> AgentReport:
        table = self.table
        return AgentReport(
            policy=table.policy if table else TablePolicy(namespace="", name="", uid=""),
            applied_sequence=table.sequence if table else -1,
            applied_revision=table.table_revision if table else "",
            offered_load=self.load,
            refused_revision=self.refused[0],
            refused_reason=self.refused[1],
            pools={pool.name: PoolSeen(slice=pool.limit) for pool in table.pools} if table else {},
        )

    async def report(self, report: AgentReport | None = None) -> httpx.Response:
        return await self.client.post(
            f"{self.server.url}/v1/report",
            content=json.dumps((report or self.say()).dump()),
            headers={"Authorization": f"Bearer {self.token}"},
        )

    async def turn(self, *, wait: float = 0.0) -> None:
        """Poll once and report once."""
        await self.poll(wait=wait)
        await self.report()

    def limit(self, pool: str = "l40s") -> int | None:
        assert self.table is not None
        return next(one.limit for one in self.table.pools if one.name == pool)


async def settle(
    agents: list[Agent], total: int, *, deadline_seconds: float = 15, pool: str = "l40s"
) -> None:
    """Let the agents poll and report until their slices add up and stay."""
    calm = 0

    async def once() -> bool:
        nonlocal calm
        before = [one.table and one.limit(pool) for one in agents]
        for one in agents:
            await one.turn()
        after = [one.table and one.limit(pool) for one in agents]
        calm = calm + 1 if before == after and sum(part or 0 for part in after) == total else 0
        return calm >= 3

    await until(once, deadline_seconds, f"slices add up to {total}", interval_seconds=0.3)


def start_agent(
    control_plane: ControlPlane, policy: Policy, urls: Sequence[str], folder: Path, pod: str, ca: Path
) -> AgentProcess:
    """Start a real agent with its Envoy for a pod that names the policy; `urls` are its servers."""
    namespace = policy.namespace
    create_pod(control_plane, namespace, pod, annotations={"meritorder.dev/policy": policy.name})
    folder = folder / pod
    folder.mkdir()
    token = folder / "token"
    token.write_text(control_plane.token_for(namespace, "default", audiences=["meritorder"], pod=pod))
    agent = AgentProcess(
        folder,
        *(part for url in urls for part in ("--server-url", url)),
        *("--ca-file", str(ca), "--token-file", str(token)),
        *("--policy", policy.name, "--namespace", namespace, "--grace-seconds", "0.5"),
    )
    agent.start()
    return agent


StartServer = Callable[..., Server]
StartAgent = Callable[..., Agent]
