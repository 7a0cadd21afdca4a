"""What an operator allows its policies beyond what the API server can judge: sources of metrics, and hosts.
Pure.

A policy's author must not be able to make the operator, or every sidecar, call addresses that only they can
reach.
"""

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Reason
from meritorder_operator.conditions import ACCEPTED, Acceptance
from meritorder_operator.settings import Settings

_PORTS = {"http": 80, "https": 443}


def check(namespace: str, spec: InferencePolicySpec, settings: Settings) -> Acceptance:
    """Whether a valid spec is allowed here."""
    for problem in (_source(namespace, spec, settings), _hosts(spec, settings.allowed_backend_hosts)):
        if problem is not None:
            return Acceptance(accepted=False, reason=Reason.NOT_ALLOWED, message=problem)
    return ACCEPTED


def _source(namespace: str, spec: InferencePolicySpec, settings: Settings) -> str | None:
    if spec.metrics_source is None:
        return None
    source = spec.metrics_source.prometheus
    default = settings.prometheus.url if settings.prometheus is not None else None
    if not (default is not None and same_url(source.url, default)) and not any(
        url_matches(source.url, allowed) for allowed in settings.allowed_metrics_urls
    ):
        return (
            f"`spec.metricsSource.prometheus.url` names `{urlsplit(source.url).hostname}`, which this "
            "operator does not allow; add it to --allowed-metrics-url, or leave `metricsSource` out"
        )
    needs_secret = source.auth_secret_ref is not None or source.ca_secret_ref is not None
    if needs_secret and namespace not in settings.secret_namespaces:
        return (
            f"`spec.metricsSource.prometheus` names a Secret, but this operator reads none of namespace "
            f"`{namespace}`; add it to --secret-namespace"
        )
    return None


def same_url(one: str, other: str) -> bool:
    """Whether two base URLs name the same place."""
    a, b = urlsplit(one), urlsplit(other)
    return (
        a.scheme == b.scheme
        and (a.hostname or "").lower() == (b.hostname or "").lower()
        and (a.port or _PORTS.get(a.scheme)) == (b.port or _PORTS.get(b.scheme))
        and a.path.rstrip("/") == b.path.rstrip("/")
    )


def url_matches(url: str, allowed: str) -> bool:
    """Whether a URL lies under an allowed one; `*.` at the start of the allowed host stands for any one
    label or more.
    """
    a, b = urlsplit(url), urlsplit(allowed)
    host, pattern = (a.hostname or "").lower(), (b.hostname or "").lower()
    if pattern.startswith("*."):
        host_fits = host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    else:
        host_fits = host == pattern
    path, base = a.path.rstrip("/"), b.path.rstrip("/")
    return (
        a.scheme == b.scheme
        and host_fits
        and (a.port or _PORTS.get(a.scheme)) == (b.port or _PORTS.get(b.scheme))
        and not a.query
        and not a.fragment
        and not _climbs(path)
        and (path == base or path.startswith(f"{base}/"))
    )


def _climbs(path: str) -> bool:
    """Whether a path has a step that a server may take upwards, in any spelling."""
    plain = unquote(unquote(path)).replace("\\", "/")
    return any(part in (".", "..") for part in plain.split("/"))


def _hosts(spec: InferencePolicySpec, allowed: Iterable[str]) -> str | None:
    exempt = {host.lower() for host in allowed}
    for pool in spec.pools:
        for host in pool.backend.hosts or ():
            name = host.host.lower().rstrip(".")
            if name not in exempt and (what := _inside(name)) is not None:
                return (
                    f"pool `{pool.name}` names host `{host.host}`, which is {what}; name a Service, or "
                    "add the host to --allowed-backend-host"
                )
    return None


def _inside(host: str) -> str | None:
    """What is wrong with a host that only the pod or the cluster itself can mean."""
    if host == "localhost" or host.endswith(".localhost"):
        return "loopback"
    labels = host.split(".")
    if labels[-1] == "svc" or ("svc" in labels[-3:] and host.endswith((".cluster.local", ".svc"))):
        return "a Service's name"
    if host.endswith(".cluster.local"):
        return "inside the cluster"
    address = _address(host)
    if address is None:
        return None
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_unspecified or address.is_multicast:
        return "no host's address"
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host name is, in any of the spellings that resolvers take (127.1, 0x7f000001)."""
    try:
        address = ipaddress.ip_address(host.strip("[]").split("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
