"""From a plan to what Envoy is given: the one agent of a standalone run has the whole of every limit."""

import hashlib
import json
from collections.abc import Mapping

from meritorder_api.resource import InferencePolicy
from meritorder_api.status import ClassLimit, InferencePolicyStatus, RoutedPool, Routing
from meritorder_api.table import Fill, RoutingTable
from meritorder_api.wire import figure
from meritorder_core.outcome import Plan
from meritorder_router.slices import PoolSlice
from meritorder_router.table import PoolBackend, build, limits


def table(
    policy: InferencePolicy, plan: Plan, backends: Mapping[str, PoolBackend], *, sequence: int
) -> RoutingTable | None:
    """The routing table for this plan over these servers."""
    routed = policy.model_copy(update={"status": InferencePolicyStatus(routing=_routing(plan, sequence))})
    slices = {
        limit.pool: PoolSlice(limit=limit.limit, classes=limit.classes) for limit in limits(routed, backends)
    }
    return build(routed, backends, fill=Fill.FILL, slices=slices)


def _routing(plan: Plan, sequence: int) -> Routing:
    pools = [
        RoutedPool(
            name=pool.name,
            limit_per_replica=None if pool.limit_per_replica is None else figure(pool.limit_per_replica),
            class_limits=[
                ClassLimit(max_tokens=size, limit_per_replica=figure(most))
                for size, most in pool.class_limits
            ]
            or None,
            weight_percent=pool.weight_percent,
        )
        for pool in plan.pools
    ]
    body = json.dumps([pool.dump() for pool in pools], sort_keys=True)
    revision = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    return Routing(sequence=sequence, revision=revision, shed=plan.shed, pools=pools)
