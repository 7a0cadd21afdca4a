"""PID 1 of a router container: runs the agent and Envoy, starts each again when it dies, and drains on
SIGTERM.

It has no network but Envoy's admin socket, and reads no table: nothing that comes from outside can make it
stumble. Each child is alone: an agent that dies does not touch Envoy, and an Envoy that dies starts again
from the files that are there.

This file needs nothing but the standard library, and runs by itself (`python -S supervisor.py JSON`): it
lives as long as its container, and so it is small.

Envoy starts when the agent has written its bootstrap. One that an earlier run left behind is only used if
the agent writes none in time.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BOOTSTRAP = "bootstrap.json"
WRONG_USE = 2
"""Exit code of a child that was started wrongly: to start it again would not help."""
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
OLD_BOOTSTRAP_SECONDS = 10.0
AGENT_END_SECONDS = 5.0


def say(level: str, message: str) -> None:
    """One line on stderr, for people on a terminal, as JSON elsewhere."""
    if sys.stderr.isatty():
        line = f"{time.strftime('%H:%M:%S')} {level.upper():7} {message}"
    else:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps(
            {"time": stamp, "level": level, "logger": "meritorder.supervisor", "message": message}
        )
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


_prctl = ctypes.CDLL(None).prctl


def _in_child() -> None:
    """Block no signal, and end with the supervisor: an Envoy left behind would share the port with its
    successor.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    _prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


@dataclass(slots=True, kw_only=True)
class Child:
    """One of the two processes."""

    name: str
    command: Sequence[str]
    least_delay: float
    most_delay: float = 5.0
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    """When to start it again (monotonic)."""
    delay: float = 0.0
    restarts: int = field(default=0)

    @property
    def running(self) -> bool:
        return self.process is not None

    def start(self, now: float) -> None:
        """Start it, with no signal blocked, in a group of its own so that a terminal's Ctrl-C reaches only
        us.
        """
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_in_child,
        )
        self.started_at = now

    def ended(self, status: int, now: float) -> int:
        """Note its end and when it may start again; return its exit code, negative for a signal."""
        code = os.waitstatus_to_exitcode(status)
        if self.process is not None:
            self.process.returncode = code
        self.process = None
        self.restarts += 1
        self.delay = (
            self.least_delay
            if now - self.started_at > 10
            else min(max(self.delay * 2, self.least_delay), self.most_delay)
        )
        self.start_at = now + self.delay
        return code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


def admin(path: str, method: str, target: str) -> str | None:
    """Ask Envoy's admin socket; the raw answer, or None when it does not answer."""
    request = f"{method} {target} HTTP/1.1\r\nhost: envoy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(path)
            connection.sendall(request.encode())
            parts = iter(lambda: connection.recv(65536), b"")
            return b"".join(parts).decode(errors="replace")
        except OSError:
            return None


def active_requests(path: str) -> int | None:
    """Requests in flight from clients; None when Envoy does not answer."""
    answer = admin(path, "GET", "/stats?filter=^http.data.downstream_rq_active$")
    if answer is None:
        return None
    found = re.search(r"downstream_rq_active: (\d+)", answer)
    return int(found[1]) if found else 0


def _shown(active: int | None) -> str:
    return "requests" if active is None else f"{active} requests"


