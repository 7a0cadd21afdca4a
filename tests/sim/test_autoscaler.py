"""Replicas that follow what is needed, late and within bounds."""

from meritorder_sim.autoscaler import Autoscaler
from meritorder_sim.pools import SimulatedPools
from meritorder_sim.pools_file import Autoscale, parse_pools_file

SETTINGS = Autoscale(minimum=1, maximum=6, delay_seconds=120)


def follow(replicas: int, *asked: tuple[float, int]) -> list[int]:
    scaler = Autoscaler(SETTINGS, replicas=replicas)
    return [scaler.follow(needed, now=now) for now, needed in asked]


def test_follows_after_the_delay_and_within_bounds() -> None:
    assert follow(2, (0, 4), (60, 4), (119, 4), (120, 4), (130, 4)) == [2, 2, 2, 4, 4]
    assert follow(2, (0, 99), (120, 99)) == [2, 6]
    assert follow(2, (0, 0), (120, 0)) == [2, 1]


def test_a_peak_shorter_than_the_delay_changes_nothing() -> None:
    assert follow(2, (0, 5), (60, 2), (119, 5), (200, 5), (239, 5)) == [2, 2, 2, 2, 5]


def test_takes_the_least_on_the_way_up_and_the_most_on_the_way_down() -> None:
    assert follow(1, (0, 5), (60, 3), (120, 6)) == [1, 1, 3]
    assert follow(6, (0, 2), (60, 4), (120, 1)) == [6, 6, 4]


async def test_a_served_pool_follows_what_is_needed_if_it_scales() -> None:
    text = """
pools:
  - {name: scales, profile: llama-3.1-8b/h100, autoscale: {minimum: 1, maximum: 2}}
  - {name: stays, profile: llama-3.1-8b/h100}
"""
    async with SimulatedPools(parse_pools_file(text)) as pools:
        for pool in pools.values():
            await pool.set_needed(3)
        assert {name: len(found) for name, found in pools.addresses.items()} == {"scales": 2, "stays": 1}
