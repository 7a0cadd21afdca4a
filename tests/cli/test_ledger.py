"""The book of a run: windows, warm-up, costs and restlessness, from readings written by hand."""

from dataclasses import replace
from decimal import Decimal

import pytest

from cli.readings_of import reading
from cli.test_measure import START, a_spec
from meritorder_api.reasons import Action, Reason
from meritorder_cli import flapping
from meritorder_cli.ledger import MOST_TICKS, Ledger
from meritorder_cli.measure import Ring, gather
from meritorder_core.decide import decide
from meritorder_core.learned import Learned
from meritorder_core.outcome import ConditionReport, Decision

READY = {"cheap": 2, "dear": 1}


def a_decision(at: float = 0.0) -> Decision:
    spec = a_spec()
    inputs = gather(spec, Ring(spec), last=None, ready=READY, now=START + at)
    return decide(spec, Learned.initial(), inputs, current=None)


def a_run(seconds: int, *, slow_from: int = 10**9, references: bool = True) -> Ledger:
    """Ten requests a second on the cheap pool, every fifth slow from `slow_from` on, two on the dear one."""
    spec = a_spec()
    costs = {"cheap": Decimal("0.86"), "dear": Decimal("1.50")} if references else {}
    ledger, ring = Ledger(spec, started_at=START, references=costs), Ring(spec)
    ledger.decided(a_decision())
    for second in range(seconds + 1):
        slow = max(second - slow_from, 0) * 2
        ring.add(reading(START + second, cheap=(10 * second, slow), dear=(2 * second, 0)))
        ledger.read(ring, READY)
    return ledger


def test_the_first_window_is_warm_up_and_in_no_figure() -> None:
    contender = a_run(35).contender()
    assert contender.warmup.model_dump() == {"requests": 120, "slow": 0}
    assert contender.requests.model_dump() == {"total": 300, "slow": 0, "failed": 0}
    assert [pool.requests for pool in contender.pools] == [250, 50]
    assert contender.pools[0].completion_tokens == 250 * 50
    assert contender.pools[0].replica_hours == pytest.approx(2 * 25 / 3600, rel=1e-3)


def test_windows_tumble_and_only_whole_ones_count() -> None:
    contender = a_run(57, slow_from=40).contender()
    # 10 to 20, 20 to 30, 30 to 40 are met, 40 to 50 is not; 50 to 57 is no window.
    assert contender.windows.model_dump() == {"total": 4, "met": 3}


def test_windows_with_few_requests_do_not_count() -> None:
    spec = a_spec()
    ledger, ring = Ledger(spec, started_at=START), Ring(spec)
    for second in range(31):
        ring.add(reading(START + second, cheap=(second, 0)))
        ledger.read(ring, READY)
    assert ledger.contender().windows.total == 0


def test_tokens_cost_what_their_pools_reference_price_says() -> None:
    contender = a_run(110).contender()
    # 100 s x (10 x 50 tokens at 0.86 and 2 x 50 at 1.50) per million, and all 600 tokens a second at 1.50.
    assert float(contender.reference_cost or 0) == pytest.approx((50_000 * 0.86 + 10_000 * 1.5) / 1e6)
    assert float(contender.reference_cost_on_fallback or 0) == pytest.approx(60_000 * 1.5 / 1e6)
    assert a_run(30, references=False).contender().reference_cost is None


def test_a_tick_has_rates_shares_and_limits() -> None:
    tick = a_run(30).ticks[-1]
    cheap, dear = tick.pools
    assert (cheap.name, cheap.requests_per_second, cheap.share) == ("cheap", 10.0, 0.8333)
    assert [pool.share_percent for pool in tick.pools] == [83, 17]
    assert cheap.limit == 2
    assert cheap.cost_per_hour == pytest.approx(3.72)
    assert dear.limit is None
    assert tick.requests_per_second == 12.0
    assert tick.slow_share == 0.0


def test_holds_for_one_reason_are_written_once() -> None:
    ledger = Ledger(a_spec(), started_at=START)
    first = a_decision()
    hold = replace(first, action=Action.HOLD, reason=Reason.IDLE, message="idle")
    for at, decision in enumerate((first, hold, hold, replace(hold, reason=Reason.SETTLING), hold, first)):
        ledger.decided(replace(decision, at=START + at))
    assert [(one.at, one.action, one.reason) for one in ledger.decisions] == [
        (0.0, "Start", "FirstDecision"),
        (1.0, "Hold", "Idle"),
        (3.0, "Hold", "Settling"),
        (4.0, "Hold", "Idle"),
        (5.0, "Start", "FirstDecision"),
    ]


def test_missing_metrics_are_told_once_where_the_decision_speaks_of_other_pools() -> None:
    ledger = Ledger(a_spec(), started_at=START)
    first = a_decision()
    idle = replace(first, action=Action.HOLD, reason=Reason.IDLE, message="dear is idle")
    said = replace(idle, reason=Reason.METRICS_MISSING, message="metrics of 1 of 2 pools are missing (...)")
    gone = ConditionReport(status=False, reason="Frozen", message="metrics of 1 of 2 pools are missing (...)")
    well = ConditionReport(status=True, reason="MetricsFound", message="metrics of 2 pools are fresh")
    course = [
        (first, gone),  # nothing was read yet
        (idle, well),
        (idle, gone),
        (idle, replace(gone, message="the same with another number in it")),
        (idle, well),
        (said, gone),  # the decision says it itself
    ]
    for at, (decision, metrics) in enumerate(course):
        ledger.decided(replace(decision, at=START + at, metrics_available=metrics))
    assert [(event.at, event.message) for event in ledger.events] == [
        (2.0, "metrics of 1 of 2 pools are missing (...)"),
        (4.0, "the metrics of all pools are there again"),
    ]


def test_the_series_is_bounded() -> None:
    ledger = a_run(MOST_TICKS + 50)
    assert len(ledger.ticks) <= MOST_TICKS
    assert ledger.step_seconds == 2.0
    assert ledger.ticks[-1].at - ledger.ticks[-2].at == 2.0


@pytest.mark.parametrize(
    ("course", "changes", "reversals"),
    [
        ([], 0, 0),
        ([(0, 10)], 0, 0),
        ([(0, 10), (5, 12), (9, 15)], 2, 0),
        ([(0, 10), (5, 20), (9, 10)], 2, 1),
        ([(0, 10), (5, 20), (9, 10), (12, 20)], 3, 2),
        # Back by less than a tenth of where it turned: no reversal.
        ([(0, 100), (5, 120), (9, 112)], 2, 0),
        # By less than one request: no reversal either.
        ([(0, 2), (5, 2.8), (9, 2)], 2, 0),
        # Turning points too far apart.
        ([(0, 10), (5, 20), (500, 10)], 2, 0),
        # Small steps down make one move.
        ([(0, 10), (5, 20), (6, 19), (7, 18), (8, 17)], 4, 1),
    ],
)
def test_counts_changes_and_reversals(
    course: list[tuple[float, float]], changes: int, reversals: int
) -> None:
    assert flapping.changes(course) == changes
    assert flapping.reversals(course, 100) == reversals
