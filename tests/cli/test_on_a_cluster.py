"""`explain`, `history`, `recommend`, `top`, `pause` and `resume` against a real API server."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.command import meritorder
from meritorder_api.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from servers.control_plane import ControlPlane

POLICY = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "chat"},
    "spec": {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
        "pools": [
            {
                "name": name,
                "backend": {"service": {"name": f"chat-{name}", "port": 8000}},
                "cost": {"perReplicaHour": price},
            }
            for name, price in (("l40s", "1.86"), ("h100", "6.88"))
        ],
    },
}
WHY = "l40s slowed down, p95 2.44 s > 2.00 s over 19 requests: limit 39.5 -> 3 per replica; h100 takes 76 %"
STATUS = {
    "observedGeneration": 1,
    "decision": {
        "action": "Cut",
        "reason": "SlowedDown",
        "message": WHY,
        "evaluatedAt": "2026-05-04T10:00:52Z",
    },
    "history": [
        {"action": "Cut", "reason": "SlowedDown", "message": WHY, "evaluatedAt": "2026-05-04T10:00:52Z"},
        {
            "action": "Start",
            "reason": "FirstDecision",
            "message": "first routing",
            "evaluatedAt": "2026-05-04T10:00:00Z",
        },
    ],
    "pools": [
        {
            "name": "l40s",
            "state": "Misses",
            "attainedMilliseconds": 2440,
            "sharePercent": 24,
            "limitPerReplica": "3",
            "readyReplicas": 2,
            "costPerHour": "3.72",
        },
        {"name": "h100", "state": "Meets", "sharePercent": 76, "readyReplicas": 1, "costPerHour": "6.88"},
    ],
    "conditions": [
        {
            "type": "SLAMet",
            "status": "False",
            "reason": "Misses",
            "message": "37.6 % of 226 requests were slower than 2.00 s",
            "lastTransitionTime": "2026-05-04T10:00:52Z",
        }
    ],
}


@pytest.fixture
def policy(control_plane: ControlPlane, namespace: str) -> dict[str, Any]:
    """A policy that an operator has decided on."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
    made: dict[str, Any] = control_plane.request("POST", path, POLICY)
    made["status"] = STATUS
    answer: dict[str, Any] = control_plane.request("PUT", f"{path}/chat/status", made)
    return answer


def on(control_plane: ControlPlane, namespace: str, *arguments: str) -> tuple[int, str, str]:
    done = meritorder(*arguments, "-n", namespace, "--kubeconfig", str(control_plane.kubeconfig))
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("policy")
def test_explains_a_policy(control_plane: ControlPlane, namespace: str) -> None:
    code, out, _ = on(control_plane, namespace, "explain", "chat")
    assert code == 0
    assert f"{namespace}/chat: 95 % of requests within 2.00 s, over 60 s" in out
    assert f"Cut (SlowedDown): {WHY}" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("l40s ")]
    assert row[1:4] == ["Misses", "2.44", "s"]
    assert "Misses: 37.6 % of 226 requests were slower than 2.00 s" in out
    code, out, _ = on(control_plane, namespace, "explain", "chat", "-o", "json")
    assert json.loads(out)["decision"]["message"] == WHY


@pytest.mark.usefixtures("policy")
def test_lists_what_was_decided(control_plane: ControlPlane, namespace: str) -> None:
    code, out, _ = on(control_plane, namespace, "history", "chat")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["age", "action", "reason", "message"]
    starts = [line.split()[1:3] for line in lines if not line.startswith(" " * 10)]
    assert starts == [["Cut", "SlowedDown"], ["Start", "FirstDecision"]]


@pytest.mark.usefixtures("policy")
def test_recommends_and_lists_all_policies(control_plane: ControlPlane, namespace: str) -> None:
    code, out, _ = on(control_plane, namespace, "recommend", "chat", "-o", "json")
    assert code == 0
    assert [pool["name"] for pool in json.loads(out)["pools"]] == ["l40s", "h100"]
    code, out, _ = on(control_plane, namespace, "top")
    assert code == 0
    assert out.splitlines()[-1] == "1 policy, 1 of them missing the SLA, $0.00/h"
    code, out, _ = on(control_plane, namespace, "top", "-A", "-o", "json")
    assert code == 0
    assert (namespace, "chat") in [(one["namespace"], one["policy"]) for one in json.loads(out)]


@pytest.mark.usefixtures("policy")
def test_pauses_and_resumes(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/chat"
    for command, suspended, said in (
        ("pause", True, "paused: the last routing keeps serving"),
        ("pause", True, "is paused already"),
        ("resume", False, "resumed"),
    ):
        code, out, _ = on(control_plane, namespace, command, "chat")
        assert (code, out.strip().partition(" ")[2]) == (0, said)
        assert control_plane.request("GET", path)["spec"].get("suspend", False) is suspended


def test_says_that_there_is_no_such_policy(control_plane: ControlPlane, namespace: str) -> None:
    for command in ("explain", "history", "recommend", "pause", "resume"):
        code, out, err = on(control_plane, namespace, command, "chat")
        assert (code, out) == (1, "")
        assert err == f"Error: no policy `chat` in namespace `{namespace}`\n"


def test_says_that_there_is_no_cluster(tmp_path: Path) -> None:
    done = meritorder("explain", "chat", "--kubeconfig", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: no cluster: ")
    assert len(done.stderr.splitlines()) == 1


def test_says_that_the_api_server_does_not_answer(control_plane: ControlPlane, tmp_path: Path) -> None:
    text = control_plane.kubeconfig.read_text()
    path = tmp_path / "kubeconfig"
    path.write_text(text.replace(control_plane.url, "https://127.0.0.1:1"))
    done = meritorder("explain", "chat", "--kubeconfig", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: GET /apis/")
    assert len(done.stderr.splitlines()) == 1
