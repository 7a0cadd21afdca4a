"""Bring the memory in line with the spec, before anything is learned in this pass.

A new pool begins at its minimum, or where the routing in force has it if the memory was lost. A changed
promise makes the evidence worthless and keeps the limits as where to start from. The fallback pool is fixed
when a spec is accepted: a price that moves must not swap the last resort under way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meritorder_api.policy import InferencePolicySpec
from meritorder_core.inputs import Inputs, Missing, PoolInputs, ReplicaHour
from meritorder_core.learned import Learned, LimitMemory, PoolMemory, forget
from meritorder_core.order import fallback_of
from meritorder_core.outcome import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The memory as this pass begins with it."""

    learned: Learned
    first: bool
    """Nothing was ever decided for this policy."""
    edited: tuple[str, ...] = ()
    """What the spec changed, in words; empty: nothing that the decision knows of."""
    respecified: bool = False
    """This is the first pass with this generation of the spec."""


def promise_of(spec: InferencePolicySpec) -> str:
    """What the evidence speaks of: with another one it says nothing."""
    return f"{spec.sla.metric.value} p{spec.sla.percentile} {spec.sla.target_milliseconds}"


def begin(
    spec: InferencePolicySpec, learned: Learned, inputs: Inputs, *, current: Plan | None, generation: int
) -> Start:
    """Bring the memory in line with spec and inputs."""
    names = sorted(pool.name for pool in spec.pools)
    edited: list[str] = []
    first = not learned.order
    known = learned.pools
    if not first and set(names) != set(known):
        added, gone = sorted(set(names) - set(known)), sorted(set(known) - set(names))
        edited += [f"pool {name} added" for name in added] + [f"pool {name} removed" for name in gone]
    promise, promised_at = promise_of(spec), learned.promised_at
    if not first and learned.promise != promise:
        edited.append(f"promise is now {promise} ms")
        known = {name: _forget_pool(pool, inputs) for name, pool in known.items()}
        promised_at = inputs.now
    pools = {name: _pool(spec, name, known.get(name), inputs.pools.get(name), current) for name in names}
    fallback = learned.fallback
    if fallback not in pools or learned.generation != generation:
        fallback = fallback_of(spec, {name: pools[name].price for name in names})
        if not first and fallback != learned.fallback:
            edited.append(f"fallback pool is now {fallback}")
    started = replace(
        learned,
        generation=generation,
        promise=promise,
        promised_at=promised_at,
        fallback=fallback,
        pools=pools,
        note="",
    )
    respecified = not first and learned.generation != generation
    return Start(learned=started, first=first, edited=tuple(edited), respecified=respecified)


def _forget_pool(pool: PoolMemory, inputs: Inputs) -> PoolMemory:
    since = inputs.now + inputs.effective_interval_seconds / 2
    main = _forget_limit(pool.main, since)
    return replace(
        pool, main=main, classes={size: _forget_limit(c, since) for size, c in pool.classes.items()}
    )


def _forget_limit(memory: LimitMemory, since: float) -> LimitMemory:
    # A drained pool may well meet another promise: it is looked at soon.
    return replace(
        forget(memory), learn_after=since, fresh_from=since, retry_at=since if memory.limit <= 0 else 0.0
    )


def _pool(
    spec: InferencePolicySpec,
    name: str,
    known: PoolMemory | None,
    seen: PoolInputs | None,
    current: Plan | None,
) -> PoolMemory:
    pool = spec.pool(name)
    memory = known or PoolMemory(main=LimitMemory(limit=_first_limit(spec, name, current)))
    limits = pool.concurrency
    if memory.main.limit > 0:
        limit = min(max(memory.main.limit, float(limits.minimum)), float(limits.maximum))
        if limit != memory.main.limit:
            memory = replace(memory, main=replace(memory.main, limit=limit))
    ready, price = memory.ready, memory.price
    if seen is not None and seen.ready_replicas is not None:
        ready = max(seen.ready_replicas, 0)
    elif ready is None:
        ready = pool.backend.replicas or (len(pool.backend.hosts) if pool.backend.hosts else None)
    if seen is not None and isinstance(seen.price, ReplicaHour):
        price = seen.price.dollars
    elif (seen is None or isinstance(seen.price, Missing)) and pool.cost.per_replica_hour is not None:
        price = float(pool.cost.per_replica_hour)
    return (
        memory
        if (ready, price) == (memory.ready, memory.price)
        else replace(memory, ready=ready, price=price)
    )


def _first_limit(spec: InferencePolicySpec, name: str, current: Plan | None) -> float:
    planned: Mapping[str, float | None] = (
        {pool.name: pool.limit_per_replica for pool in current.pools} if current is not None else {}
    )
    return planned.get(name) or float(spec.pool(name).concurrency.minimum)
