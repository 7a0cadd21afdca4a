"""The CustomResourceDefinition of InferencePolicy, made from the models: they are the source, `crds/` is
their print.

A structural schema (as the API server demands it) is what pydantic says with references inlined, titles and
nulls gone, and two things added: defaults for nested objects, so that CEL rules may rely on every default
(written out in full: the API server judges a default by its rules before it fills in the nested ones), and
list types for server-side apply.

`python -m meritorder_api.crd` prints it; with `--write` it writes `crds/` and `docs/reference/api.md`
under the folder it is started in.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from meritorder_api import names
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reference import reference
from meritorder_api.resource import OBJECT_RULES
from meritorder_api.status import InferencePolicyStatus
from meritorder_api.wire import Wire, rules

CRD_FILE: Final = f"{names.GROUP}_{names.PLURAL}.yaml"
REFERENCE_FILE: Final = Path("docs") / "reference" / "api.md"
HEADER: Final = "# Generated from the models in operator/meritorder_api by `make crds`. Do not edit.\n"
DESCRIPTION: Final = (
    "An InferencePolicy promises one latency SLA for a group of GPU pools that serve the same model, and "
    "keeps traffic "
    "on the cheapest pool that meets it."
)

_COPIED: Final = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
)
"""Keywords that go over as they are, in the order in which they are printed."""

_DROPPED: Final = ("title", "$defs", "$ref", "anyOf", "additionalProperties", "properties", "items")
"""Keywords that are resolved or mean nothing in a structural schema."""


def schema(model: type[Wire], *, defaults: bool) -> dict[str, Any]:
    """The structural schema of a model; with `defaults`, the API server fills in what is left out."""
    source = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(source, source.get("$defs", {}), defaults)


def crd(*, hints: bool = True) -> dict[str, Any]:
    """The CustomResourceDefinition as plain data; with `hints`, descriptions end with bounds and default."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names.PLURAL}.{names.GROUP}",
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": names.LIST_KIND,
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": [names.CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(_columns()),
                    "schema": {"openAPIV3Schema": _object_schema(hints)},
                }
            ],
        },
    }


def crd_yaml() -> str:
    """The CustomResourceDefinition as YAML; equal models, equal bytes."""
    return HEADER + "---\n" + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _object_schema(hints: bool) -> dict[str, Any]:
    spec = schema(InferencePolicySpec, defaults=True)
    return {
        "description": DESCRIPTION,
        "type": "object",
        "required": ["spec"],
        **rules(*OBJECT_RULES),
        "properties": {
            "apiVersion": {"description": f"Always {names.API_VERSION}.", "type": "string"},
            "kind": {"description": f"Always {names.KIND}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": _hinted(spec) if hints else spec,
            "status": schema(InferencePolicyStatus, defaults=False),
        },
    }


def _hinted(node: dict[str, Any]) -> dict[str, Any]:
    """Say bounds and defaults in the descriptions: `kubectl explain` shows neither."""
    hints = []
    if node["type"] == "integer":
        hints.append(f"{node['minimum']} to {node['maximum']}")
    if "default" in node and "properties" not in node:
        hints.append(
            f"default: {str(node['default']).lower() if node['type'] == 'boolean' else node['default']}"
        )
    out = dict(node)
    if hints:
        hint = "; ".join(hints)
        out["description"] += f" {hint[:1].upper()}{hint[1:]}."
    if "items" in node:
        out["items"] = _hinted(node["items"])
    if "properties" in node:
        out["properties"] = {name: _hinted(child) for name, child in node["properties"].items()}
    return out


def _columns() -> Iterator[dict[str, Any]]:
    """The columns of `kubectl get`; those of priority 1 are for `-o wide`."""

    def column(name: str, path: str, description: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "type": "string", "jsonPath": path, "description": description} | more

    def condition(kind: str, field: str) -> str:
        return f'.status.conditions[?(@.type=="{kind}")].{field}'

    yield column("Target", ".status.summary.target", "The latency promise.")
    yield column("Attained", ".status.summary.attained", "The SLA's percentile as measured, over all pools.")
    yield column("Cheapest", ".status.summary.cheapest", "The cheapest pool and its share of the requests.")
    yield column("$/h", ".status.summary.costPerHour", "US dollars per hour for all that is ready.")
    yield column("Saved", ".status.summary.saved", "Share saved against the fallback pool alone.")
    yield column("SLAMet", condition("SLAMet", "status"), "Whether the promise is kept.")
    yield column("Ready", condition("Ready", "status"), "Whether all is well.")
    yield column("Reason", condition("Ready", "reason"), "Why it is ready or not.", priority=1)
    yield column("Decision", ".status.decision.message", "What was last decided, and why.", priority=1)
    yield column("Age", ".metadata.creationTimestamp", "Time since it was created.", type="date")


def _structural(node: Mapping[str, Any], defs: Mapping[str, Any], defaults: bool) -> dict[str, Any]:
    node = _resolved(node, defs)
    unknown = set(node) - set(_COPIED) - set(_DROPPED)
    if unknown:
        raise ValueError(f"no rule for JSON Schema keywords {sorted(unknown)} in {node}")
    out: dict[str, Any] = {key: node[key] for key in _COPIED if key in node}
    if out.get("default") in (None, []) or not defaults:
        out.pop("default", None)
    if node["type"] == "array":
        out["items"] = _structural(node["items"], defs, defaults)
        out.setdefault("x-kubernetes-list-type", "atomic")
    elif "properties" in node:
        out["properties"] = {
            name: _property(child, defs, defaults, required=name in node.get("required", ()))
            for name, child in node["properties"].items()
        }
    elif node["type"] == "object":
        out["additionalProperties"] = _structural(node["additionalProperties"], defs, defaults)
    return out


def _property(
    node: Mapping[str, Any], defs: Mapping[str, Any], defaults: bool, *, required: bool
) -> dict[str, Any]:
    out = _structural(node, defs, defaults)
    nullable = "anyOf" in node
    if defaults and not required and not nullable and "properties" in out:
        whole = {name: child["default"] for name, child in out["properties"].items() if "default" in child}
        out = {key: out[key] for key in ("description", "type")} | {"default": whole} | out
    return out


def _resolved(node: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """Inline a reference or the one alternative that is not null; what stands beside it wins."""
    if "$ref" in node:
        inner = _resolved(defs[node["$ref"].rpartition("/")[2]], defs)
    elif "anyOf" in node:
        (alternative,) = (option for option in node["anyOf"] if option.get("type") != "null")
        inner = _resolved(alternative, defs)
    else:
        return dict(node)
    return inner | {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with list items indented under their key as kubectl's users write them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _main(arguments: list[str]) -> None:
    if arguments == ["--write"]:
        for file, text in (
            (Path("crds") / CRD_FILE, crd_yaml()),
            (REFERENCE_FILE, reference(crd(hints=False))),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    elif not arguments:
        sys.stdout.write(crd_yaml())
    else:
        sys.exit("usage: python -m meritorder_api.crd [--write]")


if __name__ == "__main__":
    _main(sys.argv[1:])
