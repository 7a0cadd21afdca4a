"""From a decision to `status`: everything that the operator's field manager owns, as JSON. Pure.

The whole of it is made at each pass and compared (`writes`); nothing is remembered that is not in the
object itself, so a restarted operator goes on with the same sequence, history and times of transition.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from meritorder_api.policy import InferencePolicySpec, Mode
from meritorder_api.reasons import Action, ConditionType, Reason
from meritorder_api.wire import figure, moment, money
from meritorder_core.inputs import Missing
from meritorder_core.outcome import Decision, Plan, PlannedPool, PoolReport
from meritorder_core.shares import whole_percents
from meritorder_operator import conditions

Status = dict[str, Any]

HISTORY: Final = 10
OWNED: Final = (
    "observedGeneration",
    "conditions",
    "fallbackPool",
    "summary",
    "routing",
    "recommendation",
    "pools",
    "decision",
    "history",
    "cheapestMix",
    "savings",
    "learned",
)
"""Fields of `status` that are the operator's; `programmed` is the router servers'."""


def owned(status: Mapping[str, Any]) -> Status:
    """The part of a status that is the operator's."""
    return {name: status[name] for name in OWNED if status.get(name) is not None}


def plan_of(routing: Mapping[str, Any] | None) -> Plan | None:
    """A routing as a plan; None where there is none."""
    if not routing or not routing.get("pools"):
        return None
    return Plan(
        shed=bool(routing.get("shed", False)),
        pools=tuple(
            PlannedPool(
                name=pool["name"],
                limit_per_replica=float(pool["limitPerReplica"]) if "limitPerReplica" in pool else None,
                class_limits=tuple(
                    (int(limit["maxTokens"]), float(limit["limitPerReplica"]))
                    for limit in pool.get("classLimits") or ()
                ),
                weight_percent=pool.get("weightPercent"),
            )
            for pool in routing["pools"]
        ),
    )


def sequence_of(status: Mapping[str, Any]) -> int:
    """The highest sequence that anyone may have seen; agents refuse an older one."""
    routing, programmed = status.get("routing") or {}, status.get("programmed") or {}
    return max(int(routing.get("sequence", 0)), int(programmed.get("sequence", 0)), 0)


def routing_of(plan: Plan, before: Mapping[str, Any] | None, last: int) -> Status:
    """A plan as routing; the sequence grows only when the revision changes."""
    body: Status = {"pools": [_routed(pool) for pool in plan.pools]}
    if plan.shed:
        body["shed"] = True
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    revision = f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    if before and before.get("revision") == revision:
        return {"sequence": int(before["sequence"]), "revision": revision, "shed": False, **body}
    return {"sequence": last + 1, "revision": revision, "shed": False, **body}


def _routed(pool: PlannedPool) -> Status:
    routed: Status = {"name": pool.name}
    if pool.limit_per_replica is not None:
        routed["limitPerReplica"] = figure(pool.limit_per_replica)
    if pool.class_limits:
        routed["classLimits"] = [
            {"maxTokens": size, "limitPerReplica": figure(limit)} for size, limit in pool.class_limits
        ]
    if pool.weight_percent is not None:
        routed["weightPercent"] = pool.weight_percent
    return routed


def compose(
    decision: Decision,
    spec: InferencePolicySpec,
    previous: Mapping[str, Any],
    *,
    generation: int,
    acceptance: conditions.Acceptance,
    now: float,
    seconds_since_change: float,
    last_sequence: int = 0,
) -> Status:
    """The status after a decision; `learned` is as it was, and filled in by who writes.

    `last_sequence` is the highest that the writer knows of beyond the status itself.
    """
    before = previous.get("routing")
    last = max(last_sequence, sequence_of(previous))
    wanted = routing_of(decision.plan, before, last)
    if decision.enforced:
        routing = wanted
    elif before:
        routing = dict(before)
    else:
        routing = routing_of(Plan(pools=(PlannedPool(name=decision.fallback_pool),)), None, last)
    percents = whole_percents([report.share for report in decision.pools])
    status: Status = {
        "observedGeneration": generation,
        "fallbackPool": decision.fallback_pool,
        "summary": _summary(decision, spec, percents),
        "routing": routing,
        "pools": [_pool(report, percent) for report, percent in zip(decision.pools, percents, strict=True)],
        "decision": _decision_to_show(decision, previous.get("decision")),
        "history": _history(decision, previous.get("history")),
        "cheapestMix": _mix(decision),
    }
    if spec.mode is Mode.RECOMMEND:
        status["recommendation"] = routing_of(decision.plan, previous.get("recommendation"), 0)
    savings = _savings(decision)
    if savings is not None:
        status["savings"] = savings
    if previous.get("learned"):
        status["learned"] = previous["learned"]
    programmed = conditions.programmed_condition(
        previous.get("programmed"),
        routing["sequence"],
        before=conditions.read(previous.get("conditions")).get(ConditionType.PROGRAMMED),
        seconds_since_change=seconds_since_change if routing == before else 0.0,
    )
    status["conditions"] = conditions.write(
        conditions.of_decision(decision, acceptance, programmed),
        previous.get("conditions"),
        generation=generation,
        moment=moment(now),
    )
    return status


