"""The whole product on real parts, from a policy in the API server to traffic that moves; one story in
order.

The tests share one running system and are read from top to bottom: each begins by waiting for the state it
needs. Times are in the policy's own windows and intervals, so that the slow variant (`make e2e-slow`:
scrape 15 s, window 60 s) is the same story.
"""

from __future__ import annotations

import functools
import time

import pytest

from e2e.results import failures, first_moment_below, quantile_seconds, share, slow_share
from e2e.story import CHEAP, DEAR, MIDDLE
from e2e.system import System
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(900)


# A test of seven windows of a minute is over the limit that tests have otherwise.
@pytest.fixture(
    params=["system", pytest.param("slow_system", marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def paced(request: pytest.FixtureRequest) -> System:
    """The running system; with `-m slow` the one that is scraped every 15 s and has a window of 60 s."""
    found: System = request.getfixturevalue(request.param)
    return found


CALM = {"json": 16.0, "streams": 2.0}
"""Well within what the cheap pool can do (about 40 requests a second)."""


def settle_on_the_cheap_pool(system: System, deadline_windows: float = 12) -> None:
    """Wait until a window's traffic went to the cheap pool."""
    window = system.window_seconds

    def settled() -> bool:
        now = time.time()
        recent = system.results.sent_between(now - window, now)
        return len(recent) >= 20 and share(recent, CHEAP) >= 0.95

    wait_until(settled, deadline_windows * window, f"95 % of a window's traffic on {CHEAP}")


class TestTraffic:
    """(a) to (d): where the load goes."""

    def test_a_takes_idle_traffic_to_the_cheapest_pool_within_four_windows(self, paced: System) -> None:
        window = paced.window_seconds
        started = paced.load(**CALM)
        wait_until(lambda: time.time() >= started + 5 * window, 6 * window, "five windows of load")
        fifth = paced.results.sent_between(started + 4 * window, started + 5 * window)
        paced.note("a: share of the cheapest pool in the fifth window", f"{share(fifth, CHEAP):.1%}")
        assert share(fifth, CHEAP) >= 0.95
        assert not paced.unforgiven()

    def test_b_fills_the_cheap_pool_to_what_the_best_fixed_limit_would(self, paced: System) -> None:
        window, best = paced.window_seconds, paced.best_fixed_limit
        rate = 1.5 * best.requests_per_second
        started = paced.load(json=rate - 3, streams=3.0)
        windows = 7
        wait_until(lambda: time.time() >= started + windows * window, (windows + 1) * window, "load windows")
        judged = paced.results.ended_between(started + 2 * window, started + windows * window)
        carried = sum(o.ok and o.pool == CHEAP for o in judged) / ((windows - 2) * window)
        p95 = quantile_seconds(judged, paced.percentile / 100)
        paced.note(
            "b: carried by the cheapest pool, of the best fixed limit's",
            f"{carried:.1f} of {best.requests_per_second:.1f} req/s at {best.in_flight} in flight "
            f"({carried / best.requests_per_second:.0%}); learned limit {paced.limits()[CHEAP]:g}; "
            f"client p95 {p95:.2f} s",
        )
        for number in range(2, windows):
            one = paced.results.ended_between(started + number * window, started + (number + 1) * window)
            assert quantile_seconds(one, paced.percentile / 100) <= paced.target_seconds, (
                f"window {number + 1}"
            )
        assert carried >= 0.85 * best.requests_per_second
        assert not paced.unforgiven()

    def test_c_leaves_a_pool_that_turns_three_times_slower(self, paced: System) -> None:
        paced.load(**CALM)
        settle_on_the_cheap_pool(paced)
        slowed = time.time()
        paced.fault(CHEAP, slowdown=3)
        deadline = 3 * paced.interval_seconds + paced.window_seconds
        wait_until(
            lambda: time.time() >= slowed + deadline + paced.window_seconds, 200, "traffic had to leave"
        )
        after = paced.results.sent_between(slowed + deadline, slowed + deadline + paced.window_seconds)
        first_gone = first_moment_below(paced.results.read(), CHEAP, 0.1, since=slowed)
        paced.note(
            "c: seconds until less than a tenth went to the slow pool",
            f"{first_gone - slowed:.1f} of {deadline:.0f} allowed; share then {share(after, CHEAP):.1%}",
        )
        assert share(after, CHEAP) <= 0.10
        assert not paced.unforgiven()

    def test_d_takes_the_recovered_pool_back_without_a_bad_window(self, paced: System) -> None:
        window = paced.window_seconds
        recovered = time.time()
        paced.fault(CHEAP, slowdown=1)
        wait_until(lambda: time.time() >= recovered + 6 * window, 7 * window, "six windows")
        sixth = paced.results.sent_between(recovered + 5 * window, recovered + 6 * window)
        worst = 0.0
        for number in range(6):
            start = recovered + number * window
            # Requests that were sent before it recovered are not the recovery's doing.
            one = [o for o in paced.results.ended_between(start, start + window) if o.sent >= recovered]
            worst = max(worst, slow_share(one, paced.target_seconds))
        paced.note(
            "d: share of the recovered pool in the sixth window",
            f"{share(sixth, CHEAP):.1%}; worst window {worst:.1%} slow",
        )
        assert share(sixth, CHEAP) >= 0.80 * 0.95
        assert worst <= 0.05
        assert not paced.unforgiven()


class TestFaults:
    """(e) to (i): what must not matter to clients."""

    def test_e_loses_only_what_was_in_flight_on_a_killed_pool(self, system: System) -> None:
        settle_on_the_cheap_pool(system)
        killed = system.kill_pool(CHEAP)
        wait_until(lambda: time.time() >= killed + system.window_seconds, 100, "a window without the pool")
        lost = system.unforgiven()
        system.note("e: requests lost with the killed pool", f"{len(lost)}, all in flight at the kill")
        assert all(o.pool in (CHEAP, None) and o.sent <= killed <= o.ended + 0.5 for o in lost), lost[:5]
        # Answers that had not begun were tried again elsewhere: only begun streams can be lost.
        assert all(o.kind == "stream" for o in lost), lost[:5]
        after = system.results.sent_between(killed + 1, time.time())
        assert after
        assert not failures(after)
        system.forgive(lost)
        system.revive_pool(CHEAP)
        settle_on_the_cheap_pool(system, 40)

    def test_f_fails_nothing_when_a_part_of_ours_is_killed(self, system: System) -> None:
        settle_on_the_cheap_pool(system)
        limits = system.limits()
        system.kill_and_restart_operator()
        for server in (0, 1):
            system.kill_and_restart_server(server)
        system.kill_agent_child(0)
        wait_until(lambda: system.programmed() == 2, 60, "both agents report again")
        assert not system.unforgiven()
        assert system.limits()[CHEAP] >= 0.9 * limits[CHEAP], "learned limits are kept"
        killed = time.time()
        listening = system.kill_envoy(1)
        wait_until(lambda: time.time() >= listening + 5, 10, "some seconds of load after it")
        lost = system.unforgiven()
        system.note(
            "f: requests lost with Envoy's kill -9",
            f"{len(lost)}; it listened again after {listening - killed:.2f} s",
        )
        assert listening - killed < 1.0
        assert all(o.sent <= listening and o.ended >= killed - 0.1 for o in lost), lost[:5]
        system.forgive(lost)

    @pytest.mark.parametrize("fault", ["stopped", "frozen", "emptied", "not a number"])
    def test_g_holds_the_limits_while_prometheus_is(self, system: System, fault: str) -> None:
        system.load(**CALM)
        wait_until(lambda: system.condition("MetricsAvailable")["status"] == "True", 60, "metrics are there")
        before = system.limits()
        broken = time.time()
        with system.prometheus_fault(fault):
            condition = wait_until(
                lambda: (found := system.condition("MetricsAvailable"))["status"] != "True" and found,
                system.staleness_seconds + 4 * system.interval_seconds + 20,
                "MetricsAvailable turns",
            )
            assert condition["reason"] in system.reasons_of(fault), condition
            assert system.limits() == before
            seen = {key: condition[key] for key in ("status", "reason", "message")}
        wait_until(
            lambda: system.condition("MetricsAvailable")["status"] == "True",
            90 + 2 * system.window_seconds,
            "metrics are back by themselves",
        )
        system.note(f"g: Prometheus {fault}", f"{seen['reason']}: {seen['message']}")
        assert not failures(system.results.sent_between(broken, time.time()))

    def test_g_tells_idle_apart_from_missing(self, system: System) -> None:
        before = system.limits()
        system.load()
        condition = wait_until(
            lambda: (found := system.condition("SLAMet"))["reason"] == "NoTraffic" and found,
            14 * system.window_seconds,
            "SLAMet says that there is no traffic",
        )
        assert condition["status"] == "Unknown"
        assert system.condition("MetricsAvailable")["status"] == "True"
        assert system.condition("Ready")["status"] == "True"
        assert system.limits() == before

    def test_h_keeps_the_last_good_routing_under_a_bad_spec(self, system: System) -> None:
        system.load(**CALM)
        before = system.status()["routing"]
        with system.open_crd():
            system.patch_spec({"fallbackPool": "b200"})
            condition = wait_until(
                lambda: (found := system.condition("Accepted"))["status"] == "False" and found,
                30,
                "Accepted turns False",
            )
            assert "b200" in condition["message"]
            kept = system.status()["routing"]
            assert [p["name"] for p in kept["pools"]] == [p["name"] for p in before["pools"]]
            system.patch_spec({"fallbackPool": DEAR})
        wait_until(lambda: system.condition("Accepted")["status"] == "True", 30, "Accepted again")
        system.note("h: bad spec", condition["message"])
        assert not system.unforgiven()

    def test_i_follows_an_edited_target_under_a_hundred_streams(self, system: System) -> None:
        system.load(json=6.0, streams=24.0, streamTokens=400)
        wait_until(lambda: system.in_flight_at_the_pools() >= 100, 90, "a hundred streams")
        edited = time.time()
        system.patch_spec({"sla": {"targetMilliseconds": round(system.target_seconds * 1200)}})
        wait_until(
            lambda: system.target_in_force() == round(system.target_seconds * 1200), 30, "the new target"
        )
        system.patch_spec({"sla": {"targetMilliseconds": round(system.target_seconds * 1000)}})
        wait_until(
            lambda: system.target_in_force() == round(system.target_seconds * 1000), 30, "the old target"
        )
        wait_until(lambda: time.time() >= edited + 15, 20, "the streams of that time to end")
        assert not system.unforgiven()

    def test_i_never_goes_back_when_a_server_is_cut_from_the_api_server(self, system: System) -> None:
        system.load(**CALM)
        with system.server_cut_from_api(0):
            for turn in range(3):
                before = system.sequence()
                system.patch_pool(MIDDLE, {"concurrency": {"minimum": 30 + turn}})  # raises its limit
                wait_until(functools.partial(system.is_past, before), 30, "a new sequence")
            newest = system.sequence()
            wait_until(
                lambda: min(system.applied_sequences()) >= newest, 30, "both agents follow the other server"
            )
        wait_until(lambda: system.programmed() == 2, 60, "all is programmed again")
        assert system.sequence_steps_back() == 0
        assert not system.unforgiven()

    def test_the_whole_story_served_enough_and_broke_nothing_else(self, system: System) -> None:
        system.load()
        outcomes = system.results.read()
        requests = sum(o.kind == "json" for o in outcomes)
        streams = sum(o.kind == "stream" for o in outcomes)
        left = system.unforgiven()
        system.note(
            "in all", f"{requests} JSON requests, {streams} streams, {len(left)} failed beyond (e) and (f)"
        )
        assert not left
        assert requests >= system.least_requests
        assert streams >= 1_000
