"""Routes: what passes, the choice of the pool, retries, and the filters that a policy switches on."""

from collections.abc import Iterable, Set

from meritorder_api import names
from meritorder_api.table import RoutingTable
from meritorder_router.render import replies
from meritorder_router.render.clusters import CHAIN_LENGTH
from meritorder_router.render.loggers import CLASS, ENDPOINT_POOL, NAMESPACE, PROBE_HEADER
from meritorder_router.render.lua import choice_script
from meritorder_router.render.naming import chain
from meritorder_router.render.place import TYPE, Json, typed
from meritorder_router.render.session import hash_by_session, session_filter_config, sessions_act
from meritorder_router.render.sizes import SIZES
from meritorder_router.render.streams import STREAM_FILTER, stream_script

ROUTES = "routes"
"""Name of the data listener's route configuration."""

READY_PATH = "/-/ready"
LISTENING, TABLE = "listening", "table"
"""Values of the probe header: is the data port served; is there a table."""

BODY_BYTES = 16 * 1024 * 1024
"""Of a request's body that are kept for another try; a larger one is sent once."""
RETRY_ON = "connect-failure,refused-stream,reset,retriable-status-codes"
RETRIED_CODES = [429, 500, 502, 503, 504]
CHOICE = "choice"
STEERED_CHOICE = "steered-choice"
"""Where the policy lists steering headers, requests that have one go by routes of their own: to look for them
in Lua would cost every request some 5 % of all that it costs.
"""


def _match(path: str, method: str | None = None, *, below: bool = False, header: str | None = None) -> Json:
    match: Json = {"path_separated_prefix" if below else "path": path}
    headers: list[Json] = []
    if method is not None:
        headers.append({"name": ":method", "string_match": {"exact": method}})
    headers += _has(header)
    if headers:
        match["headers"] = headers
    return match


def _has(header: str | None) -> list[Json]:
    return [] if header is None else [{"name": header, "present_match": True}]


def _steering(table: RoutingTable) -> list[str]:
    """The headers that act, requests with one of which go by routes of their own."""
    return sorted({header.value for header in table.requests.headers})


def _ready(probe: str, status: int) -> Json:
    return {
        "name": f"ready-{probe}",
        "match": {
            "path": READY_PATH,
            "headers": [{"name": PROBE_HEADER, "string_match": {"exact": probe}}],
        },
        "direct_response": {"status": status},
    }


def _seconds(value: int) -> str:
    return f"{value}s"


def _retries(table: RoutingTable, dead: Set[str]) -> Json:
    """When another pool is tried, and when a try is given up."""
    policy: Json = {
        "retry_on": RETRY_ON,
        "retriable_status_codes": RETRIED_CODES,
        "num_retries": _more_tries(table, dead),
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    }
    until_headers = table.timeouts.response_headers_seconds
    if table.timeouts.hedge_milliseconds:
        # It ends no try then: it begins the next one.
        policy["per_try_timeout"] = f"{table.timeouts.hedge_milliseconds / 1000:.3f}s"
    elif until_headers:
        policy["per_try_timeout"] = _seconds(until_headers)
        if table.timeouts.stream_idle_seconds:
            # This timer of Envoy's runs before the headers too, where only the other one shall act.
            policy["per_try_idle_timeout"] = _seconds(max(table.timeouts.stream_idle_seconds, until_headers))
    return policy


def _more_tries(table: RoutingTable, dead: Set[str]) -> int:
    """Tries after the first. A hedge that finds no server at all ends the whole request, so none goes to a
    last pool that is dead; the second pool is one that is not.
    """
    if table.timeouts.hedge_milliseconds and table.pools[-1].name in dead:
        return CHAIN_LENGTH - 2
    return CHAIN_LENGTH - 1


def _to_pools(table: RoutingTable, dead: Set[str], *, steered: bool) -> Json:
    action: Json = {
        "cluster_specifier_plugin": STEERED_CHOICE if steered else CHOICE,
        "timeout": "0s",
        # The Host is the endpoint's name, at each try that of the server that is asked.
        "auto_host_rewrite": True,
        "retry_policy": _retries(table, dead),
    }
    if table.timeouts.hedge_milliseconds:
        action["hedge_policy"] = {"hedge_on_per_try_timeout": True}
        until_headers, idle = table.timeouts.response_headers_seconds, table.timeouts.stream_idle_seconds
        if until_headers and idle:
            # All of Envoy's timers for one try only begin another one now; this one ends the request.
            action["idle_timeout"] = _seconds(max(until_headers, idle))
    if steered and sessions_act(table):
        action["hash_policy"] = hash_by_session()
    return action


