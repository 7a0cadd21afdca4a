"""All policies of a cluster in one table, as `kubectl top` and k9s show things. Pure."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meritorder_api.policy import Mode
from meritorder_api.reasons import ConditionType
from meritorder_api.resource import InferencePolicy
from meritorder_api.status import Condition
from meritorder_cli.report.words import DASH, age

_SLA = {"True": ("met", "green"), "False": ("missed", "bold red"), "Unknown": ("unknown", "dim")}


class Order(StrEnum):
    """What stands first."""

    COST = "cost"
    SLA = "sla"


def top(policies: Sequence[InferencePolicy], order: Order, *, namespaces: bool, now: float) -> RenderableType:
    """The table, the dearest or the worst first, and the sum."""
    if not policies:
        return Text("no policies")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in (*(("namespace",) if namespaces else ()), "policy"):
        table.add_column(name, no_wrap=True)
    for name in ("target", "attained"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("SLA", no_wrap=True)
    table.add_column("cheapest pool")
    for name in ("req/s", "$/h", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("change")
    for policy in ordered(policies, order):
        table.add_row(*_row(policy, namespaces, now))
    known = [cost for cost in map(cost_per_hour, policies) if cost is not None]
    missed = sum(_of(policy, ConditionType.SLA_MET) == "False" for policy in policies)
    what = "policy" if len(policies) == 1 else "policies"
    total = f"{len(policies)} {what}, {missed} of them missing the SLA, ${sum(known):,.2f}/h"
    return Group(table, Text(total, style="dim"))


def ordered(policies: Sequence[InferencePolicy], order: Order) -> list[InferencePolicy]:
    """By money, or by trouble and then by money."""

    def place(policy: InferencePolicy) -> tuple[int, float, str]:
        trouble = {"False": 0, "Unknown": 1}.get(_of(policy, ConditionType.SLA_MET), 2)
        first = trouble if order is Order.SLA else 0
        return first, -(cost_per_hour(policy) or 0.0), policy.key

    return sorted(policies, key=place)


def figures(policies: Sequence[InferencePolicy], order: Order) -> list[dict[str, Any]]:
    """The same for scripts."""
    return [
        {
            "namespace": policy.metadata.namespace,
            "policy": policy.metadata.name,
            "summary": None if policy.status.summary is None else policy.status.summary.dump(),
            "slaMet": _of(policy, ConditionType.SLA_MET),
            "ready": _of(policy, ConditionType.READY),
            "requestsPerSecond": _rate(policy),
        }
        for policy in ordered(policies, order)
    ]


def cost_per_hour(policy: InferencePolicy) -> float | None:
    """US dollars per hour for all that is ready."""
    summary = policy.status.summary
    try:
        return float((summary.cost_per_hour if summary is not None else None) or "")
    except ValueError:
        return None


def _row(policy: InferencePolicy, namespaces: bool, now: float) -> list[RenderableType]:
    status, summary = policy.status, policy.status.summary
    met, style = _SLA[_of(policy, ConditionType.SLA_MET)]
    name = Text(policy.metadata.name, style="bold")
    if policy.spec.suspend:
        name.append(" paused", "yellow")
    elif policy.spec.mode is Mode.RECOMMEND:
        name.append(" recommends", "yellow")
    ready = _condition(policy, ConditionType.READY)
    if ready is not None and ready.status == "False":
        met, style = ready.reason, "bold red"
    last = next(iter(status.history or ()), None)
    change = DASH if last is None else f"{last.action} {age(now - _at(last.evaluated_at))}"
    rate = _rate(policy)
    cells: list[RenderableType] = [
        name,
        (summary.target if summary is not None else None)
        or f"{policy.spec.sla.target_milliseconds / 1000:g}s",
        Text(
            (summary.attained if summary is not None else None) or DASH,
            style=style if met == "missed" else "",
        ),
        Text(met, style=style),
        (summary.cheapest if summary is not None else None) or DASH,
        DASH if rate is None else f"{rate:.1f}",
        (summary.cost_per_hour if summary is not None else None) or DASH,
        (summary.saved if summary is not None else None) or DASH,
        change,
    ]
    return [policy.metadata.namespace, *cells] if namespaces else cells


def _rate(policy: InferencePolicy) -> float | None:
    rates = [
        pool.requests_per_second for pool in policy.status.pools or () if pool.requests_per_second is not None
    ]
    return sum(map(float, rates)) if rates else None


def _condition(policy: InferencePolicy, kind: ConditionType) -> Condition | None:
    return next((one for one in policy.status.conditions or () if one.type == kind), None)


def _of(policy: InferencePolicy, kind: ConditionType) -> str:
    found = _condition(policy, kind)
    return "Unknown" if found is None else found.status


def _at(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
