"""What pods of all shapes are given, in full; and that the API server takes what comes out.

Each file of `injection/` has a pod (and its policy's spec, where there is one), and below it what becomes of
it. `MERITORDER_UPDATE_GOLDEN=1 pytest tests/router/test_injection.py` writes that anew.
"""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meritorder_api.container import RouterSettings
from meritorder_api.policy import InferencePolicySpec
from meritorder_router.server.injection import Injected, Left, Refused, inject
from servers.control_plane import ControlPlane
from support.json_patch import patched

SHAPES = Path(__file__).parent / "injection"
NAMES = sorted(path.stem for path in SHAPES.glob("*.yaml"))
SETTINGS = RouterSettings(
    image="example.com/meritorder:1", server_urls=("https://meritorder-router.meritorder-system.svc",)
)
UPDATE = bool(os.environ.get("MERITORDER_UPDATE_GOLDEN"))
MARK = "\n---\n"


def shape(name: str) -> dict[str, Any]:
    """The pod and its policy's spec."""
    found: dict[str, Any] = next(yaml.safe_load_all((SHAPES / f"{name}.yaml").read_text()))
    return found


def asked(pod: dict[str, Any], policy: dict[str, Any] | None) -> Injected | Left:
    spec = InferencePolicySpec.model_validate(policy) if policy is not None else None
    return inject(pod, namespace="ml", spec=spec, settings=SETTINGS, version="0.1.0")


def outcome(name: str) -> dict[str, Any]:
    """What becomes of it."""
    given = shape(name)
    try:
        found = asked(given["pod"], given.get("policy"))
    except Refused as refused:
        return {"refused": str(refused)}
    if isinstance(found, Left):
        return {"left": found.reason}
    warned = {"warnings": list(found.warnings)} if found.warnings else {}
    return {**warned, "pod": patched(given["pod"], found.patch)}


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_becomes_what_its_file_says(name: str) -> None:
    path = SHAPES / f"{name}.yaml"
    if UPDATE:
        head = path.read_text().split(MARK)[0].rstrip("\n")
        path.write_text(head + MARK + yaml.safe_dump(outcome(name), sort_keys=False, width=110))
    assert list(yaml.safe_load_all(path.read_text()))[1] == outcome(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_that_is_asked_about_again_stays_as_it_is(name: str) -> None:
    found = outcome(name)
    if "pod" in found:
        again = asked(found["pod"], shape(name).get("policy"))
        assert again == Left(reason="HasRouter")


def test_there_are_many_shapes_and_each_ending() -> None:
    found = [outcome(name) for name in NAMES]
    assert len(found) > 20
    assert {key for one in found for key in one} == {"pod", "left", "refused", "warnings"}


@pytest.mark.parametrize("name", [name for name in NAMES if "pod" in outcome(name)])
def test_the_api_server_takes_what_comes_out(
    control_plane: ControlPlane, shared_namespace: str, name: str
) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **outcome(name)["pod"]}
    created = control_plane.request("POST", f"/api/v1/namespaces/{shared_namespace}/pods?dryRun=All", pod)
    containers = created["spec"].get("initContainers") or []
    router = next(one for one in containers if one["name"] == "meritorder-router")
    assert router["restartPolicy"] == "Always"
    # The API server would have given it a token for itself.
    mounts = {one["mountPath"]: one["name"] for one in router.get("volumeMounts") or ()}
    if name not in ("injected", "injected-then-more"):
        assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "meritorder-run"


def test_the_router_is_let_in_where_pod_security_is_restricted(
    control_plane: ControlPlane, restricted_namespace: str
) -> None:
    given = shape("provider-keys")
    given["pod"]["spec"]["securityContext"] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    given["pod"]["spec"]["containers"][0]["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    found = asked(given["pod"], given["policy"])
    assert isinstance(found, Injected)
    pod = {"apiVersion": "v1", "kind": "Pod", **patched(given["pod"], found.patch)}
    path = f"/api/v1/namespaces/{restricted_namespace}/pods?dryRun=All"
    assert control_plane.request("POST", path, pod)["spec"]["initContainers"]


@pytest.fixture(scope="module")
def shared_namespace(control_plane: ControlPlane) -> Iterator[str]:
    name = control_plane.create_namespace(f"t-{secrets.token_hex(4)}")
    yield name
    control_plane.delete_namespace(name)


@pytest.fixture
def restricted_namespace(control_plane: ControlPlane) -> Iterator[str]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = control_plane.create_namespace(f"t-{secrets.token_hex(4)}", labels)
    yield name
    control_plane.delete_namespace(name)


NAME = st.sampled_from(["app", "other", "meritorder-router", "meritorder-run", "a-b"])
VARIABLE = st.fixed_dictionaries({"name": st.sampled_from(["OPENAI_BASE_URL", "A"])})
PORT = st.fixed_dictionaries({"containerPort": st.sampled_from([80, 8089, 9902])})
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": NAME},
        optional={
            "env": st.none() | st.lists(VARIABLE, max_size=2),
            "envFrom": st.lists(st.just({"configMapRef": {"name": "x"}}), max_size=1),
            "ports": st.none() | st.lists(PORT, max_size=2),
            "restartPolicy": st.just("Always"),
        },
    ),
    max_size=3,
)
VALUE = st.sampled_from(["chat", "8089", "9902", "Always", "²", "", "x" * 300, "-"])
ANNOTATIONS = st.fixed_dictionaries(
    {"meritorder.dev/policy": st.just("chat") | VALUE},
    optional={f"meritorder.dev/{key}": VALUE for key in ("port", "metrics-port", "injected", "base-url")},
)
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": st.just("web"), "labels": st.just({"meritorder.dev/inject": "true"})},
            optional={"annotations": ANNOTATIONS},
        ),
        "spec": st.fixed_dictionaries(
            {"containers": CONTAINERS},
            optional={
                "initContainers": st.none() | CONTAINERS,
                "volumes": st.none() | st.lists(st.fixed_dictionaries({"name": NAME}), max_size=2),
                "hostNetwork": st.booleans(),
                "terminationGracePeriodSeconds": st.none() | st.integers(0, 10**6),
            },
        ),
    }
)


def outcome_of(pod: dict[str, Any]) -> str | Injected | Left:
    try:
        return asked(pod, None)
    except Refused as refused:
        return str(refused)


@given(PODS)
def test_any_pod_is_refused_in_a_sentence_or_settled_by_one_patch(pod: dict[str, Any]) -> None:
    before = copy.deepcopy(pod)
    found = outcome_of(pod)
    assert pod == before
    if isinstance(found, str):
        assert found.startswith("pod `ml/web` ")
        assert len(found) < 500
    elif isinstance(found, Injected):
        after = patched(pod, found.patch)
        assert outcome_of(after) == Left(reason="HasRouter")
        assert len(after["spec"]["containers"]) == len(pod["spec"]["containers"])
