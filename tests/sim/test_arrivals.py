"""Planned traffic: the same for the same seed, and as much of it as was asked for."""

import random
from itertools import pairwise

import pytest

from meritorder_sim.arrivals import Burst, Choice, Fixed, LogNormal, Mix, Phase, Schedule, Uniform, plan

DAY = Schedule(
    phases=(Phase(50, 10), Phase(20, 10, 50), Phase(30, 50)), bursts=(Burst(at=80, count=40, seconds=2),)
)


def test_the_same_seed_plans_the_same_requests() -> None:
    mix = Mix(prompt_tokens=LogNormal(500, 1.0), output_tokens=Uniform(10, 400), stream_percent=30)
    first, second, other = (list(plan(DAY, mix, random.Random(seed))) for seed in (7, 7, 8))
    assert first == second
    assert first != other


def test_another_mix_leaves_the_moments_as_they_are() -> None:
    moments = [
        [planned.at for planned in plan(DAY, Mix(prompt_tokens=prompt), random.Random(7))]
        for prompt in (Fixed(10), LogNormal(500, 1.0))
    ]
    assert moments[0] == moments[1]


def test_rates_ramps_and_bursts_are_met() -> None:
    even = Schedule(phases=DAY.phases, spacing="even").arrivals(random.Random(1))
    counts = [sum(low <= at < high for at in even) for low, high in ((0, 50), (50, 70), (70, 100))]
    assert counts == pytest.approx([500, 600, 1500], abs=1)
    assert all(0 < later - earlier <= 0.11 for earlier, later in pairwise(even))
    poisson = Schedule(phases=DAY.phases).arrivals(random.Random(1))
    assert len(poisson) == pytest.approx(2600, rel=0.08)
    both = DAY.arrivals(random.Random(1))
    assert len(both) - len(poisson) == 40
    assert both == sorted(both)
    assert DAY.seconds == 100
    assert [DAY.rate_at(at) for at in (0, 60, 99, 101)] == [10, 30, 50, 0]


def test_poisson_gaps_vary_as_they_must() -> None:
    times = Schedule(phases=(Phase(200, 20),)).arrivals(random.Random(3))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_a_pause_has_no_requests() -> None:
    schedule = Schedule(phases=(Phase(10, 5), Phase(10, 0), Phase(10, 5)))
    assert not [at for at in schedule.arrivals(random.Random(1)) if 10 < at < 20]


def test_sizes_follow_the_mix() -> None:
    mix = Mix(output_tokens=Choice([10, 200], [3, 1]), prompt_tokens=Uniform(5, 9), stream_percent=25)
    planned = list(plan(DAY, mix, random.Random(1)))
    assert {(one.output_tokens, one.max_tokens) for one in planned} == {(10, 16), (200, 256)}
    assert {one.prompt_tokens for one in planned} == {5, 6, 7, 8, 9}
    assert sum(one.stream for one in planned) / len(planned) == pytest.approx(0.25, abs=0.03)
    assert sum(one.output_tokens == 10 for one in planned) / len(planned) == pytest.approx(0.75, abs=0.03)
    for kind, limit in (("exact", 200), ("none", None), ("power-of-two", 256)):
        limited = Mix(max_tokens=kind)  # type: ignore[arg-type]
        assert {one.max_tokens for one in plan(DAY, limited, random.Random(1))} == {limit}
