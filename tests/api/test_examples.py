"""The examples are good, and fit each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from meritorder_api.resource import InferencePolicy
from meritorder_sim.pools_file import load_pools_file
from servers.control_plane import ControlPlane

EXAMPLES = Path(__file__).parents[2] / "examples"
POLICIES = ("policy.yaml", "two-servers.yaml")


def example(name: str) -> InferencePolicy:
    return InferencePolicy.parse(yaml.safe_load((EXAMPLES / name).read_text("utf-8")), strict=True)


def test_every_example_is_tested() -> None:
    assert {file.name for file in EXAMPLES.glob("*.yaml")} == {*POLICIES, "pools.yaml"}


@pytest.mark.parametrize("name", POLICIES)
def test_the_api_server_takes_the_example(name: str, control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "-n", namespace, "-f", str(EXAMPLES / name))
    stored = control_plane.kubectl.json("get", "infpol", "-n", namespace, example(name).metadata.name)
    assert InferencePolicy.parse(stored).spec == example(name).spec


def test_simulated_pools_stand_behind_the_example_policy() -> None:
    simulated = load_pools_file(EXAMPLES / "pools.yaml")
    assert [pool.name for pool in simulated.pools] == [
        pool.name for pool in example("policy.yaml").spec.pools
    ]
    for pool in simulated.pools:
        assert simulated.profile_of(pool).name.endswith(pool.name)
