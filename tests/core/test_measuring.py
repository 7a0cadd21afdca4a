"""What is measured of a pool, and what becomes of it when its evidence fades, is short or contradicted."""

import base64
import json
import zlib
from dataclasses import replace

import pytest

from core.building import NOON, counts, idle, inputs, policy, sample
from meritorder_core import cost
from meritorder_core.curve import BUCKET, bucket_of
from meritorder_core.decide import decide
from meritorder_core.evidence import Evidence, Rules
from meritorder_core.learned import Cell, Edge, Learned, LimitMemory, PoolMemory
from meritorder_core.limits import step
from meritorder_core.memory import promise_of

POOLS = ("l40s", "a100", "h100")


def at_its_limit(limit: float, mean_seconds: float) -> PoolMemory:
    """A pool that was driven to its limit, with evidence."""
    here = bucket_of(limit / BUCKET)
    cells = {here: Cell(500, 10, 500 * mean_seconds, 0), here + 2: Cell(60, 12, 66 * mean_seconds, 0)}
    main = LimitMemory(limit=limit, edge_seen=True, changed_at=NOON, curve_at=NOON, curve=cells)
    return PoolMemory(main=main, sampled_at=NOON, ready=2)


def measured() -> Learned:
    """By price l40s is the cheapest; at its limit a request costs more there than on a100."""
    return Learned(
        generation=1,
        promise=promise_of(policy(*POOLS)),
        promised_at=NOON - 1e5,
        fallback="h100",
        order=("a100", "l40s", "h100"),
        ordered_at=NOON,
        pools={
            "l40s": at_its_limit(10.0, 10.0),
            "a100": at_its_limit(30.0, 5.0),
            "h100": at_its_limit(50.0, 4.0),
        },
    )


def test_an_order_by_measured_cost_outlives_the_evidence_of_the_pool_that_lost_its_traffic() -> None:
    spec = policy(*POOLS, meritOrder="MeasuredCost")
    learned, current = measured(), None
    now, orders = NOON, set()
    for _ in range(240):
        now += 30.0
        seen = {name: idle(now) for name in POOLS}
        # The pool that took over is far from its limit: what it was measured at fades as well.
        seen["a100"] = sample(now, 96.0, mean_seconds=5.0, seconds=30.0)
        learned = Learned.decode(learned.encode())
        decision = decide(
            spec, learned, inputs(now, seen, ready=dict.fromkeys(POOLS, 2)), current=current, generation=1
        )
        learned, current = decision.learned, decision.plan
        orders.add(tuple(pool.name for pool in decision.plan.pools))
    assert orders == {("a100", "l40s", "h100")}
    costs = {pool.name: pool.cost_per_thousand_at_limit for pool in decision.pools}
    assert costs["l40s"] == pytest.approx(1.86 / 3600 * 1000, rel=0.02)
    assert costs["a100"] == pytest.approx(3.00 / 6 / 3600 * 1000, rel=0.02)


def test_what_was_measured_at_another_limit_or_before_a_recovery_is_not_believed() -> None:
    pool = PoolMemory(main=LimitMemory(limit=10.0, edge_seen=True), edge=Edge(10.0, 2.0))
    assert cost.capacity(pool) == cost.Capacity(load=10.0, rate=5.0, measured=True)
    cut = replace(pool, main=replace(pool.main, limit=5.0))
    assert cost.capacity(cut) is None
    recovered = replace(pool, main=replace(pool.main, edge_seen=False))
    assert cost.capacity(recovered) is None


def test_an_edited_promise_forgets_what_was_measured() -> None:
    spec = policy(*POOLS, sla={"targetMilliseconds": 3000})
    learned = measured()
    pools = {name: replace(pool, edge=cost.known_edge(pool)) for name, pool in learned.pools.items()}
    assert all(pool.edge for pool in pools.values())
    learned = replace(learned, pools=pools)
    for k in (1, 2):
        seen = {name: idle(NOON + 60 * k) for name in POOLS}
        learned = decide(spec, learned, inputs(NOON + 60 * k, seen), current=None, generation=2).learned
    assert [pool.edge for pool in learned.pools.values()] == [None, None, None]


def test_reads_what_a_version_wrote_that_knew_nothing_of_edges() -> None:
    text = measured().encode()
    plain = json.loads(zlib.decompress(base64.b64decode(text.removeprefix("v1:"))))
    plain["p"] = {name: row[:6] for name, row in plain["p"].items()}
    old = "v1:" + base64.b64encode(zlib.compress(json.dumps(plain).encode())).decode()
    read = Learned.decode(old)
    assert not read.note
    assert read == Learned.decode(text)


def test_a_burst_in_the_first_seconds_is_no_peak_of_a_window() -> None:
    spec = policy()
    first = counts(12.0, seconds=3.0, mean_seconds=2.0)
    seen = {
        "l40s": idle(NOON - 1),
        "h100": sample(NOON - 1, 12.0, mean_seconds=2.0, seconds=3.0, window=first),
    }
    by_clients = decide(spec, Learned.initial(), inputs(NOON, seen, client=first), current=None).learned
    by_pools = decide(spec, Learned.initial(), inputs(NOON, seen, client=counts(0.0)), current=None).learned
    for learned in (by_clients, by_pools):
        assert cost.highest(learned.peak_rate) == pytest.approx(12 / 60)
        assert cost.highest(learned.pools["h100"].peak) == pytest.approx(24 / 60)


def test_a_load_known_to_be_bad_bounds_what_is_recommended_though_none_is_known_to_be_good() -> None:
    rules = Rules(window=60.0, allowed=0.05, minimum=1.0, maximum=64.0, enforced=False)
    seen = Evidence(at=NOON, span=5.0, ready=1, load=4.0, total=40.0, slow=4.0, seconds=20.0)
    known = LimitMemory(limit=8.0, met_load=8.0, met_seconds=1.0, curve_at=NOON)
    after = step(known, seen, rules, NOON)
    assert after.after == pytest.approx(4.0, rel=0.05)
    assert not after.memory.edge_seen
