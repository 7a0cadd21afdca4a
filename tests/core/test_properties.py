"""What must hold for every input: the decision is total, calm, bounded, and never raises a limit on doubt."""

import string
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.building import NOON
from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Action
from meritorder_core.decide import decide
from meritorder_core.inputs import (
    Counts,
    Inputs,
    Missing,
    PerMillionTokens,
    PoolInputs,
    Price,
    ReplicaHour,
    Sample,
)
from meritorder_core.learned import Block, Cell, Learned, LimitMemory, Look, PoolMemory
from meritorder_core.outcome import Decision, Plan, PlannedPool

NAMES = ("a", "b", "c", "d")
steady = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

seconds = st.floats(0.0, 120.0)
amounts = st.floats(0.0, 5000.0)
any_float = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def specs(draw: st.DrawFn) -> InferencePolicySpec:
    count = draw(st.integers(1, 4))
    pools = []
    for name in NAMES[:count]:
        low = draw(st.integers(1, 8))
        cost: dict[str, Any] = {"perReplicaHour": draw(st.sampled_from(["1.00", "1.86", "3.00", "6.88"]))}
        if draw(st.integers(0, 5)) == 0:
            cost = {"perMillionTokens": {"input": "0.14", "output": "0.28"}}
        pools.append(
            {
                "name": name,
                "backend": {"service": {"name": name, "port": 80}},
                "cost": cost,
                "concurrency": {"minimum": low, "maximum": low + draw(st.integers(0, 200))},
            }
        )
    return InferencePolicySpec.model_validate(
        {
            "sla": {
                "metric": draw(
                    st.sampled_from(["EndToEndLatency", "TimeToFirstToken", "TimePerOutputToken"])
                ),
                "targetMilliseconds": draw(st.sampled_from([45, 500, 2000])),
                "percentile": draw(st.sampled_from([50, 90, 95, 99])),
                "windowSeconds": draw(st.sampled_from([10, 15, 60])),
            },
            "pools": pools,
            "meritOrder": draw(st.sampled_from(["DeclaredPrice", "MeasuredCost"])),
            "behavior": {
                "onMissingMetrics": draw(st.sampled_from(["Hold", "Safest"])),
                "whenInfeasible": draw(st.sampled_from(["Fastest", "Hold", "Shed"])),
                "whenSaturated": draw(st.sampled_from(["Overflow", "Shed"])),
            },
            "mode": draw(st.sampled_from(["Enforce", "Enforce", "Enforce", "Recommend"])),
        }
    )


@st.composite
def count_values(draw: st.DrawFn, *, span: float = 5.0) -> Counts:
    total = float(draw(st.integers(0, 400)))
    slow = float(round(total * draw(st.sampled_from([0.0, 0.0, 0.02, 0.05, 0.2, 1.0]))))
    mean = draw(st.floats(0.01, 20.0))
    return Counts(
        seconds=span,
        total=total,
        slow=slow,
        latency_sum_seconds=total * mean,
        slow_error=draw(st.sampled_from([0.0, 0.0, 1.0, 5.0])),
        prompt_tokens=draw(st.sampled_from([None, total * 500])),
        completion_tokens=draw(st.sampled_from([None, total * 100])),
    )


@st.composite
def observations(draw: st.DrawFn, at: float) -> Sample | Missing:
    if draw(st.integers(0, 6)) == 0:
        return Missing(reason=draw(st.sampled_from(list(reasons.Missing))), message="gone")
    recent = draw(count_values())
    window = replace(
        recent,
        seconds=60.0,
        total=recent.total * 12,
        slow=recent.slow * 12,
        latency_sum_seconds=recent.latency_sum_seconds * 12,
    )
    classes = draw(st.dictionaries(st.sampled_from([128, 256, 1024]), count_values(), max_size=3))
    return Sample(
        at=at,
        window=window,
        recent=recent,
        in_flight=draw(st.none() | st.floats(0, 500)),
        attained_milliseconds=draw(st.none() | st.floats(1, 5000)),
        stalled=draw(st.integers(0, 20)) == 0,
        classes=classes,
    )


