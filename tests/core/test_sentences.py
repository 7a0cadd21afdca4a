"""How numbers are said."""

import pytest

from core.building import counts
from meritorder_core.sentences import bound, percent, seconds_left
from meritorder_core.verdict import sla_met


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "1 s"), (0.2, "1 s"), (1.0, "1 s"), (1.2, "2 s"), (24.9, "25 s"), (1800.0, "1800 s")],
)
def test_what_is_still_to_wait_is_never_nothing(seconds: float, said: str) -> None:
    assert seconds_left(seconds) == said


def test_noise_of_a_clock_adds_no_second() -> None:
    noon = 1_750_000_000.0
    assert seconds_left((noon + 0.1 + 5) - (noon + 0.1)) == "5 s"


@pytest.mark.parametrize(
    ("share", "said"), [(0.0, "0 %"), (0.019, "1.9 %"), (0.0994, "9.9 %"), (0.376, "38 %"), (1.0, "100 %")]
)
def test_shares_are_said_with_a_space(share: float, said: str) -> None:
    assert percent(share) == said


def test_what_is_allowed_is_said_as_it_was_given() -> None:
    assert [bound(share) for share in ((100 - 95) / 100, 0.03, 0.006)] == ["5 %", "3 %", "0.6 %"]


def test_the_promise_is_judged_with_its_error_bar() -> None:
    judged = sla_met(
        counts(226, 85, seconds=60.0),
        allowed=0.05,
        minimum_samples=50,
        now=1000.0,
        promised_at=0.0,
        target="2.00 s",
    )
    assert judged.message == (
        "37.6 % of 226 requests were slower than 2.00 s (between 31.6 % and 44.1 %); 5 % allowed"
    )
