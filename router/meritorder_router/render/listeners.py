"""Listeners, all static: the data listener, the metrics listener, and two on unix sockets for Envoy's own
needs.
"""

from collections.abc import Sequence

from meritorder_api import metric_names, names
from meritorder_router.render import loggers, replies
from meritorder_router.render.clients import client_filters
from meritorder_router.render.egress import EGRESS_FILTER, EGRESS_ROUTES
from meritorder_router.render.place import Json, Place, pipe, tcp, typed, watched
from meritorder_router.render.routes import LISTENING, READY_PATH, ROUTES, TABLE
from meritorder_router.render.session import session_filter
from meritorder_router.render.streams import STREAM_FILTER

_HCM = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
DATA_STATS = "data"
"""Stat prefix of the data listener: `http.data.`."""


def _router(**options: object) -> Json:
    return typed(
        "envoy.filters.http.router",
        "extensions.filters.http.router.v3.Router",
        dynamic_stats=False,
        suppress_envoy_headers=True,
        **options,
    )


def _listener(name: str, address: Json, prefix: str, filters: Sequence[Json], **hcm: object) -> Json:
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        _HCM,
        stat_prefix=prefix,
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        skip_xff_append=True,
        stream_idle_timeout="0s",
        http_filters=list(filters),
        **hcm,
    )
    return {"name": name, "address": address, "filter_chains": [{"filters": [manager]}]}


def _usage(rule_key: str) -> Json:
    return {
        "selectors": [{"key": "usage"}, {"key": rule_key}],
        "on_present": {"metadata_namespace": loggers.TOKENS, "key": rule_key, "type": "NUMBER"},
    }


def _token_filters() -> list[Json]:
    """Find `usage` in answers: in the last event of a stream, or in a JSON body."""
    nothing = {"metadata_namespace": "meritorder.none", "key": "none", "value": 0}
    keys = (loggers.PROMPT, loggers.COMPLETION)
    return [
        typed(
            "envoy.filters.http.sse_to_metadata",
            "extensions.filters.http.sse_to_metadata.v3.SseToMetadata",
            response_rules={
                "max_event_size": 65536,
                "content_parser": typed(
                    "envoy.content_parsers.json",
                    "extensions.content_parsers.json.v3.JsonContentParser",
                    rules=[{"rule": _usage(key)} for key in keys],
                ),
            },
        ),
        typed(
            "envoy.filters.http.json_to_metadata",
            "extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
            response_rules={
                "allow_content_types": ["application/json"],
                "allow_content_types_regex": {"regex": "application/json( *;.*)?"},
                "rules": [{**_usage(key), "on_missing": nothing, "on_error": nothing} for key in keys],
            },
        ),
    ]


def _own_headers() -> list[Json]:
    """What only this router may say: taken off a client's request before anything looks at it."""
    return [
        typed(
            "envoy.http.early_header_mutation.header_mutation",
            "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            mutations=[{"remove": names.HEADER_CLASS}],
        )
    ]


def data_listener(place: Place) -> Json:
    """Where applications' requests come in."""
    return _listener(
        "data",
        tcp(place.listen),
        DATA_STATS,
        [
            *client_filters(place),
            session_filter(),
            # Off until a route brings a script. Answers pass the filters from the last to the first, so this
            # one sees what the token filters found.
            {**typed(STREAM_FILTER, "extensions.filters.http.lua.v3.Lua"), "disabled": True},
            *_token_filters(),
            _router(upstream_log=loggers.attempt_log(place)),
        ],
        access_log=loggers.request_log(place),
        early_header_mutation_extensions=_own_headers(),
        local_reply_config=replies.local_replies(),
        rds={"route_config_name": ROUTES, "config_source": watched(place.file("rds.json"))},
        request_headers_timeout="60s",
    )


def metrics_listener(place: Place) -> Json | None:
    """What leaves the pod of Envoy's admin: the metrics, and whether it is ready."""
    if place.metrics is None:
        return None

    def get(path: str, cluster: str, rewrite: str, probe: str | None = None) -> Json:
        match = {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}
        route: Json = {"match": match, "route": {"cluster": cluster, "prefix_rewrite": rewrite}}
        if probe is not None:
            route["request_headers_to_add"] = [replies.header(loggers.PROBE_HEADER, probe)]
        return route

    draining = typed(
        # Answers 503 by itself once the process was told to fail its health check.
        "envoy.filters.http.health_check",
        "extensions.filters.http.health_check.v3.HealthCheck",
        pass_through_mode=True,
        headers=[{"name": ":path", "string_match": {"prefix": "/ready"}}],
    )
    routes = [
        get(metric_names.METRICS_PATH, "admin", "/stats/prometheus"),
        get(metric_names.AGENT_METRICS_PATH, "agent", "/metrics"),
        get("/ready", "data", READY_PATH, LISTENING),
        get("/ready/table", "data", READY_PATH, TABLE),
    ]
    return _listener(
        "metrics",
        tcp(place.metrics),
        "metrics",
        [draining, _router()],
        route_config={"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": routes}]},
    )


def touch_listener(place: Place) -> Json:
    """Brings a pool's series into being: the agent asks here once per pool."""
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 204}}
    return _listener(
        "touch",
        pipe(place.touch_socket),
        "touch",
        [_router()],
        access_log=loggers.touch_log(place),
        route_config={"virtual_hosts": [{"name": "touch", "domains": ["*"], "routes": [answer]}]},
    )


def egress_listener(place: Place) -> Json:
    """Where requests to pools with rewrites pass a second time."""
    return _listener(
        "egress",
        pipe(place.egress_socket),
        "egress",
        [{**typed(EGRESS_FILTER, "extensions.filters.http.lua.v3.Lua"), "disabled": True}, _router()],
        local_reply_config=replies.egress_replies(),
        rds={"route_config_name": EGRESS_ROUTES, "config_source": watched(place.file("egress.json"))},
    )
