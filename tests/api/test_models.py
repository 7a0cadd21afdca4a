"""What the models take and refuse, and in which words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from api.specs import BAD, FULL, GOOD, SMALL, Bad, changed, policy
from meritorder_api.policy import Engine, InferencePolicySpec, Mode
from meritorder_api.resource import InferencePolicy, PolicyError
from meritorder_api.wire import figure, money


def refusal(manifest: Any, *, strict: bool = True) -> str:
    with pytest.raises(PolicyError) as refused:
        InferencePolicy.parse(manifest, strict=strict)
    return str(refused.value)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_refuses_a_bad_spec_in_one_sentence(bad: Bad) -> None:
    said = refusal(bad.manifest)
    assert said.startswith(f"policy `{bad.name}`: {bad.models}")
    assert "\n" not in said


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD.keys())
def test_takes_a_good_spec(spec: dict[str, Any]) -> None:
    parsed = InferencePolicy.parse(policy(spec), strict=True)
    assert [pool.name for pool in parsed.spec.pools] == [pool["name"] for pool in spec["pools"]]
    assert InferencePolicySpec.model_validate(parsed.spec.dump()) == parsed.spec


def test_fills_in_what_is_left_out() -> None:
    spec = InferencePolicy.parse(policy(SMALL)).spec
    assert (spec.sla.percentile, spec.sla.window_seconds, spec.mode) == (95, 60, Mode.ENFORCE)
    assert [pool.metrics.engine for pool in spec.pools] == [Engine.ROUTER, Engine.ROUTER]
    assert spec.pool("h100").concurrency.maximum == 256


def test_finds_no_pool_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="a100"):
        InferencePolicy.parse(policy(SMALL)).spec.pool("a100")


def test_drops_unknown_fields_of_an_object_from_the_api_server() -> None:
    newer = policy(changed(SMALL, {"somethingNew": 1}))
    assert InferencePolicy.parse(newer).spec == InferencePolicy.parse(policy(SMALL)).spec


def test_keeps_what_was_written() -> None:
    written = InferencePolicy.parse(policy(FULL), strict=True).spec.dump()
    # Only pools' own defaults are added, where the full policy leaves them out.
    assert {key: written[key] for key in FULL if key != "pools"} == {
        key: value for key, value in FULL.items() if key != "pools"
    }
    assert written["pools"][0] == FULL["pools"][0]


def test_does_not_repeat_a_url_that_may_hold_a_password() -> None:
    said = refusal(policy(changed(SMALL, {"metricsSource.prometheus.url": "http://me:hunter2@prometheus"})))
    assert "hunter2" not in said
    assert said.endswith("must be an http:// or https:// URL without credentials")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ([], "a manifest must be a mapping of fields, not a list"),
        (None, "a manifest must be a mapping of fields, not nothing"),
        ("policy", "a manifest must be a mapping of fields, not `policy`"),
        (
            {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "x"}},
            "policy `x`: `apiVersion` and `kind` must be meritorder.dev/v1alpha1 InferencePolicy "
            "(are apps/v1 Deployment)",
        ),
        (policy(SMALL) | {"metadata": {}}, "policy without a name: `metadata.name` must be set"),
        (
            policy(SMALL) | {"metadata": "chat"},
            'policy without a name: `metadata` must be a mapping of fields (is "chat")',
        ),
        (
            policy(SMALL) | {"specs": {}},
            "policy `chat`: `specs` is not a field; must be one of apiVersion, kind, metadata, spec, status",
        ),
        (
            policy(SMALL, name="Chat"),
            "policy `Chat`: `metadata.name` must be a DNS subdomain: "
            'lower-case letters, digits, dashes and dots (is "Chat")',
        ),
        (policy({}), "policy `chat`: `spec.sla` must be set; and 1 more"),
        (policy(SMALL) | {"spec": []}, "policy `chat`: `spec` must be a mapping of fields (is a list)"),
        (
            policy(SMALL) | {"status": {"conditions": 3}},
            "policy `chat`: `status.conditions` must be a list (is 3)",
        ),
    ],
)
def test_says_what_is_wrong_with_a_manifest(manifest: Any, said: str) -> None:
    assert refusal(manifest) == said


def test_knows_a_policy_by_namespace_and_name() -> None:
    manifest = policy(SMALL) | {"metadata": {"name": "chat", "namespace": "ml"}}
    assert InferencePolicy.parse(manifest).key == "ml/chat"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(16.25, 2, "16.25"), (16.0, 2, "16"), (100.0, 0, "100"), (-0.001, 2, "0"), (1e9, 2, "1000000000")],
)
def test_writes_a_figure(value: float, digits: int, text: str) -> None:
    assert figure(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("24.92"), "24.92"),
        (6.8, "6.80"),
        (0, "0.00"),
        (0.1, "0.10"),
        (Decimal("0.0612"), "0.0612"),
        (0.05, "0.05"),
        (0.0000001, "0.00"),
        (-0.0000001, "0.00"),
        (Decimal("-3.5"), "-3.50"),
    ],
)
def test_writes_money(value: float | Decimal, text: str) -> None:
    assert money(value) == text
