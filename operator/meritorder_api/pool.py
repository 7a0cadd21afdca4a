"""A pool of an InferencePolicy: where its servers are, what it costs, whose metrics tell of it, how far it
may be filled.
"""

import re
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, model_validator

from meritorder_api.wire import (
    Matching,
    Money,
    Name,
    ObjectName,
    Path,
    PoolName,
    Port,
    Rule,
    Unique,
    Wire,
    rules,
)

_REFERENCE: Final = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})


class Engine(StrEnum):
    """Whose metrics tell of a pool."""

    ROUTER = "Router"
    VLLM = "VLLM"
    SGLANG = "SGLang"
    TGI = "TGI"
    TRITON = "Triton"
    CUSTOM = "Custom"


class SecretRef(Wire):
    """A Secret of the policy's namespace."""

    model_config = _REFERENCE

    name: ObjectName = Field(description="Name of a Secret in the policy's namespace.")


class SecretKeyRef(Wire):
    """One key of a Secret of the policy's namespace."""

    model_config = _REFERENCE

    name: ObjectName = Field(description="Name of a Secret in the policy's namespace.")
    key: Annotated[
        str,
        Field(max_length=253),
        Matching(r"^[-._a-zA-Z0-9]+$", "must be a Secret's key: letters, digits and any of `. _ -`"),
    ] = Field(description="Key inside the Secret.")


class Accelerator(Wire):
    """What a replica runs on; for people and for the checks of `doctor`."""

    type: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        description='Accelerator type, such as "H100" or "L40S".'
    )
    per_replica: Annotated[int, Field(strict=True, ge=1, le=1024)] = Field(
        default=1, description="Accelerators per replica."
    )


class ServiceBackend(Wire):
    """A Service of the policy's namespace; its ready endpoints are the pool's replicas."""

    name: Name = Field(description="Name of a Service in the policy's namespace.")
    port: Port = Field(description="Port of the Service.")


class TLS(Wire):
    """TLS towards a host."""

    server_name: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="Name to ask for (SNI) and to verify. Default: the host."
    )
    ca_secret_ref: SecretKeyRef | None = Field(
        default=None, description="CA certificates (PEM) to trust instead of the system's."
    )


class Host(Wire):
    """One server outside the cluster."""

    host: Annotated[
        str,
        Field(max_length=253),
        Matching(r"^[A-Za-z0-9.:_-]+$", "must be a host name or an IP address, without scheme, port or path"),
    ] = Field(description="Host name or IP address.")
    port: Port = Field(description="TCP port.")
    tls: TLS | None = Field(default=None, description="Speak TLS to this host. Default: plain HTTP.")


_ONE_BACKEND: Final = Rule(
    "has(self.service) != has(self.hosts)", "exactly one of `service` and `hosts` must be set"
)


