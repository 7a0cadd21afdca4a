"""A policy's status in words: what `meritorder explain` and `history` print. Pure."""

from collections.abc import Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meritorder_api.policy import Mode
from meritorder_api.resource import InferencePolicy
from meritorder_api.status import PoolStatus
from meritorder_cli.report.words import DASH, age, milliseconds, promise, whole_percent
from meritorder_cli.view import ACTIONS

_STATUS = {"True": "green", "False": "bold red", "Unknown": "yellow"}


def explain(policy: InferencePolicy) -> RenderableType:
    """What is routed, why, and what it costs."""
    status = policy.status
    head = f"{policy.key}: {promise(policy.spec.sla.dump())}, over {policy.spec.sla.window_seconds} s"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if policy.spec.suspend:
        parts.append(Text("paused: nothing is decided; the last routing keeps serving", style="yellow"))
    elif policy.spec.mode is Mode.RECOMMEND:
        parts.append(Text("recommending: decisions are reported and not acted on", style="yellow"))
    if status.observed_generation is None:
        parts.append(Text("no operator has looked at it yet", style="yellow"))
        return Group(*parts)
    if status.decision is not None:
        decision = status.decision
        parts.append(Text(f"{decision.action} ({decision.reason}): {decision.message}"))
        parts.append(Text(f"decided {decision.evaluated_at}", style="dim"))
    parts += [Text(""), _pools(status.pools or []), Text("")]
    parts += [Text(line) for line in _costs(policy)]
    table = Table.grid(padding=(0, 2, 0, 0))
    for condition in status.conditions or []:
        table.add_row(
            condition.type,
            Text(condition.status, style=_STATUS.get(condition.status, "")),
            Text(f"{condition.reason}: {condition.message}" if condition.message else condition.reason),
        )
    parts += [Text(""), table]
    return Group(*parts)


def history(policy: InferencePolicy, now: float) -> RenderableType:
    """The last decisions that changed something, newest first."""
    if not policy.status.history:
        return Text("no decision has changed anything yet")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("action", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    table.add_column("message")
    for one in policy.status.history:
        table.add_row(
            age(now - datetime.fromisoformat(one.evaluated_at).timestamp()),
            Text(one.action, style=ACTIONS.get(one.action, "")),
            one.reason,
            Text(one.message),
        )
    return table


def _pools(pools: list[PoolStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("pool")
    table.add_column("state")
    for name in ("attained", "share", "in flight", "limit/replica", "ready", "needed", "$/h", "$/1,000"):
        table.add_column(name, justify="right")
    for pool in pools:
        at_least = "≤ " if pool.needed_at_least else ""
        table.add_row(
            Text(pool.name, style="bold"),
            pool.state,
            milliseconds(pool.attained_milliseconds),
            whole_percent(pool.share_percent),
            _known(pool.in_flight),
            _known(pool.limit_per_replica),
            _known(pool.ready_replicas),
            DASH if pool.needed_replicas is None else f"{at_least}{pool.needed_replicas}",
            _known(pool.cost_per_hour),
            _known(pool.cost_per_thousand_requests),
        )
    return table


def _costs(policy: InferencePolicy) -> Iterator[str]:
    savings, mix = policy.status.savings, policy.status.cheapest_mix
    if savings is not None:
        yield (
            f"saved ${savings.realised_per_hour}/h of ${savings.baseline_per_hour}/h all on "
            f"{savings.baseline} ({savings.percent} %); ${savings.possible_per_hour}/h would be possible"
        )
        if savings.message:
            yield savings.message
    if mix is not None:
        yield mix.message


def _known(value: object) -> str:
    return DASH if value is None else str(value)
