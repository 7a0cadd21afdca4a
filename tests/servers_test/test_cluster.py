"""`make cluster-up` and `make cluster-down`, as a person uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assets.find import MissingBinary, find
from servers.cluster import BINARIES
from servers.kubectl import Kubectl
from support.required import cannot_run
from support.waiting import wait_until

Cluster = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Run the command with a cache of its own, so that a person's cluster is left alone."""
    try:
        folders = {str(find(binary).parent) for binary in (*BINARIES, "kubectl")}
    except MissingBinary as reason:
        cannot_run(reason)
    path = os.pathsep.join([*sorted(folders), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path)}

    def run(verb: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "servers.cluster", verb]
        tests = Path(__file__).parents[1]
        return subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True)

    yield run
    run("down")


def test_cluster_lives_from_up_to_down(cluster: Cluster, tmp_path: Path) -> None:
    up = cluster("up")
    kubeconfig = tmp_path / "meritorder" / "cluster" / "admin.kubeconfig"
    assert (up.returncode, up.stdout) == (0, f"{kubeconfig}\n")
    assert up.stderr.startswith("Kubernetes v1.36.")
    kubectl = Kubectl(kubeconfig)
    kubectl("create", "configmap", "mine")

    assert cluster("up").stdout == up.stdout
    assert kubectl("get", "configmap", "mine", "-o", "name") == "configmap/mine\n"

    assert cluster("down").returncode == 0
    wait_until(lambda: kubectl.run("get", "--raw", "/readyz").returncode == 1, 10, "nothing answers")
    assert not kubeconfig.exists()
    assert cluster("down").stderr == "the cluster is not up\n"


def test_verb_that_is_none_is_refused(cluster: Cluster) -> None:
    assert (cluster("sideways").returncode, cluster("sideways").stderr) == (
        2,
        "usage: python -m servers.cluster up|down\n",
    )
