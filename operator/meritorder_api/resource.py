"""An InferencePolicy as an object: metadata, spec and status, and how it is read from a manifest.

Errors:
    PolicyError: what was read is not an InferencePolicy; its text is one sentence for a person.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from meritorder_api.names import API_VERSION, KIND
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.status import InferencePolicyStatus
from meritorder_api.wire import Name, ObjectName, Rule, Wire, without_nulls

_SERVICE_STEM: Final = "^[a-z0-9]([-a-z0-9]{0,53}[a-z0-9])?$"
_GATEWAY_NAME: Final = Rule(
    f"!has(self.spec.gateway) || self.metadata.name.matches('{_SERVICE_STEM}')",
    "`metadata.name` must be a DNS label of at most 55 characters when `spec.gateway` is set: "
    "its Service is NAME-gateway",
)
_TOP_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
OBJECT_RULES: Final = (_GATEWAY_NAME,)
"""CEL rules over the whole object."""


class PolicyError(ValueError):
    """What was read is not an InferencePolicy, in one sentence."""


class Metadata(Wire):
    """The part of an object's metadata that matters here."""

    name: ObjectName
    namespace: Name = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class InferencePolicy(Wire):
    """An InferencePolicy object."""

    metadata: Metadata
    spec: InferencePolicySpec
    status: InferencePolicyStatus = Field(default_factory=InferencePolicyStatus)

    @model_validator(mode="after")
    def _service_can_be_named(self) -> Self:
        if self.spec.gateway is not None and not re.fullmatch(_SERVICE_STEM, self.metadata.name):
            raise ValueError(_GATEWAY_NAME.message)
        return self

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @classmethod
    def parse(cls, manifest: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read a manifest; PolicyError if it is none.

        `strict` refuses unknown fields (files); else they are dropped (API objects). A field that is null
        counts as left out, as it does for the API server.
        """
        if not isinstance(manifest, Mapping):
            raise PolicyError(f"a manifest must be a mapping of fields, not {_kind(manifest)}")
        metadata = manifest.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        called = f"policy `{name}`" if name else "policy without a name"
        if manifest.get("apiVersion") != API_VERSION or manifest.get("kind") != KIND:
            raise PolicyError(
                f"{called}: `apiVersion` and `kind` must be {API_VERSION} {KIND} "
                f"(are {manifest.get('apiVersion')} {manifest.get('kind')})"
            )
        fields = without_nulls(manifest)
        if strict and (unknown := sorted(map(str, fields.keys() - _TOP_FIELDS))):
            raise PolicyError(
                f"{called}: `{unknown[0]}` is not a field; must be one of {', '.join(_TOP_FIELDS)}"
            )
        try:
            spec = InferencePolicySpec.model_validate(
                fields.get("spec", {}), extra="forbid" if strict else "ignore"
            )
        except ValidationError as error:
            raise PolicyError(f"{called}: {sentence(error, 'spec')}") from error
        try:
            return cls.model_validate(
                {"metadata": fields.get("metadata", {}), "spec": spec, "status": fields.get("status", {})}
            )
        except ValidationError as error:
            raise PolicyError(f"{called}: {sentence(error)}") from error


def sentence(error: ValidationError, root: str = "") -> str:
    """Tell a validation's first error in one sentence: field, what is allowed, what was seen."""
    errors = error.errors(include_url=False)
    first = errors[0]
    path = root
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    path = path.removeprefix(".").removesuffix(".[key]")
    message = _message(first)
    if path:
        message = f"`{path}` {message}" if message.startswith(("must", "is not")) else f"`{path}`: {message}"
    return message + (f"; and {len(errors) - 1} more" if len(errors) > 1 else "")


_MUST: Final = {
    "missing": "must be set",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
    "enum": "must be one of {expected}",
    "must": "{must}",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of fields",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "string_pattern_mismatch": "must match {pattern}",
    "extra_forbidden": "is not a field",
}
"""What pydantic's own kinds of error are called here."""


def _message(error: ErrorDetails) -> str:
    kind, seen = error["type"], error.get("input")
    if kind not in _MUST:
        return error["msg"].removeprefix("Value error, ")
    message = _MUST[kind].format_map(error.get("ctx", {})).replace("'", "")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _field_names(), n=1)
        return message + (f"; did you mean `{near[0]}`?" if near else "")
    if kind in ("missing", "string_too_short") or error.get("ctx", {}).get("secret"):
        return message
    if kind == "string_type" and isinstance(seen, int | float):
        return f'{message}: write "{seen}", in quotes'
    if kind == "enum" and isinstance(seen, bool):
        word = "on or yes" if seen else "off or no"
        return f"{message}; a bare {word} is a boolean in YAML, write it in quotes"
    if isinstance(seen, str):
        return f"{message} (is {_short(seen)})"
    if isinstance(seen, bool | int | float):
        return f"{message} (is {seen})"
    if kind in ("too_short", "too_long"):
        return f"{message} (has {len(seen)})"
    return f"{message} (is {_kind(seen)})" if kind.endswith("_type") else message


def _field_names() -> list[str]:
    definitions = InferencePolicySpec.model_json_schema()
    return sorted(
        {
            name
            for model in (definitions, *definitions["$defs"].values())
            for name in model.get("properties", ())
        }
    )


def _short(text: str) -> str:
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."'


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return names.get(type(value), f"`{value}`")
