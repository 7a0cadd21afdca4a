"""Fixtures of all tests under load, and their tables at the end of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stress.pools import Pools

if TYPE_CHECKING:
    from stress.record import Book

# Results have the schema of the benchmarks, which are a package at the root of the checkout.
sys.path.append(str(Path(__file__).parents[2]))

_BOOK = pytest.StashKey["Book"]()

StartPools = Callable[..., Pools]


@pytest.fixture
def book(request: pytest.FixtureRequest) -> Book:
    """Where a test notes what it found; what short ones find is judged and forgotten."""
    from stress.record import Book

    if request.node.get_closest_marker("stress") is None:
        return Book()
    return request.config.stash.setdefault(_BOOK, Book())


@pytest.fixture
def start_pools(tmp_path: Path) -> Iterator[StartPools]:
    """Start a process of pools' servers by their names; ended after the test."""
    started: list[Pools] = []

    def start(*names: str, **options: str) -> Pools:
        pools = Pools(tmp_path, *names, **options)
        started.append(pools)
        return pools.start()

    yield start
    for pools in started:
        pools.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the tables, and write those that are complete."""
    book = config.stash.get(_BOOK, None)
    if book is None:
        return
    from bench.results import FOLDER
    from bench.screen import Screen

    folder = Path(os.environ.get("MERITORDER_BENCH_RESULTS", FOLDER))
    screen = Screen()
    terminalreporter.section("under load: what was measured")
    for result, complete in book.results():
        screen.show(result)
        if complete:
            result.write(folder)
            screen.say(f"written: {result.name}.json and {result.name}.md")
        else:
            screen.say(f"{result.name} is not complete: not written")
