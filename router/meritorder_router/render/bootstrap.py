"""The bootstrap: what is frozen for the life of an Envoy process."""

from meritorder_api import metric_names
from meritorder_api.policy import SLAMetric
from meritorder_api.table import TableSLA
from meritorder_router.render import clusters, listeners
from meritorder_router.render.loggers import PREFIX
from meritorder_router.render.place import Json, Place, pipe, typed, watched

RUNTIME = "meritorder"
"""Name of the runtime layer with the target."""

_AROUND = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Bounds of the histogram that the SLA is about, as multiples of the target."""
_ANY = (
    10,
    25,
    50,
    100,
    200,
    350,
    500,
    750,
    1000,
    1500,
    2000,
    3500,
    5000,
    7500,
    10000,
    20000,
    60000,
    180000,
    600000,
)
"""Bounds in ms where there is no target."""


def bounds(sla: TableSLA | None, *, of: SLAMetric) -> list[float]:
    """Histogram bounds in ms: dense around the target where the SLA is about this histogram."""
    if sla is None or sla.metric is not of:
        return [float(bound) for bound in _ANY]
    return sorted({float(max(1, round(sla.target_milliseconds * factor))) for factor in _AROUND})


def _regex(pattern: str) -> Json:
    return {"safe_regex": {"regex": pattern}}


def _stats(place: Place, sla: TableSLA | None) -> Json:
    tags: list[Json] = [{"tag_name": "policy", "fixed_value": place.policy}] if place.policy else []
    tags.append({"tag_name": "pool", "regex": r"^cluster\.((?:pool|session)/([a-z0-9-]+)\.)"})
    tags.append({"tag_name": "egress_pool", "regex": r"^cluster\.(real/([a-z0-9-]+)\.)"})
    # Requests with a session are counted apart: those of the pool are the sum over this label.
    tags.append({"tag_name": metric_names.LABEL_AFFINITY, "regex": r"^cluster\.((session)/)"})
    tags.append(
        {"tag_name": "thread", "regex": r"^thread_local_cluster_manager\.((main_thread|worker_\d+)\.)"}
    )
    kept = [
        {"prefix": f"{PREFIX}."},
        _regex(r"cluster\.(pool|session)/[a-z0-9-]+\.(upstream_rq_active|upstream_rq_pending_active)"),
        _regex(
            r"cluster\.(pool|session|real)/[a-z0-9-]+\.(membership_healthy|membership_total|version_text)"
        ),
        _regex(
            r"(cluster_manager\.cds|http\.(data|egress)\.rds\.[a-z]+|runtime|rtds\.[a-z]+)\."
            r"(version_text|update_rejected|update_failure)"
        ),
        {"exact": "cluster_manager.active_clusters"},
        {"exact": "cluster_manager.warming_clusters"},
        _regex(r"thread_local_cluster_manager\..*\.clusters_inflated"),
        {"exact": f"http.{listeners.DATA_STATS}.downstream_rq_active"},
        {"exact": f"http.{listeners.DATA_STATS}.downstream_cx_active"},
        {"exact": "server.live"},
        {"exact": "server.uptime"},
        {"exact": "server.memory_allocated"},
    ]
    return {
        "use_all_default_tags": False,
        "stats_tags": tags,
        "stats_matcher": {"inclusion_list": {"patterns": kept}},
        "histogram_bucket_settings": [
            {"match": {"prefix": f"{PREFIX}.ttft"}, "buckets": bounds(sla, of=SLAMetric.TTFT)},
            {"match": {"prefix": f"{PREFIX}."}, "buckets": bounds(sla, of=SLAMetric.END_TO_END)},
        ],
    }


def bootstrap(place: Place, sla: TableSLA | None) -> Json:
    """`sla` only chooses the histograms' bounds."""
    served = [
        listeners.data_listener(place),
        listeners.metrics_listener(place),
        listeners.touch_listener(place),
        listeners.egress_listener(place),
    ]
    return {
        "node": {"id": place.node, "cluster": "meritorder"},
        "admin": {"address": pipe(place.admin_socket)},
        "stats_flush_interval": "1s",
        "stats_config": _stats(place, sla),
        "layered_runtime": {
            "layers": [
                {
                    "name": "table",
                    "rtds_layer": {"name": RUNTIME, "rtds_config": watched(place.file("rtds.json"))},
                },
            ]
        },
        # No limit of our own: the application in front is the only client.
        "overload_manager": {
            "resource_monitors": [
                typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=1_000_000,
                )
            ]
        },
        "static_resources": {
            "listeners": [listener for listener in served if listener is not None],
            "clusters": clusters.own_clusters(place),
        },
        "dynamic_resources": {"cds_config": watched(place.file("cds.json"))},
    }
