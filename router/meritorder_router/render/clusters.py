"""Clusters and endpoints: one cluster per pool, the chains over them, and what Envoy needs to reach itself.

A pool's cluster must change as seldom as can be: a changed one is a new object whose in-flight count begins
at 0. So it holds what the spec says of the pool, and the endpoints come beside it, by EDS; only a pool of
host names has them inside, since Envoy resolves names only there.
"""

import ipaddress
from collections.abc import Mapping

from meritorder_api.table import RoutingTable, TableEndpoint, TablePool, TableTimeouts, TableTLS
from meritorder_router.render import naming
from meritorder_router.render.loggers import FIRST, NAMESPACE, THIRD
from meritorder_router.render.naming import uses_egress
from meritorder_router.render.place import TYPE, Json, Place, typed, watched
from meritorder_router.render.session import BALANCE_PERCENT, sessions_act, slots

MANY = 1_000_000
"""Breakers are only a safety net: limits are kept by the choice, since what a breaker refuses is never
retried.
"""
CHAIN_LENGTH = 3
"""Tries per request: the first pool, the second, and then the last pool of the merit order."""
IDLE_SECONDS = 4
"""Idle connections are closed before the servers do it (uvicorn, below vLLM and SGLang: 5 s): a request sent
into a closing connection is reset, and would count against the pool.
"""
_KEEPALIVE: Json = {"interval": "15s", "timeout": "5s"}
"""HTTP/2 pings: requests share a connection, and one that is lost on the way (a device forgot it) would take
all that come after with it, while health checks, on connections of their own, find the server well.
"""
HEALTH_SECONDS = 5
NO_CERTIFICATE = "00" * 32
"""A SHA-256 that no certificate has: who pins it trusts no one."""


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def uses_names(pool: TablePool) -> bool:
    """Whether Envoy must resolve names for this pool."""
    return any(not is_address(endpoint.address) for endpoint in pool.endpoints)


def eds_file(cluster: str) -> str:
    """The file with a cluster's endpoints."""
    return f"eds.{cluster.replace('/', '.')}.json"


def _host(name: str, port: int, default: int) -> str:
    """What the Host header says."""
    name = f"[{name}]" if ":" in name else name
    return name if port == default else f"{name}:{port}"


def _endpoint(pool: TablePool, endpoint: TableEndpoint) -> Json:
    # Each has a name, of which the Host is made: else a try would go out with the name of the one before it,
    # and health checks with that of the cluster.
    if pool.tls is not None:
        host = _host(pool.tls.server_name, endpoint.port, 443)
    else:
        host = _host(endpoint.address, endpoint.port, 80)
    target: Json = {
        "address": {"socket_address": {"address": endpoint.address, "port_value": endpoint.port}},
        "hostname": host,
        "health_check_config": {"hostname": host},
    }
    return {"endpoint": target, "metadata": {"filter_metadata": {NAMESPACE: {"pool": pool.name}}}}


def assignment(cluster: str, pool: TablePool) -> Json:
    """The endpoints of a pool that are ready."""
    return {
        "cluster_name": cluster,
        "endpoints": [
            {
                "lb_endpoints": [
                    _endpoint(pool, e)
                    for e in sorted(pool.endpoints, key=lambda e: (e.address, e.port))
                    if e.ready
                ]
            }
        ],
    }


def _protocol(pool: TablePool) -> Json:
    """HTTP/1.1 in the clear; over TLS, HTTP/2 where it is offered."""
    protocol: Json = {
        "@type": TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"idle_timeout": f"{IDLE_SECONDS}s"},
    }
    if pool.tls is None:
        protocol["explicit_http_config"] = {"http_protocol_options": {}}
    else:
        protocol["auto_config"] = {
            "http_protocol_options": {},
            "http2_protocol_options": {"connection_keepalive": _KEEPALIVE},
        }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol}


def _validation(place: Place, tls: TableTLS, authorities: Mapping[str, str]) -> Json:
    """Whom to believe that it is the server."""
    if tls.ca is not None:
        trusted: Json = {"inline_string": tls.ca}
    elif tls.ca_file is None:
        trusted = {"filename": place.trust}
    elif tls.ca_file in authorities:
        trusted = {"inline_string": authorities[tls.ca_file]}
    else:
        return {"verify_certificate_hash": [NO_CERTIFICATE]}
    name = tls.server_name
    return {
        "trusted_ca": trusted,
        "match_typed_subject_alt_names": [
            {"san_type": "IP_ADDRESS" if is_address(name) else "DNS", "matcher": {"exact": name}}
        ],
    }


