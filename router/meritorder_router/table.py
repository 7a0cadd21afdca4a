"""The routing table of one agent, made from a policy, what stands behind its pools, and the agent's slices.

Pure: equal input gives equal bytes. What is routed, and in which order, is `status.routing` alone; what a
pool is (its backend, model, key) is the spec. A pool that is routed but no longer in the spec is left out
until the operator routes anew. Endpoints that are not ready are in the table, marked: they take nothing
new, and streams on them end in peace.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Final

from meritorder_api.container import secret_file
from meritorder_api.policy import Pool, SizeClasses, SLAMetric
from meritorder_api.resource import InferencePolicy
from meritorder_api.status import RoutedPool, Routing
from meritorder_api.table import (
    Fill,
    RoutingTable,
    TableClassLimit,
    TableEndpoint,
    TablePolicy,
    TablePool,
    TableRequests,
    TableSLA,
    TableTimeouts,
    TableTLS,
)
from meritorder_router.slices import PoolLimit, PoolSlice

_MOST: Final = Decimal(10**9)
"""More in flight per replica than any limit is; it keeps a mistyped exponent from becoming a number of that
many digits.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBackend:
    """What stands behind a pool now."""

    endpoints: tuple[TableEndpoint, ...] = ()
    ready: int = 0
    """Replicas that can serve: what limits per replica are multiplied with."""
    tls: TableTLS | None = None


NOTHING: Final = PoolBackend()


def limits(policy: InferencePolicy, backends: Mapping[str, PoolBackend]) -> tuple[PoolLimit, ...]:
    """The limits over all agents of what is routed: limit per replica x ready replicas, rounded down."""
    routing = policy.status.routing
    if routing is None:
        return ()
    return tuple(
        PoolLimit(
            pool=routed.name,
            limit=_times(routed.limit_per_replica, backends.get(routed.name, NOTHING).ready),
            classes=tuple(
                sorted(
                    (
                        limit.max_tokens,
                        _times(limit.limit_per_replica, backends.get(routed.name, NOTHING).ready) or 0,
                    )
                    for limit in routed.class_limits or ()
                )
            ),
            weight_percent=routed.weight_percent,
        )
        for routed, _ in _routed(policy, routing)
    )


def build(
    policy: InferencePolicy,
    backends: Mapping[str, PoolBackend],
    *,
    fill: Fill,
    slices: Mapping[str, PoolSlice],
) -> RoutingTable | None:
    """The sealed table of one agent; None while nothing is routed that the spec still has."""
    routing = policy.status.routing
    if routing is None:
        return None
    pools = [
        _pool(pool, routed, backends.get(pool.name, NOTHING), slices.get(pool.name), fill)
        for routed, pool in _routed(policy, routing)
    ]
    if not pools:
        return None
    spec = policy.spec
    return RoutingTable(
        policy=TablePolicy(
            namespace=policy.metadata.namespace, name=policy.metadata.name, uid=policy.metadata.uid
        ),
        sequence=routing.sequence,
        routing_revision=routing.revision,
        pools=pools,
        fill=fill,
        shed=routing.shed,
        size_classes=spec.size_classes is SizeClasses.AUTO and spec.sla.metric is SLAMetric.END_TO_END,
        sla=TableSLA(metric=spec.sla.metric, target_milliseconds=spec.sla.target_milliseconds),
        timeouts=TableTimeouts(
            connect_seconds=spec.timeouts.connect_seconds,
            response_headers_seconds=spec.timeouts.response_headers_seconds,
            stream_idle_seconds=spec.timeouts.stream_idle_seconds,
            hedge_milliseconds=spec.timeouts.hedge_milliseconds,
        ),
        requests=TableRequests(
            add_usage=spec.requests.add_usage,
            headers=sorted(spec.requests.headers),
            paths=sorted(spec.requests.paths),
        ),
    ).seal()


def _routed(policy: InferencePolicy, routing: Routing) -> list[tuple[RoutedPool, Pool]]:
    """What is routed and still in the spec, in merit order, each once."""
    by_name = {pool.name: pool for pool in policy.spec.pools}
    found: dict[str, tuple[RoutedPool, Pool]] = {}
    for routed in routing.pools:
        pool = by_name.get(routed.name)
        if pool is not None:
            found.setdefault(pool.name, (routed, pool))
    return list(found.values())


def _pool(
    pool: Pool, routed: RoutedPool, backend: PoolBackend, part: PoolSlice | None, fill: Fill
) -> TablePool:
    # Without a slice (this agent is not among the live ones) a limited pool is closed to it.
    limited = routed.limit_per_replica is not None
    limit = part.limit if part is not None else (0 if limited else None)
    key = pool.backend.api_key_secret_ref
    return TablePool(
        name=pool.name,
        endpoints=list(backend.endpoints),
        tls=backend.tls,
        limit=limit,
        class_limits=[
            TableClassLimit(max_tokens=size, limit=most) for size, most in (part.classes if part else ())
        ],
        # Where slices are filled, weights decide nothing: a new one is no reason for a new table.
        weight_percent=routed.weight_percent if fill is Fill.SPLIT else None,
        path_prefix=pool.backend.path_prefix,
        model=pool.backend.model,
        api_key_file=secret_file(key) if key is not None else None,
    )


def _times(per_replica: str | None, replicas: int) -> int | None:
    if per_replica is None:
        return None
    try:
        value = Decimal(per_replica)
    except InvalidOperation:
        return 0
    if not value.is_finite() or value <= 0:
        return 0
    return int((min(value, _MOST) * replicas).to_integral_value(rounding=ROUND_FLOOR))
