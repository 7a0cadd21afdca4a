"""Mounted Secrets and ConfigMaps as kubelet writes them: a symlink that is moved from one content to the
next."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

_numbers = itertools.count(1)


def mount(directory: Path, content: Mapping[str, str]) -> None:
    """Make this the content of the mounted directory, all of it at one moment."""
    directory.mkdir(exist_ok=True)
    fresh = directory / f"..{next(_numbers)}"
    fresh.mkdir()
    for name, text in content.items():
        (fresh / name).write_text(text)
    pointer = directory / "..tmp"
    pointer.symlink_to(fresh.name)
    os.replace(pointer, directory / "..data")
    for name in content:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    for path in directory.iterdir():
        if path.is_symlink() and not path.name.startswith("..") and path.name not in content:
            path.unlink()