class Backend(Wire):
    """Where a pool's servers are."""

    model_config = ConfigDict(json_schema_extra=rules(_ONE_BACKEND))

    service: ServiceBackend | None = Field(
        default=None, description="A Service of the same namespace; its ready endpoints are the replicas."
    )
    hosts: Annotated[list[Host], Field(min_length=1, max_length=64), Unique("host", "port")] | None = Field(
        default=None, description="Servers outside the cluster; each entry counts as one replica. 1 to 64."
    )
    path_prefix: Path | None = Field(
        default=None, description='Prefix put before the request\'s path, such as "/api".'
    )
    model: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None,
        description="Model name that this pool serves under; rewritten in the request. Default: unchanged.",
    )
    api_key_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="Key sent to this pool as `Authorization: Bearer`; it replaces the client's own.",
    )
    replicas: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = Field(
        default=None,
        description="Replicas behind the backend, where they cannot be counted by its endpoints.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.service is None) == (self.hosts is None):
            raise ValueError(_ONE_BACKEND.message)
        return self


class TokenPrice(Wire):
    """A metered provider's price."""

    input: Money = Field(description="US dollars per million prompt tokens, as a decimal string.")
    output: Money = Field(description="US dollars per million completion tokens, as a decimal string.")


PromQL = Annotated[str, Field(min_length=1, max_length=2048)]

_ONE_COST: Final = Rule(
    "[has(self.perReplicaHour), has(self.perMillionTokens), has(self.query)].filter(x, x).size() == 1",
    "exactly one of `perReplicaHour`, `perMillionTokens` and `query` must be set",
)


class Cost(Wire):
    """What a pool costs: by replica and hour, by token, or as Prometheus tells."""

    model_config = ConfigDict(json_schema_extra=rules(_ONE_COST))

    per_replica_hour: Money | None = Field(
        default=None, description='US dollars per replica and hour, as a decimal string such as "1.86".'
    )
    per_million_tokens: TokenPrice | None = Field(
        default=None, description="Price of a metered provider, in US dollars per million tokens."
    )
    query: PromQL | None = Field(
        default=None, description="PromQL giving one value: US dollars per replica and hour."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(x is not None for x in (self.per_replica_hour, self.per_million_tokens, self.query)) != 1:
            raise ValueError(_ONE_COST.message)
        return self


class CustomQueries(Wire):
    """PromQL per signal. `$window` stands for the range to look over, such as `60s`."""

    total: PromQL = Field(description="Requests completed within `$window`.")
    slow: PromQL = Field(description="Of these, the requests slower than the target (failed ones included).")
    in_flight: PromQL = Field(description="Requests in flight now.")
    latency_sum: PromQL | None = Field(
        default=None,
        description="Sum of the end-to-end time in seconds of the requests completed within `$window`.",
    )


_CUSTOM: Final = Rule(
    "(self.engine == 'Custom') == has(self.custom)", "`custom` must be set exactly when `engine` is Custom"
)
_LABEL_NAME: Final = "^[a-zA-Z_][a-zA-Z0-9_]{0,62}$"
_LABEL_NAMES: Final = Rule(
    "!has(self.selector) || self.selector.all(label, label.size() <= 63 && "
    "label.matches('^[a-zA-Z_][a-zA-Z0-9_]*$'))",
    "`selector` must have Prometheus labels as keys: letters, digits and underscores",
)


class Metrics(Wire):
    """Whose metrics tell of a pool."""

    model_config = ConfigDict(json_schema_extra=rules(_CUSTOM, _LABEL_NAMES))

    engine: Engine = Field(
        default=Engine.ROUTER,
        description="Router: our own Envoy's (needs nothing of the servers). Else the serving engine's own "
        "metrics (VLLM, SGLang, TGI, Triton), or Custom.",
    )
    custom: CustomQueries | None = Field(default=None, description="Queries, when `engine` is Custom.")
    selector: (
        Annotated[dict[str, Annotated[str, Field(max_length=253)]], Field(min_length=1, max_length=4)] | None
    ) = Field(
        default=None,
        description="Labels that pick the pool's series of a serving engine, 1 to 4. "
        "Default: `namespace` and `service` of the backend.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.engine is Engine.CUSTOM) != (self.custom is not None):
            raise ValueError(_CUSTOM.message)
        if any(not re.fullmatch(_LABEL_NAME, label) for label in self.selector or ()):
            raise ValueError(_LABEL_NAMES.message)
        return self


_BOUNDS: Final = Rule(
    "self.minimum <= self.maximum",
    "`minimum` must be at most `maximum`",
)


class Concurrency(Wire):
    """Bounds of the learned limit."""

    model_config = ConfigDict(json_schema_extra=rules(_BOUNDS))

    minimum: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        default=1, description="Least requests in flight per ready replica; a new pool starts here."
    )
    maximum: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        default=256, description="Most requests in flight per ready replica."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"`minimum` is {self.minimum}; it must be at most `maximum` ({self.maximum})")
        return self


_SELECTED: Final = Rule(
    "self.metrics.engine in ['Router', 'Custom'] || has(self.backend.service) || has(self.metrics.selector)",
    "`metrics.selector` must be set for a serving engine's metrics when the backend is `hosts`",
)


class Pool(Wire):
    """One homogeneous group of model servers."""

    model_config = ConfigDict(json_schema_extra=rules(_SELECTED))

    name: PoolName = Field(description="Name of the pool, unique in the policy.")
    accelerator: Accelerator | None = Field(default=None, description="What a replica runs on.")
    backend: Backend = Field(
        description="Where the pool's servers are: exactly one of `service` and `hosts`."
    )
    cost: Cost = Field(
        description="What the pool costs: exactly one of `perReplicaHour`, `perMillionTokens` and `query`."
    )
    metrics: Metrics = Field(default_factory=Metrics, description="Whose metrics tell of the pool.")
    concurrency: Concurrency = Field(
        default_factory=Concurrency, description="Bounds of the learned limit, per ready replica."
    )

    @model_validator(mode="after")
    def _selector(self) -> Self:
        if (
            self.metrics.engine not in (Engine.ROUTER, Engine.CUSTOM)
            and self.backend.service is None
            and self.metrics.selector is None
        ):
            raise ValueError(_SELECTED.message)
        return self
