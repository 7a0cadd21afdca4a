"""The pools file: what stands behind a policy's pools when they are simulated.

```yaml
pools:
  - name: l40s
    profile: llama-3.1-8b/l40s    # or FILE.csv (`profiles`), or {tpot: [a0,a1,a2], ttft: [c0,c1,c2]} in ms
    replicas: 3
    maxBatch: 256
    referenceCostPerMillionTokens: "0.86"
    autoscale: {minimum: 1, maximum: 6, delaySeconds: 120}
    events: [{at: 600, slowdown: 3}, {at: 900, slowdown: 1}, {at: 1200, replicas: 0}]
```
An event may set `replicas` and every field of `faults.FaultChange`, `at` seconds after the start. Unknown
keys are refused.
"""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from meritorder_sim.faults import FaultChange
from meritorder_sim.profiles import LatencyProfile, LinearProfile, ProfileError, resolve

MOST_REPLICAS = 64
_STRICT = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)
Replicas = Annotated[int, Field(ge=0, le=MOST_REPLICAS)]
Milliseconds = Annotated[float, Field(ge=0, le=1_000_000)]


class PoolsFileError(ValueError):
    """A pools file that cannot be used; the text is one sentence for the user."""


class Coefficients(BaseModel):
    """A parametric profile: tpot = a0 + a1*b + a2*b*ISL/1000, ttft = c0 + c1*ISL + c2*ISL*log2(b), in ms."""

    model_config = _STRICT

    tpot: tuple[Milliseconds, Milliseconds, Milliseconds]
    ttft: tuple[Milliseconds, Milliseconds, Milliseconds]

    @field_validator("tpot")
    @classmethod
    def _takes_time(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if value[0] <= 0:
            raise PydanticCustomError("tpot", "the first coefficient must be above 0")
        return value


class Autoscale(BaseModel):
    """Replicas follow what the decision says is needed, within bounds and late by `delaySeconds`."""

    model_config = _STRICT

    minimum: Replicas
    maximum: Replicas
    delay_seconds: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        if self.minimum > self.maximum:
            raise PydanticCustomError("autoscale", "`minimum` must be at most `maximum`")
        return self


class Event(FaultChange):
    """Something that happens to a pool `at` seconds after the start."""

    at: Annotated[float, Field(ge=0)]
    replicas: Replicas | None = None


class PoolSpec(BaseModel):
    """One simulated pool."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    profile: str | Coefficients
    replicas: Replicas = 1
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 256
    reference_cost_per_million_tokens: Decimal | None = None
    autoscale: Autoscale | None = None
    events: tuple[Event, ...] = ()

    @field_validator("reference_cost_per_million_tokens", mode="before")
    @classmethod
    def _money(cls, value: Any) -> Decimal | None:
        if value is None or isinstance(value, Decimal):
            return value
        try:
            amount = Decimal(value) if isinstance(value, str) else None
        except InvalidOperation:
            amount = None
        if amount is None or not amount.is_finite() or amount < 0:
            raise PydanticCustomError("money", 'must be a decimal string of at least 0, such as "0.86"')
        return amount

    @field_validator("events")
    @classmethod
    def _in_order(cls, value: tuple[Event, ...]) -> tuple[Event, ...]:
        return tuple(sorted(value, key=lambda event: event.at))


class PoolsFile(BaseModel):
    """All pools of a file, and the folder that its CSV profiles are relative to."""

    model_config = _STRICT

    pools: Annotated[tuple[PoolSpec, ...], Field(min_length=1, max_length=16)]
    base: Path = Field(default=Path(), exclude=True)

    @field_validator("pools")
    @classmethod
    def _unique(cls, value: tuple[PoolSpec, ...]) -> tuple[PoolSpec, ...]:
        names = [pool.name for pool in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError(
                "unique", "pool names must be unique, '{name}' is there twice", {"name": twice[0]}
            )
        return value

    def profile_of(self, pool: PoolSpec) -> LatencyProfile:
        """Resolve the profile of one of the pools; raises PoolsFileError."""
        if isinstance(pool.profile, Coefficients):
            return LinearProfile(name=pool.name, tpot=pool.profile.tpot, ttft=pool.profile.ttft)
        try:
            return resolve(pool.profile, base=self.base)
        except ProfileError as error:
            raise PoolsFileError(f"pool '{pool.name}': {error}") from error

    def only(self, names: Sequence[str]) -> "PoolsFile":
        """Return the file with just these pools; raises PoolsFileError for a name that is not there."""
        known = {pool.name: pool for pool in self.pools}
        for name in names:
            if name not in known:
                raise PoolsFileError(f"pool '{name}' is not in the pools file; it has {', '.join(known)}")
        return self.model_copy(update={"pools": tuple(known[name] for name in dict.fromkeys(names))})


def load_pools_file(path: Path) -> PoolsFile:
    """Read and check a pools file; raises PoolsFileError with one sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PoolsFileError(f"pools file '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PoolsFileError(f"pools file '{path}' cannot be read: not UTF-8 text") from error
    return parse_pools_file(text, source=str(path), base=path.parent)


def parse_pools_file(text: str, *, source: str = "pools file", base: Path | None = None) -> PoolsFile:
    """Check the text of a pools file, its profiles included; raises PoolsFileError with one sentence."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise PoolsFileError(
            f"{source}: is not valid YAML{where}: {getattr(error, 'problem', None) or error}"
        ) from error
    if not isinstance(content, dict):
        raise PoolsFileError(f"{source}: must be a mapping with `pools`")
    if "base" in content:
        raise PoolsFileError(f"{source}: unknown field `base`; must be one of `pools`")
    try:
        file = PoolsFile.model_validate({**content, "base": base or Path()})
    except ValidationError as error:
        raise PoolsFileError(f"{source}: {_sentence(_worst(error), content)}") from error
    for pool in file.pools:
        try:
            file.profile_of(pool)
        except PoolsFileError as error:
            raise PoolsFileError(f"{source}: {error}") from error
    return file


def _worst(error: ValidationError) -> ErrorDetails:
    """Choose what to tell: an unknown key explains most others, a mapping's own fault its union's."""
    errors = error.errors()
    unknown = [one for one in errors if one["type"] == "extra_forbidden"]
    inside = [one for one in errors if "Coefficients" in one["loc"] and one["type"] != "model_type"]
    return (unknown or inside or errors)[0]


def _sentence(error: ErrorDetails, content: dict[str, Any]) -> str:
    """Name pool and field, and say what must be."""
    path = [part for part in error["loc"] if part not in ("str", "Coefficients")]
    pool = ""
    if len(path) >= 2 and path[0] == "pools" and isinstance(path[1], int):
        entry = content["pools"][path[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        pool = f"pool '{name}': " if isinstance(name, str) else f"pool number {path[1] + 1}: "
        path = path[2:]
    field = ""
    for part in path:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    match error["type"]:
        case "extra_forbidden":
            return f"{pool}unknown field `{field}`; {_allowed(path)}"
        case "missing":
            return f"{pool}`{field}` is missing"
        case "unique":
            return error["msg"]
        case "too_short":
            return f"{pool}`{field}` must have at least {error['ctx']['min_length']} entries"
        case "model_type":
            return f"{pool}{f'`{field}` ' if field else ''}must be a mapping"
        case "string_type" if path and path[0] == "profile":
            return (
                f"{pool}`profile` must be a built-in name, a path to a CSV, or {{tpot: [...], ttft: [...]}}"
            )
    message = error["msg"]
    message = message[0].lower() + message[1:]
    for old, new in (
        ("input should be ", "must be "),
        ("value should ", "must "),
        ("string should ", "must "),
    ):
        message = message.replace(old, new)
    shown = "" if isinstance(error["input"], dict | list) else f", is {error['input']!r}"
    return f"{pool}`{field}` {message}{shown}" if field else f"{pool}{message}"


def _allowed(path: Sequence[object]) -> str:
    models: dict[object, type[BaseModel]] = {"autoscale": Autoscale, "events": Event, "profile": Coefficients}
    model = models.get(path[0], PoolSpec) if len(path) > 1 else PoolSpec
    names = sorted(field.alias or name for name, field in model.model_fields.items())
    return "must be one of " + ", ".join(f"`{name}`" for name in names)
