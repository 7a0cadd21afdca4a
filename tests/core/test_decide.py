"""What one pass decides, outcome by outcome: action, reason, plan and sentence."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from core.building import NOON, counts, idle, inputs, missing, policy, sample
from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Action, Reason, Verdict
from meritorder_core.decide import decide
from meritorder_core.inputs import Counts, Missing, Observation, ReplicaHour
from meritorder_core.learned import Learned
from meritorder_core.outcome import Decision, Plan, PlannedPool


def limits(plan: Plan) -> dict[str, float | None]:
    return {pool.name: pool.limit_per_replica for pool in plan.pools}


def started(spec: InferencePolicySpec | None = None, **observations: Observation) -> Decision:
    """The first decision of a policy."""
    spec = spec or policy()
    seen = observations or {pool.name: idle(NOON - 1) for pool in spec.pools}
    return decide(spec, Learned.initial(), inputs(NOON, seen), current=None)


def following(
    spec: InferencePolicySpec,
    before: Decision,
    seconds: float,
    observations: Mapping[str, Observation],
    **more: Any,
) -> Decision:
    """The next decision, so many seconds after noon."""
    return decide(spec, before.learned, inputs(NOON + seconds, observations, **more), current=before.plan)


def with_limit(decision: Decision, name: str, limit: float) -> Decision:
    """The same past, with another learned limit."""
    pool = decision.learned.pools[name]
    pools = {**decision.learned.pools, name: replace(pool, main=replace(pool.main, limit=limit))}
    plan = Plan(
        pools=tuple(replace(p, limit_per_replica=limit) if p.name == name else p for p in decision.plan.pools)
    )
    return replace(decision, learned=replace(decision.learned, pools=pools), plan=plan)


def test_first_routing_needs_no_metrics() -> None:
    decision = decide(
        policy(), Learned.initial(), inputs(NOON, {"l40s": missing(), "h100": missing()}), current=None
    )
    assert (decision.action, decision.reason) == (Action.START, Reason.FIRST_DECISION)
    assert limits(decision.plan) == {"l40s": 1.0, "h100": None}
    assert decision.fallback_pool == "h100"
    assert decision.message == "first routing: l40s at 1 per replica; h100 takes the rest"
    assert decision.enforced


def test_grows_after_twelve_clean_samples_at_the_limit() -> None:
    spec = policy()
    first = started(spec)
    decision = following(
        spec, first, 5, {"l40s": sample(NOON + 5, 11, mean_seconds=0.3), "h100": sample(NOON + 5, 50)}
    )
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.SETTLING)
    assert decision.message == "l40s settles at limit 1: 11 of 12 samples since the last change"
    decision = following(
        spec, decision, 15, {"l40s": sample(NOON + 14, 12, mean_seconds=0.4), "h100": sample(NOON + 14, 50)}
    )
    assert (decision.action, decision.reason) == (Action.GROW, Reason.CLEAN_SAMPLES)
    assert limits(decision.plan) == {"l40s": 2.0, "h100": None}
    assert decision.message == "l40s no request slower than 2.00 s over 23 requests: limit 1 -> 2 per replica"
    assert decision.learned_changed


def test_does_not_grow_where_more_room_would_not_be_used() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 20.0)
    decision = following(spec, before, 30, {"l40s": sample(NOON + 29, 25), "h100": idle(NOON + 29)})
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.NOT_LIMIT_BOUND)
    assert decision.message == "l40s has room: 5 of 20 in flight per replica"


def test_room_is_said_per_replica_as_the_limit_is() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 20.0)
    seen = {"l40s": sample(NOON + 29, 75), "h100": idle(NOON + 29)}
    decision = following(spec, before, 30, seen, ready={"l40s": 3})
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.NOT_LIMIT_BOUND)
    assert decision.message == "l40s has room: 5 of 20 in flight per replica"


def test_room_is_never_said_to_be_more_than_full() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 3.0)
    seen = {"l40s": sample(NOON + 29, 25, mean_seconds=1.094), "h100": idle(NOON + 29)}
    decision = following(spec, before, 30, seen)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.NOT_LIMIT_BOUND)
    assert decision.message == "l40s has room: under 1 % of the requests went past its limit of 3 per replica"


def test_a_size_class_that_holds_is_named() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 20.0)
    seen = {"l40s": sample(NOON + 29, 25, classes={128: counts(25)}), "h100": idle(NOON + 29)}
    decision = following(spec, before, 30, seen)
    assert decision.message == "new size classes begin with their pool's limit: l40s up to 128 tokens"
    seen = {"l40s": sample(NOON + 34, 25, classes={128: counts(25)}), "h100": idle(NOON + 34)}
    decision = following(spec, decision, 35, seen)
    assert decision.message == "l40s up to 128 tokens has room: 5 of 20 in flight per replica"


def test_between_scrapes_nothing_is_learned() -> None:
    spec = policy()
    seen = {"l40s": sample(NOON + 5, 20, mean_seconds=0.25), "h100": sample(NOON + 5, 50)}
    one = following(spec, started(spec), 6, seen)
    two = following(spec, one, 8, seen)
    assert (two.action, two.reason) == (Action.HOLD, Reason.NO_NEW_SAMPLE)
    assert two.message == "no sample since the last decision"
    assert two.learned.pools == one.learned.pools
    assert two.plan == one.plan


def test_what_is_said_stands_still_while_no_sample_comes() -> None:
    spec = policy()
    nothing = {
        "l40s": missing(reasons.Missing.TOO_FEW_SAMPLES),
        "h100": missing(reasons.Missing.NOT_MEASURED),
    }
    one = following(spec, started(spec, **nothing), 5, nothing)
    two = following(spec, one, 10, nothing)
    assert (one.reason, one.message) == (Reason.NO_NEW_SAMPLE, "no pool has a sample yet")
    assert two.message == one.message


def test_an_edited_posture_is_told_as_a_change_of_the_spec() -> None:
    spec = policy()
    before = started(spec)
    seen = {"l40s": idle(NOON + 30), "h100": idle(NOON + 30)}
    sheds = policy(behavior={"whenSaturated": "Shed"})
    decision = decide(sheds, before.learned, inputs(NOON + 30, seen), current=before.plan, generation=2)
    assert (decision.action, decision.reason) == (Action.RECONFIGURE, Reason.SPEC_CHANGED)
    assert decision.message == "the spec changed: whenSaturated is Shed, what no pool takes gets 429"
    again = decide(sheds, decision.learned, inputs(NOON + 35, seen), current=decision.plan, generation=2)
    assert again.action is Action.HOLD
    back = decide(spec, again.learned, inputs(NOON + 40, seen), current=again.plan, generation=3)
    assert (back.action, back.reason) == (Action.RECONFIGURE, Reason.SPEC_CHANGED)
    assert back.message == "the spec changed: whenSaturated is Overflow, the overflow goes to h100"


def test_an_edited_maximum_is_told_as_a_change_of_the_spec() -> None:
    before = with_limit(started(), "l40s", 16.0)
    spec = policy(pools={"l40s": {"concurrency": {"maximum": 8}}})
    seen = {"l40s": idle(NOON + 30), "h100": idle(NOON + 30)}
    decision = decide(spec, before.learned, inputs(NOON + 30, seen), current=before.plan, generation=2)
    assert limits(decision.plan) == {"l40s": 8.0, "h100": None}
    assert (decision.action, decision.reason) == (Action.RECONFIGURE, Reason.SPEC_CHANGED)
    assert decision.message == (
        "the spec changed: limit of l40s 16 -> 8 per replica, as its `concurrency` allows"
    )


def test_cuts_deep_and_says_who_takes_it_when_a_pool_slows_down() -> None:
    spec = policy()
    decision = with_limit(started(spec), "l40s", 40.0)
    for k in range(1, 13):
        decision = following(
            spec,
            decision,
            5 * k,
            {
                "l40s": sample(NOON + 5 * k, 180, mean_seconds=1.0, attained=1800.0),
                "h100": sample(NOON + 5 * k, 20),
            },
        )
        assert decision.action is not Action.CUT
    before = limits(decision.plan)["l40s"]
    slow = sample(
        NOON + 65,
        70,
        60,
        mean_seconds=2.6,
        attained=2310.0,
        window=counts(2000, 60, seconds=60, mean_seconds=1.1),
    )
    decision = following(spec, decision, 65, {"l40s": slow, "h100": sample(NOON + 65, 20)})
    assert (decision.action, decision.reason) == (Action.CUT, Reason.SLOWED_DOWN)
    assert before is not None
    after = limits(decision.plan)["l40s"]
    assert after is not None
    assert after <= before / 4
    assert "l40s slowed down, p95 2.31 s > 2.00 s over" in decision.message
    assert "h100 takes" in decision.message
    settling = following(
        spec, decision, 70, {"l40s": sample(NOON + 70, 60, 60, mean_seconds=3.0), "h100": idle(NOON + 70)}
    )
    assert (settling.action, settling.reason) == (Action.HOLD, Reason.SETTLING)
    assert settling.message == f"l40s settles at limit {after:g}: for 20 s more"
    last = following(spec, settling, 89.8, {"l40s": idle(NOON + 89.8), "h100": idle(NOON + 89.8)})
    assert last.message == f"l40s settles at limit {after:g}: for 1 s more"


def test_says_that_a_drained_pool_may_have_failed_rather_than_been_slow() -> None:
    spec = policy()
    failing = sample(NOON + 10, 20, 3, mean_seconds=0.9, attained=990.0)
    decision = following(spec, started(spec), 10, {"l40s": failing, "h100": sample(NOON + 10, 50)})
    assert (decision.action, decision.reason) == (Action.DRAIN, Reason.MISSES_AT_MINIMUM)
    assert decision.message.startswith("l40s 15 % failed or slower than 2.00 s over 20 requests: drained")


def test_drains_a_pool_that_misses_at_its_minimum_and_looks_again() -> None:
    spec = policy()
    decision = following(
        spec,
        started(spec),
        10,
        {"l40s": sample(NOON + 10, 5, 5, mean_seconds=3.0, attained=3000.0), "h100": sample(NOON + 10, 50)},
    )
    assert (decision.action, decision.reason) == (Action.DRAIN, Reason.MISSES_AT_MINIMUM)
    assert limits(decision.plan)["l40s"] == 0.0
    assert decision.message == (
        "l40s p95 3.00 s > 2.00 s over 5 requests: drained (limit 1 -> 0), next look in 60 s; "
        "h100 takes 100 %"
    )
    waits = following(spec, decision, 30, {"l40s": idle(NOON + 30), "h100": sample(NOON + 30, 50)})
    assert (waits.reason, limits(waits.plan)["l40s"]) == (Reason.MISSES_AT_MINIMUM, 0.0)
    looks = following(spec, waits, 71, {"l40s": idle(NOON + 71), "h100": sample(NOON + 71, 50)})
    assert (looks.action, looks.reason) == (Action.RETRY, Reason.RETRY_DUE)
    assert limits(looks.plan)["l40s"] == 1.0
    assert looks.message == "l40s was drained for 61 s: a look with limit 1 per replica"
    again = following(
        spec,
        looks,
        80,
        {"l40s": sample(NOON + 80, 4, 4, mean_seconds=3.0, attained=3000.0), "h100": sample(NOON + 80, 500)},
    )
    assert again.action is Action.DRAIN
    assert "next look in 120 s" in again.message


def test_a_drained_pool_is_not_retried_on_missing_data() -> None:
    spec = policy()
    drained = following(
        spec,
        started(spec),
        10,
        {"l40s": sample(NOON + 10, 5, 5, mean_seconds=3.0), "h100": sample(NOON + 10, 50)},
    )
    later = following(spec, drained, 500, {"l40s": missing(), "h100": missing()})
    assert (later.action, later.reason) == (Action.HOLD, Reason.METRICS_MISSING)
    assert limits(later.plan)["l40s"] == 0.0


def test_holds_limits_and_says_so_when_metrics_are_missing() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 16.0)
    decision = following(spec, before, 100, {"l40s": missing(), "h100": missing()})
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.METRICS_MISSING)
    assert limits(decision.plan) == {"l40s": 16.0, "h100": None}
    assert decision.metrics_available.status is False
    assert decision.metrics_available.reason == "MetricsStale"
    assert decision.message == (
        "metrics of 2 of 2 pools are missing (h100: MetricsStale, newest sample is 95 s old; "
        "l40s: MetricsStale, newest sample is 95 s old); their limits hold"
    )


def test_safest_closes_pools_without_metrics_and_opens_them_at_the_learned_limit() -> None:
    spec = policy(behavior={"onMissingMetrics": "Safest"})
    before = with_limit(started(spec), "l40s", 16.0)
    closed = following(spec, before, 100, {"l40s": missing(), "h100": sample(NOON + 99, 50)})
    assert closed.reason is Reason.SAFEST
    assert limits(closed.plan) == {"l40s": 0.0, "h100": None}
    again = following(spec, closed, 105, {"l40s": missing(), "h100": sample(NOON + 104, 50)})
    assert (again.action, again.reason) == (Action.HOLD, Reason.SAFEST)
    back = following(spec, again, 110, {"l40s": idle(NOON + 109), "h100": sample(NOON + 109, 50)})
    assert (back.action, back.reason) == (Action.RECONFIGURE, Reason.METRICS_FOUND)
    assert limits(back.plan) == {"l40s": 16.0, "h100": None}


def test_idle_is_not_missing() -> None:
    spec = policy(behavior={"onMissingMetrics": "Safest"})
    before = with_limit(started(spec), "l40s", 16.0)
    decision = following(spec, before, 100, {"l40s": idle(NOON + 99), "h100": idle(NOON + 99)})
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.IDLE)
    assert limits(decision.plan) == {"l40s": 16.0, "h100": None}
    assert (decision.sla_met.status, decision.sla_met.reason) == (None, "NoTraffic")
    assert decision.metrics_available.status is True
    assert (decision.ready_note.status, decision.ready_note.reason) == (True, "AllWell")
    assert decision.pools[0].verdict is Verdict.IDLE


@pytest.mark.parametrize(
    ("total", "slow", "status", "reason"),
    [
        (400, 0, True, "Meets"),
        (400, 19, True, "LikelyMeets"),
        (400, 24, None, "LikelyMisses"),
        (400, 60, False, "Misses"),
        (30, 0, None, "TooFewSamples"),
    ],
)
def test_sla_met_is_false_only_where_it_is_surely_broken(
    total: int, slow: int, status: bool | None, reason: str
) -> None:
    seen = {"l40s": idle(NOON), "h100": idle(NOON)}
    client = Counts(seconds=60, total=total, slow=slow, latency_sum_seconds=total)
    decision = decide(policy(), Learned.initial(), inputs(NOON, seen, client=client), current=None)
    assert (decision.sla_met.status, decision.sla_met.reason) == (status, reason)


def test_interpolated_counts_widen_the_error_bar() -> None:
    def verdict(slow_error: float) -> Verdict:
        seen = {"l40s": sample(NOON, 40, 0.5, slow_error=slow_error), "h100": idle(NOON)}
        return started(policy(), **seen).pools[0].verdict

    assert verdict(0.0) is Verdict.MEETS
    assert verdict(2.0) is Verdict.UNSURE


def test_an_edited_target_begins_new_evidence_and_keeps_the_limits() -> None:
    before = with_limit(started(), "l40s", 16.0)
    edited = policy(sla={"targetMilliseconds": 1000})
    seen = {"l40s": sample(NOON + 10, 80, 40), "h100": idle(NOON + 10)}
    decision = decide(edited, before.learned, inputs(NOON + 10, seen), current=before.plan, generation=2)
    assert (decision.action, decision.reason) == (Action.RECONFIGURE, Reason.SPEC_CHANGED)
    assert limits(decision.plan)["l40s"] == 16.0
    assert decision.learned.pools["l40s"].main.looks == ()
    assert decision.pools[0].verdict is Verdict.UNKNOWN
    assert decision.sla_met.status is None


def test_the_fallback_pool_stays_until_the_spec_changes() -> None:
    spec = policy()
    first = started(spec)
    dear = {"l40s": ReplicaHour(dollars=9.0), "h100": ReplicaHour(dollars=6.88)}
    seen = {"l40s": idle(NOON + 700), "h100": idle(NOON + 700)}
    decision = decide(spec, first.learned, inputs(NOON + 700, seen, prices=dear), current=first.plan)
    assert decision.fallback_pool == "h100"
    decision = decide(
        spec, first.learned, inputs(NOON + 700, seen, prices=dear), current=first.plan, generation=2
    )
    assert decision.fallback_pool == "l40s"


def test_order_moves_only_past_a_margin_and_a_dwell_time() -> None:
    spec = policy("l40s", "a100", "h100")
    seen = {name: idle(NOON) for name in ("l40s", "a100", "h100")}

    def order(seconds: float, a100: float) -> tuple[list[str], Reason]:
        at = {name: idle(NOON + seconds) for name in seen}
        priced = {"a100": ReplicaHour(dollars=a100)}
        decision = decide(spec, first.learned, inputs(NOON + seconds, at, prices=priced), current=first.plan)
        return [pool.name for pool in decision.plan.pools], decision.reason

    first = started(spec, **seen)
    assert order(700, 1.80) == (["l40s", "a100", "h100"], Reason.IDLE)
    assert order(100, 1.00) == (["l40s", "a100", "h100"], Reason.DWELL)
    assert order(700, 1.00) == (["a100", "l40s", "h100"], Reason.PRICE_CHANGED)


def test_a_metered_pool_of_unknown_cost_comes_last_but_one() -> None:
    spec = policy(
        "l40s",
        "api",
        "h100",
        pools={"api": {"cost": {"perMillionTokens": {"input": "0.14", "output": "0.28"}}}},
    )
    seen = {name: idle(NOON) for name in ("l40s", "api", "h100")}
    no_price = {"api": Missing(reason=reasons.Missing.NO_PRICE, message="")}
    decision = decide(spec, Learned.initial(), inputs(NOON, seen, prices=no_price), current=None)
    assert [pool.name for pool in decision.plan.pools] == ["l40s", "api", "h100"]


def test_a_pool_without_ready_replicas_learns_nothing_and_keeps_its_limit() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 16.0)
    seen = {"l40s": sample(NOON + 30, 10, 10), "h100": sample(NOON + 30, 50)}
    decision = following(spec, before, 30, seen, ready={"l40s": 0, "h100": 1})
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.NO_READY_REPLICAS)
    assert limits(decision.plan)["l40s"] == 16.0
    assert decision.message == "l40s has no ready replica"


def test_a_stalled_pool_is_cut_as_if_all_were_slow() -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 24.0)
    seen = {"l40s": sample(NOON + 60, 0, stalled=True), "h100": sample(NOON + 60, 50)}
    decision = following(spec, before, 60, seen)
    assert (decision.action, decision.reason) == (Action.CUT, Reason.STALLED)
    assert limits(decision.plan)["l40s"] == 2.0
    assert decision.pools[0].verdict is Verdict.MISSES
    assert decision.message.startswith(
        "l40s has requests in flight and completes none: limit 24 -> 2 per replica"
    )


def infeasible(when: str) -> Decision:
    spec = policy(behavior={"whenInfeasible": when})
    decision = started(spec)
    for seconds in (10, 20):
        decision = following(
            spec,
            decision,
            seconds,
            {
                "l40s": sample(NOON + seconds, 5, 5, mean_seconds=3.0, attained=3000.0),
                "h100": sample(NOON + seconds, 60, 60, mean_seconds=3.0, attained=3000.0),
            },
        )
    return decision


def test_when_nothing_meets_the_sla_the_fallback_pool_takes_everything() -> None:
    decision = infeasible("Fastest")
    assert limits(decision.plan) == {"l40s": 0.0, "h100": None}
    assert decision.ready_note.reason == "SLAInfeasible"
    assert decision.ready_note.message == (
        "no pool meets p95 2.00 s at its minimum, h100 neither: h100 takes everything"
    )


def test_when_nothing_meets_the_sla_limits_hold_if_so_wished() -> None:
    assert limits(infeasible("Hold").plan) == {"l40s": 1.0, "h100": None}


def test_when_nothing_meets_the_sla_the_rest_is_shed_if_so_wished() -> None:
    decision = infeasible("Shed")
    assert decision.plan.shed
    assert limits(decision.plan) == {"l40s": 0.0, "h100": 1.0}


def test_suspended_keeps_the_last_routing_and_learns_nothing() -> None:
    before = with_limit(started(), "l40s", 16.0)
    spec = policy(suspend=True)
    seen = {"l40s": sample(NOON + 30, 80, 80), "h100": idle(NOON + 30)}
    decision = following(spec, before, 30, seen)
    assert (decision.action, decision.reason, decision.enforced) == (Action.HOLD, Reason.SUSPENDED, False)
    assert decision.plan == before.plan
    assert decision.learned.pools["l40s"].main == before.learned.pools["l40s"].main
    alone = decide(spec, Learned.initial(), inputs(NOON, seen), current=None)
    assert alone.plan == Plan(pools=(PlannedPool(name="h100"),))


def test_recommend_says_what_it_would_do_and_enforces_nothing() -> None:
    spec = policy(mode="Recommend")
    decision = started(spec)
    assert not decision.enforced
    seen = {"l40s": sample(NOON + 30, 100), "h100": sample(NOON + 30, 100)}
    decision = following(spec, decision, 30, seen)
    assert decision.reason is Reason.RECOMMEND_MODE
    assert decision.message == "recommended, not enforced: l40s 20 per replica; the rest to h100"
    assert limits(decision.plan) == {"l40s": 20.0, "h100": None}


def test_a_lost_memory_goes_on_from_what_is_routed() -> None:
    plan = Plan(pools=(PlannedPool(name="l40s", limit_per_replica=16.25), PlannedPool(name="h100")))
    seen = {"l40s": idle(NOON), "h100": idle(NOON)}
    decision = decide(policy(), Learned.decode("v1:garbage"), inputs(NOON, seen), current=plan)
    assert limits(decision.plan) == {"l40s": 16.25, "h100": None}


def test_what_is_no_number_is_missing() -> None:
    bad = replace(sample(NOON, 10), recent=counts(float("nan")))
    decision = started(policy(), l40s=bad, h100=idle(NOON))
    assert decision.metrics_available.reason == "NotANumber"


def test_no_class_limits_without_class_data() -> None:
    decision = started()
    assert all(pool.class_limits == () for pool in decision.plan.pools)


def test_each_size_class_has_a_limit_of_its_own() -> None:
    spec = policy()
    decision = started(spec)
    for k in range(1, 20):
        at = NOON + 5 * k
        room = max(limits_of(decision, "l40s").values(), default=1.0)
        short, long = counts(20, mean_seconds=room / 5), counts(10, 10, mean_seconds=room / 5)
        both = {128: short, 1024: long}
        decision = following(
            spec,
            decision,
            5 * k,
            {
                "l40s": sample(at, 30, 10, mean_seconds=room / 5, classes=both),
                "h100": sample(at, 100, classes={128: counts(50), 1024: counts(50)}),
            },
        )
    learned = limits_of(decision, "l40s")
    assert learned[1024] <= 1.0
    assert learned[128] > 4.0


def limits_of(decision: Decision, name: str) -> dict[int, float]:
    planned = next(pool for pool in decision.plan.pools if pool.name == name)
    return dict(planned.class_limits)


def test_terms_carry_every_pool() -> None:
    decision = started()
    assert {"l40s", "h100", "action", "reason", "target_ms"} <= set(decision.terms)


def test_recommend_is_at_rest_when_nothing_moves_even_with_nothing_routed() -> None:
    spec = policy(mode="Recommend")
    decision = started(spec)
    for k in (1, 2):
        seen = {"l40s": sample(NOON + 5 * k, 100), "h100": sample(NOON + 5 * k, 100)}
        decision = decide(spec, decision.learned, inputs(NOON + 5 * k, seen), current=None)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.RECOMMEND_MODE)


@pytest.mark.parametrize(("class_tells", "tokens"), [(True, 3000.0), (False, 0.0)])
def test_tokens_of_size_classes_are_not_the_pools_own(class_tells: bool, tokens: float) -> None:
    spec = policy()
    before = with_limit(started(spec), "l40s", 20.0)
    classed = counts(10) if class_tells else replace(counts(10), completion_tokens=None)
    seen = {"l40s": sample(NOON + 29, 25, classes={128: classed}), "h100": idle(NOON + 29)}
    learned = following(spec, before, 30, seen).learned.pools["l40s"]
    (look,) = learned.main.looks
    assert (look.total, look.tokens) == (15, tokens)
    (look,) = learned.classes[128].looks
    assert (look.total, look.tokens) == (10, 2000.0 if class_tells else 0.0)
