"""The five conditions, from what was decided and what the agents applied. Pure.

`Ready` sums up the others: the first that is wrong gives its reason, in the order in which a person would
mend them. No traffic is nothing wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api.reasons import NOT_MOUNTED, ConditionType, Reason, without_code
from meritorder_core.outcome import ConditionReport, Decision

PENDING_SECONDS: Final = 15.0
"""A routing that agents have not yet applied counts as on its way for so long: each change takes a moment."""
LONGEST_MESSAGE: Final = 1024

Conditions = Mapping[ConditionType, ConditionReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Whether a spec is acted on, and why not."""

    accepted: bool
    reason: Reason
    message: str


ACCEPTED: Final = Acceptance(accepted=True, reason=Reason.ACCEPTED, message="the spec is valid and acted on")


def accepted_condition(acceptance: Acceptance) -> ConditionReport:
    return ConditionReport(status=acceptance.accepted, reason=acceptance.reason, message=acceptance.message)


def programmed_condition(
    programmed: Mapping[str, Any] | None,
    sequence: int | None,
    *,
    before: ConditionReport | None,
    seconds_since_change: float,
) -> ConditionReport:
    """What `status.programmed`, written by the router servers, says of the routing with this sequence."""
    if not programmed or sequence is None:
        return ConditionReport(
            status=None, reason=Reason.NO_AGENTS, message="no router server has said what is applied"
        )
    agents, applied = int(programmed.get("agents", 0)), int(programmed.get("applied", 0))
    silent = int(programmed.get("silent", 0))
    refused: Sequence[Mapping[str, Any]] = programmed.get("refused") or ()
    problems: Sequence[str] = programmed.get("problems") or ()
    if refused:
        return _refused(refused)
    if problems:
        return ConditionReport(
            status=False,
            reason=_reason_of(programmed.get("problemReasons") or ()),
            message="; ".join(problems),
        )
    if agents == 0:
        return ConditionReport(
            status=None, reason=Reason.NO_AGENTS, message="no agent serves this policy yet"
        )
    current = int(programmed.get("sequence", -1)) == sequence
    if current and applied >= agents:
        return ConditionReport(
            status=True, reason=Reason.PROGRAMMED, message=f"{applied} of {agents} agents applied the routing"
        )
    if current and applied + silent >= agents:
        return ConditionReport(
            status=None,
            reason=Reason.AGENTS_SILENT,
            message=f"{applied} of {agents} agents applied the routing; {silent} have not been heard of for "
            "15 s and keep serving what they have",
        )
    if before is not None and before.status and seconds_since_change < PENDING_SECONDS:
        return before
    done = applied if current else 0
    return ConditionReport(
        status=False, reason=Reason.PENDING, message=f"{done} of {agents} agents applied the routing so far"
    )


def _reason_of(reasons: Sequence[Any]) -> Reason:
    """The reason of the first problem. Servers of the minor version before say none: all problems that they
    know are of backends that they do not find; and a newer one may have a word that is not known here.
    """
    first = str(reasons[0]) if reasons else ""
    return Reason(first) if first in list(Reason) else Reason.BACKEND_NOT_FOUND


def _refused(refused: Sequence[Mapping[str, Any]]) -> ConditionReport:
    """What agents said against their table, what concerns all of it first."""
    said: dict[Reason, list[tuple[str, str]]] = {}
    for each in refused:
        lacks, sentence = without_code(str(each.get("reason")), each.get("code"))
        said.setdefault(lacks or Reason.REFUSED_BY_AGENT, []).append((str(each.get("agent")), sentence))
    reason = next(reason for reason in (Reason.REFUSED_BY_AGENT, *NOT_MOUNTED) if reason in said)
    (agent, sentence), *others = said[reason]
    if reason is Reason.REFUSED_BY_AGENT:
        more = f"; {len(others)} more refused" if others else ""
        message = f"agent {agent} refused its table: {sentence}{more}"
    else:
        more = f"; {len(others)} more said so" if others else ""
        message = f"agent {agent}: {sentence}{more}"
    return ConditionReport(status=False, reason=reason, message=message)


def of_decision(
    decision: Decision, acceptance: Acceptance, programmed: ConditionReport
) -> dict[ConditionType, ConditionReport]:
    """All conditions of a policy that was decided on."""
    accepted = accepted_condition(acceptance)
    metrics = decision.metrics_available
    ready = decision.ready_note
    for wrong in (accepted, programmed, metrics):
        if wrong.status is False:
            ready = ConditionReport(status=False, reason=wrong.reason, message=wrong.message)
            break
    return {
        ConditionType.READY: ready,
        ConditionType.ACCEPTED: accepted,
        ConditionType.METRICS_AVAILABLE: metrics,
        ConditionType.SLA_MET: decision.sla_met,
        ConditionType.PROGRAMMED: programmed,
    }


def of_refusal(
    acceptance: Acceptance, programmed: ConditionReport, before: Conditions, *, routed: bool
) -> dict[ConditionType, ConditionReport]:
    """All conditions of a policy whose spec is not acted on: nothing is measured or decided for it."""
    keeps = "; the last routing keeps serving" if routed else "; nothing is routed"
    ready = ConditionReport(status=False, reason=acceptance.reason, message=acceptance.message + keeps)
    idle = ConditionReport(
        status=None, reason=acceptance.reason, message="not judged while the spec is not accepted"
    )
    return {
        ConditionType.READY: ready,
        ConditionType.ACCEPTED: accepted_condition(acceptance),
        ConditionType.METRICS_AVAILABLE: idle,
        ConditionType.SLA_MET: idle,
        ConditionType.PROGRAMMED: programmed,
    }


def read(listed: Sequence[Mapping[str, Any]] | None) -> dict[ConditionType, ConditionReport]:
    """Conditions as they stand in a status."""
    found: dict[ConditionType, ConditionReport] = {}
    for entry in listed or ():
        if entry.get("type") in ConditionType.__members__.values():
            status = {"True": True, "False": False}.get(str(entry.get("status")))
            found[ConditionType(entry["type"])] = ConditionReport(
                status=status, reason=str(entry.get("reason", "")), message=str(entry.get("message", ""))
            )
    return found


def write(
    conditions: Conditions, previous: Sequence[Mapping[str, Any]] | None, *, generation: int, moment: str
) -> list[dict[str, Any]]:
    """Conditions for a status; `lastTransitionTime` moves only where `status` flips."""
    before = {entry.get("type"): entry for entry in previous or ()}
    listed = []
    for kind, report in conditions.items():
        status = "Unknown" if report.status is None else str(report.status)
        old = before.get(kind.value)
        same = old is not None and old.get("status") == status
        listed.append(
            {
                "type": kind.value,
                "status": status,
                "reason": str(report.reason),
                "message": report.message[:LONGEST_MESSAGE],
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if old is not None and same else moment,
            }
        )
    return listed