def _inference(table: RoutingTable, path: str, dead: Set[str], header: str | None = None) -> Json:
    """The route of a path; with a steering header, that of requests that have it."""
    steered = header is not None
    route: Json = {
        "name": "inference",
        "match": _match(path, "POST", header=header),
        "request_body_buffer_limit": BODY_BYTES,
        "route": _to_pools(table, dead, steered=steered),
    }
    filters: Json = session_filter_config() if steered and sessions_act(table) else {}
    script = stream_script(table.sla, add_usage=table.requests.add_usage, size_classes=table.size_classes)
    if script is not None:
        filters[STREAM_FILTER] = {
            "@type": TYPE + "extensions.filters.http.lua.v3.LuaPerRoute",
            "source_code": {"inline_string": script},
        }
    if filters:
        route["typed_per_filter_config"] = filters
    return route


def _of_path(table: RoutingTable, path: str, dead: Set[str]) -> list[Json]:
    return [_inference(table, path, dead, header) for header in (*_steering(table), None)]


def _of_class(table: RoutingTable, size: int, dead: Set[str]) -> list[Json]:
    """Where inference requests are taken to once their class is known; which path it is, was checked."""
    has_class: Json = {"name": names.HEADER_CLASS, "string_match": {"exact": str(size)}}
    return [
        {
            "name": f"inference-{size}",
            "match": {"prefix": "/", "headers": [has_class, *_has(header)]},
            "metadata": {"filter_metadata": {NAMESPACE: {CLASS: str(size)}}},
            "request_body_buffer_limit": BODY_BYTES,
            "route": _to_pools(table, dead, steered=header is not None),
        }
        for header in (*_steering(table), None)
    ]


def _choice(table: RoutingTable, dead: Set[str], *, steered: bool) -> Json:
    last = table.pools[-1]
    return {
        "extension": typed(
            STEERED_CHOICE if steered else CHOICE,
            "extensions.router.cluster_specifiers.lua.v3.LuaConfig",
            source_code={"inline_string": choice_script(table, dead, steered=steered)},
            default_cluster=chain(last, last, last),
        )
    }


def _configuration(name: str, routes: Iterable[Json], **more: object) -> Json:
    return {
        "@type": TYPE + "config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": [{"name": name, "domains": ["*"], "routes": list(routes), **more}],
    }


def no_table_routes() -> Json:
    """What is served before there is a table: 503 to everything."""
    return _configuration(
        ROUTES,
        [
            _ready(LISTENING, 200),
            _ready(TABLE, 503),
            {
                "name": "no-table",
                "match": {"prefix": "/"},
                **replies.direct(503, replies.NO_TABLE, retry=True),
            },
        ],
    )


def data_routes(table: RoutingTable, dead: Set[str]) -> Json:
    """The data listener's routes for a table. Pools that are `dead` are passed over, and those without a
    server.
    """
    dead = dead | {pool.name for pool in table.pools if not any(e.ready for e in pool.endpoints)}
    paths = sorted({*names.INFERENCE_PATHS, *table.requests.paths})
    stripped = [*names.STEERING_HEADERS, *([names.HEADER_CLASS] if table.size_classes else [])]
    steered = bool(table.requests.headers)
    models: Json = {
        "name": "models",
        "match": _match(names.MODELS_PATH, "GET", below=True),
        "route": _to_pools(table, dead, steered=steered),
    }
    if sessions_act(table):
        models["typed_per_filter_config"] = session_filter_config()
    configuration = _configuration(
        ROUTES,
        [
            *(route for size in SIZES if table.size_classes for route in _of_class(table, size, dead)),
            *(route for path in paths for route in _of_path(table, path, dead)),
            models,
            _ready(LISTENING, 200),
            _ready(TABLE, 200),
            {"name": "not-found", "match": {"prefix": "/"}, **replies.direct(404, replies.NOT_FOUND)},
        ],
        include_request_attempt_count=True,
        # Token usage is read from plain bodies.
        request_headers_to_remove=[*stripped, "accept-encoding"],
    )
    for route in configuration["virtual_hosts"][0]["routes"]:
        if "route" in route:
            route["response_headers_to_add"] = [replies.header(names.HEADER_ANSWERED_BY, ENDPOINT_POOL)]
    configuration["cluster_specifier_plugins"] = [
        _choice(table, dead, steered=kind) for kind in sorted({False, steered})
    ]
    return configuration
