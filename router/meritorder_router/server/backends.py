"""What stands behind a policy's pools: Services with their EndpointSlices, or hosts; and what is wrong with
them.

Pure. Every problem is a reason and one sentence for `status.programmed`; what is in order keeps serving
beside it.
"""

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from meritorder_api.container import secret_file
from meritorder_api.policy import Host, InferencePolicySpec, Pool
from meritorder_api.reasons import Reason
from meritorder_api.table import TableEndpoint, TableTLS
from meritorder_router.table import NOTHING, PoolBackend

MOST_ENDPOINTS: Final = 4096
"""As many as a table takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """A port of a Service; EndpointSlices know it by its name."""

    name: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The part of a Service that matters here."""

    type: str = "ClusterIP"
    ports: tuple[ServicePort, ...] = ()
    family: str = ""
    """IPv4 or IPv6: the Service's first family; empty when it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of an EndpointSlice."""

    address: str
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    """The part of an EndpointSlice that matters here."""

    name: str
    service: str
    family: str
    """IPv4, IPv6 or FQDN."""
    ports: tuple[ServicePort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The backends of a policy's pools, by name, and what is wrong with them."""

    backends: Mapping[str, PoolBackend]
    problems: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    """Of the problems, in their order."""

    @property
    def ready(self) -> dict[str, int]:
        """Ready replicas per pool."""
        return {name: backend.ready for name, backend in self.backends.items()}


def resolve(
    spec: InferencePolicySpec,
    *,
    services: Mapping[str, Service],
    endpoint_slices: Mapping[str, Sequence[EndpointSlice]],
    healthy: Mapping[str, int],
    allowed_hosts: Sequence[str],
) -> Resolved:
    """Resolve every pool of a spec. `services` and `endpoint_slices` (by service) are those of its
    namespace; `healthy` is how many of a pool's hosts the agents' health checks find well, where they told.
    """
    backends: dict[str, PoolBackend] = {}
    problems: list[tuple[Reason, str]] = []
    for pool in spec.pools:
        if pool.backend.service is not None:
            name = pool.backend.service.name
            backend, found = _service(pool, services.get(name), endpoint_slices.get(name, ()))
        else:
            backend, found = _hosts(pool, healthy.get(pool.name), allowed_hosts)
        backends[pool.name] = backend
        problems += ((reason, f"pool `{pool.name}`: {problem}") for reason, problem in found)
    return Resolved(
        backends=backends,
        problems=tuple(problem for _, problem in problems),
        reasons=tuple(reason for reason, _ in problems),
    )


def _service(
    pool: Pool, service: Service | None, slices: Sequence[EndpointSlice]
) -> tuple[PoolBackend, list[tuple[Reason, str]]]:
    wanted = pool.backend.service
    assert wanted is not None
    if service is None:
        return NOTHING, [_missing(f"Service `{wanted.name}` not found in this namespace")]
    if service.type == "ExternalName":
        return NOTHING, [
            _missing(f"Service `{wanted.name}` is of type ExternalName; name its host under `hosts` instead")
        ]
    port = next((port for port in service.ports if port.port == wanted.port), None)
    if port is None:
        has = ", ".join(str(port.port) for port in service.ports) or "none"
        return NOTHING, [_missing(f"Service `{wanted.name}` has no port {wanted.port} (it has {has})")]
    problems: list[tuple[Reason, str]] = []
    if any(part.family == "FQDN" for part in slices):
        problems.append(_missing(f"Service `{wanted.name}`: EndpointSlices with host names are ignored"))
    families = {part.family for part in slices if part.family != "FQDN" and part.endpoints}
    # A dual-stack Service has each pod once per family: one family is taken, or replicas would count twice.
    family = service.family if service.family in families else min(families, default="IPv4")
    found: dict[tuple[str, int], bool] = {}
    for part in slices:
        if part.family != family:
            continue
        target = next((number.port for number in part.ports if number.name == port.name), None)
        if target is None:
            continue
        for endpoint in part.endpoints:
            place = endpoint.address, target
            found[place] = found.get(place, False) or endpoint.ready
    ready = sum(found.values())
    if len(found) > MOST_ENDPOINTS:
        problems.append(
            _missing(
                f"Service `{wanted.name}` has {len(found)} endpoints; at most {MOST_ENDPOINTS} are routed "
                "to, ready ones first"
            )
        )
    endpoints = tuple(
        TableEndpoint(address=address, port=number, ready=is_ready)
        for (address, number), is_ready in sorted(
            sorted(found.items(), key=lambda item: (not item[1], item[0]))[:MOST_ENDPOINTS]
        )
    )
    if ready and pool.backend.replicas is not None:
        ready = pool.backend.replicas
    return PoolBackend(endpoints=endpoints, ready=ready), problems


def _missing(problem: str) -> tuple[Reason, str]:
    return Reason.BACKEND_NOT_FOUND, problem


def _hosts(
    pool: Pool, healthy: int | None, allowed_hosts: Sequence[str]
) -> tuple[PoolBackend, list[tuple[Reason, str]]]:
    hosts = pool.backend.hosts or []
    problems: list[tuple[Reason, str]] = []
    taken: list[Host] = []
    for host in hosts:
        why = refusal(host.host, allowed_hosts)
        if why is not None:
            problems.append((Reason.NOT_ALLOWED, f"host `{host.host}` is refused: {why}"))
        else:
            taken.append(host)
    tls: TableTLS | None = None
    if taken:
        tls = _tls(taken[0])
        other = [host for host in taken if _tls(host) != tls]
        for host in other:
            problems.append(
                _missing(
                    f"host `{host.host}` is left out: all hosts of a pool must agree on TLS; "
                    f"set the same `tls.serverName` and CA as `{taken[0].host}` has"
                )
            )
        taken = [host for host in taken if host not in other]
    places = sorted({(host.host.rstrip("."), host.port) for host in taken})
    well = len(places) if healthy is None else min(healthy, len(places))
    ready = well
    if pool.backend.replicas is not None and places:
        ready = pool.backend.replicas * well // len(places)
    endpoints = tuple(TableEndpoint(address=address, port=port) for address, port in places)
    return PoolBackend(endpoints=endpoints, ready=ready, tls=tls), problems


def _tls(host: Host) -> TableTLS | None:
    if host.tls is None:
        return None
    ref = host.tls.ca_secret_ref
    return TableTLS(
        server_name=host.tls.server_name or host.host.rstrip("."),
        ca_file=secret_file(ref) if ref is not None else None,
    )


def refusal(host: str, allowed: Iterable[str]) -> str | None:
    """Why a host outside the cluster may not be routed to; None when it may.

    A policy must not reach what listens on the router's own loopback, the node's metadata service, or
    Services of other namespaces. `allowed` are patterns (`*` matches anything) that lift this.
    """
    name = host.rstrip(".").lower()
    if any(fnmatchcase(name, pattern.rstrip(".").lower()) for pattern in allowed):
        return None
    advice = "; allow it by `--allowed-backend-host`"
    address = _address(name)
    if address is not None:
        if address.is_loopback or address.is_unspecified:
            return "a loopback address" + advice
        if address.is_link_local or address.is_multicast:
            return "a link-local address" + advice
        return None
    labels = name.split(".")
    if labels[-1] == "localhost":
        return "a loopback name" + advice
    if "svc" in labels[1:] or labels[-2:] == ["cluster", "local"]:
        return "a Service's name; use `service` for one of this namespace" + advice
    if len(labels) == 1:
        return "a name without a domain, which the cluster's DNS may take for a Service" + advice
    return None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a resolver would take the name for, in any spelling (`127.1` and `0x7f000001` too)."""
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
