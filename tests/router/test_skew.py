"""Server, agent and operator one minor version apart, both ways: documents as the other version writes them.

What is only more is dropped by who does not know it; what would mean something else is refused in a sentence.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from meritorder_api.reasons import Reason
from meritorder_api.resource import InferencePolicy
from meritorder_api.status import Programmed
from meritorder_api.table import (
    AgentReport,
    Fill,
    PeerReports,
    PoolProblem,
    PoolSeen,
    RoutingTable,
    TablePolicy,
)
from meritorder_router.agent.validate import Refused, parse
from meritorder_router.server.auth import AgentIdentity
from meritorder_router.server.backends import Resolved
from meritorder_router.server.board import View
from meritorder_router.server.programmed import programmed
from meritorder_router.server.register import Known
from meritorder_router.slices import Shares

REVISION = "sha256:of-a-newer-server"
NEWER_TABLE: dict[str, Any] = {
    "formatVersion": 1,
    "policy": {"namespace": "ml", "name": "chat", "uid": "u-1", "generation": 7},
    "sequence": 41,
    "routingRevision": "r41",
    "tableRevision": REVISION,
    "issuedBy": {"server": "router-0", "version": "0.2.0"},
    "pools": [
        {
            "name": "l40s",
            "limit": 12,
            "classLimits": [{"maxTokens": 128, "limit": 20, "burst": 3}],
            "endpoints": [{"address": "10.0.0.1", "port": 8000, "zone": "a", "weight": 2}],
            "warmup": {"seconds": 30},
        },
        {
            "name": "provider",
            "endpoints": [{"address": "api.example.com", "port": 443}],
            "tls": {"serverName": "api.example.com", "minimumVersion": "1.3"},
            "apiKeyFile": "provider_key",
            "apiKeyHeader": None,
        },
    ],
    "fill": "Fill",
    "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000, "percentile": 95},
    "timeouts": {"connectSeconds": 2, "streamMaximumSeconds": 0},
    "requests": {"headers": ["x-meritorder-session"], "maximumBytes": 1048576},
    "queue": {"seconds": 5},
}
OLDER_TABLE: dict[str, Any] = {
    "policy": {"namespace": "ml", "name": "chat", "uid": "u-1"},
    "sequence": 41,
    "tableRevision": "sha256:of-an-older-server",
    "pools": [{"name": "l40s", "endpoints": [{"address": "10.0.0.1", "port": 8000}]}],
    "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
}


def without(document: dict[str, Any], *more: str) -> bytes:
    """The newer table without what this version does not know."""
    kept = copy.deepcopy(document)
    for name in ("issuedBy", "queue", *more):
        kept.pop(name)
    for node, name in (
        (kept["policy"], "generation"),
        (kept["pools"][0]["classLimits"][0], "burst"),
        (kept["pools"][0]["endpoints"][0], "zone"),
        (kept["pools"][0]["endpoints"][0], "weight"),
        (kept["pools"][0], "warmup"),
        (kept["pools"][1]["tls"], "minimumVersion"),
        (kept["pools"][1], "apiKeyHeader"),
        (kept["sla"], "percentile"),
        (kept["timeouts"], "streamMaximumSeconds"),
        (kept["requests"], "maximumBytes"),
    ):
        node.pop(name)
    return json.dumps(kept).encode()


def test_what_a_newer_server_says_more_is_dropped_and_its_revision_kept() -> None:
    found = parse(json.dumps(NEWER_TABLE).encode())

    assert isinstance(found, RoutingTable)
    assert found == parse(without(NEWER_TABLE))
    # By this the server knows that the agent has what it sent.
    assert found.table_revision == REVISION


def test_what_an_older_server_does_not_say_yet_is_as_it_was() -> None:
    found = parse(json.dumps(OLDER_TABLE).encode())

    assert isinstance(found, RoutingTable)
    assert (found.fill, found.shed, found.size_classes, found.timeouts.hedge_milliseconds) == (
        Fill.FILL,
        False,
        False,
        0,
    )


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("formatVersion", 2, "`formatVersion` is 2; this agent reads 1: update the router's image"),
        ("fill", "Queue", "`fill`: Input should be 'Fill' or 'Split'"),
        ("sla.metric", "InterTokenLatency", "`sla.metric`: Input should be 'EndToEndLatency'"),
        ("requests.headers", ["x-meritorder-tier"], "`requests.headers.0`: Input should be"),
    ],
)
def test_what_would_mean_something_else_is_refused_with_what_to_do(
    path: str, value: object, sentence: str
) -> None:
    document = copy.deepcopy(NEWER_TABLE)
    *parents, last = path.split(".")
    node = document
    for parent in parents:
        node = node[parent]
    node[last] = value

    found = parse(json.dumps(document).encode())

    assert isinstance(found, Refused)
    assert sentence in found.reason
    assert "update the router's image" in found.reason
    assert found.revision == REVISION


# Reports.

POLICY = {"namespace": "ml", "name": "chat", "uid": "u-1"}
KEY = "its API key is not mounted in this pod; restart the pod"
OLDER_REPORT: dict[str, Any] = {
    "formatVersion": 1,
    "agentVersion": "0.1.0",
    "policy": POLICY,
    "appliedSequence": 41,
    "appliedRevision": "sha256:t",
    "refusedRevision": "sha256:t",
    "refusedReason": f"KeyNotMounted: pool `provider`: {KEY}",
    "offeredLoad": 3.5,
    "pools": {"provider": {"inFlight": 0.0, "meanInFlight": 0.0, "requestsPerSecond": 0.0, "slice": 9}},
}
NEWER_REPORT: dict[str, Any] = OLDER_REPORT | {
    "agentVersion": "0.2.0",
    "refusedCode": "KeyNotMounted",
    "uptimeSeconds": 12,
    "pools": {
        "provider": {
            "slice": 9,
            "problem": {"reason": "KeyNotMounted", "message": KEY, "since": "2026-01-01T00:00:00Z"},
            "classes": {"128": {"inFlight": 1}},
        },
        "l40s": {"problem": {"reason": "WordOfNextYear", "message": "something new"}},
        "h100": {"problem": {"reason": "CertificateRefused", "message": "the certificate has expired"}},
    },
}


class _Older(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel)


class OlderPoolSeen(_Older):
    """As the minor version before has it."""

    in_flight: float = 0.0
    mean_in_flight: float = 0.0
    requests_per_second: float = 0.0
    slice: int | None = None
    healthy_endpoints: int | None = None


class OlderReport(_Older):
    """As the minor version before has it."""

    agent_version: str = ""
    policy: TablePolicy
    applied_sequence: int = -1
    applied_revision: str = ""
    refused_revision: str = ""
    refused_reason: str = ""
    offered_load: float = 0.0
    pools: dict[str, OlderPoolSeen] = {}


def view(*reports: dict[str, Any], resolved: Resolved | None = None) -> View:
    """What a server knows with these reports of its agents."""
    pools = [
        {
            "name": name,
            "backend": {"hosts": [{"host": f"{name}.example.com", "port": 443, "tls": {}}]},
            "cost": {"perReplicaHour": price},
        }
        for name, price in (("l40s", "1"), ("provider", "2"), ("h100", "3"))
    ]
    policy = InferencePolicy.parse(
        {
            "apiVersion": "meritorder.dev/v1alpha1",
            "kind": "InferencePolicy",
            "metadata": {"name": "chat", "namespace": "ml", "uid": "u-1"},
            "spec": {"sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000}, "pools": pools},
            "status": {"routing": {"sequence": 41, "revision": "r41", "pools": [{"name": "h100"}]}},
        }
    )
    agents = [
        Known(
            identity=AgentIdentity(namespace="ml", pod=f"pod-{n}", uid=f"uid-{n}", policy="chat"),
            report=AgentReport.model_validate_json(json.dumps(report)),
            heard_at=0.0,
            reported_at=0.0,
            direct=True,
        )
        for n, report in enumerate(reports)
    ]
    return View(
        policy=policy,
        resolved=resolved or Resolved(backends={}),
        limits=(),
        shares=Shares(fill=Fill.FILL, slices={}, excess={}),
        agents=agents,
        silent=frozenset(),
        missing=0,
    )


def told(*reports: dict[str, Any], resolved: Resolved | None = None) -> Programmed:
    found = programmed(view(*reports, resolved=resolved))
    assert found is not None
    return found


def test_older_and_newer_agents_lack_a_key_in_the_same_words() -> None:
    older, newer = told(OLDER_REPORT).refused, told(NEWER_REPORT).refused

    assert older == newer
    assert [refusal.dump() for refusal in older] == [
        {"agent": "pod-0", "code": "KeyNotMounted", "reason": f"KeyNotMounted: pool `provider`: {KEY}"}
    ]


def test_a_table_refused_by_an_older_agent_has_no_code() -> None:
    refused = told(OLDER_REPORT | {"refusedReason": "pool `mount`: cannot mount: KeyNotMounted"}).refused

    assert [refusal.dump() for refusal in refused] == [
        {"agent": "pod-0", "reason": "pool `mount`: cannot mount: KeyNotMounted"}
    ]


def test_a_code_of_a_newer_agent_that_is_not_known_is_a_refusal() -> None:
    said = {"refusedCode": "QuotaExceeded", "refusedReason": "QuotaExceeded: pool `provider`: no more"}

    assert [refusal.dump() for refusal in told(OLDER_REPORT | said).refused] == [
        {"agent": "pod-0", "reason": "QuotaExceeded: pool `provider`: no more"}
    ]


def test_pools_out_of_reach_are_told_with_their_reason_and_words_of_next_year_are_not() -> None:
    missing = Resolved(
        backends={},
        problems=("pool `l40s`: Service `mount` not found in this namespace",),
        reasons=(Reason.BACKEND_NOT_FOUND,),
    )

    both = told(NEWER_REPORT, OLDER_REPORT, resolved=missing)

    assert both.problems == [
        "pool `l40s`: Service `mount` not found in this namespace",
        "pool `h100`: the certificate has expired (some agents)",
    ]
    assert both.problem_reasons == ["BackendNotFound", "CertificateRefused"]
    assert told(NEWER_REPORT).problems == ["pool `h100`: the certificate has expired"]
    assert told(OLDER_REPORT).problem_reasons is None


def test_the_reasons_stay_beside_their_problems_where_there_are_too_many() -> None:
    many = Resolved(
        backends={},
        problems=tuple(f"pool `p`: problem {n}" for n in range(40)),
        reasons=(Reason.BACKEND_NOT_FOUND,) * 15 + (Reason.NOT_ALLOWED,) * 25,
    )

    found = told(OLDER_REPORT, resolved=many)

    assert len(found.problems) == len(found.problem_reasons or ()) == 16
    assert found.problems[-1] == "and 25 more"
    assert (found.problem_reasons or [])[-1] == "NotAllowed"


def test_an_older_server_reads_the_report_of_this_agent() -> None:
    report = AgentReport(
        agent_version="0.2.0",
        policy=TablePolicy(**POLICY),
        applied_sequence=41,
        applied_revision="sha256:t",
        refused_revision="sha256:t",
        refused_reason=f"KeyNotMounted: pool `provider`: {KEY}",
        refused_code="KeyNotMounted",
        pools={
            "provider": PoolSeen(slice=9, problem=PoolProblem(reason="KeyNotMounted", message=KEY)),
        },
    )

    read = OlderReport.model_validate_json(report.model_dump_json(by_alias=True, exclude_none=True))

    assert read.refused_reason == OLDER_REPORT["refusedReason"]
    assert (read.applied_sequence, read.pools["provider"].slice) == (41, 9)


def test_servers_pass_on_what_a_newer_one_heard() -> None:
    passed = {
        "server": "router-1",
        "epoch": 3,
        "reports": [
            {
                "namespace": "ml",
                "pod": "pod-0",
                "uid": "uid-0",
                "ageSeconds": 0.5,
                "report": NEWER_REPORT,
                "promised": {"l40s": 3},
                "node": "n-1",
            }
        ],
    }

    read = PeerReports.model_validate_json(json.dumps(passed))

    assert read.reports[0].report == AgentReport.model_validate_json(json.dumps(NEWER_REPORT))
    # And on to a third one, as far as this one understood it.
    assert PeerReports.model_validate_json(read.model_dump_json(by_alias=True, exclude_none=True)) == read
