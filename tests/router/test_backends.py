"""What stands behind pools, and the sentences about what is wrong with it."""

from typing import Any

import pytest

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Reason
from meritorder_api.table import TableEndpoint, TableTLS
from meritorder_router.server.backends import (
    Endpoint,
    EndpointSlice,
    Resolved,
    Service,
    ServicePort,
    refusal,
    resolve,
)

SERVICE = Service(ports=(ServicePort(name="http", port=8000), ServicePort(name="metrics", port=9000)))


def spec(**backend: Any) -> InferencePolicySpec:
    return InferencePolicySpec.model_validate(
        {
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
            "pools": [{"name": "l40s", "backend": backend, "cost": {"perReplicaHour": "1.86"}}],
        }
    )


def part(
    *endpoints: tuple[str, bool], name: str = "s-1", family: str = "IPv4", port: int = 8080
) -> EndpointSlice:
    return EndpointSlice(
        name=name,
        service="chat",
        family=family,
        ports=(ServicePort(name="http", port=port), ServicePort(name="metrics", port=9000)),
        endpoints=tuple(Endpoint(address=address, ready=ready) for address, ready in endpoints),
    )


def look(
    *slices: EndpointSlice, service: Service | None = SERVICE, port: int = 8000, **backend: Any
) -> Resolved:
    return resolve(
        spec(service={"name": "chat", "port": port}, **backend),
        services={} if service is None else {"chat": service},
        endpoint_slices={"chat": slices},
        healthy={},
        allowed_hosts=(),
    )


def hosts(
    *entries: dict[str, Any], healthy: int | None = None, allowed: tuple[str, ...] = (), **more: Any
) -> Resolved:
    return resolve(
        spec(hosts=list(entries), **more),
        services={},
        endpoint_slices={},
        healthy={} if healthy is None else {"l40s": healthy},
        allowed_hosts=allowed,
    )


def test_the_service_port_is_found_by_name_in_the_endpoint_slices() -> None:
    found = look(part(("10.0.0.2", True), ("10.0.0.1", False)))
    assert found.backends["l40s"].endpoints == (
        TableEndpoint(address="10.0.0.1", port=8080, ready=False),
        TableEndpoint(address="10.0.0.2", port=8080, ready=True),
    )
    assert found.ready == {"l40s": 1}
    assert found.problems == ()


def test_an_endpoint_in_two_slices_counts_once() -> None:
    found = look(part(("10.0.0.1", False)), part(("10.0.0.1", True), name="s-2"))
    assert found.ready == {"l40s": 1}


def test_a_dual_stack_service_counts_each_replica_once() -> None:
    found = look(
        part(("10.0.0.1", True)),
        part(("fd00::1", True), name="s-6", family="IPv6"),
        service=Service(ports=SERVICE.ports, family="IPv6"),
    )
    assert found.backends["l40s"].endpoints == (TableEndpoint(address="fd00::1", port=8080),)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (look(service=None), "pool `l40s`: Service `chat` not found in this namespace"),
        (look(part(), port=81), "pool `l40s`: Service `chat` has no port 81 (it has 8000, 9000)"),
        (
            look(service=Service(type="ExternalName")),
            "pool `l40s`: Service `chat` is of type ExternalName; name its host under `hosts` instead",
        ),
        (
            look(part(("gpu.example.com", True), family="FQDN")),
            "pool `l40s`: Service `chat`: EndpointSlices with host names are ignored",
        ),
    ],
)
def test_what_cannot_be_resolved_is_said_in_a_sentence(found: Resolved, problem: str) -> None:
    assert (found.problems, found.reasons) == ((problem,), (Reason.BACKEND_NOT_FOUND,))
    assert found.ready == {"l40s": 0}


def test_declared_replicas_count_while_the_service_has_a_ready_endpoint() -> None:
    assert look(part(("10.0.0.1", True)), replicas=6).ready == {"l40s": 6}
    assert look(part(("10.0.0.1", False)), replicas=6).ready == {"l40s": 0}


def test_hosts_count_as_replicas_as_far_as_the_agents_find_them_well() -> None:
    two = ({"host": "a.example.com", "port": 443}, {"host": "b.example.com", "port": 443})
    assert hosts(*two).ready == {"l40s": 2}
    assert hosts(*two, healthy=1).ready == {"l40s": 1}
    assert hosts(*two, healthy=1, replicas=6).ready == {"l40s": 3}


def test_tls_of_hosts_names_the_ca_file_of_the_key_directory() -> None:
    found = hosts(
        {"host": "a.example.com", "port": 443, "tls": {"caSecretRef": {"name": "ca", "key": "ca.crt"}}}
    )
    assert found.backends["l40s"].tls == TableTLS(server_name="a.example.com", ca_file="ca_ca.crt")


def test_hosts_that_disagree_on_tls_are_left_out_with_a_sentence() -> None:
    found = hosts({"host": "a.example.com", "port": 443, "tls": {}}, {"host": "b.example.com", "port": 80})
    assert [endpoint.address for endpoint in found.backends["l40s"].endpoints] == ["a.example.com"]
    assert found.problems == (
        "pool `l40s`: host `b.example.com` is left out: all hosts of a pool must agree on TLS; "
        "set the same `tls.serverName` and CA as `a.example.com` has",
    )


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
        "fe80::1",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "prometheus.monitoring.svc",
        "prometheus.monitoring.svc.cluster.local",
        "prometheus.monitoring.svc.corp.example",
        "kubernetes",
    ],
)
def test_hosts_inside_are_refused_unless_allowed(host: str) -> None:
    why = refusal(host, ())
    assert why is not None
    assert "--allowed-backend-host" in why
    assert refusal(host, ("*",)) is None
    found = hosts({"host": host, "port": 80})
    assert found.backends["l40s"].endpoints == ()
    assert found.problems == (f"pool `l40s`: host `{host}` is refused: {why}",)
    assert found.reasons == (Reason.NOT_ALLOWED,)


@pytest.mark.parametrize(
    "host", ["api.example.com", "10.0.0.7", "192.0.2.1", "2001:db8::1", "svc.example.com"]
)
def test_hosts_outside_are_taken(host: str) -> None:
    assert refusal(host, ()) is None


def test_a_host_is_allowed_by_pattern() -> None:
    assert refusal("vllm.models.svc", ("*.models.svc",)) is None
    assert refusal("vllm.other.svc", ("*.models.svc",)) is not None
