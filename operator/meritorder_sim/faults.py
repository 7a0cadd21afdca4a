"""Faults that a simulated pool can be told to show, from its pools file, over HTTP or from Python.

`Faults` is how a replica misbehaves now; `FaultChange` names only what should become different. Field names
are the same everywhere: in `events` of a pools file, in `POST /sim/faults`, and (in snake case) in Python.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Hang = Literal["none", "headers", "body", "all"]
MetricsMode = Literal["live", "frozen", "absent", "empty", "nan"]
Percent = Annotated[float, Field(ge=0, le=100)]
Slowdown = Annotated[float, Field(gt=0, le=10_000)]
ErrorStatus = Annotated[int, Field(ge=400, le=599)]

_STRICT = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Faults(BaseModel):
    """How a replica misbehaves at this moment; the defaults are a healthy one."""

    model_config = _STRICT

    slowdown: Slowdown = Field(default=1.0, description="Everything takes this many times as long.")
    error_percent: Percent = Field(
        default=0.0, description="Share of inference requests answered with `errorStatus`."
    )
    error_status: ErrorStatus = Field(default=503, description="The status of those answers.")
    hang: Hang = Field(
        default="none",
        description="The engine stops. headers: no answer begins; body: headers come, then nothing; "
        "all: /health and /metrics hang too. What hangs goes on when this is set back to none.",
    )
    metrics: MetricsMode = Field(
        default="live",
        description="For /metrics. frozen: repeats itself; absent: 404; empty: no series; nan: all NaN.",
    )
    usage: bool = Field(
        default=True, description="Whether answers carry token counts when the client asks for them."
    )
    reset_percent: Percent = Field(
        default=0.0,
        description="Share of inference requests whose connection is reset halfway through the answer.",
    )


class FaultChange(BaseModel):
    """The same fields as `Faults`, each optional: only those given change."""

    model_config = _STRICT

    slowdown: Slowdown | None = None
    error_percent: Percent | None = None
    error_status: ErrorStatus | None = None
    hang: Hang | None = None
    metrics: MetricsMode | None = None
    usage: bool | None = None
    reset_percent: Percent | None = None

    def apply_to(self, faults: Faults) -> Faults:
        """Return `faults` with the fields given here."""
        given: dict[str, Any] = {
            name: getattr(self, name) for name in FaultChange.model_fields if getattr(self, name) is not None
        }
        return faults.model_copy(update=given)


class FaultCommand(FaultChange):
    """The body of `POST /sim/faults`."""

    scope: Literal["replica", "pool"] = Field(
        default="pool",
        description="Whether this is for the replica asked, or for all of its pool in this process.",
    )
    die: bool = Field(
        default=False, description="Close the listener and reset every connection, as a killed process does."
    )
    revive_after_seconds: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="With `die`: listen again on the same port after this time; without it, never.",
    )
