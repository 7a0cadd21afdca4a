"""Each command of the distribution says its version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import ENVIRONMENT


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("meritorder_cli", "meritorder"),
        ("meritorder_operator", "meritorder-operator"),
        ("meritorder_router", "meritorder-router"),
    ],
)
def test_says_its_version(tmp_path: Path, module: str, command: str) -> None:
    installed = tmp_path / "meritorder-9.8.7.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: meritorder\nVersion: 9.8.7\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{command} 9.8.7\n", "")
