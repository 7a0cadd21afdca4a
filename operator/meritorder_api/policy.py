"""The spec of an InferencePolicy: one latency SLA and the pools that may serve it.

Every description is written for the person with `kubectl explain`; every rule that crosses fields is CEL in
the CRD, so that the API server itself refuses a bad spec. What these models refuse, the CRD refuses, and the
other way round (`meritorder_api.crd` turns them into it).
"""

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, StrictBool, model_validator

from meritorder_api.pool import (
    TLS,
    Accelerator,
    Backend,
    Concurrency,
    Cost,
    CustomQueries,
    Engine,
    Host,
    Metrics,
    Pool,
    SecretKeyRef,
    SecretRef,
    ServiceBackend,
    TokenPrice,
)
from meritorder_api.wire import Matching, Name, Path, PoolName, Rule, Unique, Wire, rules

__all__ = [
    "SLA",
    "TLS",
    "Accelerator",
    "Backend",
    "Behavior",
    "Concurrency",
    "Cost",
    "CustomQueries",
    "Engine",
    "Gateway",
    "GatewayAuth",
    "Host",
    "InferencePolicySpec",
    "MeritOrder",
    "Metrics",
    "MetricsSource",
    "Mode",
    "OnMissingMetrics",
    "Pool",
    "PrometheusServer",
    "Requests",
    "SLAMetric",
    "SecretKeyRef",
    "SecretRef",
    "ServiceBackend",
    "SizeClasses",
    "SteeringHeader",
    "Timeouts",
    "TokenPrice",
    "WhenInfeasible",
    "WhenSaturated",
]


class SLAMetric(StrEnum):
    """What the SLA is about."""

    END_TO_END = "EndToEndLatency"
    TTFT = "TimeToFirstToken"
    TPOT = "TimePerOutputToken"


class MeritOrder(StrEnum):
    DECLARED_PRICE = "DeclaredPrice"
    MEASURED_COST = "MeasuredCost"


class SizeClasses(StrEnum):
    AUTO = "Auto"
    OFF = "Off"


class OnMissingMetrics(StrEnum):
    HOLD = "Hold"
    SAFEST = "Safest"


class WhenInfeasible(StrEnum):
    FASTEST = "Fastest"
    HOLD = "Hold"
    SHED = "Shed"


class WhenSaturated(StrEnum):
    OVERFLOW = "Overflow"
    SHED = "Shed"


class Mode(StrEnum):
    ENFORCE = "Enforce"
    RECOMMEND = "Recommend"


class SteeringHeader(StrEnum):
    PRIORITY = "x-meritorder-priority"
    POOL = "x-meritorder-pool"
    EXCLUDE = "x-meritorder-exclude"
    SESSION = "x-meritorder-session"


class SLA(Wire):
    """The latency promise."""

    metric: SLAMetric = Field(
        description="What is promised: EndToEndLatency (request to last byte), TimeToFirstToken or "
        "TimePerOutputToken (mean gap between a stream's tokens). The latter two are judged on streams only."
    )
    percentile: Annotated[int, Field(strict=True, ge=50, le=99)] = Field(
        default=95,
        description="Percentile that must meet the target: 95 means that at most 5 % may be slower.",
    )
    target_milliseconds: Annotated[int, Field(strict=True, ge=1, le=3_600_000)] = Field(
        description="The target in milliseconds."
    )
    window_seconds: Annotated[int, Field(strict=True, ge=5, le=3600)] = Field(
        default=60,
        description="Window over which the promise is judged, in seconds. The controller's own times scale"
        " with it.",
    )
    minimum_samples: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        default=50,
        description="Completed requests needed before a verdict is reported. With little traffic the "
        "window reaches "
        "back until it has them, at most 10 windows.",
    )


class PrometheusServer(Wire):
    """A Prometheus server, or what speaks its query API."""

    url: Annotated[
        str,
        Field(max_length=2048),
        Matching(
            r"^https?://[!-?A-~]+$", "must be an http:// or https:// URL without credentials", secret=True
        ),
    ] = Field(description="Base URL. Must match one of the operator's allowed URLs; no credentials in it.")
    auth_secret_ref: SecretRef | None = Field(
        default=None, description="Secret with `token` (bearer), or `username` and `password` (basic)."
    )
    ca_secret_ref: SecretKeyRef | None = Field(
        default=None, description="CA certificates (PEM) to trust instead of the system's."
    )


