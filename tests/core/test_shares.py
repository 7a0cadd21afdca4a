"""Shares as whole percents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder_core.shares import whole_percents


@pytest.mark.parametrize(
    ("shares", "percents"),
    [
        ([1 / 3, 1 / 3, 1 / 3], [34, 33, 33]),  # each rounded alone: 99
        ([0.334, 0.333, 0.333], [34, 33, 33]),
        ([0.665, 0.165, 0.17], [67, 16, 17]),  # each rounded alone, halves to even: 99
        ([0.125] * 8, [13, 13, 13, 13, 12, 12, 12, 12]),
        ([0.29, 0.71], [29, 71]),
        ([0.996, 0.004], [100, 0]),
        ([1.0, 0.0], [100, 0]),
        ([1.0], [100]),
        ([], []),
    ],
)
def test_whole_percents_add_up(shares: list[float], percents: list[int]) -> None:
    assert whole_percents(shares) == percents


def test_what_is_not_known_stays_so_and_the_rest_is_not_stretched() -> None:
    assert whole_percents([0.803, None]) == [80, None]
    assert whole_percents([None, None]) == [None, None]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=16).filter(lambda rates: sum(rates) > 1e-6))
def test_percents_of_any_rates_add_up_to_a_hundred_and_are_near(rates: list[float]) -> None:
    shares = [rate / sum(rates) for rate in rates]
    percents = whole_percents(shares)

    assert sum(percent or 0 for percent in percents) == 100
    for share, percent in zip(shares, percents, strict=True):
        assert percent is not None
        assert abs(percent - share * 100) < 1 + 1e-6
        assert percent == 0 if share == 0 else True
