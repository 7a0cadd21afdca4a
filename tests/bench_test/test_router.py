"""The router benchmark counts what it should, and a short run of it works from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench import contenders
from bench.drawing import Bar, Panel, page
from bench.tree import cpu_seconds, processes, resident_bytes

from assets.get import CannotGet, go
from support.processes import Child
from support.required import cannot_run
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
IMPORTED = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "router", "tests", "."))


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """The load generator is built from its source."""
    try:
        go()
    except CannotGet as error:
        cannot_run(error)


def test_a_trees_cost_is_that_of_all_its_processes(tmp_path: Path) -> None:
    # One part of the time is a child's that has ended, the other that of one that goes on.
    busy = "import sys, time\nwhile time.process_time() < 0.3: pass\ntime.sleep(float(sys.argv[1]))\n"
    (tmp_path / "busy.py").write_text(busy)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, sys.argv[1], '0'])\n"
        "subprocess.run([sys.executable, sys.argv[1], '60'])\n"
    )
    with Child([sys.executable, parent, tmp_path / "busy.py"], log=tmp_path / "log") as child:
        wait_until(lambda: cpu_seconds(child.pid) >= 0.6, 30, "both ends of the tree were counted")
        assert len(processes(child.pid)) >= 2
        assert resident_bytes(child.pid) > 5_000_000
        assert cpu_seconds(child.pid) < 3


def test_a_tree_that_is_gone_costs_nothing_more(tmp_path: Path) -> None:
    with Child(["true"], log=tmp_path / "log") as child:
        assert child.wait(10) == 0
        assert cpu_seconds(child.pid) == 0
        assert resident_bytes(child.pid) == 0


def test_every_contender_has_a_name_of_its_own() -> None:
    names = [contender.name for contender in contenders.CONTENDERS]
    assert len(set(names)) == len(names)
    assert contenders.OURS in names


def test_a_program_that_cannot_be_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(contenders.Missing, match="no-such-proxy is not on PATH"):
        contenders._system("no-such-proxy", "no-such-package")


def test_bars_show_their_spread_and_what_was_not_kept() -> None:
    drawn = page(
        [
            Panel(
                "Requests",
                "more is better",
                (
                    Bar(label="A & B", value=50.0, least=40.0, most=100.0, ours=True),
                    Bar(label="C", value=None, least=0.0, most=0.0, ours=False),
                ),
            )
        ]
    )
    assert "A &amp; B" in drawn
    assert "width:50.0%" in drawn
    assert "left:40.0%;width:60.0%" in drawn
    assert "not kept" in drawn


def test_a_short_run_compares_two_contenders_without_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "router", "--quick", "--only", "envoy,meritorder"),
            *("--results", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": IMPORTED},
        capture_output=True,
        text=True,
        timeout=120,
    )
    # 1: a target was missed, which so short a run may not judge.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "side by side, ours / envoy" in done.stdout
    found = json.loads((tmp_path / "router.json").read_text())
    assert set(found["figures"]["contenders"]) == {"direct", "envoy", "meritorder"}
    for name, figures in found["figures"]["contenders"].items():
        assert figures["errors"] == 0, name
        assert figures["requestsPerSecond"]["median"] > 0
        if name != "direct":
            assert figures["requestCpuMicroseconds"]["median"] > 0
            assert figures["eventCpuMicroseconds"]["median"] > 0
            assert figures["residentMegabytes"]["median"] > 10


def test_an_unknown_contender_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "router", "--only", "enovy"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": IMPORTED},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "there is no contender `enovy`" in done.stderr
