"""Events: what changed and is news for a person. Pure.

An event is told from the difference between the status that stood and the one that was written, so a
restart tells nothing twice, and a policy at rest has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api import events
from meritorder_api.names import API_VERSION, KIND, OPERATOR_FIELD_MANAGER
from meritorder_api.reasons import Action, ConditionType, Reason
from meritorder_core.outcome import ConditionReport
from meritorder_operator import conditions

_QUIET: Final = (Reason.PENDING.value, Reason.NO_TRAFFIC.value, Reason.NO_AGENTS.value)
"""Reasons that come and go in everyday life: seen in the condition, not told."""
_GROWTH: Final = frozenset({Reason.CLEAN_SAMPLES.value, Reason.LIMIT_REACHED_CLEAN.value})
"""Reasons of a step up, of which chance picks one: whether a slow request was among those that allow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One event."""

    reason: str
    message: str
    warning: bool = False


def told(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[News]:
    """What a change of status is worth telling."""
    items: list[News] = []
    latest, last = _newest(after), _newest(before)
    if latest and latest != last and not _goes_on(latest, last):
        bad = latest["action"] in (Action.CUT.value, Action.DRAIN.value)
        items.append(News(reason=latest["reason"], message=latest["message"], warning=bad))
    old, new = conditions.read(before.get("conditions")), conditions.read(after.get("conditions"))
    for kind, now in new.items():
        if _is_news(kind, old.get(kind), now):
            bad = now.status is False or now.reason == Reason.POOL_SHARED
            items.append(News(reason=now.reason, message=now.message, warning=bad))
    return items


def _newest(status: Mapping[str, Any]) -> Mapping[str, Any]:
    history = status.get("history")
    return history[0] if history else {}


def _goes_on(latest: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether a decision only goes on with what was told: growth goes in many steps, and the first tells."""
    if not latest["action"] == last.get("action") == Action.GROW.value:
        return False
    return latest["reason"] == last["reason"] or {latest["reason"], last["reason"]} == _GROWTH


def _is_news(kind: ConditionType, then: ConditionReport | None, now: ConditionReport) -> bool:
    """Whether a condition's change is told; `Ready` only repeats another."""
    if kind is ConditionType.READY or now.status is None or now.reason in _QUIET:
        return False
    if now.reason == Reason.POOL_SHARED:
        return then is None or then.reason != now.reason
    if now.status:
        return then is not None and then.status is False  # not from Unknown: traffic comes and goes
    if then is None or then.status is not False:
        return True
    return then.reason != now.reason and kind in (ConditionType.ACCEPTED, ConditionType.METRICS_AVAILABLE)


def event(manifest: Mapping[str, Any], news: News, *, now: str, name: str, instance: str) -> dict[str, Any]:
    """An Event object about a policy; `name` must be new."""
    metadata = manifest["metadata"]
    about = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    return events.event(
        about,
        reason=news.reason,
        message=news.message,
        warning=news.warning,
        name=name,
        component=OPERATOR_FIELD_MANAGER,
        instance=instance,
        now=now,
    )
