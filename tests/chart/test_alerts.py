"""Alerts: read by the real promtool, raised when they should be, each with a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from assets.find import MissingBinary, find
from chart.reference import CHART, ROOT
from support.required import cannot_run

ALERTS = CHART / "files" / "alerts.yaml"
TESTS = Path(__file__).parent / "alerts_test.yaml"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    try:
        binary = find("promtool")
    except MissingBinary as reason:
        cannot_run(reason)
    return subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def names() -> list[str]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule["alert"] for rule in group["rules"]]


def test_prometheus_reads_them(names: list[str]) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(names)} rules found" in done.stdout


def test_they_are_raised_when_they_should_be(names: list[str], tmp_path: Path) -> None:
    tests = yaml.safe_load(TESTS.read_text())
    tried = {alert["alertname"] for test in tests["tests"] for alert in test["alert_rule_test"]}
    assert tried == set(names), "each alert has a test"
    unit = tmp_path / "alerts_test.yaml"
    # Its own text: series such as 0x20 are numbers to YAML, and no longer the same when written again.
    unit.write_text(f"{TESTS.read_text()}rule_files: [{ALERTS}]\n")
    done = promtool("test", "rules", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_has_a_runbook(names: list[str]) -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert headings == names


def test_each_series_is_one_that_is_exported() -> None:
    code = "".join(
        path.read_text()
        for folder in ("operator/meritorder_operator", "operator/meritorder_api", "router/meritorder_router")
        for path in (ROOT / folder).rglob("*.py")
    )
    exported = code + "meritorder_server_".join(
        re.findall(r'f"\{PREFIX\}_(\w+)"', (ROOT / "router/meritorder_router/server/metrics.py").read_text())
    )
    missing = []
    for series in set(re.findall(r"\b(?:envoy_)?meritorder_\w+", ALERTS.read_text())):
        stem = re.sub(r"_total$", "", series)
        if stem not in exported and stem.removeprefix("meritorder_server_") not in exported:
            missing.append(series)
    assert missing == []
