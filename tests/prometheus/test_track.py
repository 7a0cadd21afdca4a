"""Windows over running totals, and how often targets are scraped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder_operator.prometheus.track import Track

LANE = ("l40s", "total")


def a_track(steps: list[tuple[float, float]], *, step: float = 1.0, reach: float = 15.0) -> Track:
    """A track after steps of these (covered seconds, scrapes), with one request in each."""
    track = Track(1000.0, reach)
    for number, (seconds, scrapes) in enumerate(steps, 1):
        track.gain(LANE, 1)
        track.step(1000.0 + number * step, seconds, scrapes, None)
    return track


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], None),
        ([(0, 0)], None),
        ([(2, 1)] * 5, 2),
        ([(4, 2), (6, 3)] * 3, 2),
        ([(0, 0), (0, 0), (15, 1)] * 3, 15),
        ([(5, 1 / 3)] * 9, 15),  # a third of the targets in each step
        ([(2, 1)] * 4 + [(0, 0)] * 20 + [(42, 1)] + [(2, 1)] * 2, 2),  # an outage
        ([(2, 1)] * 9 + [(0, 0), (30, 1)] * 5, 30),  # scraped less often from now on
    ],
)
def test_the_scrape_interval_is_what_it_is_of_late(
    steps: list[tuple[float, float]], expected: float | None
) -> None:
    seen = a_track(steps).scrape_interval()

    assert seen == (None if expected is None else pytest.approx(expected))


@given(st.integers(1, 2000), st.sampled_from([5.0, 15.0, 60.0, 3600.0]))
def test_any_window_is_one_subtraction_however_long_it_runs(steps: int, window: float) -> None:
    track = a_track([(1, 1)] * steps, reach=window)

    for seconds in (window, 10 * window):
        mark = track.before(seconds)
        gain = track.since(mark)
        assert gain.values.get(LANE, 0) == pytest.approx(track.end - mark.end)
        assert gain.seconds == pytest.approx(track.end - mark.end)
        wanted = min(seconds, steps)
        assert wanted <= track.end - mark.end <= wanted * 1.3 + 1
    assert len(list(track.backwards())) <= 2 * (64 + 40)


def test_what_was_cut_is_forgotten() -> None:
    track = a_track([(1, 1)] * 30)

    track.cut(1020.0)

    assert track.since(track.before(150)).of(*LANE) == 10
    assert track.oldest.end == 1020.0
