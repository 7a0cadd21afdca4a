"""The load generator against simulated pools: what it measures, and how it counts what goes wrong."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from meritorder_sim.arrivals import Fixed, Mix, Phase, Planned, Schedule, Uniform, plan
from meritorder_sim.faults import FaultChange
from meritorder_sim.load import LoadView, Target, run_load
from meritorder_sim.load_report import LoadReport, Record, percentile
from meritorder_sim.pools import SimulatedPool, SimulatedPools
from meritorder_sim.pools_file import parse_pools_file
from support.waiting import until

FILE = """
pools:
  - name: quick
    profile: {tpot: [10, 0.001, 0.001], ttft: [50, 0.001, 0.001]}
"""
STREAM = Planned(at=0.0, prompt_tokens=100, output_tokens=21, stream=True, max_tokens=32)


@pytest.fixture
async def pool() -> AsyncIterator[SimulatedPool]:
    async with SimulatedPools(parse_pools_file(FILE)) as pools:
        yield pools["quick"]


def url(pool: SimulatedPool) -> str:
    host, port = pool.addresses[0]
    return f"http://{host}:{port}"


def record(ended: float, *, e2e: float = 1.0, pool: str = "a", error: str | None = None) -> Record:
    return Record(
        started=ended - e2e,
        ended=ended,
        late=0.0,
        pool=pool,
        status=200 if error is None else 503,
        error=error,
        stream=False,
        prompt_tokens=1,
        output_tokens=1,
        completion_tokens=1,
        max_tokens=None,
        first_byte=None,
        tpot=None,
    )


async def test_measures_what_the_profile_says(pool: SimulatedPool) -> None:
    report = await run_load(url(pool), [STREAM])
    (seen,) = report.records
    assert (seen.status, seen.error, seen.pool) == (200, None, "quick")
    assert (seen.prompt_tokens, seen.completion_tokens, seen.max_tokens) == (100, 21, 32)
    # A busy machine only ever makes things later.
    assert seen.first_byte is not None
    assert seen.tpot is not None
    assert 0.05 <= seen.first_byte < 0.2
    assert 0.008 < seen.tpot < 0.03
    assert 0.25 <= seen.e2e < 0.6


async def test_sizes_can_be_told_by_the_text_alone(pool: SimulatedPool) -> None:
    planned = Planned(at=0.0, prompt_tokens=100, output_tokens=32, stream=False, max_tokens=32)
    for api in ("chat", "completion"):
        target = Target(url=url(pool), sizes="text", api=api)
        report = await run_load(target, [planned])
        assert [(seen.error, seen.completion_tokens) for seen in report.records] == [(None, 32)]


async def test_sends_open_loop_and_loses_nothing(pool: SimulatedPool) -> None:
    mix = Mix(prompt_tokens=Fixed(100), output_tokens=Uniform(5, 60), stream_percent=50)
    planned = list(plan(Schedule(phases=(Phase(2, 100),)), mix, random.Random(1)))
    pool.set_slowdown(5)
    view = LoadView()
    run = asyncio.create_task(run_load(url(pool), planned, view=view))
    await until(lambda: view.in_flight > 30, 10, "requests pile up while none waits for another")
    report = await run
    assert (report.requests, report.failed, report.errors) == (len(planned), 0, {})
    assert (view.sent, view.completed, view.in_flight) == (len(planned), len(planned), 0)
    assert sorted(seen.output_tokens for seen in report.records) == sorted(
        one.output_tokens for one in planned
    )
    assert all(seen.completion_tokens == seen.output_tokens for seen in report.records)
    assert report.shares() == {"quick": 1.0}
    assert sum(window.requests for window in report.windows(1.0)) == len(planned)
    assert view.last(60).requests == len(planned)
    assert report.latest_start < 0.5


async def test_counts_failures_by_kind(pool: SimulatedPool) -> None:
    address = url(pool)
    pool.set_errors(100, status=500)
    assert (await run_load(address, [STREAM])).errors == {"http 500": 1}
    pool.heal()
    pool.set_faults(FaultChange(reset_percent=100))
    assert (await run_load(address, [STREAM])).errors == {"broken": 1}
    pool.heal()
    pool.set_faults(FaultChange(hang="headers"))
    assert (await run_load(Target(url=address, timeout_seconds=0.2), [STREAM])).errors == {"timeout": 1}
    await pool.kill()
    report = await run_load(address, [STREAM])
    assert report.errors == {"connect": 1}
    assert report.records[0].status == 0


async def test_stops_sending_when_told_and_waits_for_the_rest(pool: SimulatedPool) -> None:
    stop = asyncio.Event()
    view = LoadView()
    endless = (Planned(at=n / 50, prompt_tokens=10, output_tokens=20, stream=False) for n in range(10_000))
    run = asyncio.create_task(run_load(url(pool), endless, view=view, stop=stop))
    await until(lambda: view.sent >= 10, 10, "some requests are sent")
    stop.set()
    report = await asyncio.wait_for(run, 10)
    assert report.failed == 0
    assert 10 <= report.requests == view.sent < 1000


def test_windows_tumble_by_the_end_and_failures_are_slow() -> None:
    records = (record(0.5), record(1.5, e2e=3), record(1.6, error="http 503"), record(3.2, pool="b"))
    report = LoadReport(seconds=4.0, records=records)
    windows = report.windows(1.0, target_seconds=2.0)
    assert [(w.start, w.requests, w.failed, w.slow) for w in windows] == [
        (0, 1, 0, 0),
        (1, 2, 1, 2),
        (2, 0, 0, 0),
        (3, 1, 0, 0),
    ]
    assert windows[1].percentiles == {50: 3, 95: 3, 99: 3}
    assert [w.slow_share for w in windows] == [0, 1, 0, 0]
    assert report.shares(0, 4) == {"a": 2 / 3, "b": 1 / 3}
    assert windows[3].pools == {"b": 1}
    assert len(report.to_json()["records"]) == 4


def test_percentiles_are_of_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([], 95) is None
    assert percentile([3.0], 50) == 3.0
