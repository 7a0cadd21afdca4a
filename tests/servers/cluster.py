"""`make cluster-up`: the tests' control plane for a person, until `make cluster-down`.

python -m servers.cluster up      start it if it is not up; print the kubeconfig's path
python -m servers.cluster down    end it and delete its data
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from assets.find import MissingBinary, cache_home
from servers.control_plane import ControlPlane
from support.addresses import NoAddress
from support.processes import DiedEarly
from support.waiting import NeverHappened, wait_until


def home() -> Path:
    return cache_home() / "cluster"


BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    cache_home().mkdir(parents=True, exist_ok=True)
    with (cache_home() / "cluster.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _pids() -> list[int]:
    """Find the cluster's processes by their command lines: nothing is remembered that could be stale."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_ours(entry)]


def _is_ours(process: Path) -> bool:
    with contextlib.suppress(OSError):
        program, *flags = (process / "cmdline").read_text(errors="replace").split("\0")
        return Path(program).name in BINARIES and any(f"={home()}/" in flag for flag in flags)
    return False


def up() -> Path:
    with _alone():
        if len(_pids()) == len(BINARIES):
            return home() / "admin.kubeconfig"
        _end()
        control_plane = ControlPlane(home(), survives=True).start()
        print(f"Kubernetes {control_plane.version} at {control_plane.url}", file=sys.stderr)
        return control_plane.kubeconfig


def down() -> bool:
    """End it; tell whether it was up."""
    with _alone():
        was_up = bool(_pids())
        _end()
        return was_up


def _end() -> None:
    for pid in _pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _pids(), 10, "the cluster's processes are gone")
    shutil.rmtree(home(), ignore_errors=True)


def main(arguments: list[str]) -> int:
    if arguments not in (["up"], ["down"]):
        print("usage: python -m servers.cluster up|down", file=sys.stderr)
        return 2
    try:
        if arguments == ["up"]:
            print(up())
        elif not down():
            print("the cluster is not up", file=sys.stderr)
    except (MissingBinary, NoAddress, DiedEarly, NeverHappened, OSError) as error:
        print(f"cannot bring the cluster {arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
