"""The set of files that one Envoy reads, and the order in which they may be replaced."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType

from meritorder_api.policy import SLAMetric
from meritorder_api.table import RoutingTable, TableSLA, TableTimeouts
from meritorder_router.render import clusters, loggers, routes
from meritorder_router.render.bootstrap import RUNTIME, bootstrap
from meritorder_router.render.egress import egress_routes
from meritorder_router.render.place import TYPE, Json, Place

CDS = "cds.json"
RDS = "rds.json"
EGRESS = "egress.json"
RTDS = "rtds.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyFiles:
    """File name to content. Replace the endpoints first, then `cds`; once Envoy has the clusters, the
    rest.
    """

    endpoints: Mapping[str, bytes] = field(default_factory=dict)
    cds: bytes
    egress: bytes
    rtds: bytes
    rds: bytes
    versions: Mapping[str, str]
    """`version_info` by file name: what Envoy says it has, once it has taken a file."""

    def all(self) -> dict[str, bytes]:
        """Every file, in an order in which each refers only to earlier ones."""
        return {**self.endpoints, CDS: self.cds, EGRESS: self.egress, RTDS: self.rtds, RDS: self.rds}


def _bytes(value: Json) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _resources(resources: Sequence[Json]) -> tuple[bytes, str]:
    version = hashlib.sha256(_bytes({"resources": list(resources)})).hexdigest()[:16]
    return _bytes({"version_info": version, "resources": list(resources)}), version


def _runtime(sla: TableSLA | None, timeouts: TableTimeouts) -> Json:
    never = loggers.NEVER
    end_to_end = sla is None or sla.metric is SLAMetric.END_TO_END
    past = never if sla is None else sla.target_milliseconds + 1
    aborts_count = sla is None or sla.metric is not SLAMetric.TPOT
    return {
        "@type": TYPE + "service.runtime.v3.Runtime",
        "name": RUNTIME,
        "layer": {
            loggers.KEY_SLOW: past if end_to_end else never,
            loggers.KEY_OLD: past if aborts_count else never,
            loggers.KEY_COUNT: 0 if end_to_end else never,
            loggers.KEY_TIMEOUT: never if timeouts.hedge_milliseconds else 0,
        },
    }


def _files(
    *,
    cds: Sequence[Json],
    eds: Mapping[str, Json],
    rds: Json,
    egress: Json,
    sla: TableSLA | None,
    timeouts: TableTimeouts,
) -> EnvoyFiles:
    versions: dict[str, str] = {}

    def made(name: str, resources: Sequence[Json]) -> bytes:
        content, versions[name] = _resources(resources)
        return content

    return EnvoyFiles(
        endpoints={name: made(name, [resource]) for name, resource in sorted(eds.items())},
        cds=made(CDS, [{"@type": TYPE + "config.cluster.v3.Cluster", **cluster} for cluster in cds]),
        egress=made(EGRESS, [egress]),
        rtds=made(RTDS, [_runtime(sla, timeouts)]),
        rds=made(RDS, [rds]),
        versions=versions,
    )


def render(
    place: Place,
    table: RoutingTable,
    *,
    dead: Set[str] = frozenset(),
    authorities: Mapping[str, str] = MappingProxyType({}),
) -> EnvoyFiles:
    """The files for a table.

    `dead` names the pools that are passed over; `authorities` has the CA certificates (PEM) of each `caFile`
    that is mounted: a pool whose file is not among them trusts no one.
    """
    return _files(
        cds=[*clusters.pool_clusters(place, table, authorities), *clusters.chain_clusters(table)],
        eds=clusters.endpoint_files(table),
        rds=routes.data_routes(table, dead),
        egress=egress_routes(place, table),
        sla=table.sla,
        timeouts=table.timeouts,
    )


def render_empty(place: Place) -> EnvoyFiles:
    """The files before there is any table: 503 to everything."""
    return _files(
        cds=[],
        eds={},
        rds=routes.no_table_routes(),
        egress=egress_routes(place, None),
        sla=None,
        timeouts=TableTimeouts(),
    )


def render_bootstrap(place: Place, sla: TableSLA | None) -> bytes:
    """What Envoy is started with."""
    return _bytes(bootstrap(place, sla))
