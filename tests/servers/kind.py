"""`make kind-up`: a cluster on kind with a kubeconfig of its own, for people with Docker.

python -m servers.kind up      create it if it is not there; print the kubeconfig's path
python -m servers.kind down    delete it
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from assets.find import cache_home

NAME = "meritorder"


class NoKind(Exception):
    """kind or Docker is not usable here; one sentence says what to do."""


def kubeconfig() -> Path:
    return cache_home() / "kind.kubeconfig"


def _kind(*arguments: str) -> str:
    done = subprocess.run(["kind", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise NoKind(f"`kind {' '.join(arguments)}` failed; is Docker running?")
    return done.stdout


def up() -> Path:
    if NAME in _kind("get", "clusters").split():
        _kind("export", "kubeconfig", "--name", NAME, "--kubeconfig", str(kubeconfig()))
    else:
        kubeconfig().parent.mkdir(parents=True, exist_ok=True)
        _kind("create", "cluster", "--name", NAME, "--wait", "120s", "--kubeconfig", str(kubeconfig()))
    return kubeconfig()


def down() -> None:
    _kind("delete", "cluster", "--name", NAME, "--kubeconfig", str(kubeconfig()))
    kubeconfig().unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    if arguments not in (["up"], ["down"]):
        print("usage: python -m servers.kind up|down", file=sys.stderr)
        return 2
    try:
        missing = [program for program in ("kind", "docker") if shutil.which(program) is None]
        if missing:
            raise NoKind(
                f"no `{missing[0]}` on PATH; install it, or take `make cluster-up`, which needs none"
            )
        if arguments == ["up"]:
            print(up())
        else:
            down()
    except (NoKind, OSError) as error:
        print(f"cannot bring the kind cluster {arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
