"""The CRD in a real API server: what it takes and refuses, and that the models agree with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from api.specs import ABSENT, BAD, FULL, GOOD, SMALL, Bad, changed, policy
from meritorder_api.crd import schema
from meritorder_api.names import GROUP, OPERATOR_FIELD_MANAGER, PLURAL, ROUTER_FIELD_MANAGER, VERSION
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.resource import InferencePolicy, PolicyError
from servers.control_plane import ControlPlane
from servers.kubectl import Kubectl


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_kubectl_is_told_field_and_rule(bad: Bad, kubectl: Kubectl, namespace: str) -> None:
    done = kubectl.run("create", "-n", namespace, "-f", "-", stdin=json.dumps(bad.manifest))
    assert done.returncode == 1
    assert bad.server in done.stderr
    assert kubectl("get", "infpol", "-n", namespace, "-o", "name") == ""


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD.keys())
def test_a_good_spec_is_stored_with_the_defaults_that_the_models_have(
    spec: dict[str, Any], kubectl: Kubectl, namespace: str
) -> None:
    kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(policy(spec)))
    stored = kubectl.json("get", "infpol", "-n", namespace, "chat")["spec"]
    assert stored == without_empty_lists(InferencePolicy.parse(policy(spec)).spec.dump())


def without_empty_lists(value: Any) -> Any:
    """Lists that are left out are empty in the models; the API server does not write them."""
    if isinstance(value, dict):
        return {key: without_empty_lists(child) for key, child in value.items() if child != []}
    return [without_empty_lists(child) for child in value] if isinstance(value, list) else value


PROBES: tuple[Any, ...] = (
    *(ABSENT, None, True, False, -1, 0, 1, 3, 64, 100, 301, 3601, 70_000, 100_001, 4_000_000, 2.5),
    *("", "a", "A", "a b", "a\n", "-a", "a.b", "a/b", "/a", "/a b", "/", "ü", "_a", "Custom", "Hold", "::1"),
    *("1", "1.5", "1.", "-1", "0.0000001", "http://a", "https://a:9/b?c", "http://a@b", "http://"),
    *("x" * 64, "x" * 254, "9" * 17),
    *([], ["a"], [1], ["/a", "/a"], ["x-meritorder-pool"], [{}]),
    *({}, {"a": "b"}, {"a": 1}, {"name": "a"}, {"name": "a", "key": "b"}),
    *({"engine": "TGI"}, {"perReplicaHour": "1"}, {"minimum": 7}),
)
"""Put in the place of every field, one after another."""


def paths(value: Any, path: str = "") -> Iterator[str]:
    """The path of every field, and of every entry of a list of plain values."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from paths(child, f"{path}.{key}".lstrip("."))
    if isinstance(value, list):
        for index, child in enumerate(value):
            if not isinstance(child, Mapping):
                yield f"{path}.{index}"
            yield from paths(child, f"{path}.{index}")


def test_the_full_policy_has_every_field() -> None:
    def fields(node: Mapping[str, Any]) -> Iterator[str]:
        for name, child in node.get("properties", {}).items():
            yield name
            yield from fields(child.get("items", child))

    written = {path.rpartition(".")[2] for path in paths(FULL)}
    assert set(fields(schema(InferencePolicySpec, defaults=True))) - written == set()


def test_models_and_api_server_refuse_the_same(control_plane: ControlPlane, namespace: str) -> None:
    """Every field of the full policy is replaced by every probe: thousands of specs, each judged by both."""
    url = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}?dryRun=All&fieldValidation=Strict"
    counts = {True: 0, False: 0}
    disagreements = []
    for path in paths(FULL):
        for probe in PROBES:
            if probe is None and path.rpartition(".")[2].isdigit():
                continue  # A null in a list is nothing that people write.
            manifest = policy(changed(FULL, {path: probe}))
            answer = control_plane.client.post(url, json=manifest)
            assert answer.status_code in (201, 400, 422), answer.text
            taken = answer.status_code == 201
            counts[taken] += 1
            try:
                InferencePolicy.parse(manifest, strict=True)
                said = ""
            except PolicyError as refused:
                said = str(refused)
            if taken != (said == ""):
                disagreements.append(
                    f"{path} = {probe!r}: models: {said or 'good'}; API server: {answer.text}"
                )
    assert disagreements == []
    assert counts[True] > 300
    assert counts[False] > 3000


def test_operator_and_router_write_their_own_parts_of_the_status(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(policy(SMALL)))

    def apply(manager: str, status: dict[str, Any]) -> None:
        manifest = {key: value for key, value in policy(SMALL).items() if key != "spec"} | {"status": status}
        kubectl(
            "apply", "--server-side", "--subresource=status", f"--field-manager={manager}",
            "-n", namespace, "-f", "-", stdin=json.dumps(manifest),
        )  # fmt: skip

    routing = {
        "sequence": 1,
        "revision": "r1",
        "pools": [{"name": "l40s", "limitPerReplica": "1"}, {"name": "h100"}],
    }
    programmed = {"sequence": 1, "agents": 2, "applied": 2, "silent": 0, "ready": {"l40s": 3, "h100": 2}}
    apply(OPERATOR_FIELD_MANAGER, {"routing": routing})
    apply(ROUTER_FIELD_MANAGER, {"programmed": programmed})
    turned = routing | {"sequence": 2, "revision": "r2", "pools": [{"name": "h100"}]}
    apply(OPERATOR_FIELD_MANAGER, {"routing": turned})
    status = kubectl.json("get", "infpol", "-n", namespace, "chat")["status"]
    assert status == {"routing": turned, "programmed": programmed}
