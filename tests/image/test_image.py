"""The container image, built for real from the Dockerfile: who runs in it, what is in it, what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meritorder_api.version import own_version
from support.required import cannot_run

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/meritorder-test:1"
pytestmark = pytest.mark.timeout(900)


class Image:
    """A built image."""

    def __init__(self, name: str, builder: str) -> None:
        self.name = name
        self._builder = builder

    def run(self, *command: str) -> str:
        """What a command prints in a fresh container."""
        if self._builder == "docker":
            return _out("docker", "run", "--rm", "--read-only", "--network=none", self.name, *command)
        container = _out("buildah", "from", "--pull=never", self.name).strip()
        try:
            return _out("buildah", "run", "--isolation=chroot", container, "--", *command)
        finally:
            _out("buildah", "rm", container)

    def config(self) -> dict[str, object]:
        """User, entry point, labels."""
        if self._builder == "docker":
            (found,) = json.loads(_out("docker", "image", "inspect", self.name))
            return dict(found["Config"])
        found = json.loads(_out("buildah", "inspect", "--type=image", self.name))
        return dict(found["OCIv1"]["config"])

    def layers(self) -> list[str]:
        """Digests of its layers."""
        if self._builder == "docker":
            (found,) = json.loads(_out("docker", "image", "inspect", self.name))
            return list(found["RootFS"]["Layers"])
        return list(
            json.loads(_out("buildah", "inspect", "--type=image", self.name))["OCIv1"]["rootfs"]["diff_ids"]
        )

    def remove(self) -> None:
        _out(self._builder, "rmi", self.name)


def _out(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def builder() -> str:
    """What builds images here."""
    if shutil.which("buildah"):
        if os.geteuid() != 0 or not shutil.which("debootstrap"):
            cannot_run("buildah makes the image's base as root and by debootstrap; install that, and be root")
        return "buildah"
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        return "docker"
    cannot_run(
        "nothing here builds images; install buildah (apt-get install buildah debootstrap) or start Docker"
    )


def build(name: str, with_: str) -> Image:
    """By the script that `make image` runs; with buildah on a base of its own: no registry is asked."""
    environment = {**os.environ, "IMAGE": name} | ({"BASE": "debian"} if with_ == "buildah" else {})
    command = ["requirements/image", "build"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == name
    return Image(name, with_)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    found = build(IMAGE, builder())
    yield found
    found.remove()


def test_nobody_is_root(image: Image) -> None:
    assert image.config()["User"] == "65532:65532"
    assert image.run("id", "-u").strip() == "65532"


def test_all_parts_are_there(image: Image) -> None:
    parts = ("meritorder", "meritorder-operator", "meritorder-router")
    find = "from meritorder_router.agent.envoy import find_envoy; print(find_envoy(None))"
    said = image.run(
        "sh",
        "-c",
        f"for part in {' '.join(parts)}; do $part --version; done; $(python3 -c '{find}') --version",
    )
    assert re.findall(r"^(\S+) (\S+)$", said, re.MULTILINE) == [(part, image_version()) for part in parts]
    assert "/1.40.0/" in said


def image_version() -> str:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert own_version() in (version, "0+unknown")
    return str(version)


def test_it_needs_neither_pip_nor_anything_of_the_build(image: Image) -> None:
    left = "ls /run/secrets /src /wheel /tools /opt/meritorder/bin/pip 2>/dev/null"
    said = image.run("sh", "-c", f"{left}; python3 -c 'import pip' 2>&1 | tail -1")
    assert said == "ModuleNotFoundError: No module named 'pip'\n"


def test_what_is_in_it_is_listed(image: Image) -> None:
    done = subprocess.run(
        ["requirements/image", "sbom"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "IMAGE": image.name},
        check=True,
    )
    listed = json.loads(done.stdout)
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    found = {one["purl"] for one in listed["components"]}
    lock = (ROOT / "requirements" / "run.lock").read_text()
    for name, version, marker in re.findall(r"^([a-z0-9-]+)==(\S+)( ;)?", lock, re.MULTILINE):
        assert marker or f"pkg:pypi/{name}@{version}" in found
    assert f"pkg:pypi/meritorder@{image_version()}" in found
    assert any(url.startswith("pkg:deb/debian/libc6@") for url in found)
    assert len(found) == len(listed["components"])


@pytest.mark.slow
def test_building_it_again_gives_the_same(image: Image) -> None:
    again = build("localhost/meritorder-test:2", builder())
    try:
        assert again.layers() == image.layers()
    finally:
        again.remove()
