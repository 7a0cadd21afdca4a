"""The real `meritorder-router agent`: supervisor, agent and Envoy as processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from support.ports import free_ports
from support.processes import Child

ROOT = Path(__file__).parents[2]


class AgentProcess(Child):
    """One container's worth of processes, without the container."""

    def __init__(self, directory: Path, *options: str, within: Sequence[str | Path] = ()) -> None:
        """`within`: a command that runs it, and becomes it."""
        self.listen, self.metrics = free_ports(2)
        self.state = directory / "s"
        super().__init__(
            [
                *within,
                sys.executable,
                "-m",
                "meritorder_router",
                "agent",
                "--listen",
                f"127.0.0.1:{self.listen}",
                "--metrics-listen",
                f"127.0.0.1:{self.metrics}",
                "--state-dir",
                self.state,
                *options,
            ],
            log=directory / "agent.log",
            name="meritorder-router agent",
            env={"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "router"))},
        )

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"http://127.0.0.1:{self.listen}/v1"

    @property
    def metrics_url(self) -> str:
        """The metrics listener."""
        return f"http://127.0.0.1:{self.metrics}"

    def child(self, name: str) -> int | None:
        """The process number of `agent` or `envoy`, while it runs."""
        word = {"agent": "agent-process", "envoy": "--config-path"}[name]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if parent == self.pid and word in arguments:
                return int(entry.name)
        return None

    def kill_child(self, name: str) -> int:
        """End a child with -9; return what its process number was."""
        pid = self.child(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid
