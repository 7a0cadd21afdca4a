"""When a status is written. Pure.

What routes, and what a person must know at once, is written when it changes. Reasons that may come and go,
and whether a pool is in trouble, are written at most every 10 s, figures at most every 30 s. What was learned
is written with every change of a limit, else at most every 60 s and only if requests completed since. A time
alone is never a reason to write: at rest there is no write at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from meritorder_api.reasons import Verdict

REASONS_SECONDS: Final = 10.0
FIGURES_SECONDS: Final = 30.0
LEARNED_SECONDS: Final = 60.0

TROUBLE: Final = (Verdict.MISSES.value, Verdict.UNKNOWN.value)
"""States of a pool that a person should hear of soon. Among the others one changes to another by chance: a
pool near its limit is Unsure every other moment.
"""

Status = Mapping[str, Any]


class Change(IntEnum):
    """How much differs between two statuses, in ascending order of haste."""

    NONE = 0
    FIGURES = 1
    REASONS = 2
    AT_ONCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """Seconds since this process wrote; infinite where it never did."""

    status: float
    learned: float


def change(before: Status, after: Status) -> Change:
    """What differs, times aside."""
    if _at_once(before) != _at_once(after):
        return Change.AT_ONCE
    if _reasons(before) != _reasons(after):
        return Change.REASONS
    if _figures(before) != _figures(after):
        return Change.FIGURES
    return Change.NONE


def due(before: Status, after: Status, *, learned_changed: bool, completed: float, since: Since) -> bool:
    """Whether to write now; `completed` is the number of requests since what was learned was last written."""
    what = change(before, after)
    if what is Change.AT_ONCE or learned_changed:
        return True
    if what is Change.REASONS and since.status >= REASONS_SECONDS:
        return True
    if what is not Change.NONE and since.status >= FIGURES_SECONDS:
        return True
    return completed > 0 and learned_is_due(since)


def learned_is_due(since: Since) -> bool:
    """Whether what was learned goes with a write that is made for another reason."""
    return since.learned >= LEARNED_SECONDS


def _at_once(status: Status) -> tuple[Any, ...]:
    return (
        status.get("observedGeneration"),
        (status.get("routing") or {}).get("revision"),
        (status.get("recommendation") or {}).get("revision"),
        status.get("fallbackPool"),
        [(c["type"], c["status"], c["observedGeneration"]) for c in status.get("conditions") or ()],
        len(status.get("history") or ()),
        next(iter(status.get("history") or ()), None),
    )


def _reasons(status: Status) -> tuple[Any, ...]:
    return (
        [(c["type"], c["reason"]) for c in status.get("conditions") or ()],
        [
            (p["name"], p["state"] if p["state"] in TROUBLE else "", p.get("readyReplicas"))
            for p in status.get("pools") or ()
        ],
    )


def _figures(status: Status) -> tuple[Any, ...]:
    decision = status.get("decision") or {}
    return (
        status.get("summary"),
        [{k: v for k, v in p.items() if k != "sampledAt"} for p in status.get("pools") or ()],
        (decision.get("action"), decision.get("reason"), decision.get("message")),
        [c["message"] for c in status.get("conditions") or ()],
        status.get("cheapestMix"),
        status.get("savings"),
    )
