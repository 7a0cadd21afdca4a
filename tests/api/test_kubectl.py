"""What a person sees: `kubectl get`, `describe` and `explain` of a policy at work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from meritorder_api.status import InferencePolicyStatus
from servers.control_plane import ControlPlane
from servers.kubectl import Kubectl

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy.yaml"
NOON: Final = "2026-06-01T12:00:00Z"
DECISION: Final = {
    "action": "Grow",
    "reason": "LimitReachedClean",
    "message": "l40s: limit 15 -> 16.25 per replica: 412 samples at the limit, 1.9 % slow (5 % allowed)",
    "evaluatedAt": NOON,
}


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": NOON,
    }


STATUS: Final[dict[str, Any]] = {
    "observedGeneration": 1,
    "conditions": [
        condition("Ready", "True", "AllWell", "3 pools, 12 agents; traffic follows sequence 41"),
        condition("Accepted", "True", "Accepted", "3 pools; fallback pool h100"),
        condition("MetricsAvailable", "True", "MetricsFound", "newest sample is 3 s old"),
        condition("SLAMet", "True", "Meets", "p95 is 7.21 s; the target is 8 s (1,204 requests)"),
        condition("Programmed", "True", "Programmed", "12 of 12 agents applied sequence 41"),
    ],
    "fallbackPool": "h100",
    "summary": {
        "target": "p95 8s",
        "attained": "7.21s",
        "cheapest": "l40s 80%",
        "costPerHour": "19.32",
        "saved": "38%",
    },
    "routing": {
        "sequence": 41,
        "revision": "8f0c1e",
        "shed": False,
        "pools": [
            {
                "name": "l40s",
                "limitPerReplica": "16.25",
                "classLimits": [{"maxTokens": 128, "limitPerReplica": "27.5"}],
                "weightPercent": 80,
            },
            {"name": "a100", "limitPerReplica": "30", "weightPercent": 20},
            {"name": "h100", "weightPercent": 0},
        ],
    },
    "pools": [
        {
            "name": "l40s",
            "state": "Meets",
            "attainedMilliseconds": 7400,
            "slowPercent": "1.9",
            "samples": 412,
            "sampledAt": NOON,
            "requestsPerSecond": "16.1",
            "inFlight": "47.2",
            "sharePercent": 80,
            "readyReplicas": 3,
            "neededReplicas": 3,
            "limitPerReplica": "16.25",
            "pricePerReplicaHour": "1.86",
            "costPerHour": "5.58",
            "costPerThousandRequests": "0.10",
        },
        {"name": "a100", "state": "Meets", "sharePercent": 20, "readyReplicas": 2, "costPerHour": "6.86"},
        {"name": "h100", "state": "Idle", "sharePercent": 0, "readyReplicas": 1, "costPerHour": "6.88"},
    ],
    "decision": DECISION,
    "history": [DECISION],
    "cheapestMix": {
        "replicas": {"l40s": 4},
        "perHour": "7.44",
        "message": "4 l40s would carry this peak at $7.44/h; 3 l40s + 2 a100 + 1 h100 run at $19.32/h",
    },
    "savings": {
        "baseline": "h100",
        "baselinePerHour": "31.16",
        "realisedPerHour": "11.84",
        "possiblePerHour": "23.72",
        "percent": 38,
    },
    "learned": "v1:eJyrVkpUslIqLkkEAA",
    "programmed": {
        "sequence": 41,
        "agents": 12,
        "applied": 12,
        "silent": 0,
        "fill": "Fill",
        "ready": {"l40s": 3, "a100": 2, "h100": 1},
    },
}
"""As a cluster would show it after some hours."""


@pytest.fixture(scope="module")
def at_work(control_plane: ControlPlane) -> Iterator[Kubectl]:
    """kubectl in a namespace where the example policy has that status."""
    kubectl = control_plane.kubectl
    name = control_plane.create_namespace("at-work")
    kubectl("create", "-n", name, "-f", str(EXAMPLE))
    kubectl(
        *("patch", "infpol", "chat", "-n", name, "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": STATUS})),
    )
    kubectl("create", "-n", name, "-f", "-", stdin=without_status())
    yield kubectl
    control_plane.delete_namespace(name)


def without_status() -> str:
    new: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    return json.dumps(new | {"metadata": {"name": "new"}})


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_the_status_of_these_tests_is_one_that_the_models_know() -> None:
    assert InferencePolicyStatus.model_validate(STATUS, extra="forbid").dump() == STATUS | {
        "programmed": STATUS["programmed"] | {"refused": [], "problems": []}
    }


def test_get_shows_the_promise_the_cheapest_pool_and_the_money(at_work: Kubectl) -> None:
    head, chat, new = at_work("get", "inferencepolicies", "-n", "at-work").splitlines()
    assert cells(head) == [
        *("NAME", "TARGET", "ATTAINED", "CHEAPEST", "$/H", "SAVED", "SLAMET", "READY", "AGE"),
    ]
    assert cells(chat)[:-1] == ["chat", "p95 8s", "7.21s", "l40s 80%", "19.32", "38%", "True", "True"]
    assert len(cells(new)) == 2, "nothing is claimed before there is a status"


def test_get_wide_says_why(at_work: Kubectl) -> None:
    head, chat, _ = at_work("get", "infpol", "-n", "at-work", "-o", "wide").splitlines()
    assert cells(head)[-3:] == ["REASON", "DECISION", "AGE"]
    assert cells(chat)[-3:-1] == ["AllWell", DECISION["message"]]


def test_the_category_lists_policies(at_work: Kubectl) -> None:
    assert at_work("get", "meritorder", "-n", "at-work", "-o", "name").split() == [
        "inferencepolicy.meritorder.dev/chat",
        "inferencepolicy.meritorder.dev/new",
    ]


def test_describe_tells_the_whole_story(at_work: Kubectl) -> None:
    text = at_work("describe", "infpol", "chat", "-n", "at-work")
    told = [" ".join(line.split()) for line in text.splitlines()]
    assert "Target Milliseconds: 8000" in told
    assert "Per Replica Hour: 1.86" in told
    assert f"Message: {DECISION['message']}" in told
    assert "Message: 12 of 12 agents applied sequence 41" in told
    assert f"Message: {STATUS['cheapestMix']['message']}" in told


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("", ["An InferencePolicy promises one latency SLA", "spec\t<Object> -required-"]),
        (
            "spec.sla",
            ["targetMilliseconds\t<integer> -required-", "percentile\t<integer>", "50 to 99; default: 95."],
        ),
        (
            "spec.sla.metric",
            ["ENUM: EndToEndLatency TimeToFirstToken TimePerOutputToken", "request to last byte"],
        ),
        ("spec.pools", ["pools <[]Object>", "cost\t<Object> -required-", "cost decides"]),
        ("spec.pools.cost", ['decimal string such as "1.86"', "perMillionTokens\t<Object>"]),
        ("spec.behavior.onMissingMetrics", ["Hold (limits stay)", "Default: Hold."]),
        ("status.pools", ["neededReplicas\t<integer>", "US dollars per hour for what is ready"]),
    ],
)
def test_explain_reads_well(at_work: Kubectl, field: str, said: list[str]) -> None:
    text = at_work("explain", f"infpol.{field}".rstrip("."))
    flat = re.sub(r" *\n +", " ", text)
    assert [words for words in said if words not in flat and words not in text] == []
    assert "<no description>" not in text
