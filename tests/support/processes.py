"""Children of the tests: started with a log file, stopped with everything they started, never left behind.

A child gets its own session, so that a terminal's Ctrl-C reaches it only through us and so that its whole
group can be ended. It dies with the test process even if that is killed with -9.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.waiting import wait_until

_PR_SET_PDEATHSIG = 1

_started: weakref.WeakSet[Child] = weakref.WeakSet()
"""All children of this process, so that a failing test can show what they said."""


class DiedEarly(Exception):
    """A child ended although it was needed; carries the end of its log."""


def _die_with_parent() -> Callable[[], None] | None:
    # The kernel means the *thread* that forked: from a helper thread the child would die with that thread.
    if threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask


class Child:
    """One process with its log. `start` may be called again after `stop` or `kill`: the log goes on."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        survives: bool = False,
    ) -> None:
        """`env` is added to this process's environment; `survives`: live on when this process ends."""
        self.command = [str(part) for part in command]
        self.log = log
        self.name = name or Path(self.command[0]).name
        self._env = dict(env or {})
        self._cwd = cwd
        self._survives = survives
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid if self.running else 'not running'}>"

    def start(self) -> Self:
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
                cwd=self._cwd,
                start_new_session=True,
                preexec_fn=None if self._survives else _die_with_parent(),
            )
        _started.add(self)
        return self

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the child alone."""
        if self.running:
            os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop it with SIGSTOP: its connections stay open and nothing answers."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End the child and all it started with SIGKILL, and reap it."""
        self._signal_group(signal.SIGKILL)
        self._reap()

    def stop(self, grace_seconds: float = 10) -> None:
        """End the child with SIGTERM, and what is left of its group after the grace time with SIGKILL."""
        if self._process is None:
            return
        if self.running:
            self.send(signal.SIGTERM)
            self.resume()  # a stopped process does not see SIGTERM
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_seconds)
        self._signal_group(signal.SIGKILL)
        self._reap()

    def wait(self, deadline_seconds: float) -> int:
        """Wait for its own end and return the exit code."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.wait(deadline_seconds)

    def wait_for(
        self,
        ready: Callable[[], object],
        deadline_seconds: float,
        what: str,
        *,
        retry_on: tuple[type[Exception], ...] = (),
    ) -> None:
        """Wait until a condition holds, or fail with the log's end at once when the child dies first."""

        def holds() -> bool:
            if not self.running:
                raise DiedEarly(f"{self.name} ended with {self.exit_code} before {what}\n{self.log_tail()}")
            return bool(ready())

        try:
            wait_until(holds, deadline_seconds, what, retry_on=retry_on)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        tail = self.log_text().splitlines()[-lines:]
        return "\n".join([f"--- last lines of {self.log}", *tail])

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()


def started_children() -> list[Child]:
    """List the children of this process that are still of interest, by name."""
    return sorted(_started, key=lambda child: child.name)


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
