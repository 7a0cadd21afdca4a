"""The base of all wire models, and the few scalar types they share.

Kubernetes spells fields in camelCase and knows no floats in specs: money and figures are decimal strings,
times are integers with their unit in the name, shares are integer percents. What is said here about a value,
the CRD says too: each refusal has one text, wherever it comes from.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Wire(BaseModel):
    """An immutable value in camelCase on the wire; unknown fields are dropped."""

    model_config = ConfigDict(
        frozen=True, populate_by_name=True, alias_generator=to_camel, use_enum_values=False
    )

    def dump(self) -> dict[str, Any]:
        """The JSON form: camelCase, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Rule(NamedTuple):
    """A CEL rule of the CRD; the model it stands in has a validator that says the same.

    The message has no values in it: for the API server's estimate, any that is computed costs too much.
    """

    cel: str
    message: str


def rules(*given: Rule) -> dict[str, Any]:
    """CEL rules for the CRD, as `json_schema_extra`."""
    return {
        "x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message} for rule in given],
    }


class Matching:
    """On a string: it must match the whole pattern (RE2), and the refusal says what it must be in words."""

    def __init__(self, pattern: str, must: str, *, secret: bool = False) -> None:
        """`secret`: what was seen may hold a password, so it is not repeated."""
        self.pattern = pattern
        self.must = must
        self.secret = secret
        self._compiled = re.compile(pattern)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        rule = Rule(f"self.matches(r'{self.pattern}')", self.must)
        return handler(schema) | {"pattern": self.pattern} | rules(rule)

    def _check(self, value: str) -> str:
        if not self._compiled.fullmatch(value):
            raise PydanticCustomError("must", "{must}", {"must": self.must, "secret": self.secret})
        return value


class Unique:
    """On a list: no entry twice; by those fields (as they are on the wire) where the entries are objects."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | (list_map(*self.keys) if self.keys else {"x-kubernetes-list-type": "set"})

    def _check(self, value: list[Any]) -> list[Any]:
        def shown(entry: Any) -> str:
            return ", ".join(f"{key} {getattr(entry, key)}" for key in self.keys) or str(entry)

        entry, times = Counter(map(shown, value)).most_common(1)[0] if value else ("", 0)
        if times > 1:
            raise PydanticCustomError(
                "must", "{must}", {"must": f"must be unique: `{entry}` is there {times} times"}
            )
        return value


def list_map(*keys: str) -> dict[str, Any]:
    """A list that server-side apply merges by these keys, as `json_schema_extra`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
MUST_DNS_LABEL: Final = (
    "must be a DNS label: lower-case letters, digits and dashes, neither first nor last a dash"
)
DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
MUST_DNS_SUBDOMAIN: Final = "must be a DNS subdomain: lower-case letters, digits, dashes and dots"

Name = Annotated[str, Field(max_length=63), Matching(DNS_LABEL, MUST_DNS_LABEL)]
"""A DNS label."""
ObjectName = Annotated[str, Field(max_length=253), Matching(DNS_SUBDOMAIN, MUST_DNS_SUBDOMAIN)]
"""A name as Kubernetes takes for objects."""
PoolName = Annotated[str, Field(max_length=40), Matching(DNS_LABEL, MUST_DNS_LABEL)]
Money = Annotated[
    str,
    Field(max_length=16),
    Matching(
        r"^[0-9]{1,9}(\.[0-9]{1,6})?$",
        'must be US dollars as a decimal string such as "1.86": not negative, at most 6 decimals',
    ),
]
"""US dollars as a decimal string, such as "1.86": never negative, at most 6 decimals."""
Path = Annotated[
    str,
    Field(max_length=256),
    Matching(
        r"^/[A-Za-z0-9._~/-]*$", "must be a path: a slash, then letters, digits, slashes and any of `. _ ~ -`"
    ),
]
"""The path of a URL, without query."""
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
Figure = Annotated[str, Field(max_length=32)]
"""A measured figure as a decimal string; status has no floats either."""


def without_nulls(value: Any) -> Any:
    """Drop fields that are null, at any depth, as the API server does."""
    if isinstance(value, Mapping):
        return {key: without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [without_nulls(child) for child in value]
    return value


def moment(at: float) -> str:
    """Write Unix seconds as the API writes times."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def figure(value: float | Decimal, digits: int = 2) -> str:
    """Write a figure with at most `digits` decimals and no exponent; -0 is 0."""
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def money(value: float | Decimal) -> str:
    """Write an amount of dollars with two decimals, or with as many as a small amount needs (at most six)."""
    exact = f"{value:.6f}"
    if Decimal(exact) == 0:
        return "0.00"
    if abs(Decimal(exact)) >= Decimal("0.1"):
        return f"{value:.2f}"
    whole, _, decimals = exact.rstrip("0").partition(".")
    return f"{whole}.{decimals:0<2}"
