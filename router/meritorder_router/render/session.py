"""Session affinity inside a pool: requests with the same session go to the same server, for its prefix cache.

The session header must not reach a pool, and Envoy strips headers before it chooses a server. So a filter on
the data listener, switched on by a policy's routes, puts the header's value into the filter state, and the
routes hash that: it is there at every try.

A pool then has a second cluster over the same servers that hashes (`clusters.py`), since one that hashes
balances requests without a session by chance alone. Both count against the pool's limit. The hash depends on
nothing but the servers' addresses: every router sends a session to the same one.

The egress listener gets requests without the header as well. There the session is told by the Host: the
cluster in whose place that listener stands has many endpoints, all of them its socket, each with a name of
its own, `NUMBER.POOL`; a session is hashed to one of them, and behind the listener the name to a server.
"""

from meritorder_api import names
from meritorder_api.policy import SteeringHeader
from meritorder_api.table import RoutingTable
from meritorder_router.render.place import TYPE, Json, typed

SESSION_FILTER = "meritorder.session"
_STATE = "meritorder.session"
_FILTER_TYPE = "extensions.filters.http.set_filter_state.v3.Config"
BALANCE_PERCENT = 125
"""A server takes a session's request while it has at most this share of the mean in flight over its pool's
servers (of requests with a session); else another one does.
"""
SLOTS = 256
"""Names by which sessions are told apart on the way through the egress listener."""


def sessions_act(table: RoutingTable) -> bool:
    """Whether the policy lists the session header."""
    return SteeringHeader.SESSION in table.requests.headers


def session_filter() -> Json:
    """The listener's filter, off until a route brings its configuration."""
    return {**typed(SESSION_FILTER, _FILTER_TYPE), "disabled": True}


def session_filter_config() -> Json:
    """What switches the filter on: no header, or an empty one, sets nothing."""
    value = {
        "object_key": _STATE,
        "factory_key": "envoy.hashable_string",
        "format_string": {
            "text_format_source": {"inline_string": f"%REQ({names.HEADER_SESSION})%"},
            "omit_empty_values": True,
        },
        "skip_if_empty": True,
    }
    return {SESSION_FILTER: {"@type": TYPE + _FILTER_TYPE, "on_request_headers": [value]}}


def hash_by_session() -> list[Json]:
    """The data routes' hash policy."""
    return [{"filter_state": {"key": _STATE}}]


def hash_by_slot() -> list[Json]:
    """The egress routes' hash policy."""
    return [{"header": {"header_name": ":authority"}}]


def slots(pool: str) -> list[str]:
    """The host names of a pool's slots."""
    return [f"{number}.{pool}" for number in range(SLOTS)]


def any_slot(pool: str) -> str:
    """The domain that all of a pool's slots are in; names of pools have no dots."""
    return f"*.{pool}"
