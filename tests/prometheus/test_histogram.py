"""Slow counts from buckets: exact at a bound, and elsewhere never further from the truth than they say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder_operator.prometheus.histogram import percentile, slow_count

EDGES = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, math.inf)

latencies = st.lists(st.floats(0.01, 60.0), max_size=200)


def buckets_of(values: list[float]) -> dict[float, float]:
    return {edge: float(sum(value <= edge for value in values)) for edge in EDGES}


@given(latencies, st.sampled_from(EDGES[:-1]))
def test_a_target_that_is_a_bound_is_counted_exactly(values: list[float], target: float) -> None:
    counted = slow_count(buckets_of(values), target)

    assert counted.slow == sum(value > target for value in values)
    assert counted.error == 0


@given(latencies, st.floats(0.05, 55.0))
def test_the_truth_is_within_the_error(values: list[float], target: float) -> None:
    counted = slow_count(buckets_of(values), target)

    truth = sum(value > target for value in values)
    assert abs(counted.slow - truth) <= counted.error + 1e-6
    assert 0 <= counted.slow <= len(values)


@given(latencies.filter(len), st.floats(0.5, 0.99))
def test_a_percentile_lies_in_the_bucket_of_the_truth(values: list[float], share: float) -> None:
    seen = percentile(buckets_of(values), share)

    truth = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    upper = min(edge for edge in EDGES if truth <= edge)
    lower = max((edge for edge in EDGES if edge < truth), default=0.0)
    if math.isinf(upper):
        assert seen is None
    else:
        assert seen is not None
        assert lower <= seen <= upper + 1e-9


@pytest.mark.parametrize(
    ("target", "slow", "error"),
    [
        (2.0, 60, 0),  # a bound
        (5.0, 10, 0),  # the last finite one
        (math.sqrt(10), 35, 25),  # the middle of its bucket on a log scale
        (0.25, 95, 5),  # below the first bound
        (9.0, 10, 10),  # beyond the last: all of it or nothing
    ],
)
def test_between_bounds_the_error_is_what_lies_in_the_bucket(
    target: float, slow: float, error: float
) -> None:
    counted = slow_count({0.5: 10.0, 2.0: 40.0, 5.0: 90.0, math.inf: 100.0}, target)

    assert counted.slow == pytest.approx(slow)
    assert counted.error == pytest.approx(error)


def test_nothing_is_counted_of_nothing() -> None:
    assert slow_count({}, 2.0).slow == 0
    assert percentile({}, 0.95) is None
    assert percentile(dict.fromkeys(EDGES, 0.0), 0.95) is None