class MetricsSource(Wire):
    """Where metrics are read."""

    prometheus: PrometheusServer = Field(description="A Prometheus server.")


_HEDGE_BEFORE_TIMEOUT: Final = Rule(
    "self.hedgeMilliseconds == 0 || self.responseHeadersSeconds == 0 || "
    "self.hedgeMilliseconds < self.responseHeadersSeconds * 1000",
    "`hedgeMilliseconds` must be less than `responseHeadersSeconds`",
)


class Timeouts(Wire):
    """Timeouts towards the pools; 0 is none."""

    model_config = ConfigDict(json_schema_extra=rules(_HEDGE_BEFORE_TIMEOUT))

    connect_seconds: Annotated[int, Field(strict=True, ge=0, le=600)] = Field(
        default=1, description="To connect to a server."
    )
    response_headers_seconds: Annotated[int, Field(strict=True, ge=0, le=86_400)] = Field(
        default=300, description="Until a try's response headers; then the next pool is tried."
    )
    stream_idle_seconds: Annotated[int, Field(strict=True, ge=0, le=86_400)] = Field(
        default=300, description="Without a byte on a stream."
    )
    hedge_milliseconds: Annotated[int, Field(strict=True, ge=0, le=3_600_000)] = Field(
        default=0,
        description="Until a try's response headers; then the next pool is tried as well, and the first to "
        "answer serves the request. The others' work is lost.",
    )

    @model_validator(mode="after")
    def _hedge_before_timeout(self) -> Self:
        limit = self.response_headers_seconds
        if limit and self.hedge_milliseconds >= limit * 1000:
            raise ValueError(
                f"`hedgeMilliseconds` is {self.hedge_milliseconds}; "
                f"it must be less than `responseHeadersSeconds` ({limit})"
            )
        return self


class Requests(Wire):
    """What requests may carry and where they may go."""

    add_usage: StrictBool = Field(
        default=False, description="Ask the servers for token usage on streams where the client did not."
    )
    headers: Annotated[list[SteeringHeader], Field(max_length=4), Unique()] = Field(
        default_factory=list,
        description="Steering headers that act: priority (high or low), pool and exclude (for debugging), "
        "and session (requests with the same value go to the same replica of a pool, for its prefix cache). "
        "They are stripped before a pool sees the request, listed or not.",
    )
    paths: Annotated[list[Path], Field(max_length=32), Unique()] = Field(
        default_factory=list,
        description="Paths that pass beyond the usual inference ones; POSTs on them count as samples. At "
        "most 32.",
    )


_FRESH_ENOUGH: Final = Rule(
    "self.stalenessSeconds >= self.intervalSeconds",
    "`stalenessSeconds` must be at least `intervalSeconds`",
)


class Behavior(Wire):
    """How the decision behaves."""

    model_config = ConfigDict(json_schema_extra=rules(_FRESH_ENOUGH))

    interval_seconds: Annotated[int, Field(strict=True, ge=1, le=300)] = Field(
        default=5, description="Seconds between decisions; not more often than metrics are scraped."
    )
    staleness_seconds: Annotated[int, Field(strict=True, ge=1, le=3600)] = Field(
        default=60, description="Metrics older than this are not known."
    )
    on_missing_metrics: OnMissingMetrics = Field(
        default=OnMissingMetrics.HOLD,
        description="When metrics are missing: Hold (limits stay) or Safest (all to the fallback pool).",
    )
    when_infeasible: WhenInfeasible = Field(
        default=WhenInfeasible.FASTEST,
        description="When no pool meets the SLA: Fastest (all to the fallback pool), Hold, or Shed (429 "
        "beyond what fits).",
    )
    when_saturated: WhenSaturated = Field(
        default=WhenSaturated.OVERFLOW,
        description="When every pool is full: Overflow (to the fallback pool) or Shed (429 with "
        "Retry-After).",
    )

    @model_validator(mode="after")
    def _fresh_enough(self) -> Self:
        if self.staleness_seconds < self.interval_seconds:
            raise ValueError(
                f"`stalenessSeconds` is {self.staleness_seconds}; "
                f"it must be at least `intervalSeconds` ({self.interval_seconds})"
            )
        return self