class Supervisor:
    """Two children and what happens to them."""

    def __init__(
        self,
        *,
        agent: Sequence[str],
        envoy: Sequence[str],
        state_dir: Path,
        grace_seconds: float,
        least_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grace_seconds`: how long a drain waits for requests; `least_seconds`: how long it serves on at
        least.
        """
        self._agent = Child(name="agent", command=agent, least_delay=0.2)
        self._envoy = Child(name="envoy", command=envoy, least_delay=0.02)
        self._bootstrap = state_dir / BOOTSTRAP
        self._admin = str(state_dir / "admin.sock")
        self._grace = grace_seconds
        self._least = least_seconds
        self._clock = clock
        self._ending = False

    @property
    def _children(self) -> tuple[Child, Child]:
        return self._agent, self._envoy

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        began = self._clock()
        old = self._bootstrap.with_suffix(".old")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._bootstrap, old)
        while True:
            now = self._clock()
            if now - began > OLD_BOOTSTRAP_SECONDS and old.exists() and not self._bootstrap.exists():
                say("warning", "the agent wrote no bootstrap; Envoy starts with the one of the run before")
                os.replace(old, self._bootstrap)
            if not self._agent.running and now >= self._agent.start_at:
                self._agent.start(now)
            if not self._envoy.running and now >= self._envoy.start_at and self._bootstrap.exists():
                self._envoy.start(now)
            number = self._wait(self._pause(now))
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                return self._end(at_once=number == signal.SIGQUIT)
            wrong = self._reap()
            if wrong:
                self._end(at_once=True)
                return WRONG_USE

    def _pause(self, now: float) -> float:
        """Until there is something to do: a child to start, a bootstrap to appear; else long."""
        times = [child.start_at - now for child in self._children if not child.running]
        if not self._envoy.running and not self._bootstrap.exists():
            return 0.02
        return max(0.005, min(times, default=60.0))

    def _wait(self, seconds: float) -> int | None:
        found = signal.sigtimedwait(WATCHED, seconds)
        return None if found is None else found.si_signo

    def _reap(self) -> bool:
        """Take the exit codes of all that ended, adopted orphans too; True if the agent was started
        wrongly.
        """
        wrong = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return wrong
            if pid == 0:
                return wrong
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    code = child.ended(status, self._clock())
                    wrong = wrong or (child is self._agent and code == WRONG_USE)
                    if not wrong and not self._ending:
                        say(
                            "warning", f"{child.name} ended with {code}; it starts again in {child.delay:g} s"
                        )

    def _end(self, *, at_once: bool) -> int:
        """Drain, then end both children."""
        self._ending = True
        if not at_once and self._envoy.running:
            self._drain()
        if self._envoy.running and admin(self._admin, "POST", "/quitquitquit") is None:
            self._envoy.send(signal.SIGTERM)
        self._agent.send(signal.SIGTERM)
        deadline = self._clock() + AGENT_END_SECONDS
        while any(child.running for child in self._children):
            left = deadline - self._clock()
            if left <= 0:
                for child in self._children:
                    child.send(signal.SIGKILL)
            self._wait(max(left, 0.2))
            self._reap()
        return 0

    def _drain(self) -> None:
        """Fail readiness, ask clients to go, and wait until no request is in flight; another signal ends the
        wait.
        """
        began = self._clock()
        admin(self._admin, "POST", "/healthcheck/fail")
        admin(self._admin, "POST", "/drain_listeners?graceful&skip_exit")
        say("info", "draining")
        while True:
            active = active_requests(self._admin)
            spent = self._clock() - began
            # No answer is not 0: its streams go on while Envoy's main thread is late.
            if active == 0 and spent >= self._least:
                say("info", f"drained in {spent:.1f} s")
                return
            if spent >= self._grace:
                say("warning", f"{_shown(active)} still in flight after {spent:.0f} s; they are cut")
                return
            if self._wait(0.1) in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                say("warning", f"told to end again; {_shown(active)} in flight are cut")
                return
            self._reap()
            # Envoy died while draining: nothing is left to wait for.
            if not self._envoy.running:
                return


def command(**arguments: object) -> list[str]:
    """The command that runs a supervisor with these arguments of `Supervisor`."""
    return [sys.executable, "-S", os.path.abspath(__file__), json.dumps(arguments)]


def main() -> int:
    """Run with the arguments that `command` packed."""
    arguments = json.loads(sys.argv[1])
    arguments["state_dir"] = Path(arguments["state_dir"])
    return Supervisor(**arguments).run()


if __name__ == "__main__":
    sys.exit(main())
