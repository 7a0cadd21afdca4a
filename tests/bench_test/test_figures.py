"""The statistics say what a person would compute by hand, and results keep one schema."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from bench.exporter import BOUNDS, HABITS, Router, share_within
from bench.figures import grown, quantile, summary
from bench.parts import only
from bench.results import SCHEMA_VERSION, Check, Result, Row, machine_facts

from meritorder_api import metric_names


def a_result(*checks: Check) -> Result:
    return Result(
        name="some-benchmark",
        sentence="What was measured.",
        columns=("median", "p90"),
        rows=(Row(what="a way", cells=("18.0", "20.5")),),
        checks=checks,
        setup={"changes": 10},
        figures={"milliseconds": {"median": 18.0}},
        machine=machine_facts(),
        at="2026-01-02T03:04:05+00:00",
    )


FAST = Check(name="median", value=18.0, relation="<", target=50.0, unit="ms")
SLOW = Check(name="median", value=50.0, relation="<", target=50.0, unit="ms")
NONE = Check(name="writes", value=0, relation="==", target=0, unit="")


def test_a_quantile_lies_between_its_neighbours() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert quantile(values, 0) == 1.0
    assert quantile(values, 0.5) == 2.5
    assert quantile(values, 0.9) == pytest.approx(3.7)
    assert quantile(values, 1) == 4.0
    assert quantile([7.0], 0.9) == 7.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_there_is_no_quantile_of_nothing_and_none_beyond_the_ends(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match=r"no values|share is"):
        quantile(values, share)


def test_a_summary_has_median_p90_and_extremes() -> None:
    assert summary([float(number) for number in range(1, 102)]) == {
        "median": 51.0,
        "p90": 91.0,
        "minimum": 1.0,
        "maximum": 101.0,
    }


def test_only_counters_that_grew_are_told() -> None:
    before = {("GET", "leases"): 3.0, ("LIST", "pods"): 2.0}
    after = {("GET", "leases"): 5.0, ("LIST", "pods"): 2.0, ("APPLY", "inferencepolicies"): 1.0}
    assert grown(before, after) == {("APPLY", "inferencepolicies"): 1.0, ("GET", "leases"): 2.0}


def test_a_series_that_is_not_there_is_no_zero() -> None:
    lines = [('writes_total{outcome="a"}', 2.0), ('writes_total{outcome="b"}', 3.0), ("writes_created", 9.0)]
    assert only(lines, "writes_total") == 5.0
    with pytest.raises(LookupError, match="no series `write_total`"):
        only(lines, "write_total")


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (FAST, True),
        (SLOW, False),
        (NONE, True),
        (Check(name="writes", value=1, relation="==", target=0, unit=""), False),
        (Check(name="ratio", value=1.05, relation="<=", target=1.05, unit="times"), True),
        (Check(name="ratio", value=0.8, relation=">=", target=0.8, unit=""), True),
        (Check(name="ratio", value=0.79, relation=">=", target=0.8, unit=""), False),
    ],
)
def test_a_check_is_met_or_missed(check: Check, passed: bool) -> None:
    assert check.passed is passed
    assert a_result(NONE, check).passed is passed


def test_results_are_written_as_json_and_as_a_table(tmp_path: Path) -> None:
    as_json, as_markdown = a_result(FAST, SLOW).write(tmp_path)
    body = json.loads(as_json.read_text())
    assert body["schema"] == SCHEMA_VERSION
    assert body["passed"] is False
    assert [check["passed"] for check in body["checks"]] == [True, False]
    assert body["figures"] == {"milliseconds": {"median": 18.0}}
    text = as_markdown.read_text()
    assert "| a way | 18.0 | 20.5 |" in text
    assert "| median | 50 ms | < 50 ms | MISSED |" in text


def test_machine_facts_name_no_machine() -> None:
    assert set(machine_facts()) == {"processor", "cores", "memory GiB", "Python", "load before"}


def test_committed_results_have_the_schema() -> None:
    folder = Path(__file__).parents[2] / "bench" / "results"
    paths = sorted(folder.glob("*.json"))
    assert {path.stem for path in paths} <= {"config-latency", "operator-cost", "router"}
    assert {path.stem for path in paths} == {path.stem for path in folder.glob("*.md")}
    for path in paths:
        body = json.loads(path.read_text())
        assert body["schema"] == SCHEMA_VERSION
        assert body["name"] == path.stem
        assert set(body["machine"]) == set(machine_facts())
        assert body["passed"] == all(check["passed"] for check in body["checks"])


def test_synthetic_counters_move_under_traffic_and_stand_at_rest() -> None:
    router = Router("policy-000", 0.0, random.Random(1))
    router.pass_time(0.0, is_busy=True)
    assert {pool.total for pool in router.pools.values()} == {0}
    router.pass_time(60.0, is_busy=True)
    busy = list(router.lines())
    assert all(pool.total > 0 and pool.in_flight >= 0 for pool in router.pools.values())
    assert all(0 <= pool.slow < pool.total / 10 for pool in router.pools.values())
    router.pass_time(120.0, is_busy=False)
    gauges = (metric_names.IN_FLIGHT,)
    at_rest = [line for line in router.lines() if not line.startswith(gauges)]
    assert at_rest == [line for line in busy if not line.startswith(gauges)]
    assert len(HABITS) == 4


def test_synthetic_histograms_grow_with_their_bounds() -> None:
    shares = [share_within(bound, 900.0) for bound in BOUNDS]
    assert shares == sorted(shares)
    assert share_within(900.0, 900.0) == pytest.approx(0.5)
    assert 0.98 < share_within(2000.0, 900.0) < 0.995
