"""What is installed: one wheel with every file of the packages; no folder shadows the standard library."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_ROOTS = ("operator", "router")


@pytest.mark.parametrize("import_root", IMPORT_ROOTS)
def test_import_root_is_a_plain_folder(import_root: str) -> None:
    assert (ROOT / import_root).is_dir()
    # In `operator/` it would shadow the standard library's module of that name.
    assert not (ROOT / import_root / "__init__.py").exists()


def test_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("meritorder-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith("meritorder-")}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        scripts = archive.read(entry_points).decode().split()[1::3]

    tracked = subprocess.run(
        ["git", "ls-files", *IMPORT_ROOTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    wanted = {path.partition("/")[2] for path in tracked.stdout.splitlines() if (ROOT / path).exists()}
    assert wanted - packed == set()
    assert scripts == ["kubectl-meritorder", "meritorder", "meritorder-operator", "meritorder-router"]
