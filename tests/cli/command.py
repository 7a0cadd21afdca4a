"""`meritorder` as a process, imported from where this test run imports it."""

import os
import subprocess
import sys
from pathlib import Path

import meritorder_cli
import meritorder_router
from support.processes import Child

_ROOTS = [str(Path(str(module.__file__)).parents[1]) for module in (meritorder_cli, meritorder_router)]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(_ROOTS)}
_COMMAND = (sys.executable, "-m", "meritorder_cli")


def meritorder(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*_COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )


def started(log: Path, *arguments: str) -> Child:
    """A command that goes on until it is stopped."""
    return Child([*_COMMAND, *arguments], log=log, name=f"meritorder {arguments[0]}", env=ENVIRONMENT)
