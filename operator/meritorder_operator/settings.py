"""What the process is told at its start."""

from dataclasses import dataclass
from pathlib import Path

from meritorder_api.container import RouterSettings
from meritorder_operator.prometheus.client import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that flags and environment variables say."""

    namespaces: tuple[str, ...] = ()
    """Namespaces whose policies are served; empty: all."""
    lease_namespace: str | None = None
    """Where the Lease is; None: where the process runs."""
    identity: str
    """Name of this process on the Lease: the pod's name."""
    kubeconfig: Path | None = None
    prometheus: Server | None = None
    """The default source of metrics."""
    allowed_metrics_urls: tuple[str, ...] = ()
    """Other sources that policies may name."""
    secret_namespaces: tuple[str, ...] = ()
    """Namespaces whose policies may name Secrets for their source of metrics."""
    allowed_backend_hosts: tuple[str, ...] = ()
    """Hosts that policies may name although they are loopback, link-local or inside the cluster."""
    certificates: bool = True
    """Make and rotate the certificates of the router servers, and say what agents trust."""
    server_secret: str = "meritorder-router-tls"
    """Secret of the router servers' certificate, in the operator's namespace."""
    server_names: tuple[str, ...] = ()
    """Names in that certificate; empty: those of Service `meritorder-router`."""
    webhook: str | None = None
    """MutatingWebhookConfiguration whose `caBundle` is kept."""
    gateway: RouterSettings | None = None
    """How the routers of gateways are run; None: no policy can have one. Without `server_urls`, they ask
    Service `meritorder-router` of the operator's namespace.
    """
    health_host: str = "0.0.0.0"
    health_port: int = 8080
    metrics_port: int = 9090
    log_format: str = "auto"
    log_level: str = "info"