def refuse(
    acceptance: conditions.Acceptance,
    previous: Mapping[str, Any],
    *,
    generation: int,
    now: float,
    seconds_since_change: float,
) -> Status:
    """The status of a policy whose spec is not acted on: what was routed and learned stays as it is."""
    status = owned(previous)
    routing = previous.get("routing")
    before = conditions.read(previous.get("conditions"))
    programmed = conditions.programmed_condition(
        previous.get("programmed"),
        routing.get("sequence") if routing else None,
        before=before.get(ConditionType.PROGRAMMED),
        seconds_since_change=seconds_since_change,
    )
    status["observedGeneration"] = generation
    status["conditions"] = conditions.write(
        conditions.of_refusal(acceptance, programmed, before, routed=bool(routing)),
        previous.get("conditions"),
        generation=generation,
        moment=moment(now),
    )
    return status


def _decision(decision: Decision) -> Status:
    return {
        "action": decision.action.value,
        "reason": decision.reason.value,
        "message": decision.message,
        "evaluatedAt": moment(decision.at),
    }


def _decision_to_show(decision: Decision, previous: Mapping[str, Any] | None) -> Status:
    """The decision; where there was no new sample to decide on, the last one stands, or each pass that falls
    between two scrapes would be written, and the next one again.
    """
    if previous and decision.action is Action.HOLD and decision.reason is Reason.NO_NEW_SAMPLE:
        return dict(previous)
    return _decision(decision)


def _history(decision: Decision, previous: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    kept = list(previous or ())
    if decision.action is Action.HOLD:
        return kept
    return [_decision(decision), *kept][:HISTORY]


def _summary(decision: Decision, spec: InferencePolicySpec, percents: Sequence[int | None]) -> Status:
    sla = spec.sla
    summary: Status = {"target": f"p{sla.percentile} {_seconds(sla.target_milliseconds)}"}
    if decision.attained_milliseconds is not None:
        summary["attained"] = _seconds(decision.attained_milliseconds)
    if decision.pools:
        share = "" if percents[0] is None else f" {percents[0]}%"
        summary["cheapest"] = f"{decision.pools[0].name}{share}"
    if decision.cost_per_hour is not None:
        summary["costPerHour"] = money(decision.cost_per_hour)
    if not isinstance(decision.savings, Missing):
        summary["saved"] = f"{round(decision.savings.share * 100)}%"
    return summary


def _seconds(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    return f"{figure(milliseconds / 1000)}s"


def _pool(report: PoolReport, share_percent: int | None) -> Status:
    status: Status = {"name": report.name, "state": report.verdict.value, "reason": str(report.reason)}
    figures: tuple[tuple[str, float | None], ...] = (
        ("slowPercent", None if report.slow_share is None else report.slow_share * 100),
        ("slowPercentError", report.slow_share_error * 100 if report.slow_share_error else None),
        ("requestsPerSecond", report.requests_per_second),
        ("inFlight", report.mean_in_flight),
        ("limitPerReplica", report.limit_per_replica),
    )
    amounts: tuple[tuple[str, float | None], ...] = (
        ("pricePerReplicaHour", report.price_per_replica_hour),
        ("costPerHour", report.cost_per_hour),
        ("costPerThousandRequests", report.cost_per_thousand_requests),
        ("costPerThousandAtLimit", report.cost_per_thousand_at_limit),
    )
    whole: tuple[tuple[str, float | None], ...] = (
        ("attainedMilliseconds", report.attained_milliseconds),
        ("samples", report.samples),
        ("sharePercent", share_percent),
        ("readyReplicas", report.ready_replicas),
        ("neededReplicas", report.needed_replicas),
    )
    status.update({name: figure(value) for name, value in figures if value is not None})
    status.update({name: money(value) for name, value in amounts if value is not None})
    status.update({name: round(value) for name, value in whole if value is not None})
    if report.needed_replicas is not None and report.needed_at_least:
        status["neededAtLeast"] = True
    if report.sampled_at is not None:
        status["sampledAt"] = moment(report.sampled_at)
    return status


def _mix(decision: Decision) -> Status:
    mix = decision.cheapest_mix
    if isinstance(mix, Missing):
        return {"message": mix.message}
    return {"replicas": dict(mix.replicas), "perHour": money(mix.per_hour), "message": mix.message}


def _savings(decision: Decision) -> Status | None:
    savings = decision.savings
    if isinstance(savings, Missing):
        return None
    return {
        "baseline": savings.baseline_pool,
        "baselinePerHour": money(savings.baseline_per_hour),
        "realisedPerHour": money(savings.realised_per_hour),
        "possiblePerHour": money(savings.possible_per_hour),
        "percent": round(savings.share * 100),
        "message": savings.message,
    }
