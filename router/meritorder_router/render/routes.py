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
INFERENCE = "inference"


def _match(path: str, method: str | None = None, *, below: bool = False) -> Json:
    match: Json = {"path_separated_prefix" if below else "path": path}
    if method is not None:
        match["headers"] = [{"name": ":method", "string_match": {"exact": method}}]
    return match


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


def _to_pools(table: RoutingTable, dead: Set[str]) -> Json:
    action: Json = {
        "cluster_specifier_plugin": CHOICE,
        "timeout": "0s",
        # Of the endpoints that have a name; the others get the client's Host.
        "auto_host_rewrite": True,
        "retry_policy": _retries(table, dead),
    }
    if table.timeouts.hedge_milliseconds:
        action["hedge_policy"] = {"hedge_on_per_try_timeout": True}
        until_headers, idle = table.timeouts.response_headers_seconds, table.timeouts.stream_idle_seconds
        if until_headers and idle:
            # All of Envoy's timers for one try only begin another one now; this one ends the request.
            action["idle_timeout"] = _seconds(max(until_headers, idle))
    if sessions_act(table):
        action["hash_policy"] = hash_by_session()
    return action


def _inference(table: RoutingTable, path: str, dead: Set[str]) -> Json:
    route: Json = {
        "name": INFERENCE,
        "match": _match(path, "POST"),
        "request_body_buffer_limit": BODY_BYTES,
        "route": _to_pools(table, dead),
    }
    if not table.size_classes:
        route |= _per_filter(_stream_filter(table))
    return route


def _stream_filter(table: RoutingTable) -> Json:
    """What switches the filter of `render.streams` on, where the table needs it."""
    script = stream_script(table.sla, add_usage=table.requests.add_usage, size_classes=table.size_classes)
    return {} if script is None else {STREAM_FILTER: _lua(source_code={"inline_string": script})}


def _lua(**config: object) -> Json:
    return {"@type": TYPE + "extensions.filters.http.lua.v3.LuaPerRoute", **config}


def _per_filter(config: Json) -> Json:
    return {"typed_per_filter_config": config} if config else {}


def _of_class(table: RoutingTable, size: int, dead: Set[str]) -> Json:
    """Where an inference request is taken to once its class is known; which path it is, was checked."""
    has_class = {"name": names.HEADER_CLASS, "string_match": {"exact": str(size)}}
    return {
        "name": f"inference-{size}",
        "match": {"prefix": "/", "headers": [has_class]},
        "metadata": {"filter_metadata": {NAMESPACE: {CLASS: str(size)}}},
        "request_body_buffer_limit": BODY_BYTES,
        "route": _to_pools(table, dead),
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
    last = table.pools[-1]
    configuration = _configuration(
        ROUTES,
        [
            *(_of_class(table, size, dead) for size in SIZES if table.size_classes),
            *(_inference(table, path, dead) for path in paths),
            {
                "name": "models",
                "match": _match(names.MODELS_PATH, "GET", below=True),
                "route": _to_pools(table, dead),
            },
            _ready(LISTENING, 200),
            _ready(TABLE, 200),
            {"name": "not-found", "match": {"prefix": "/"}, **replies.direct(404, replies.NOT_FOUND)},
        ],
        include_request_attempt_count=True,
        # Token usage is read from plain bodies.
        request_headers_to_remove=[*stripped, "accept-encoding"],
        **_per_filter(
            (session_filter_config() if sessions_act(table) else {})
            | (_stream_filter(table) if table.size_classes else {})
        ),
    )
    for route in configuration["virtual_hosts"][0]["routes"]:
        if table.size_classes and route["name"] != INFERENCE:
            # One script for all paths is compiled once per worker; the other routes do without it.
            route |= _per_filter({STREAM_FILTER: _lua(disabled=True)})
        if "route" in route:
            route["response_headers_to_add"] = [replies.header(names.HEADER_ANSWERED_BY, ENDPOINT_POOL)]
    configuration["cluster_specifier_plugins"] = [
        {
            "extension": typed(
                CHOICE,
                "extensions.router.cluster_specifiers.lua.v3.LuaConfig",
                source_code={"inline_string": choice_script(table, dead)},
                default_cluster=chain(last, last, last),
            )
        }
    ]
    return configuration
