"""What a policy would route, which replicas it needs and what they cost, out of its status. Pure."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meritorder_api.policy import Mode
from meritorder_api.resource import InferencePolicy
from meritorder_api.status import PoolStatus, Routing
from meritorder_cli.report.words import DASH, promise, whole_percent


def figures(policy: InferencePolicy) -> dict[str, Any]:
    """The same for scripts."""
    status = policy.status
    routing = _routing(policy)
    return {
        "policy": policy.key,
        "mode": str(policy.spec.mode),
        "routing": None if routing is None else routing.dump(),
        "pools": [
            {
                "name": pool.name,
                "readyReplicas": pool.ready_replicas,
                "neededReplicas": pool.needed_replicas,
                "neededAtLeast": bool(pool.needed_at_least),
                "cheapestReplicas": _cheapest(policy).get(pool.name),
                "costPerHour": pool.cost_per_hour,
                "neededPerHour": _needed(pool),
            }
            for pool in status.pools or ()
        ],
        "cheapestMix": None if status.cheapest_mix is None else status.cheapest_mix.dump(),
        "savings": None if status.savings is None else status.savings.dump(),
    }


def recommend(policy: InferencePolicy) -> RenderableType:
    """The same for people."""
    status = policy.status
    parts: list[RenderableType] = [Text(f"{policy.key}: {promise(policy.spec.sla.dump())}", style="bold")]
    if status.observed_generation is None:
        return Group(*parts, Text("no operator has looked at it yet", style="yellow"))
    if policy.spec.mode is Mode.RECOMMEND:
        parts.append(Text("recommending: this is what it would route; set `spec.mode: Enforce` to let it"))
    else:
        parts.append(Text("enforcing: this is what it routes"))
    if status.decision is not None:
        parts.append(Text(f"{status.decision.action} ({status.decision.reason}): {status.decision.message}"))
    parts += [Text(""), _table(policy), Text(""), *(Text(line) for line in _money(policy))]
    return Group(*parts)


def _table(policy: InferencePolicy) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("pool")
    for name in ("limit/replica", "weight", "ready", "needed", "cheapest mix", "$/h ready", "$/h needed"):
        table.add_column(name, justify="right")
    known = {pool.name: pool for pool in policy.status.pools or ()}
    routing = _routing(policy)
    order = [pool.name for pool in routing.pools] if routing is not None else []
    routed = {pool.name: pool for pool in routing.pools} if routing is not None else {}
    for name in (*order, *(name for name in known if name not in order)):
        pool = known.get(name, PoolStatus(name=name, state="Unknown"))
        at_most = "≤ " if pool.needed_at_least else ""
        limit = routed[name].limit_per_replica if name in routed else None
        unlimited = "unlimited" if name in routed else "not routed"
        needed = _needed(pool)
        table.add_row(
            Text(name, style="bold"),
            unlimited if limit is None else limit,
            whole_percent(routed[name].weight_percent if name in routed else None),
            _known(pool.ready_replicas),
            DASH if pool.needed_replicas is None else f"{at_most}{pool.needed_replicas}",
            _known(_cheapest(policy).get(name)),
            _known(pool.cost_per_hour),
            DASH if needed is None else f"{at_most}{needed}",
        )
    return table


def _money(policy: InferencePolicy) -> Iterator[str]:
    mix, savings = policy.status.cheapest_mix, policy.status.savings
    if mix is not None:
        yield mix.message
    if savings is not None:
        yield (
            f"all on {savings.baseline}: ${savings.baseline_per_hour}/h; saved now: "
            f"${savings.realised_per_hour}/h "
            f"({savings.percent} %); with what is needed: ${savings.possible_per_hour}/h"
        )
    for pool in policy.status.pools or ():
        if pool.ready_replicas is None or pool.needed_replicas is None or pool.price_per_replica_hour is None:
            continue
        idle = pool.ready_replicas - pool.needed_replicas
        if idle > 0 and not pool.needed_at_least:
            money = idle * Decimal(pool.price_per_replica_hour)
            spare = f"{idle} of {pool.ready_replicas} replicas are not needed"
            yield f"{pool.name}: {spare}; they cost ${money:.2f}/h"


def _routing(policy: InferencePolicy) -> Routing | None:
    if policy.spec.mode is Mode.RECOMMEND:
        return policy.status.recommendation or policy.status.routing
    return policy.status.routing


def _cheapest(policy: InferencePolicy) -> dict[str, int]:
    mix = policy.status.cheapest_mix
    return dict(mix.replicas or {}) if mix is not None else {}


def _needed(pool: PoolStatus) -> str | None:
    if pool.needed_replicas is None or pool.price_per_replica_hour is None:
        return None
    return f"{pool.needed_replicas * Decimal(pool.price_per_replica_hour):.2f}"


def _known(value: object) -> str:
    return DASH if value is None else str(value)
