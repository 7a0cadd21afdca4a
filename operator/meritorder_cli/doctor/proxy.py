"""Asking a Prometheus inside the cluster from outside it: through the API server, with the caller's own
rights on `services/proxy`."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from meritorder_api.reasons import Missing
from meritorder_operator.cluster import Cluster, ClusterError, Refused
from meritorder_operator.prometheus.client import PrometheusClient, QueryError, Server

_SERVICE: Final = re.compile(r"^([a-z0-9-]+)\.([a-z0-9-]+)\.svc(\.cluster\.local)?$")
_PORTS: Final = {"http": 80, "https": 443}


def connect(server: Server, cluster: Cluster) -> PrometheusClient:
    """A client of that server, by the way that leads there from outside."""
    parts = urlsplit(server.url)
    service = _SERVICE.match(parts.hostname or "")
    if service is None:
        return PrometheusClient(server)
    name, namespace, _ = service.groups()
    port = parts.port or _PORTS.get(parts.scheme, 80)
    base = (
        f"/api/v1/namespaces/{namespace}/services/{parts.scheme}:{name}:{port}/proxy{parts.path.rstrip('/')}"
    )
    return Proxied(server, cluster, base)


class Proxied(PrometheusClient):
    """A Prometheus behind a Service. The API server does not hand on credentials of ours."""

    def __init__(self, server: Server, cluster: Cluster, base: str) -> None:
        super().__init__(server)
        self._cluster = cluster
        self._base = base

    async def _once(self, path: str, data: Mapping[str, str]) -> Any:
        try:
            answer = await self._cluster.request("GET", self._base + path, params=data)
            return answer["data"]
        except Refused as error:
            refused = Missing.UNAUTHORIZED if error.status in (401, 403) else Missing.QUERY_REFUSED
            raise QueryError(
                Missing.UNREACHABLE if error.status == 404 else refused,
                f"{self.server.shown} did not answer through the API server: {error}",
            ) from error
        except (ClusterError, KeyError) as error:
            raise QueryError(
                Missing.UNREACHABLE, f"{self.server.shown} did not answer through the API server: {error}"
            ) from error