@st.composite
def passes(draw: st.DrawFn, spec: InferencePolicySpec, now: float) -> Inputs:
    pools = {}
    for pool in spec.pools:
        prices: list[Price] = [
            ReplicaHour(dollars=1.0),
            ReplicaHour(dollars=4.0),
            PerMillionTokens(input=0.14, output=0.28),
            Missing(reason=reasons.Missing.NO_PRICE, message="no price"),
        ]
        price = draw(st.sampled_from(prices))
        pools[pool.name] = PoolInputs(
            observation=draw(observations(now - 1.0)),
            price=price,
            ready_replicas=draw(st.sampled_from([None, 0, 1, 2, 3, 7])),
        )
    client = draw(count_values(span=60.0) | st.just(Missing(reason=reasons.Missing.STALE, message="old")))
    return Inputs(now=now, pools=pools, client=client, effective_interval_seconds=5.0)


@st.composite
def histories(draw: st.DrawFn, *, steps: int = 8) -> tuple[InferencePolicySpec, Decision, float]:
    """A policy some passes after its start."""
    spec = draw(specs())
    now = NOON
    routed = None
    if draw(st.booleans()):
        # A lost memory goes on from what is routed: the way to any limit.
        routed = Plan(
            pools=tuple(
                PlannedPool(name=pool.name, limit_per_replica=float(draw(st.integers(1, 200))))
                for pool in spec.pools
            )
        )
    decision = decide(spec, Learned.initial(), draw(passes(spec, now)), current=routed)
    for _ in range(draw(st.integers(0, steps))):
        now += draw(st.sampled_from([2.0, 5.0, 30.0, 200.0]))
        decision = decide(spec, decision.learned, draw(passes(spec, now)), current=decision.plan)
    return spec, decision, now


def limits_of(plan: Plan) -> dict[tuple[str, int | None], float]:
    found: dict[tuple[str, int | None], float] = {}
    for pool in plan.pools:
        if pool.limit_per_replica is not None:
            found[pool.name, None] = pool.limit_per_replica
        for size, limit in pool.class_limits:
            found[pool.name, size] = limit
    return found


def learned_limits(learned: Learned) -> dict[str, float]:
    return {name: pool.main.limit for name, pool in learned.pools.items()}


@steady
@given(st.data())
def test_every_pass_gives_a_whole_decision(data: st.DataObject) -> None:
    spec, decision, _ = data.draw(histories())
    names = {pool.name for pool in spec.pools}
    assert {pool.name for pool in decision.plan.pools} == names
    assert [pool.name for pool in decision.pools] == [pool.name for pool in decision.plan.pools]
    assert decision.plan.pools[-1].name == decision.fallback_pool
    assert decision.message
    assert all(condition.message for condition in (decision.ready_note, decision.metrics_available))
    assert sum(pool.weight_percent or 0 for pool in decision.plan.pools) == 100


@steady
@given(st.data())
def test_limits_stay_within_their_bounds_or_are_zero(data: st.DataObject) -> None:
    spec, decision, _ = data.draw(histories())
    for (name, _), limit in limits_of(decision.plan).items():
        bounds = spec.pool(name).concurrency
        assert limit == 0 or bounds.minimum <= limit <= bounds.maximum
        assert abs(limit * 100 - round(limit * 100)) < 1e-6


@steady
@given(st.data())
def test_the_same_inputs_again_change_nothing(data: st.DataObject) -> None:
    spec, decision, now = data.draw(histories())
    inputs = data.draw(passes(spec, now + 5.0))
    first = decide(spec, decision.learned, inputs, current=decision.plan)
    second = decide(spec, first.learned, inputs, current=first.plan)
    third = decide(spec, second.learned, inputs, current=second.plan)
    assert learned_limits(second.learned) == learned_limits(first.learned)
    assert third.action in (Action.HOLD, Action.RECONFIGURE) or third.action == second.action
    assert third.plan == second.plan
    assert third.learned == second.learned


