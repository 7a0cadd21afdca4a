"""What is generated from the models, and that the committed files are it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from meritorder_api.crd import CRD_FILE, REFERENCE_FILE, crd, crd_yaml, schema
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reference import reference
from meritorder_api.status import InferencePolicyStatus
from meritorder_api.wire import Wire

ROOT = Path(__file__).parents[2]


def fields(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every field below, by its path."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child.get("items", child), f"{path}.{name}")


def test_the_committed_crd_is_what_the_models_say() -> None:
    assert (ROOT / "crds" / CRD_FILE).read_text("utf-8") == crd_yaml(), "run `make crds`"


def test_the_committed_reference_is_what_the_models_say() -> None:
    assert (ROOT / REFERENCE_FILE).read_text("utf-8") == reference(crd(hints=False)), "run `make crds`"


def test_the_printed_crd_reads_back_as_it_was_meant() -> None:
    assert yaml.safe_load(crd_yaml()) == crd()


@pytest.mark.parametrize("model", [InferencePolicySpec, InferencePolicyStatus])
def test_every_field_is_described_in_a_sentence(model: type[Wire]) -> None:
    described = dict(fields(schema(model, defaults=True), "."))
    assert len(described) > 60
    assert [path for path, node in described.items() if not node.get("description", "").endswith(".")] == []


def test_every_string_list_and_map_of_the_spec_is_bounded() -> None:
    def bounded(node: Mapping[str, Any]) -> bool:
        if node["type"] == "string":
            return "maxLength" in node or "enum" in node
        if node["type"] == "array":
            return "maxItems" in node and bounded(node["items"])
        if "additionalProperties" in node:
            return "maxProperties" in node and bounded(node["additionalProperties"])
        return True

    spec = schema(InferencePolicySpec, defaults=True)
    assert [path for path, node in fields(spec, "spec") if not bounded(node)] == []


def test_defaults_of_nested_objects_are_written_out() -> None:
    """The API server judges a default by its CEL rules before it fills in the nested ones."""
    spec = schema(InferencePolicySpec, defaults=True)["properties"]
    assert spec["timeouts"]["default"] == {
        "connectSeconds": 1,
        "responseHeadersSeconds": 300,
        "streamIdleSeconds": 300,
        "hedgeMilliseconds": 0,
    }
    assert spec["pools"]["items"]["properties"]["concurrency"]["default"] == {"minimum": 1, "maximum": 256}
    assert "default" not in spec["gateway"]


def test_the_status_has_no_defaults() -> None:
    """What the API server filled in would belong to no field manager."""
    status = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert [path for path, node in fields(status, "status") if "default" in node] == []


def test_a_keyword_without_a_rule_is_refused() -> None:
    class Fractional(Wire):
        share: float

        @classmethod
        def model_json_schema(cls, *args: Any, **more: Any) -> dict[str, Any]:
            return {"type": "object", "properties": {"share": {"type": "number", "multipleOf": 0.5}}}

    with pytest.raises(ValueError, match="no rule for JSON Schema keywords \\['multipleOf'\\]"):
        schema(Fractional, defaults=True)


@pytest.mark.parametrize("model", [InferencePolicySpec, InferencePolicyStatus])
def test_the_reference_names_every_field(model: type[Wire]) -> None:
    text = reference(crd(hints=False))
    names = {path.rpartition(".")[2] for path, _ in fields(schema(model, defaults=True), "")}
    assert {name for name in names if f"| `{name}`" not in text} == set()
