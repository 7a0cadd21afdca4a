"""A program as a hardened container runs it, without a container: another user, no capability, no shell, and
nothing that can be written but one directory.

    python confined.py USER WRITABLE PATH... -- COMMAND...

is run by root in a mount namespace of its own (`unshare --mount`). Each PATH can be read whatever stands in
the way (a checkout under /root, say); WRITABLE becomes an empty file system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "busybox")
KERNELS = ("/proc", "/sys", "/dev")
"""File systems that are the kernel's own; a container's runtime masks them."""


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _closed(path: Path) -> Path | None:
    """The topmost directory on the way to a path that others may not pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & 0o001:
            return parent
    return None


def let_pass(paths: Sequence[Path]) -> None:
    """Show these paths, and nothing else, of the directories that are closed to others."""
    aside = Path(tempfile.mkdtemp())
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", aside)
    behind = {path: closed for path in paths if (closed := _closed(path)) is not None}
    kept: dict[Path, Path] = {}
    for number, path in enumerate(behind):
        kept[path] = aside / str(number)
        kept[path].mkdir()
        mount("--bind", path, kept[path])
    for closed in sorted(set(behind.values())):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", closed)
    for path in sorted(behind):
        path.mkdir(parents=True, exist_ok=True)
        mount("--bind", kept[path], path)
    subprocess.run(["umount", "--lazy", aside], check=True)
    aside.rmdir()


def main(arguments: Sequence[str]) -> None:
    at = arguments.index("--")
    user, writable, *paths = arguments[:at]
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    let_pass([Path(path) for path in paths])
    Path(writable).mkdir(parents=True, exist_ok=True)
    for shell in {os.path.realpath(f"{where}/{s}") for where in ("/bin", "/usr/bin") for s in SHELLS}:
        if os.path.exists(shell):
            mount("--bind", "/dev/null", shell)
    for point in mount_points():
        if not point.startswith(KERNELS):
            mount("-o", "remount,bind,ro", point)
    mount("-t", "tmpfs", "-o", f"mode=700,uid={user},gid={user}", "tmpfs", writable)
    drop = [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
    drop += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    os.execv(setpriv, [setpriv, *drop, "--", *arguments[at + 1 :]])


if __name__ == "__main__":
    main(sys.argv[1:])