@steady
@given(st.data())
def test_missing_data_never_raises_a_limit(data: st.DataObject) -> None:
    spec, decision, now = data.draw(histories())
    spec = spec.model_copy(update={"mode": "Enforce"})
    inputs = data.draw(passes(spec, now + data.draw(st.sampled_from([5.0, 3000.0]))))
    gone = Missing(reason=reasons.Missing.STALE, message="old")
    absent = data.draw(st.sets(st.sampled_from([pool.name for pool in spec.pools]), min_size=1))
    inputs = replace(
        inputs,
        pools={n: replace(p, observation=gone) if n in absent else p for n, p in inputs.pools.items()},
    )
    after = decide(spec, decision.learned, inputs, current=decision.plan)
    for name in absent:
        assert after.learned.pools[name].main.limit <= decision.learned.pools[name].main.limit


@steady
@given(st.data())
def test_fewer_than_twelve_new_samples_never_raise_a_limit(data: st.DataObject) -> None:
    spec, decision, now = data.draw(histories())
    name = spec.pools[0].name
    pool = decision.learned.pools[name]
    if name == decision.fallback_pool or pool.main.limit <= 0 or spec.mode.value != "Enforce":
        return
    fresh = replace(pool, main=replace(pool.main, fresh=0.0, fresh_slow=0.0))
    learned = replace(decision.learned, pools={**decision.learned.pools, name: fresh})
    inputs = data.draw(passes(spec, now + 5.0))
    few = Counts(seconds=5.0, total=11.0, slow=0.0, latency_sum_seconds=data.draw(st.floats(0.1, 500)))
    seen = inputs.pools[name]
    sample = Sample(at=now + 4.0, window=few, recent=few)
    inputs = replace(inputs, pools={**inputs.pools, name: replace(seen, observation=sample)})
    after = decide(spec, learned, inputs, current=decision.plan)
    assert after.learned.pools[name].main.limit <= pool.main.limit


@steady
@given(st.data())
def test_more_slow_requests_never_raise_a_limit(data: st.DataObject) -> None:
    spec, decision, now = data.draw(histories())
    inputs = data.draw(passes(spec, now + 5.0))
    name = data.draw(st.sampled_from([pool.name for pool in spec.pools]))
    seen = inputs.pools[name].observation
    if not isinstance(seen, Sample):
        return
    more = min(seen.recent.slow + data.draw(st.integers(1, 300)), seen.recent.total)
    window = replace(seen.window, slow=min(seen.window.slow + more - seen.recent.slow, seen.window.total))
    worse = replace(seen, recent=replace(seen.recent, slow=more), window=window)
    pools = {**inputs.pools, name: replace(inputs.pools[name], observation=worse)}
    before = decide(spec, decision.learned, inputs, current=decision.plan)
    after = decide(spec, decision.learned, replace(inputs, pools=pools), current=decision.plan)
    assert after.learned.pools[name].main.limit <= before.learned.pools[name].main.limit


@steady
@given(st.data())
def test_the_order_of_the_pools_does_not_matter(data: st.DataObject) -> None:
    spec, decision, now = data.draw(histories())
    inputs = data.draw(passes(spec, now + 5.0))
    shuffled = spec.model_copy(update={"pools": data.draw(st.permutations(spec.pools))})
    one = decide(spec, decision.learned, inputs, current=decision.plan)
    two = decide(shuffled, decision.learned, inputs, current=decision.plan)
    assert one == two
    first = decide(spec, Learned.initial(), inputs, current=None)
    assert first == decide(shuffled, Learned.initial(), inputs, current=None)


@steady
@given(st.data(), st.sampled_from([0.001, 100.0]))
def test_the_currency_does_not_matter(data: st.DataObject, scale: float) -> None:
    spec, _, now = data.draw(histories(steps=3))
    inputs = data.draw(passes(spec, now + 5.0))

    def scaled(pool: PoolInputs) -> PoolInputs:
        if isinstance(pool.price, ReplicaHour):
            return replace(pool, price=ReplicaHour(dollars=pool.price.dollars * scale))
        if isinstance(pool.price, PerMillionTokens):
            return replace(
                pool,
                price=PerMillionTokens(input=pool.price.input * scale, output=pool.price.output * scale),
            )
        return replace(pool, price=ReplicaHour(dollars=2.0 * scale))

    known = {n: scaled(p) for n, p in inputs.pools.items()}
    plain = {
        n: p if not isinstance(p.price, Missing) else replace(p, price=ReplicaHour(dollars=2.0))
        for n, p in inputs.pools.items()
    }
    one = decide(spec, Learned.initial(), replace(inputs, pools=plain), current=None)
    two = decide(spec, Learned.initial(), replace(inputs, pools=known), current=None)
    assert one.plan == two.plan


