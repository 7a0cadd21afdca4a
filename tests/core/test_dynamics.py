"""The decision in a closed loop: real requests in simulated time, seen as Prometheus would show them.

The cheap pool carries about 21 requests/s with 2 replicas within 2 s; of all fixed limits 35 in flight is the
best.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from core.building import missing
from core.closed_loop import START, Loop, PoolSetup, reversals
from meritorder_api.policy import InferencePolicySpec
from meritorder_sim.profiles import LinearProfile, built_in

CHEAP = LinearProfile(name="cheap", tpot=(18.0, 2.0, 0.0), ttft=(80.0, 0.0, 0.0))
MIDDLE = LinearProfile(name="middle", tpot=(12.0, 0.8, 0.0), ttft=(60.0, 0.0, 0.0))
FAST = LinearProfile(name="fast", tpot=(8.0, 0.3, 0.0), ttft=(40.0, 0.0, 0.0))
BEST_FIXED_LIMIT = 35
WINDOW = 15.0


def policy(window: int = 15, interval: int = 2, **sla: object) -> InferencePolicySpec:
    return InferencePolicySpec.model_validate(
        {
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000, "windowSeconds": window, **sla},
            "pools": [
                {
                    "name": name,
                    "backend": {"service": {"name": name, "port": 80}},
                    "cost": {"perReplicaHour": price},
                }
                for name, price in (("cheap", "1.86"), ("middle", "3.00"), ("fast", "6.88"))
            ],
            "behavior": {"intervalSeconds": interval},
        }
    )


def sizes(chance: random.Random) -> tuple[int, int]:
    return 500, 20 + int(chance.random() * 20)


def loop(
    rate: float, *, seed: int, start: float = 0.0, window: int = 15, scrape: float = 2.0, **more: object
) -> Loop:
    return Loop(
        policy(window=window, interval=2 if window == 15 else 5),
        {
            "cheap": PoolSetup(profile=CHEAP, replicas=2),
            "middle": PoolSetup(profile=MIDDLE),
            "fast": PoolSetup(profile=FAST),
        },
        rate=lambda t: rate if t >= start else 0.0,
        sizes=sizes,
        seed=seed,
        scrape=scrape,
        interval=2.0 if window == 15 else 5.0,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_idle_the_cheapest_pool_takes_nearly_all_within_four_windows(seed: int) -> None:
    world = loop(10.0, seed=seed, start=10.0)
    world.run(10 + 5 * WINDOW)
    assert world.share("cheap", 10 + 3 * WINDOW, 10 + 4 * WINDOW) >= 0.95
    assert max(world.slow_windows(10, world.now)) <= 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_past_its_capacity_the_cheap_pool_carries_what_the_best_fixed_limit_would(seed: int) -> None:
    world = loop(30.0, seed=seed, start=10.0)
    world.run(10 + 20 * WINDOW)
    best = loop(30.0, seed=seed, start=10.0, fixed={"cheap": BEST_FIXED_LIMIT})
    best.run(world.now)
    begin = 10 + 4 * WINDOW
    assert world.carried("cheap", begin, world.now) >= 0.95 * best.carried("cheap", begin, world.now)
    windows = world.slow_windows(10 + 2 * WINDOW, world.now)
    assert sum(share > 0.05 for share in windows) <= 1


def alike(rate: Callable[[float], float], *, seed: int, **more: Any) -> Loop:
    """Requests that are all alike take 600 ms + 10 ms for each in flight on the cheap pool: at 40 all are at
    the target."""
    pools = {"cheap": (11.0, 0.2), "middle": (10.0, 0.1), "fast": (9.5, 0.04)}
    return Loop(
        policy(targetMilliseconds=1000),
        {
            name: PoolSetup(profile=LinearProfile(name=name, tpot=(a, b, 0.0), ttft=(50.0, 0.0, 0.0)))
            for name, (a, b) in pools.items()
        },
        rate=rate,
        sizes=lambda _: (100, 50),
        seed=seed,
        scrape=2.0,
        interval=2.0,
        **more,
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_all_requests_pass_the_target_at_once_the_limit_stays_on_this_side(seed: int) -> None:
    rate = lambda t: 4.0 if t < 90 else 58.0  # noqa: E731
    world = alike(rate, seed=seed)
    world.run(90 + 30 * WINDOW)
    best = alike(rate, seed=seed, fixed={"cheap": 40, "middle": math.inf})
    best.run(world.now)
    begin = 90 + 2 * WINDOW
    assert world.carried("cheap", begin, world.now) >= 0.95 * best.carried("cheap", begin, world.now)
    assert max(world.slow_windows(begin, world.now)) <= 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_nothing_under_full_load_the_cheap_pool_is_soon_full(seed: int) -> None:
    world = alike(lambda _: 58.0, seed=seed)
    world.run(7 * WINDOW)
    assert world.carried("cheap", 2 * WINDOW, 7 * WINDOW) >= 0.85 * 39.5  # what a limit of 40 carries
    assert max(world.slow_windows(0, world.now)) <= 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_traffic_leaves_a_pool_that_slows_down_and_comes_back_without_overshoot(seed: int) -> None:
    world = loop(14.0, seed=seed)
    world.at(120, lambda: world.slow_down("cheap", 3.0))
    world.at(240, lambda: world.slow_down("cheap", 1.0))
    world.run(240 + 6 * WINDOW)
    before = world.share("cheap", 90, 120)
    gone = 120 + 3 * 2.0 + WINDOW
    assert before >= 0.95
    assert world.share("cheap", gone, gone + WINDOW) <= 0.15
    assert world.share("cheap", 240 + 4 * WINDOW, 240 + 5 * WINDOW) >= 0.8 * before
    assert max(world.slow_windows(240, world.now)) <= 0.05


@pytest.mark.parametrize("factor", [1.4, 3.0])
def test_a_slow_down_at_full_load_costs_little_and_is_made_good(factor: float) -> None:
    world = loop(30.0, seed=1)
    world.at(300, lambda: world.slow_down("cheap", factor))
    world.at(500, lambda: world.slow_down("cheap", 1.0))
    world.run(800)
    assert sum(share > 0.05 for share in world.slow_windows(300, 500)) <= 2
    former = world.carried("cheap", 200, 300)
    assert world.carried("cheap", 500 + 5 * WINDOW, 800) >= 0.9 * former
    assert max(world.slow_windows(500, 800)) <= 0.05


def test_a_burst_of_26_times_the_load_for_a_second_costs_at_most_one_window() -> None:
    world = loop(0.0, seed=1)
    world.rate = lambda t: 14.0 * (26 if 300 <= t < 301 else 1)
    world.run(450)
    assert sum(share > 0.05 for share in world.slow_windows(60, 450)) <= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_steady_traffic_does_not_make_limits_flap(seed: int) -> None:
    world = loop(30.0, seed=seed)
    world.run(1500)
    steady = [(at, limit) for at, limit in world.limits("cheap") if at > 300]
    assert reversals(steady, WINDOW) <= 1
    windows = world.slow_windows(90, 1500)
    assert sum(share > 0.05 for share in windows) <= 0.02 * len(windows)


def test_a_slow_scrape_and_a_window_of_a_minute_do_as_well() -> None:
    world = loop(30.0, seed=1, window=60, scrape=15.0)
    world.run(1500)
    best = loop(30.0, seed=1, window=60, scrape=15.0, fixed={"cheap": BEST_FIXED_LIMIT})
    best.run(1500)
    assert world.carried("cheap", 400, 1500) >= 0.95 * best.carried("cheap", 400, 1500)
    assert max(world.slow_windows(120, 1500)) <= 0.05


def test_scaling_a_pool_scales_its_limit_at_once() -> None:
    world = loop(40.0, seed=1)
    world.at(300, lambda: world.scale("cheap", 3))
    world.run(400)
    assert world.carried("cheap", 310, 400) >= 1.35 * world.carried("cheap", 200, 300)
    assert max(world.slow_windows(90, 400)) <= 0.05


def test_limits_hold_while_metrics_are_gone_and_learning_goes_on_after() -> None:
    world = loop(30.0, seed=1)

    def gone(what: object) -> None:
        for pool in world.pools.values():
            pool.missing = what  # type: ignore[assignment]

    world.at(150, lambda: gone(missing()))
    world.at(300, lambda: gone(None))
    world.run(450)
    held = {limit for at, limit in world.limits("cheap") if 151 < at < 300}
    assert len(held) == 1
    reasons = {d.reason.value for d in world.decisions if 151 < d.at - 1_000_000 < 300}
    assert reasons == {"MetricsMissing"}
    assert any(limit not in held for at, limit in world.limits("cheap") if at > 302)
    assert max(world.slow_windows(90, 450)) <= 0.05


def test_an_idle_night_leaves_the_limits_as_they_were() -> None:
    world = loop(0.0, seed=1)
    world.rate = lambda t: 0.0 if 300 <= t < 600 else 30.0
    world.run(700)
    evening = [limit for at, limit in world.limits("cheap") if at < 305][-1]
    night = {limit for at, limit in world.limits("cheap") if 305 < at < 600}
    assert night == {evening}
    assert {d.sla_met.reason for d in world.decisions if 470 < d.at - 1_000_000 < 598} == {"NoTraffic"}
    assert max(world.slow_windows(90, 700)) <= 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_pool_that_is_twice_as_fast_again_is_back_within_four_windows(seed: int) -> None:
    """It shows in the seconds per token, which fewer requests prove than the seconds per request."""
    world = loop(18.0, seed=seed)
    world.at(200, lambda: world.slow_down("cheap", 2.0))
    world.at(350, lambda: world.slow_down("cheap", 1.0))
    world.run(350 + 6 * WINDOW)
    before = [limit for at, limit in world.limits("cheap") if at < 200][-1]
    back = [at for at, limit in world.limits("cheap") if at > 350 and limit >= 0.8 * before]
    assert back[0] - 350 <= 4 * WINDOW
    assert sum(world.slow_windows(350, world.now)) / 6 <= 0.01


@pytest.mark.parametrize("before", [0.0, 0.3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_more_answers_that_tell_their_tokens_are_no_faster_pool(seed: int, before: float) -> None:
    world = loop(24.0, seed=seed, usage=lambda at: before if at < 350 else 1.0)
    world.run(500)
    assert not [d.message for d in world.decisions if d.at - START > 350 and d.reason.value == "Recovered"]


def test_a_pool_that_fails_a_fifth_of_its_requests_is_cut_for_errors() -> None:
    world = loop(14.0, seed=1)
    world.at(150, lambda: setattr(world.pools["cheap"], "errors", 0.2))
    world.run(300)
    assert world.share("cheap", 200, 300) <= 0.3
    assert any(d.reason.value == "ErrorsAboveAllowance" for d in world.decisions)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_pool_that_crashed_is_back_within_six_windows_of_its_restart(seed: int) -> None:
    """Refused connections return at once, so that they are seen at hardly any load: that load is not bad."""
    world = loop(18.0, seed=seed)
    world.at(200, lambda: setattr(world.pools["cheap"], "errors", 1.0))
    world.at(203, lambda: setattr(world.pools["cheap"], "errors", 0.0))
    world.run(203 + 8 * WINDOW)
    assert world.share("cheap", 203 + 6 * WINDOW, world.now) >= 0.95
    assert max(world.slow_windows(203 + 2 * WINDOW, world.now)) <= 0.05


def test_says_that_the_dear_card_is_cheaper_at_its_limit_once_that_is_measured() -> None:
    """With a TPOT of 45 ms a well filled H100 serves a request for less than an L40S at its limit, and that
    is said."""
    spec = InferencePolicySpec.model_validate(
        {
            "sla": {"metric": "TimePerOutputToken", "targetMilliseconds": 45, "windowSeconds": 15},
            "pools": [
                {
                    "name": name,
                    "backend": {"service": {"name": name, "port": 80}},
                    "cost": {"perReplicaHour": price},
                    "concurrency": {"maximum": 130},
                }
                for name, price in (("l40s", "1.86"), ("h100", "6.88"))
            ],
        }
    )
    world = Loop(
        spec,
        {
            "l40s": PoolSetup(profile=built_in("llama-3.1-8b/l40s"), replicas=2),
            "h100": PoolSetup(profile=built_in("llama-3.1-8b/h100")),
        },
        rate=lambda t: min(8 + t / 10, 38.0),
        seed=1,
    )
    world.run(600)
    decision = world.decisions[-1]
    l40s, h100 = decision.pools
    assert l40s.limit_measured
    assert h100.limit_measured
    assert l40s.limit_per_replica == pytest.approx(46, rel=0.08)
    assert l40s.cost_per_thousand_at_limit == pytest.approx(0.10, abs=0.015)
    assert h100.cost_per_thousand_at_limit == pytest.approx(0.07, abs=0.01)
    assert decision.ready_note.reason == "MeasuredCostDisagrees"
    assert "h100 at its limit would serve this at $0.0" in decision.ready_note.message
    assert not math.isnan(h100.cost_per_thousand_at_limit or math.nan)
