"""What is known of a cluster and of its metrics, without any judgement. Pure values.

A fact that could not be had is None, and one of `Facts.unchecked` says why: it is never taken for "not
there".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meritorder_api.policy import Engine
from meritorder_api.reasons import Missing
from meritorder_api.resource import InferencePolicy

Manifest = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The operator or the router servers, as their Deployment says."""

    component: str
    namespace: str
    name: str
    account: str
    version: str = ""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def flags(self, flag: str) -> tuple[str, ...]:
        """Values of a flag, or of the environment variable that stands for it."""
        given = tuple(
            argument.partition("=")[2] for argument in self.arguments if argument.startswith(f"--{flag}=")
        )
        variable = self.environment.get("MERITORDER_" + flag.upper().replace("-", "_"), "")
        return given or tuple(variable.replace(",", " ").split())

    @property
    def subject(self) -> str:
        """Its service account, as RBAC names it."""
        return f"system:serviceaccount:{self.namespace}:{self.account}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a Lease."""

    identity: str
    renewed_at: float
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Something that a part must be allowed to do."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    """Empty: in all, or the object has none."""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """A Service and what stands behind it."""

    type: str
    ports: tuple[int, ...]
    ready: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPods:
    """A gateway's Deployment."""

    wanted: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMetrics:
    """What Prometheus has of one pool."""

    picked: str = ""
    """The matchers that pick the engine's series."""
    series: int | None = None
    """Of the engine's own gauge with these labels; None: not asked."""
    elsewhere: tuple[Mapping[str, str], ...] = ()
    """Labels under which the engine's series are, where none is with the right ones."""
    other_engine: Engine | None = None
    """Whose series bear the right labels, where the engine's do not."""
    bounds: tuple[float, ...] | None = None
    """Finite bounds of the histogram of the SLA's metric, in its own unit; empty: there is no histogram."""
    custom: Mapping[str, float | str] = field(default_factory=dict)
    """What each custom query gives: a value, or a sentence why none."""
    no_price: str | None = None
    """Why its price is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMetrics:
    """What Prometheus has of one policy."""

    server: str
    """Scheme, host and port; empty: none is configured."""
    failure: Missing | None = None
    said: str = ""
    """Why it cannot be asked."""
    routers: int = 0
    """Series of agents with the policy's namespace and name."""
    foreign: int = 0
    """The same with the policy's name and no or another namespace."""
    uncounted: bool = False
    """The agents are scraped, their Envoys are not."""
    scrapes: float | None = None
    """Scrapes of a router within the SLA's window."""
    newest: float | None = None
    """Unix seconds of the newest scrape of a router."""
    pools: Mapping[str, PoolMetrics] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it."""

    now: float
    """Unix seconds by the API server's clock."""
    version: str
    """Of this program."""
    clock_ahead: float = 0.0
    """Seconds that this machine's clock is ahead of the API server's."""
    policies: Sequence[InferencePolicy] = ()
    unreadable: Sequence[str] = ()
    """A sentence for each policy that is none."""
    crd: Manifest | None = None
    crd_missing: bool = False
    parts: Sequence[Part] | None = None
    leases: Mapping[str, Holder | None] = field(default_factory=dict)
    """By component."""
    server_ready: int | None = None
    """Ready endpoints of the router servers' Service."""
    webhooks: Sequence[Manifest] | None = None
    """Configurations that call the router servers, or would."""
    required_namespaces: Sequence[str] = ()
    """Namespaces that let no pod in without a router."""
    services: Mapping[Key, Backing | None] = field(default_factory=dict)
    """Of the pools; None: it does not exist."""
    secrets: Mapping[Key, frozenset[str] | None] = field(default_factory=dict)
    """Keys of the Secrets that policies name; None: it does not exist."""
    trusted: Mapping[str, bool] = field(default_factory=dict)
    """By namespace of a policy: whether what agents trust is there."""
    gateways: Mapping[Key, GatewayPods | None] = field(default_factory=dict)
    pods: Sequence[Manifest] | None = None
    """Pods that ask for a router."""
    denied: Mapping[str, Sequence[Right]] = field(default_factory=dict)
    """Rights that each part lacks, by component."""
    metrics: Mapping[str, PolicyMetrics] = field(default_factory=dict)
    """By `namespace/name` of the policy."""
    unchecked: Sequence[str] = ()