@steady
@given(st.data())
def test_a_drained_pool_gets_nothing(data: st.DataObject) -> None:
    spec, decision, _ = data.draw(histories())
    planned = {pool.name: pool for pool in decision.plan.pools}
    for name, pool in decision.learned.pools.items():
        held = spec.behavior.when_infeasible.value == "Hold"
        if pool.main.limit == 0 and name != decision.fallback_pool and not held:
            assert planned[name].limit_per_replica == 0
            if not planned[name].class_limits:
                assert planned[name].weight_percent == 0


@steady
@given(st.data())
def test_memory_survives_being_written_and_read(data: st.DataObject) -> None:
    _, decision, _ = data.draw(histories())
    text = decision.learned.encode()
    assert text.startswith("v1:")
    read = Learned.decode(text)
    assert learned_limits(read) == learned_limits(decision.learned)
    assert read.encode() == text
    assert read.order == decision.learned.order


@given(st.text() | st.text(alphabet=string.printable).map(lambda t: "v1:" + t) | st.none())
def test_garbage_is_begun_anew_and_never_raises(text: str | None) -> None:
    learned = Learned.decode(text)
    assert learned.pools == {}
    assert bool(learned.note) == bool(text)


@given(st.data())
@steady
def test_numbers_that_are_none_never_raise(data: st.DataObject) -> None:
    spec, decision, now = data.draw(histories(steps=2))
    inputs = data.draw(passes(spec, now + 5.0))
    wild = Counts(
        seconds=data.draw(any_float),
        total=data.draw(any_float),
        slow=data.draw(any_float),
        latency_sum_seconds=data.draw(any_float),
        slow_error=data.draw(any_float),
    )
    sample = Sample(
        at=data.draw(any_float),
        window=wild,
        recent=wild,
        in_flight=data.draw(any_float),
        attained_milliseconds=data.draw(any_float),
        classes={data.draw(st.integers()): wild},
    )
    name = spec.pools[0].name
    price = ReplicaHour(dollars=data.draw(any_float))
    pool = PoolInputs(observation=sample, price=price, ready_replicas=data.draw(st.integers()))
    inputs = replace(
        inputs,
        client=wild,
        client_attained_milliseconds=data.draw(any_float),
        now=data.draw(any_float | st.just(inputs.now)),
        pools={**inputs.pools, name: pool},
    )
    assert decide(spec, decision.learned, inputs, current=decision.plan).message


def test_the_largest_memory_fits_into_the_status() -> None:
    """16 pools with 8 size classes, each with a full curve and a full window of looks."""

    def limit(seed: int) -> LimitMemory:
        cells = {
            b: Cell(97.31 + b * seed % 89, 3.7 + b % 7, 113.9 + b, 20117.0 + b * seed)
            for b in range(-20, 141)
        }
        looks = tuple(
            Look(NOON + 5.3 * k, 5.3, 17.31 + k * seed % 5, 91 + k, 3 + k % 3, 103.7, 19117.0 + k)
            for k in range(12)
        )
        return LimitMemory(
            limit=17.31 + seed, changed_at=NOON + seed, curve=cells, looks=looks, curve_at=NOON
        )

    def pool(seed: int) -> PoolMemory:
        return PoolMemory(
            main=limit(seed),
            classes={1 << k: limit(seed * 31 + k) for k in range(5, 13)},
            sampled_at=NOON,
            ready=3,
            price=1.86,
            peak=tuple(Block(5_833_333 + k, 17.3 + k * seed) for k in range(13)),
        )

    learned = Learned(
        generation=7,
        promise="EndToEndLatency p95 2000",
        fallback="pool-15",
        order=tuple(f"pool-{k}" for k in range(16)),
        pools={f"pool-{k}": pool(k + 1) for k in range(16)},
    )
    text = learned.encode()
    assert len(text) <= 32 * 1024
    read = Learned.decode(text)
    assert not read.note
    assert read.pools["pool-3"].classes[128].limit == learned.pools["pool-3"].classes[128].limit
    assert read.pools["pool-3"].main.curve
