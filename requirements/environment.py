"""Makes the checkout's `.venv` from a lock file, in seconds when the same lock was installed before.

What is installed from the index lives once per interpreter and lock in the user's cache
(`${XDG_CACHE_HOME:-~/.cache}/meritorder/venv-...`). The checkout's `.venv` only points there by a `.pth` file
and adds the editable project with its console scripts. So a fresh clone with an unchanged lock installs
nothing but itself. Of each kind the three used last are kept.

    python3 requirements/environment.py run     what the product needs
    python3 requirements/environment.py dev     and what its tests and checks need
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# A stamp made by an older version of this file must not be trusted.
THIS = Path(__file__).resolve()
ROOT = THIS.parent.parent
OLDEST_PYTHON = (3, 11)
KEPT = 3  # of each kind; each takes a few hundred megabytes


class Failure(Exception):
    """One sentence for the person at the terminal."""


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meritorder"


def fingerprint(*parts: str | Path) -> str:
    """Name this interpreter together with the given texts and files."""
    digest = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode())
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on an existing file; it ends with this process."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def guard_of(home: Path) -> Path:
    """Return the file whose lock an environment is installed or deleted under."""
    return home.with_name(home.name + ".lock")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        raise Failure(f"`{' '.join(str(part) for part in command)}` failed with exit code {done.returncode}")


def site_packages(venv: Path) -> Path:
    return venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def dependencies(kind: str) -> Path:
    """Return the cached environment that holds exactly the lock of this kind, installing it if it is new."""
    locks = [ROOT / "requirements" / f"{kind}.lock", ROOT / "requirements" / "build.lock"]
    version = ".".join(map(str, sys.version_info[:3]))
    home = cache_home() / f"venv-{kind}-{version}-{fingerprint(*locks)}"
    complete = home / ".complete"
    if complete.exists():
        note_use(home)
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    guard = guard_of(home)
    guard.touch()
    with locked(guard):
        if complete.exists():  # another process installed it while this one waited
            return home
        began = time.monotonic()
        print(f"installing {locks[0].relative_to(ROOT)} into {home}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        try:
            import ensurepip  # noqa: F401  (Debian ships it apart, in python3-venv)
        except ImportError:
            raise Failure(
                "this Python has no `ensurepip`, so it cannot make virtual environments; "
                "run: apt-get install python3-venv"
            ) from None
        run(sys.executable, "-m", "venv", home)
        pip: list[str | Path] = [
            home / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        for lock in locks:  # one after the other: pip refuses a package that two hashed files name
            try:
                run(*pip, "--no-deps", "--require-hashes", "-r", lock)
            except Failure:
                raise Failure(
                    f"pip could not install {lock.relative_to(ROOT)}, and says why above; "
                    "see that it reaches a package index (PIP_INDEX_URL, PIP_PROXY), then run the same again"
                ) from None
        complete.touch()
        print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    prune(kind)
    return home


def note_use(home: Path) -> None:
    with contextlib.suppress(OSError):  # a shared cache may be read-only; then nobody deletes there either
        os.utime(home / ".complete")


def last_used(home: Path) -> float:
    try:
        return (home / ".complete").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def prune(kind: str) -> None:
    """Delete the environments of this kind that are half made, and all but the few used last."""
    homes = sorted(cache_home().glob(f"venv-{kind}-*/"), key=last_used, reverse=True)
    for rank, home in enumerate(homes):
        if rank < KEPT and last_used(home):
            continue
        # Being installed right now: not ours to delete. The empty lock file stays, for it may be waited for.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(guard_of(home), wait=False):
            (home / ".complete").unlink(missing_ok=True)
            shutil.rmtree(home, ignore_errors=True)


def checkout(kind: str) -> None:
    """Make `.venv` of the checkout fit; a development environment also serves as a runtime one."""
    venv, stamp = ROOT / ".venv", ROOT / ".venv" / ".made-of"
    facts = {
        k: f"{k} {fingerprint(ROOT / 'requirements' / f'{k}.lock', ROOT / 'pyproject.toml', THIS, str(ROOT))}"
        for k in ("run", "dev")
    }
    fitting = {facts["dev"]} | ({facts["run"]} if kind == "run" else set())

    with locked(Path(__file__)):
        if stamp.exists() and stamp.read_text() in fitting and linked(venv):
            return
        home = dependencies(kind)
        shutil.rmtree(venv, ignore_errors=True)
        run(sys.executable, "-m", "venv", "--without-pip", venv)
        pointer = site_packages(venv) / "meritorder-dependencies.pth"
        pointer.write_text(f"import site; site.addsitedir({str(site_packages(home))!r})\n")
        pip: list[str | Path] = [
            home / "bin" / "python",
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--quiet",
        ]
        pip += ["--python", venv / "bin" / "python"]
        run(*pip, "install", "--no-deps", "--no-build-isolation", "-e", ROOT)
        adopt_commands(home, venv)
        stamp.write_text(facts[kind])


def adopt_commands(home: Path, venv: Path) -> None:
    """Offer the dependencies' commands in `.venv/bin`; scripts get its interpreter, which sees us."""
    python = f"#!{home / 'bin' / 'python'}".encode()
    for command in sorted((home / "bin").iterdir()):
        here = venv / "bin" / command.name
        if here.exists() or command.name.lower().startswith("activate"):
            continue
        content = command.read_bytes()
        if content.startswith(python):
            here.write_bytes(f"#!{venv / 'bin' / 'python'}".encode() + content[len(python) :])
            here.chmod(0o755)
        else:
            here.symlink_to(command)


def linked(venv: Path) -> bool:
    """Tell whether the cached environment behind `.venv` is still there, and note that it is used."""
    pointer = site_packages(venv) / "meritorder-dependencies.pth"
    if not pointer.exists():
        return False
    home = Path(pointer.read_text().split("'")[1]).parents[2]
    note_use(home)
    return last_used(home) > 0


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in ("run", "dev"):
        print("usage: python3 requirements/environment.py run|dev", file=sys.stderr)
        return 2
    if sys.version_info < OLDEST_PYTHON:
        wanted, seen = ".".join(map(str, OLDEST_PYTHON)), ".".join(map(str, sys.version_info[:3]))
        print(
            f"Python {seen} at {sys.executable} is too old: must be at least {wanted}; "
            "name another one with `make PYTHON=...`",
            file=sys.stderr,
        )
        return 1
    try:
        checkout(arguments[0])
    except (Failure, OSError) as failure:
        print(f"cannot make .venv: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was begun is made anew next time", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
