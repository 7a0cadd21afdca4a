"""What a status says, when it is written, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Action, ConditionType, Reason, Verdict
from meritorder_api.status import InferencePolicyStatus
from meritorder_api.wire import moment
from meritorder_core.inputs import Missing
from meritorder_core.learned import Learned
from meritorder_core.outcome import (
    ConditionReport,
    Decision,
    MixReport,
    Plan,
    PlannedPool,
    PoolReport,
    SavingsReport,
)
from meritorder_operator import conditions, news, status, writes
from meritorder_operator.conditions import ACCEPTED, Acceptance
from meritorder_operator.writes import Change, Since

NOON = 1_800_000_000.0
LONG_AGO = Since(status=1e9, learned=1e9)
JUST_NOW = Since(status=1.0, learned=1.0)


def a_spec(**fields: Any) -> InferencePolicySpec:
    return InferencePolicySpec.model_validate(
        {
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
            "pools": [
                {
                    "name": name,
                    "backend": {"service": {"name": name, "port": 8000}},
                    "cost": {"perReplicaHour": "1.00"},
                }
                for name in ("l40s", "h100")
            ],
            **fields,
        }
    )


def a_plan(limit: float = 16.25) -> Plan:
    return Plan(
        pools=(
            PlannedPool(name="l40s", limit_per_replica=limit, class_limits=((128, 27.5),), weight_percent=80),
            PlannedPool(name="h100"),
        )
    )


def a_decision(**fields: Any) -> Decision:
    usual: dict[str, Any] = {
        "at": NOON,
        "action": Action.HOLD,
        "reason": Reason.WITHIN_MARGIN,
        "message": "l40s is where it should be",
        "plan": a_plan(),
        "enforced": True,
        "fallback_pool": "h100",
        "pools": (
            PoolReport(
                name="l40s",
                verdict=Verdict.MEETS,
                reason="Meets",
                attained_milliseconds=1841.7,
                slow_share=0.0312,
                samples=412,
                sampled_at=NOON - 2,
                requests_per_second=6.867,
                mean_in_flight=30.04,
                share=0.803,
                ready_replicas=3,
                needed_replicas=2,
                limit_per_replica=16.25,
                cost_per_hour=5.58,
                cost_per_thousand_requests=0.0612,
            ),
            PoolReport(name="h100", verdict=Verdict.IDLE, reason="Idle"),
        ),
        "sla_met": ConditionReport(status=True, reason="Meets", message="p95 1.84 s <= 2.00 s"),
        "metrics_available": ConditionReport(status=True, reason="MetricsFound", message="2 of 2 pools"),
        "ready_note": ConditionReport(status=True, reason="AllWell", message="all is well"),
        "savings": SavingsReport(
            baseline_pool="h100",
            baseline_per_hour=32.6,
            realised_per_hour=12.4,
            possible_per_hour=19.8,
            share=0.38,
            message="against h100 alone",
        ),
        "cheapest_mix": MixReport(replicas={"l40s": 2, "h100": 1}, per_hour=10.6, message="2 l40s + 1 h100"),
        "cost_per_hour": 24.92,
        "attained_milliseconds": 1841.7,
        "learned": Learned.initial(),
    }
    return Decision(**(usual | fields))


def compose(
    decision: Decision | None = None,
    previous: dict[str, Any] | None = None,
    *,
    now: float = NOON,
    generation: int = 3,
    acceptance: Acceptance = ACCEPTED,
    seconds_since_change: float = 60,
    last_sequence: int = 0,
    **spec: Any,
) -> dict[str, Any]:
    return status.compose(
        decision or a_decision(),
        a_spec(**spec),
        previous or {},
        generation=generation,
        acceptance=acceptance,
        now=now,
        seconds_since_change=seconds_since_change,
        last_sequence=last_sequence,
    )


def condition(made: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(dict(c) for c in made["conditions"] if c["type"] == kind)


def programmed(sequence: int = 1, agents: int = 2, applied: int = 2, **more: Any) -> dict[str, Any]:
    return {"sequence": sequence, "agents": agents, "applied": applied, "silent": 0, **more}


# What it says.


def test_says_everything_in_the_words_of_the_api() -> None:
    made = compose()

    parsed = InferencePolicyStatus.model_validate(made)
    assert parsed.dump() == made
    assert made["summary"] == {
        "target": "p95 2s",
        "attained": "1.84s",
        "cheapest": "l40s 80%",
        "costPerHour": "24.92",
        "saved": "38%",
    }
    assert made["routing"]["pools"] == [
        {
            "name": "l40s",
            "limitPerReplica": "16.25",
            "classLimits": [{"maxTokens": 128, "limitPerReplica": "27.5"}],
            "weightPercent": 80,
        },
        {"name": "h100"},
    ]
    assert made["pools"][0] == {
        "name": "l40s",
        "state": "Meets",
        "reason": "Meets",
        "attainedMilliseconds": 1842,
        "slowPercent": "3.12",
        "samples": 412,
        "sampledAt": "2027-01-15T07:59:58Z",
        "requestsPerSecond": "6.87",
        "inFlight": "30.04",
        "sharePercent": 80,
        "readyReplicas": 3,
        "neededReplicas": 2,
        "limitPerReplica": "16.25",
        "costPerHour": "5.58",
        "costPerThousandRequests": "0.0612",
    }
    assert made["savings"]["percent"] == 38
    assert made["cheapestMix"]["replicas"] == {"l40s": 2, "h100": 1}


def test_shares_add_up_to_a_hundred() -> None:
    thirds = tuple(
        PoolReport(name=name, verdict=Verdict.MEETS, reason="Meets", share=1 / 3)
        for name in ("l40s", "a100", "h100")
    )
    made = compose(a_decision(pools=thirds))

    assert [pool["sharePercent"] for pool in made["pools"]] == [34, 33, 33]
    assert made["summary"]["cheapest"] == "l40s 34%"


def test_a_routing_is_the_plan_again() -> None:
    assert status.plan_of(compose()["routing"]) == a_plan()
    assert status.plan_of(None) is None
    assert status.plan_of({"pools": []}) is None


def test_the_sequence_grows_only_with_the_revision() -> None:
    first = compose()
    same = compose(previous=first)
    changed = compose(a_decision(plan=a_plan(20)), previous=same)

    assert first["routing"]["sequence"] == 1
    assert same["routing"] == first["routing"]
    assert changed["routing"]["sequence"] == 2
    assert changed["routing"]["revision"] != first["routing"]["revision"]


@pytest.mark.parametrize(
    ("previous", "last"), [({"programmed": programmed(sequence=41)}, 0), ({}, 41), ({"programmed": {}}, 41)]
)
def test_a_sequence_wiped_by_hand_does_not_begin_anew(previous: dict[str, Any], last: int) -> None:
    assert compose(previous=previous, last_sequence=last)["routing"]["sequence"] == 42


def test_a_recommendation_leaves_the_routing_alone() -> None:
    enforced = compose()
    made = compose(a_decision(plan=a_plan(20), enforced=False), previous=enforced, mode="Recommend")
    assert made["routing"] == enforced["routing"]
    assert made["recommendation"]["pools"][0]["limitPerReplica"] == "20"

    fresh = compose(a_decision(enforced=False), mode="Recommend")
    assert fresh["routing"]["pools"] == [{"name": "h100"}]

    again = compose(previous=made)
    assert "recommendation" not in again


def test_history_holds_the_last_ten_that_changed_something() -> None:
    made: dict[str, Any] = {}
    for number in range(12):
        made = compose(
            a_decision(action=Action.GROW, reason=Reason.CLEAN_SAMPLES, message=f"step {number}"), made
        )
    made = compose(previous=made)

    assert [entry["message"] for entry in made["history"]] == [f"step {n}" for n in range(11, 1, -1)]


def test_what_is_not_known_is_left_out() -> None:
    nothing = Missing(reason="NotMeasured", message="limits are not learned yet")  # type: ignore[arg-type]
    made = compose(
        a_decision(
            savings=nothing,
            cheapest_mix=nothing,
            cost_per_hour=None,
            attained_milliseconds=None,
            pools=(PoolReport(name="l40s", verdict=Verdict.UNKNOWN, reason="NoSeries"),),
        )
    )

    assert "savings" not in made
    assert made["cheapestMix"] == {"message": "limits are not learned yet"}
    assert made["summary"] == {"target": "p95 2s", "cheapest": "l40s"}
    assert made["pools"] == [{"name": "l40s", "state": "Unknown", "reason": "NoSeries"}]


# Conditions.


def test_a_transition_is_dated_only_when_the_status_flips() -> None:
    first = compose(now=NOON)
    other_words = replace(a_decision().sla_met, reason="LikelyMeets", message="p95 about 1.9 s")
    second = compose(a_decision(sla_met=other_words), previous=first, now=NOON + 60)
    missed = ConditionReport(status=False, reason="Misses", message="p95 2.31 s > 2.00 s")
    third = compose(a_decision(sla_met=missed), previous=second, now=NOON + 120)

    assert condition(second, "SLAMet")["reason"] == "LikelyMeets"
    assert condition(second, "SLAMet")["lastTransitionTime"] == moment(NOON)
    assert condition(third, "SLAMet")["lastTransitionTime"] == moment(NOON + 120)
    assert condition(third, "Accepted")["lastTransitionTime"] == moment(NOON)
    assert condition(third, "SLAMet")["observedGeneration"] == 3


@pytest.mark.parametrize(
    ("said", "expected", "reason", "words"),
    [
        (None, "Unknown", "NoAgents", "no router server"),
        (programmed(agents=0, applied=0), "Unknown", "NoAgents", "no agent serves"),
        (programmed(), "True", "Programmed", "2 of 2 agents"),
        (programmed(applied=1), "False", "Pending", "1 of 2 agents"),
        (programmed(sequence=0), "False", "Pending", "0 of 2 agents"),
        (programmed(applied=1, silent=1), "Unknown", "AgentsSilent", "1 have not been heard of"),
        (
            programmed(refused=[{"agent": "a", "reason": "bad pool"}, {"agent": "b", "reason": "x"}]),
            "False",
            "RefusedByAgent",
            "agent a refused its table: bad pool; 1 more refused",
        ),
        (
            programmed(
                refused=[
                    {"agent": "a", "reason": "CANotMounted: pool `l40s`: its CA is not mounted"},
                    {"agent": "b", "reason": "KeyNotMounted: pool `h100`: its API key is not mounted"},
                    {"agent": "c", "reason": "KeyNotMounted: pool `h100`: its API key is not mounted"},
                ]
            ),
            "False",
            "KeyNotMounted",
            "agent b: pool `h100`: its API key is not mounted; 1 more said so",
        ),
        (
            programmed(refused=[{"agent": "a", "reason": "CANotMounted: pool `l40s`: its CA is not there"}]),
            "False",
            "CANotMounted",
            "agent a: pool `l40s`: its CA is not there",
        ),
        (
            programmed(
                refused=[
                    {"agent": "a", "reason": "KeyNotMounted: pool `h100`: its API key is not mounted"},
                    {"agent": "b", "reason": "bad pool"},
                ]
            ),
            "False",
            "RefusedByAgent",
            "agent b refused its table: bad pool",
        ),
        (
            programmed(
                refused=[
                    {"agent": "a", "code": "KeyNotMounted", "reason": "KeyNotMounted: pool `h100`: no key"},
                    {"agent": "b", "code": "KeyNotMounted", "reason": "pool `h100`: no key"},
                ]
            ),
            "False",
            "KeyNotMounted",
            "agent a: pool `h100`: no key; 1 more said so",
        ),
        (
            programmed(refused=[{"agent": "a", "code": "WordOfNextYear", "reason": "something new"}]),
            "False",
            "RefusedByAgent",
            "agent a refused its table: something new",
        ),
        (programmed(problems=["pool `l40s`: no Service `x`"]), "False", "BackendNotFound", "no Service"),
        # What a sentence is about is told beside it: names in it may have any word.
        (
            programmed(problems=["pool `l40s`: Service `mount` not found"]),
            "False",
            "BackendNotFound",
            "`mount`",
        ),
        (
            programmed(
                problems=["pool `ext`: its certificate has expired", "pool `l40s`: no Service `x`"],
                problemReasons=["CertificateRefused", "BackendNotFound"],
            ),
            "False",
            "CertificateRefused",
            "has expired; pool `l40s`",
        ),
        (
            programmed(problems=["something new"], problemReasons=["WordOfNextYear"]),
            "False",
            "BackendNotFound",
            "something new",
        ),
    ],
)
def test_programmed_says_what_agents_applied(
    said: dict[str, Any] | None, expected: str, reason: str, words: str
) -> None:
    routing = compose()["routing"]

    made = compose(previous={"routing": routing, "programmed": said})

    found = condition(made, "Programmed")
    assert (found["status"], found["reason"]) == (expected, reason)
    assert words in found["message"]
    assert condition(made, "Ready")["status"] == ("False" if expected == "False" else "True")


def test_a_routing_on_its_way_is_not_told_at_once() -> None:
    before = compose(previous={"routing": compose()["routing"], "programmed": programmed()})
    previous = {**before, "programmed": programmed()}
    changed = a_decision(plan=a_plan(20))

    soon = compose(changed, previous=previous)
    assert condition(soon, "Programmed")["status"] == "True"

    late = compose(changed, previous={**soon, "programmed": programmed()}, seconds_since_change=20)
    assert condition(late, "Programmed")["reason"] == "Pending"


def test_ready_names_the_first_that_is_wrong() -> None:
    missing = ConditionReport(status=False, reason="MetricsStale", message="too old")
    well = {"routing": compose()["routing"], "programmed": programmed()}

    assert condition(compose(previous=well), "Ready")["reason"] == "AllWell"
    stale = compose(a_decision(metrics_available=missing), previous=well)
    assert condition(stale, "Ready")["reason"] == "MetricsStale"
    refused = {**well, "programmed": programmed(refused=[{"agent": "a", "reason": "x"}])}
    both = compose(a_decision(metrics_available=missing), previous=refused)
    assert condition(both, "Ready")["reason"] == "RefusedByAgent"
    idle = ConditionReport(status=None, reason="NoTraffic", message="no requests")
    assert condition(compose(a_decision(sla_met=idle), previous=well), "Ready")["status"] == "True"


def test_a_refused_spec_keeps_all_that_was_routed_and_learned() -> None:
    before = {**compose(), "learned": "v1:x", "programmed": programmed()}
    refusal = Acceptance(accepted=False, reason=Reason.INVALID_SPEC, message="`spec.sla` must be set")

    made = status.refuse(refusal, before, generation=4, now=NOON + 60, seconds_since_change=60)

    for name in ("routing", "learned", "pools", "history", "savings"):
        assert made[name] == before[name]
    assert "programmed" not in made
    assert made["observedGeneration"] == 4
    assert condition(made, "Accepted")["status"] == "False"
    assert condition(made, "Ready")["message"] == "`spec.sla` must be set; the last routing keeps serving"
    assert condition(made, "Programmed")["status"] == "True"
    InferencePolicyStatus.model_validate(made)


# When it is written.


def test_times_alone_are_no_reason_to_write() -> None:
    before = compose()
    later = replace(
        a_decision(at=NOON + 3600),
        pools=(replace(a_decision().pools[0], sampled_at=NOON + 3599), a_decision().pools[1]),
    )
    after = compose(later, previous=before, now=NOON + 3600)

    assert writes.change(before, after) is Change.NONE
    assert not writes.due(before, after, learned_changed=False, completed=0, since=LONG_AGO)


def test_a_pass_between_two_scrapes_is_no_reason_to_write() -> None:
    before = compose(a_decision(reason=Reason.IDLE, message="l40s is idle"))
    between = a_decision(reason=Reason.NO_NEW_SAMPLE, message="no sample since the last decision")
    after = compose(between, before, now=NOON + 40)
    assert after["decision"] == before["decision"]
    assert writes.change(before, after) is Change.NONE
    assert not writes.due(before, after, learned_changed=False, completed=0.0, since=LONG_AGO)
    assert compose(between)["decision"]["reason"] == "NoNewSample"


def test_figures_wait_and_routing_does_not() -> None:
    before = compose()
    figures = compose(a_decision(cost_per_hour=25.0), previous=before)
    reasons = compose(
        a_decision(sla_met=ConditionReport(status=True, reason="LikelyMeets", message="")), previous=before
    )
    near, far = (
        compose(
            a_decision(pools=(replace(a_decision().pools[0], verdict=verdict), a_decision().pools[1])),
            previous=before,
        )
        for verdict in (Verdict.UNSURE, Verdict.MISSES)
    )
    routed = compose(a_decision(plan=a_plan(20)), previous=before)

    def due(after: dict[str, Any], seconds: float) -> bool:
        since = Since(status=seconds, learned=seconds)
        return writes.due(before, after, learned_changed=False, completed=0, since=since)

    assert [due(figures, seconds) for seconds in (1, 29, 30)] == [False, False, True]
    assert [due(reasons, seconds) for seconds in (1, 9, 10)] == [False, False, True]
    assert [due(near, seconds) for seconds in (10, 29, 30)] == [False, False, True]
    assert [due(far, seconds) for seconds in (9, 10)] == [False, True]
    assert due(routed, 0)


def test_what_was_learned_is_written_with_a_limit_or_each_minute_of_traffic() -> None:
    same = compose()

    def due(**more: Any) -> bool:
        usual: dict[str, Any] = {"learned_changed": False, "completed": 0.0, "since": JUST_NOW}
        return writes.due(same, same, **(usual | more))

    assert not due()
    assert due(learned_changed=True)
    assert not due(completed=5.0)
    assert due(completed=5.0, since=LONG_AGO)
    assert not due(since=LONG_AGO)


# What is told.


def told(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(item.reason, item.warning) for item in news.told(before, after)]


def test_tells_each_change_once() -> None:
    first = compose(a_decision(action=Action.START, reason=Reason.FIRST_DECISION))
    assert told({}, first) == [("FirstDecision", False)]
    assert told(first, compose(previous=first)) == []

    cut = compose(a_decision(action=Action.CUT, reason=Reason.SLA_MISSED), previous=first)
    assert told(first, cut) == [("SLAMissed", True)]

    missing = ConditionReport(status=False, reason="MetricsStale", message="too old")
    stale = compose(a_decision(metrics_available=missing), previous=cut)
    assert told(cut, stale) == [("MetricsStale", True)]
    unreachable = replace(missing, reason="PrometheusUnreachable")
    other = compose(a_decision(metrics_available=unreachable), previous=stale)
    assert told(stale, other) == [("PrometheusUnreachable", True)]
    back = compose(previous=other)
    assert told(other, back) == [("MetricsFound", False)]


def test_growth_in_many_steps_is_told_once() -> None:
    def grown(limit: float, before: dict[str, Any], reason: Reason = Reason.CLEAN_SAMPLES) -> dict[str, Any]:
        grow = a_decision(action=Action.GROW, reason=reason, plan=a_plan(limit), message=f"to {limit}")
        return compose(grow, previous=before)

    first = compose()
    one, two = grown(20, first), grown(24, grown(20, first))
    three = grown(28, two, Reason.LIMIT_REACHED_CLEAN)
    four = grown(30, three)

    assert told(first, one) == [("CleanSamples", False)]
    assert told(one, two) == told(two, three) == told(three, four) == []

    back = grown(64, four, Reason.RECOVERED)
    assert told(four, back) == [("Recovered", False)]


def test_everyday_changes_are_not_told() -> None:
    idle = ConditionReport(status=None, reason="NoTraffic", message="no requests")
    busy, quiet = compose(), compose(a_decision(sla_met=idle))

    assert told(busy, quiet) == []
    assert told(quiet, busy) == []


def test_a_shared_pool_is_told_as_a_warning() -> None:
    shared = Acceptance(accepted=True, reason=Reason.POOL_SHARED, message="Service `x`")
    first = compose()

    assert told(first, compose(previous=first, acceptance=shared)) == [("PoolShared", True)]


def test_conditions_are_read_as_they_are_written() -> None:
    made = compose()

    found = conditions.read(made["conditions"])

    assert list(found) == list(ConditionType)
    assert found[ConditionType.SLA_MET] == a_decision().sla_met
