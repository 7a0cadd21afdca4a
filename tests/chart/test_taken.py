"""What the chart makes is taken by the real API server, field by field, and its pods by Pod Security."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chart import reference
from chart.objects import by_kind
from servers.control_plane import ControlPlane
from servers.helm import Helm

SETS = sorted((reference.CHART / "ci").glob("*.yaml"))
SYSTEM = "restricted"


@pytest.fixture(scope="module")
def namespaces(with_neighbours: ControlPlane) -> Iterator[ControlPlane]:
    """The namespaces that the sets of values speak of; the release's own takes restricted pods only."""
    enforced = {f"pod-security.kubernetes.io/{kind}": "restricted" for kind in ("enforce", "warn")}
    names = {SYSTEM: enforced, "team-a": {}, "team-b": {}}
    for name, labels in names.items():
        with_neighbours.create_namespace(name, labels)
    yield with_neighbours
    for name in names:
        with_neighbours.delete_namespace(name)


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.stem)
def test_the_api_server_takes_every_object(values: Path, namespaces: ControlPlane, installer: Helm) -> None:
    """No unknown field, no invalid value, no warning."""
    made = installer.template(reference.CHART, "meritorder", SYSTEM, "--values", values)
    text = "---\n".join(json.dumps(one) + "\n" for one in made)
    done = namespaces.kubectl.run(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(made)


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.stem)
def test_its_pods_are_restricted(values: Path, namespaces: ControlPlane, installer: Helm) -> None:
    made = installer.template(reference.CHART, "meritorder", SYSTEM, "--values", values)
    pods = [one["spec"]["template"] for one in by_kind(made, "Deployment")] + by_kind(made, "Pod")
    assert len(pods) == 3
    for pod in pods:
        name = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": SYSTEM},
            "spec": pod["spec"]
            | {"serviceAccountName": "default", "priorityClassName": "", "imagePullSecrets": []},
        }
        done = namespaces.kubectl.run(
            "create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(manifest)
        )
        assert (done.returncode, done.stderr) == (0, "")
