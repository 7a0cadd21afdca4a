"""Who is served: only a pod with its own bound token, and only the policy that it names."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from meritorder_api.table import AgentReport, PeerReports, TablePolicy
from servers.control_plane import ISSUER, ControlPlane
from servers.pods import create_pod, delete_pod
from servers.router_server import Agent, Policy, Server, StartAgent
from support.waiting import until


async def ask(agent: Agent, token: str | None) -> tuple[int, str, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = await agent.client.get(f"{agent.server.url}/v1/table", headers=headers)
    said = answer.json()
    return answer.status_code, said["reason"], said["message"]


@pytest.fixture(autouse=True)
def routed(policy: Policy) -> None:
    """A policy that tables could be had of."""
    policy.route(1, "16")


def expired(control_plane: ControlPlane, namespace: str, pod: str) -> str:
    """A token as the API server would have made it an hour ago for ten minutes."""
    uid = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")["metadata"]["uid"]
    account = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
    now = int(time.time())
    claims = {
        "aud": ["meritorder"],
        "exp": now - 3000,
        "iat": now - 3600,
        "nbf": now - 3600,
        "iss": ISSUER,
        "sub": f"system:serviceaccount:{namespace}:default",
        "kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": pod, "uid": uid},
            "serviceaccount": {"name": "default", "uid": account["metadata"]["uid"]},
        },
    }
    path: Path = control_plane.folder / "pki" / "service-accounts.key"
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    body = f"{encode({'alg': 'ES256'})}.{encode(claims)}"
    r, s = utils.decode_dss_signature(key.sign(body.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{body}.{text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def encode(part: dict[str, Any]) -> str:
    return text(json.dumps(part).encode())


def text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_without_a_token_nothing_is_served(server: Server, agent: StartAgent) -> None:
    one = agent(server)
    assert await ask(one, None) == (
        401,
        "NoToken",
        "no bearer token; an agent presents its pod's token of audience `meritorder`",
    )
    assert (await ask(one, "garbage"))[:2] == (401, "TokenRefused")
    assert (await ask(one, "x" * 20_000))[:2] == (401, "TokenRefused")


async def test_a_token_for_another_audience_is_refused(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    token = control_plane.token_for(namespace, "default", audiences=["vault"], pod=one.pod)
    assert await ask(one, token) == (
        401,
        "TokenRefused",
        "the token is for audience `vault`; it must be for `meritorder`",
    )
    assert (await ask(one, control_plane.token_for(namespace, "default", pod=one.pod)))[0] == 401


async def test_an_expired_token_is_refused(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    assert await ask(one, expired(control_plane, namespace, one.pod)) == (
        401,
        "TokenRefused",
        "the token has expired; mount it as a projected volume, which renews it, and read it anew",
    )


async def test_a_token_bound_to_no_pod_is_refused(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    token = control_plane.token_for(namespace, "default", audiences=["meritorder"])
    assert await ask(agent(server), token) == (
        403,
        "TokenNotBound",
        "the token is not bound to a pod; mount it as a projected volume of the pod",
    )


async def test_a_pod_that_names_no_policy_is_refused(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    create_pod(control_plane, namespace, "plain")
    token = control_plane.token_for(namespace, "default", audiences=["meritorder"], pod="plain")
    assert await ask(one, token) == (
        403,
        "NoPolicyNamed",
        f"pod `{namespace}/plain` names no policy; set its annotation `meritorder.dev/policy`",
    )


async def test_a_pod_that_names_another_policy_gets_no_table_of_this_one(
    server: Server, agent: StartAgent, namespace: str
) -> None:
    assert await ask(agent(server, policy="other"), agent(server, "pod-2", policy="other").token) == (
        404,
        "PolicyGone",
        f"there is no InferencePolicy `other` in namespace `{namespace}`",
    )


async def test_a_pod_of_a_foreign_namespace_is_not_served(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    foreign = control_plane.create_namespace(f"{namespace}-foreign")
    create_pod(control_plane, foreign, "pod-1", annotations={"meritorder.dev/policy": "chat"})
    token = control_plane.token_for(foreign, "default", audiences=["meritorder"], pod="pod-1")
    assert (await ask(one, token))[:2] == (404, "PolicyGone")
    create_pod(control_plane, foreign, "pod-2", annotations={"meritorder.dev/policy": f"{namespace}/chat"})
    token = control_plane.token_for(foreign, "default", audiences=["meritorder"], pod="pod-2")
    assert await ask(one, token) == (
        403,
        "ForeignNamespace",
        f"pod `{foreign}/pod-2` names policy `{namespace}/chat`; it must be the bare name of one of its own "
        "namespace",
    )
    control_plane.delete_namespace(foreign)


async def test_a_gateway_pod_is_served_by_its_label(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    create_pod(control_plane, namespace, "gateway", labels={"meritorder.dev/gateway": "chat"})
    one.token = control_plane.token_for(namespace, "default", audiences=["meritorder"], pod="gateway")
    assert await one.poll(wait=10) == 200


async def test_a_token_whose_pod_is_gone_is_refused(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    delete_pod(control_plane, namespace, one.pod)

    async def refused() -> bool:
        return (await ask(one, one.token))[0] in (401, 403)

    # The API server itself remembers good tokens for 10 s.
    await until(refused, 20, "the token of a deleted pod is refused")


async def test_a_report_may_speak_only_of_the_pod_s_own_policy(
    server: Server, agent: StartAgent, namespace: str
) -> None:
    one = agent(server)
    foreign = await one.report(AgentReport(policy=TablePolicy(namespace="kube-system", name="chat", uid="")))
    assert (foreign.status_code, foreign.json()) == (
        403,
        {
            "reason": "ForeignNamespace",
            "message": f"the report is about namespace `kube-system`; pod `{namespace}/pod-1` may only speak "
            "of its own",
        },
    )
    other = await one.report(AgentReport(policy=TablePolicy(namespace=namespace, name="other", uid="")))
    assert (other.status_code, other.json()["message"]) == (
        403,
        f"the report is about policy `other`; pod `{namespace}/pod-1` names `chat`",
    )
    assert (await one.report()).status_code == 204


async def test_only_servers_may_pass_reports_on_and_they_get_no_table(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    one = agent(server)

    async def post(token: str) -> httpx.Response:
        return await one.client.post(
            f"{server.url}/v1/peers/reports",
            content=json.dumps(PeerReports(server="other").dump()),
            headers={"Authorization": f"Bearer {token}"},
        )

    home = server.namespace
    refused = await post(one.token)
    assert (refused.status_code, refused.json()) == (
        403,
        {
            "reason": "NotAServer",
            "message": f"service account `{namespace}:default` is not one that router servers run under "
            f"({home}:meritorder-router)",
        },
    )
    own = control_plane.token_for(home, "meritorder-router", audiences=["meritorder"])
    assert (await post(own)).status_code == 204
    assert (await ask(one, own))[:2] == (403, "TokenNotBound")
