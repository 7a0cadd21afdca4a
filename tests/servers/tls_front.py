"""A server that speaks TLS and HTTP/2 as providers do: a real Envoy in front of a test's own servers.

What it saw of a connection it tells the server behind it in headers: `x-seen-protocol` and `x-seen-sni`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.envoy import EnvoyProcess
from servers.pki import KeyPair
from support.ports import free_port

_TYPE = "type.googleapis.com/envoy.extensions."


@dataclass(frozen=True, kw_only=True)
class Front:
    """One TLS port of loopback, and the plain one behind it."""

    port: int
    behind: int
    pair: KeyPair
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    """The protocols offered; empty: none, as servers do that know of no ALPN."""

    @property
    def stats(self) -> str:
        """Prefix of its connection's stats."""
        return f"http.front-{self.port}."


def _listener(front: Front) -> dict[str, Any]:
    certificate = {
        "certificate_chain": {"filename": str(front.pair.certificate)},
        "private_key": {"filename": str(front.pair.key)},
    }
    manager = {
        "@type": _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"front-{front.port}",
        "stream_idle_timeout": "0s",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "request_headers_to_add": [
                {"header": {"key": "x-seen-protocol", "value": "%PROTOCOL%"}},
                {"header": {"key": "x-seen-sni", "value": "%REQUESTED_SERVER_NAME%"}},
            ],
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": f"behind-{front.port}", "timeout": "0s"},
                        }
                    ],
                }
            ],
        },
    }
    tls = {
        "@type": _TYPE + "transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [certificate], "alpn_protocols": list(front.alpn)},
    }
    return {
        "name": f"front-{front.port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": front.port}},
        # Without it, the name that was asked for is not known to what follows.
        "listener_filters": [
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {"@type": _TYPE + "filters.listener.tls_inspector.v3.TlsInspector"},
            }
        ],
        "filter_chains": [
            {
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                "filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                ],
            }
        ],
    }


def _cluster(front: Front) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": front.behind}}
    return {
        "name": f"behind-{front.port}",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": f"behind-{front.port}",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def tls_fronts(directory: Path, fronts: Sequence[Front]) -> EnvoyProcess:
    """An Envoy, not started yet, that listens on all of these."""
    admin = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    bootstrap = directory / "fronts.json"
    bootstrap.write_text(
        json.dumps(
            {
                "node": {"id": "fronts", "cluster": "tests"},
                "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
                "static_resources": {
                    "listeners": [_listener(front) for front in fronts],
                    "clusters": [_cluster(front) for front in fronts],
                },
            }
        )
    )
    return EnvoyProcess(
        bootstrap, admin_port=admin, listeners=[("127.0.0.1", front.port) for front in fronts]
    )
