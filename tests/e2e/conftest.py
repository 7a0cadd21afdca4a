"""The running system, one per session, and its figures at the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from assets.find import MissingBinary
from e2e.story import FAST, SLOW, Pace
from e2e.system import System
from support.addresses import NoAddress
from support.required import cannot_run

_NOTES = pytest.StashKey[list[list[tuple[str, str]]]]()


def _run(
    pace: Pace, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    try:
        system = System(tmp_path_factory.mktemp("system"), pace)
    except (MissingBinary, NoAddress) as reason:
        cannot_run(reason)
    request.config.stash.setdefault(_NOTES, []).append(system.notes)
    with system:
        yield system


@pytest.fixture(scope="module")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Everything, started and with no load."""
    yield from _run(FAST, request, tmp_path_factory)


@pytest.fixture(scope="module")
def slow_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The same with the times of production."""
    yield from _run(SLOW, request, tmp_path_factory)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the story measured."""
    notes = config.stash.get(_NOTES, [])
    if notes:
        terminalreporter.section("end to end: what was measured")
        for what, seen in itertools.chain.from_iterable(notes):
            terminalreporter.line(f"{what}: {seen}")