class GatewayAuth(Wire):
    """Who may use the gateway."""

    secret_ref: SecretRef = Field(description="Secret whose values are the accepted bearer tokens.")


class Gateway(Wire):
    """A shared gateway for clients without a sidecar."""

    replicas: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(default=2, description="Gateway pods.")
    allowed_namespaces: Annotated[list[Name], Field(max_length=64), Unique()] = Field(
        default_factory=list,
        description="Namespaces whose pods may connect, beside the policy's own. At most 64.",
    )
    auth: GatewayAuth | None = Field(
        default=None, description="Bearer tokens; required with a pool that has an API key."
    )


_KNOWN_FALLBACK: Final = Rule(
    "!has(self.fallbackPool) || self.pools.exists(p, p.name == self.fallbackPool)",
    "`fallbackPool` must name one of `pools`",
)
_GUARDED_KEY: Final = Rule(
    "!has(self.gateway) || has(self.gateway.auth) || !self.pools.exists(p, has(p.backend.apiKeySecretRef))",
    "`gateway.auth` must be set when a pool has `apiKeySecretRef`",
)
_INTERVAL_IN_WINDOW: Final = Rule(
    "self.behavior.intervalSeconds <= self.sla.windowSeconds",
    "`behavior.intervalSeconds` must be at most `sla.windowSeconds`",
)


class InferencePolicySpec(Wire):
    """One latency SLA and the pools that may serve it: traffic goes to the cheapest pool that meets it."""

    model_config = ConfigDict(json_schema_extra=rules(_KNOWN_FALLBACK, _GUARDED_KEY, _INTERVAL_IN_WINDOW))

    sla: SLA = Field(description="The latency promise.")
    pools: Annotated[list[Pool], Field(min_length=1, max_length=16), Unique("name")] = Field(
        description="The pools that may serve, 1 to 16. Their order does not matter: cost decides."
    )
    fallback_pool: PoolName | None = Field(
        default=None,
        description="The pool that takes what the others cannot, last in order and unlimited. "
        "Default: the one with the highest price per replica-hour.",
    )
    merit_order: MeritOrder = Field(
        default=MeritOrder.DECLARED_PRICE,
        description="Order of the pools before the fallback: DeclaredPrice (per replica-hour) or "
        "MeasuredCost (per request at the limit).",
    )
    metrics_source: MetricsSource | None = Field(
        default=None, description="Where metrics are read. Default: the operator's own Prometheus."
    )
    size_classes: SizeClasses = Field(
        default=SizeClasses.AUTO,
        description="Limits by size of the request: Auto (on when the SLA is end to end) or Off "
        '(write "Off" in quotes: bare, YAML reads it as false).',
    )
    timeouts: Timeouts = Field(default_factory=Timeouts, description="Timeouts towards the pools.")
    requests: Requests = Field(default_factory=Requests, description="What requests may carry.")
    behavior: Behavior = Field(default_factory=Behavior, description="How the decision behaves.")
    gateway: Gateway | None = Field(
        default=None, description="A shared gateway for clients without a sidecar."
    )
    mode: Mode = Field(
        default=Mode.ENFORCE, description="Enforce, or Recommend: decide and report, but change nothing."
    )
    suspend: StrictBool = Field(default=False, description="Stop deciding; the last routing keeps serving.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [pool.name for pool in self.pools]
        if self.fallback_pool is not None and self.fallback_pool not in names:
            raise ValueError(
                f"`fallbackPool` is `{self.fallback_pool}`; it must name one of `pools` ({', '.join(names)})"
            )
        if (
            self.gateway is not None
            and self.gateway.auth is None
            and any(pool.backend.api_key_secret_ref for pool in self.pools)
        ):
            raise ValueError(_GUARDED_KEY.message)
        if self.behavior.interval_seconds > self.sla.window_seconds:
            raise ValueError(
                f"`behavior.intervalSeconds` is {self.behavior.interval_seconds}; "
                f"it must be at most `sla.windowSeconds` ({self.sla.window_seconds})"
            )
        return self

    def pool(self, name: str) -> Pool:
        """The pool of that name; KeyError if there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)
