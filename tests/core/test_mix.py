"""The cheapest mix equals brute force."""

import itertools
import math
import random
import time

from meritorder_core.mix import Unit, cheapest_mix


def brute_force(units: list[Unit], demand: float) -> float:
    """The least bill over all combinations that could matter."""
    most = [math.ceil(demand / unit.rate) for unit in units]
    best = math.inf
    for counts in itertools.product(*(range(n + 1) for n in most[:-1])):
        left = demand - sum(n * unit.rate for n, unit in zip(counts, units[:-1], strict=True))
        last = max(math.ceil(left / units[-1].rate - 1e-9), 0)
        cost = sum(n * unit.price for n, unit in zip((*counts, last), units, strict=True))
        best = min(best, cost)
    return best


def random_units(chance: random.Random) -> list[Unit]:
    return [
        Unit(
            name=f"p{k}",
            price=round(chance.uniform(0.5, 10), 2),
            rate=chance.uniform(0.5, 12),
            running=chance.randrange(5),
        )
        for k in range(chance.randint(1, 5))
    ]


def test_equals_brute_force_on_random_cases() -> None:
    chance = random.Random(7)
    slowest = 0.0
    for _ in range(300):
        units = random_units(chance)
        demand = chance.uniform(0, 20)
        begin = time.process_time()
        found = cheapest_mix(units, demand)
        slowest = max(slowest, time.process_time() - begin)
        rates = {unit.name: unit.rate for unit in units}
        prices = {unit.name: unit.price for unit in units}
        assert sum(n * rates[name] for name, n in found.items()) >= demand - 1e-6
        cost = sum(n * prices[name] for name, n in found.items())
        assert cost <= brute_force(units, demand) + 1e-6
    assert slowest < 0.1


def test_among_equal_bills_what_runs_already_is_kept() -> None:
    units = [
        Unit(name="a", price=2.0, rate=4.0, running=1),
        Unit(name="b", price=2.0, rate=4.0, running=2),
        Unit(name="c", price=2.0, rate=4.0, running=0),
    ]
    assert cheapest_mix(units, 12.0) == {"a": 1, "b": 2, "c": 0}


def test_no_demand_needs_no_replica() -> None:
    assert cheapest_mix([Unit(name="a", price=1.0, rate=1.0)], 0.0) == {"a": 0}
    assert cheapest_mix([], 5.0) == {}


def test_the_load_decides_which_card_is_cheap() -> None:
    l40s = Unit(name="l40s", price=1.86, rate=5.0)
    h100 = Unit(name="h100", price=6.88, rate=32.0)
    assert cheapest_mix([l40s, h100], 4.0) == {"h100": 0, "l40s": 1}
    assert cheapest_mix([l40s, h100], 30.0) == {"h100": 1, "l40s": 0}
    assert cheapest_mix([l40s, h100], 36.0) == {"h100": 1, "l40s": 1}
