"""What a server tells of its agents: who applied what, who is silent, and nothing while nothing changes."""

import asyncio
import json
import signal
import time
from typing import Any

from servers.pods import delete_pod
from servers.router_server import Agent, Policy, StartAgent, StartServer, settle
from support.waiting import until


async def two_agents(policy: Policy, serve: StartServer, agent: StartAgent) -> tuple[Agent, Agent]:
    """Start a server and two agents; both have applied their tables, and the status says so."""
    policy.route(1, "16")
    server = serve()
    one, two = agent(server, "pod-1"), agent(server, "pod-2")
    await settle([one, two], 32)
    await until(lambda: policy.programmed().get("applied") == 2, 12, "both applied")
    return one, two


async def test_the_status_says_what_was_applied_refused_and_cannot_be_resolved(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    one, two = await two_agents(policy, serve, agent)
    assert policy.programmed() == {
        "sequence": 1,
        "agents": 2,
        "applied": 2,
        "silent": 0,
        "fill": "Fill",
        "refused": [],
        "ready": {"h100": 1, "l40s": 2},
        "problems": [],
    }
    policy.control_plane.request("DELETE", f"/api/v1/namespaces/{policy.namespace}/services/chat-l40s")
    two.refused = ("sha256:bad", "pool `x` has no endpoint")

    async def told() -> bool:
        await one.turn()
        await two.turn()
        return bool(policy.programmed()["problems"] and policy.programmed()["refused"])

    await until(told, 12, "the problem is told")
    programmed = policy.programmed()
    assert programmed["problems"] == ["pool `l40s`: Service `chat-l40s` not found in this namespace"]
    assert programmed["problemReasons"] == ["BackendNotFound"]
    assert programmed["refused"] == [{"agent": "pod-2", "reason": "pool `x` has no endpoint"}]
    assert programmed["ready"] == {"h100": 1, "l40s": 0}


async def test_what_a_newer_agent_says_more_is_taken_and_its_reasons_are_told(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    one, two = await two_agents(policy, serve, agent)
    lacks = "KeyNotMounted: pool `h100`: its API key is not mounted in this pod; restart the pod"
    problem = {"reason": "CertificateRefused", "message": "the certificate has expired", "since": 7}
    report: dict[str, Any] = one.say().dump() | {
        "agentVersion": "99.0.0",
        "uptimeSeconds": 12,
        "refusedRevision": "sha256:t",
        "refusedReason": lacks,
        "refusedCode": "KeyNotMounted",
    }
    report["pools"]["l40s"] |= {"problem": problem, "classes": {"128": 3}}

    async def told() -> bool:
        answer = await one.client.post(
            f"{one.server.url}/v1/report",
            content=json.dumps(report),
            headers={"Authorization": f"Bearer {one.token}"},
        )
        assert answer.status_code == 204
        await two.turn()
        return bool(policy.programmed()["problems"] and policy.programmed()["refused"])

    await until(told, 12, "the reasons are told")
    programmed = policy.programmed()
    assert programmed["refused"] == [{"agent": "pod-1", "code": "KeyNotMounted", "reason": lacks}]
    assert programmed["problems"] == ["pool `l40s`: the certificate has expired (some agents)"]
    assert programmed["problemReasons"] == ["CertificateRefused"]
    assert programmed["applied"] == 2


async def test_at_rest_nothing_is_written_but_the_lease(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    one, two = await two_agents(policy, serve, agent)
    version = policy.read()["metadata"]["resourceVersion"]
    before = policy.control_plane.request_counts()
    renewals: set[str] = set()
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{policy.namespace}/leases/meritorder-router"

    async def renewed() -> bool:
        await one.turn()
        await two.turn()
        renewals.add(policy.control_plane.request("GET", lease)["metadata"]["resourceVersion"])
        return len(renewals) >= 4

    await until(renewed, 30, "three renewals of the lease", interval_seconds=0.5)
    assert policy.read()["metadata"]["resourceVersion"] == version
    after = policy.control_plane.request_counts()
    written = {
        key: after[key] - before.get(key, 0)
        for key in after
        if key[0] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and after[key] != before.get(key, 0)
    }
    assert set(written) <= {("PUT", "leases"), ("POST", "tokenreviews")}


async def test_silent_agents_lose_their_share_come_back_or_are_forgotten_with_their_pods(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    policy.route(1, "24")
    server = serve()
    one, two, three = (agent(server, name) for name in ("pod-1", "pod-2", "pod-3"))
    await settle([one, two, three], 48)
    fell_silent = time.monotonic()

    async def alone() -> bool:
        await one.turn()
        return one.limit() == 48

    await until(alone, 20, "the share of the silent agents", interval_seconds=0.3)
    assert time.monotonic() - fell_silent > 14
    await until(lambda: policy.programmed().get("silent") == 2, 12, "it is told")
    assert policy.programmed()["possibleExcess"] == {"l40s": 32}
    assert policy.programmed()["agents"] == 3
    await settle([one, two], 48)
    assert (one.limit(), two.limit()) == (24, 24)
    delete_pod(policy.control_plane, policy.namespace, "pod-3")

    async def forgotten() -> bool:
        await one.turn()
        await two.turn()
        return policy.programmed().get("agents") == 2

    await until(forgotten, 25, "it is forgotten", interval_seconds=0.5)
    assert policy.programmed()["silent"] == 0
    assert "possibleExcess" not in policy.programmed()


async def test_a_server_told_to_end_lets_its_agents_go_at_once(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    policy.route(1, "16")
    server = serve()
    one = agent(server)
    await one.turn()
    await until(lambda: policy.programmed().get("applied") == 1, 12, "it leads")
    waiting = asyncio.create_task(one.ask(wait=60))
    await until(lambda: server.metric("meritorder_server_waiting") == 1, 5, "it waits")
    started = time.monotonic()
    server.child.send(signal.SIGTERM)
    assert (await waiting).status_code == 304
    assert await asyncio.to_thread(server.child.wait, 10) == 0
    assert time.monotonic() - started < 6
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{policy.namespace}/leases/meritorder-router"
    assert not policy.control_plane.request("GET", lease)["spec"].get("holderIdentity")