def _tls(place: Place, pool: TablePool, authorities: Mapping[str, str]) -> Json:
    if pool.tls is None:
        return {}
    name = pool.tls.server_name
    validation = _validation(place, pool.tls, authorities)
    context: Json = {
        "@type": TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context": validation},
    }
    if not is_address(name):
        context["sni"] = name
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _balancing(name: str, type_name: str, **config: object) -> Json:
    policy = typed(
        f"envoy.load_balancing_policies.{name}",
        f"extensions.load_balancing_policies.{name}.v3.{type_name}",
        **config,
    )
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": policy}]}}


_EVENLY = _balancing("least_request", "LeastRequest", selection_method="FULL_SCAN")
"""The server with the fewest requests in flight, of all: a limit per replica supposes that they share
evenly.
"""
_BY_SESSION = _balancing(
    "maglev", "Maglev", consistent_hashing_lb_config={"hash_balance_factor": BALANCE_PERCENT}
)
_BY_SLOT = _balancing("maglev", "Maglev", consistent_hashing_lb_config={"use_hostname_for_hashing": True})


def _unhealthy(timeouts: TableTimeouts) -> Json:
    """A pool without a healthy server is passed over at once. Not so where tries are hedged: Envoy would end
    the whole request, though the try before goes on; so there an unhealthy server is asked, and fails.
    """
    percent = 1 if timeouts.hedge_milliseconds else 0
    return {"common_lb_config": {"healthy_panic_threshold": {"value": percent}}}


def _breakers() -> Json:
    most = {
        "max_connections": MANY,
        "max_pending_requests": MANY,
        "max_requests": MANY,
        "max_retries": MANY,
    }
    return {"circuit_breakers": {"thresholds": [most]}}


def _health() -> Json:
    """Ask gently, and take any answer that is not a server's error for health: a pool may have no
    `/health`.
    """
    return {
        "health_checks": [
            {
                "timeout": "2s",
                "interval": f"{HEALTH_SECONDS}s",
                "interval_jitter": "1s",
                "no_traffic_interval": f"{HEALTH_SECONDS}s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/health", "expected_statuses": [{"start": 200, "end": 500}]},
            }
        ],
        "ignore_health_on_host_removal": True,
    }


def _outliers(timeouts: TableTimeouts) -> Json:
    """Pass over a server for a while that fails again and again.

    Envoy takes a try that it hedges for failed, and cannot tell that from one whose connection failed. So
    where it hedges, only answers count: whether slow is too slow, the limits know better.
    """
    detection: Json = {
        "outlier_detection": {
            "consecutive_5xx": 5,
            "interval": "1s",
            "base_ejection_time": "3s",
            "max_ejection_time": "30s",
            "max_ejection_percent": 100,
            "enforcing_consecutive_5xx": 100,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_failure_percentage": 0,
        }
    }
    if timeouts.hedge_milliseconds:
        detection["outlier_detection"] |= {
            "split_external_local_origin_errors": True,
            "enforcing_consecutive_local_origin_failure": 0,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_failure_percentage_local_origin": 0,
        }
    return detection


def _servers(
    place: Place,
    pool: TablePool,
    timeouts: TableTimeouts,
    authorities: Mapping[str, str],
    *,
    session: bool,
) -> Json:
    """A cluster of a pool's own servers."""
    name = naming.servers(pool, session=session)
    cluster: Json = {
        "name": name,
        # 0 is none; Envoy has no such word, and a connection not made in an hour will not be made.
        "connect_timeout": f"{timeouts.connect_seconds or 3600}s",
        "typed_extension_protocol_options": _protocol(pool),
        **(_BY_SESSION if session else _EVENLY),
        **_unhealthy(timeouts),
        **_breakers(),
        **_health(),
        **_outliers(timeouts),
        **_tls(place, pool, authorities),
    }
    if uses_names(pool):
        cluster |= {
            "type": "STRICT_DNS",
            "dns_lookup_family": "V4_PREFERRED",
            "respect_dns_ttl": True,
            "dns_refresh_rate": "5s",
            "wait_for_warm_on_init": False,
            "load_assignment": assignment(name, pool),
        }
    else:
        cluster |= {
            "type": "EDS",
            # Both clusters of a pool read the same endpoints.
            "eds_cluster_config": {
                "service_name": naming.servers(pool),
                "eds_config": watched(place.file(eds_file(naming.servers(pool)))),
            },
        }
    return cluster


