"""Clusters and endpoints: one cluster per pool, the chains over them, and what Envoy needs to reach itself.

A pool's cluster must change as seldom as can be: a changed one is a new object whose in-flight count begins
at 0. So it holds what the spec says of the pool, and the endpoints come beside it, by EDS; only a pool of
host names has them inside, since Envoy resolves names only there.
"""

import ipaddress
from collections.abc import Mapping, Sequence

from meritorder_api.table import RoutingTable, TableEndpoint, TablePool, TableTimeouts, TableTLS
from meritorder_router.render.loggers import NAMESPACE
from meritorder_router.render.lua import chain_cluster, pool_cluster, third_try
from meritorder_router.render.place import TYPE, Json, Place, watched

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


def uses_egress(pool: TablePool) -> bool:
    """Whether requests to this pool are rewritten, which only a listener of our own can do under a chain."""
    return pool.path_prefix is not None or pool.model is not None or pool.api_key_file is not None


def real_cluster(pool: str) -> str:
    """The cluster behind the egress listener."""
    return f"real/{pool}"


def eds_file(cluster: str) -> str:
    """The file with a cluster's endpoints."""
    return f"eds.{cluster.replace('/', '.')}.json"


def _host(name: str, port: int, default: int) -> str:
    """What the Host header says."""
    name = f"[{name}]" if ":" in name else name
    return name if port == default else f"{name}:{port}"


def _endpoint(pool: TablePool, endpoint: TableEndpoint) -> Json:
    target: Json = {
        "address": {"socket_address": {"address": endpoint.address, "port_value": endpoint.port}},
    }
    if pool.tls is not None:
        target["hostname"] = _host(pool.tls.server_name, endpoint.port, 443)
    elif uses_egress(pool) or not is_address(endpoint.address):
        target["hostname"] = _host(endpoint.address, endpoint.port, 80)
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
        protocol["auto_config"] = {"http_protocol_options": {}, "http2_protocol_options": {}}
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


def _balancing() -> Json:
    """The server with the fewest requests in flight, of all: a limit per replica supposes that they share
    evenly.
    """
    return {
        "load_balancing_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.least_request",
                        "typed_config": {
                            "@type": TYPE
                            + "extensions.load_balancing_policies.least_request.v3.LeastRequest",
                            "selection_method": "FULL_SCAN",
                        },
                    }
                }
            ]
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


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


def _outliers() -> Json:
    return {
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


def _servers(
    place: Place, name: str, pool: TablePool, timeouts: TableTimeouts, authorities: Mapping[str, str]
) -> Json:
    """The cluster of a pool's own servers."""
    cluster: Json = {
        "name": name,
        # 0 is none; Envoy has no such word, and a connection not made in an hour will not be made.
        "connect_timeout": f"{timeouts.connect_seconds or 3600}s",
        "typed_extension_protocol_options": _protocol(pool),
        **_balancing(),
        **_breakers(),
        **_health(),
        **_outliers(),
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
            "eds_cluster_config": {
                "service_name": name,
                "eds_config": watched(place.file(eds_file(name))),
            },
        }
    return cluster


def _front(place: Place, pool: TablePool) -> Json:
    """The cluster in whose place the egress listener stands, told by the Host which pool is meant."""
    name = pool_cluster(pool.name)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        **_breakers(),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "hostname": pool.name,
                                "address": {"pipe": {"path": place.egress_socket}},
                            },
                            "metadata": {"filter_metadata": {NAMESPACE: {"pool": pool.name}}},
                        }
                    ]
                }
            ],
        },
    }


def _chain(first: str, second: str, last: str) -> Json:
    """Tries go to two pools in turn and then to the last. All chains are of one length: a try too many would
    replace the real answer.
    """
    tries = (first, second, third_try(first, second, last))
    return {
        "name": chain_cluster(first, second, last),
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        **_breakers(),
        "cluster_type": {
            "name": "envoy.clusters.composite",
            "typed_config": {
                "@type": TYPE + "extensions.clusters.composite.v3.ClusterConfig",
                "clusters": [{"name": pool_cluster(pool)} for pool in tries],
            },
        },
    }


def pool_clusters(place: Place, table: RoutingTable, authorities: Mapping[str, str]) -> list[Json]:
    """A cluster per pool; `authorities` has PEM by the name of its `caFile`."""
    clusters: list[Json] = []
    for pool in sorted(table.pools, key=lambda pool: pool.name):
        if uses_egress(pool):
            clusters.append(_front(place, pool))
            name = real_cluster(pool.name)
        else:
            name = pool_cluster(pool.name)
        clusters.append(_servers(place, name, pool, table.timeouts, authorities))
    return clusters


def chain_clusters(pools: Sequence[TablePool]) -> list[Json]:
    """A chain for each ordered pair, the third try to the last pool; and one for each pool by itself, for a
    pin.
    """
    last = pools[-1].name
    chains: list[Json] = []
    ordered = sorted(pool.name for pool in pools)
    for first in ordered:
        for second in ordered:
            chains.append(_chain(first, second, last))
    return chains


def endpoint_files(table: RoutingTable) -> dict[str, Json]:
    """EDS per pool that has addresses."""
    files: dict[str, Json] = {}
    for pool in table.pools:
        if not uses_names(pool):
            name = real_cluster(pool.name) if uses_egress(pool) else pool_cluster(pool.name)
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
