"""The live view, drawn for terminals of different sizes."""

import io

import pytest
from rich.console import Console

from cli.scenario import document
from meritorder_cli.view import View, render


def drawn(width: int, height: int, at: float) -> list[str]:
    """The view's lines at that second of the made-up run."""
    run = document()
    ticks = [tick for tick in run.series if tick.at <= at]
    view = View(
        policy="chat",
        promise="95 % of requests within 2.00 s",
        percentile=95,
        target_milliseconds=2000.0,
        window_seconds=10,
        fallback_pool="h100",
        listen="http://127.0.0.1:8089/v1",
        elapsed=at,
        lasts=90.0,
        accelerators={"l40s": "L40S", "a100": "A100", "h100": "H100"},
        tick=ticks[-1] if ticks else None,
        attained=[tick.attained_milliseconds for tick in ticks],
        decisions=[record for record in run.decisions if record.at <= at],
        events=[event for event in run.events if event.at <= at],
        note="short on purpose",
    )
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(view, width=width, height=height))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (160, 50)])
@pytest.mark.parametrize("at", [0.0, 3.0, 30.0, 63.0, 90.0])
def test_fits_the_terminal(width: int, height: int, at: float) -> None:
    lines = drawn(width, height, at)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [80, 100])
def test_shows_at_a_glance_what_matters(width: int) -> None:
    text = "\n".join(drawn(width, 30, 63.0))
    for part in (
        "chat",
        "95 % of requests within 2.00 s",
        "window 10 s, short on purpose",
        "1:03 / 1:30",
        "p95 now",
        "14 / 15",
        "18 %",
        "2 / ∞",
        "saved 30 %",
        "$15.21/h",
        "l40s turns 3x slower",
        "l40s p95 5.20 s > 2.00 s over 61 requests",
    ):
        assert part in text, part


def test_keeps_pools_in_merit_order() -> None:
    lines = drawn(100, 30, 63.0)
    rows = [line.split()[0] for line in lines if line.startswith(("l40s ", "a100 ", "h100 "))]
    assert rows == ["l40s", "a100", "h100"]


def test_says_what_it_waits_for() -> None:
    assert any("waiting for the router" in line for line in drawn(80, 24, 0.0))