def _front(place: Place, pool: TablePool, *, session: bool) -> Json:
    """A cluster in whose place the egress listener stands, told by the Host which pool is meant."""
    name = naming.way(pool, session=session)
    hosts = slots(pool.name) if session else [pool.name]

    def endpoint(host: str) -> Json:
        return {
            "endpoint": {"hostname": host, "address": {"pipe": {"path": place.egress_socket}}},
            "metadata": {"filter_metadata": {NAMESPACE: {"pool": pool.name}}},
        }

    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        **(_BY_SLOT if session else {}),
        **_breakers(),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint(host) for host in hosts]}],
        },
    }


def _chain(first: TablePool, second: TablePool, last: TablePool, *, session: bool) -> Json:
    """Tries go to two pools in turn and then to the last. All chains are of one length: a try too many would
    replace the real answer.
    """
    ways = [naming.way(pool, session=session) for pool in naming.tries(first, second, last)]
    return {
        "name": naming.chain(first, second, last, session=session),
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        **_breakers(),
        # By these the access log knows whether it was the first try that answered.
        "metadata": {"filter_metadata": {NAMESPACE: _roles(first, second, last)}},
        "cluster_type": {
            "name": "envoy.clusters.composite",
            "typed_config": {
                "@type": TYPE + "extensions.clusters.composite.v3.ClusterConfig",
                "clusters": [{"name": way} for way in ways],
            },
        },
    }


def _roles(first: TablePool, second: TablePool, last: TablePool) -> Json:
    _, _, third = naming.tries(first, second, last)
    return {FIRST: "" if first.name == second.name else first.name, THIRD: third.name}


def pool_clusters(place: Place, table: RoutingTable, authorities: Mapping[str, str]) -> list[Json]:
    """A cluster per pool, and another one where sessions act; `authorities` has PEM by the name of its
    `caFile`.

    Those for sessions come and go by themselves: the others, and what they count, stay as they are.
    """
    clusters: list[Json] = []
    for pool in sorted(table.pools, key=lambda pool: pool.name):
        for session in _kinds(table):
            if uses_egress(pool):
                clusters.append(_front(place, pool, session=session))
            clusters.append(_servers(place, pool, table.timeouts, authorities, session=session))
    return clusters


def chain_clusters(table: RoutingTable) -> list[Json]:
    """A chain for each ordered pair, the third try to the last pool; and one for each pool by itself, for a
    pin. Where sessions act, as many again for them.
    """
    pools = sorted(table.pools, key=lambda pool: pool.name)
    return [
        _chain(first, second, table.pools[-1], session=session)
        for session in _kinds(table)
        for first in pools
        for second in pools
    ]


def _kinds(table: RoutingTable) -> tuple[bool, ...]:
    """Requests without a session, and where sessions act, those with one."""
    return (False, True) if sessions_act(table) else (False,)


def endpoint_files(table: RoutingTable) -> dict[str, Json]:
    """EDS per pool that has addresses."""
    files: dict[str, Json] = {}
    for pool in table.pools:
        if not uses_names(pool):
            name = naming.servers(pool)
            files[eds_file(name)] = {
                "@type": TYPE + "config.endpoint.v3.ClusterLoadAssignment",
                **assignment(name, pool),
            }
    return files


def own_clusters(place: Place) -> list[Json]:
    """Static clusters by which the metrics listener reaches Envoy's admin, the agent and the data
    listener.
    """

    def static(name: str, address: Json) -> Json:
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }

    local = place.listen.local
    return [
        static("admin", {"pipe": {"path": place.admin_socket}}),
        static("agent", {"pipe": {"path": place.agent_socket}}),
        static("data", {"socket_address": {"address": local.host, "port_value": local.port}}),
    ]
