"""Files of other projects, out of their Go modules by the checksums of the table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from assets.find import MissingBinary, cache_home
from assets.get import CannotGet, Progress, go
from assets.table import MODULES, Module


def home_of(module: Module) -> Path:
    return cache_home() / f"{module.name}-{module.version}"


def is_there(module: Module) -> bool:
    return all((home_of(module) / Path(path).name).exists() for path in module.paths)


def folder_of(name: str) -> Path:
    """Return the folder that holds the files of that name; the error says how to get them."""
    module = next(module for module in MODULES if module.name == name)
    if not is_there(module):
        raise MissingBinary(f"{name} {module.version} are not in {home_of(module)}; run: make assets")
    return home_of(module)


def get_files(module: Module) -> None:
    """Put the module's files into the cache, all or none."""
    if is_there(module):
        return
    compiler = go()
    progress = Progress(f"downloading {module.name} {module.version}")
    cache_home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_home(), prefix=f".{module.name}-") as folder:
        source = _downloaded(compiler, module, Path(folder))
        files = Path(folder) / "files"
        files.mkdir()
        for path in module.paths:
            shutil.copyfile(source / path, files / Path(path).name)
        shutil.rmtree(home_of(module), ignore_errors=True)
        files.rename(home_of(module))
    progress.done()


def _downloaded(compiler: Path, module: Module, folder: Path) -> Path:
    wanted = f"{module.path}@v{module.version}"
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        [compiler, "mod", "download", "-json", wanted],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = {"Error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    if said.get("Error"):
        raise CannotGet(f"{wanted} could not be downloaded: {said['Error']}")
    if said["Sum"] != module.sum:
        raise CannotGet(f"{wanted} has the checksum {said['Sum']}; it must be {module.sum}")
    return Path(said["Dir"])
