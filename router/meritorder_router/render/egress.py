"""Pools that need rewrites or a key of their own: a second pass through this Envoy, by a listener on a unix
socket.

Filters in front of the choice would act on whichever pool a retry reaches, and those of a cluster are not
run under a chain. So such a pool's only endpoint, as the chain sees it, is that socket, with the pool's name
as its host name, by which the virtual host is found here: it strips what must not leave, sets path, model
and key, and sends the request on.

The key is read from its mounted file per request: it is in no file, table or dump of ours, and a rotated key
acts at once. To a pool with a key of its own no credential of the client's passes, whatever header it is in,
and it is taken away before anything else is done: a script that fails sends a request without any.
"""

import json

from meritorder_api.table import RoutingTable, TablePool
from meritorder_router.render import json_lua, naming, replies
from meritorder_router.render.lua import quote
from meritorder_router.render.place import TYPE, Json, Place
from meritorder_router.render.session import any_slot, hash_by_slot, sessions_act

EGRESS_ROUTES = "egress"
"""Name of the egress listener's route configuration."""
EGRESS_FILTER = "meritorder.rewrite"
BODY_BYTES = 16 * 1024 * 1024

_STRIPPED = [
    "x-envoy-attempt-count",
    "x-envoy-internal",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-proto",
]

_CREDENTIALS = [
    "api-key",
    "cookie",
    "openai-organization",
    "openai-project",
    "proxy-authorization",
    "x-api-key",
    "x-goog-api-key",
]
"""Where clients of the providers' APIs carry keys, or whom a key is for, beside Authorization."""

_KEY = """\
  h:headers():remove("authorization")
  local file = io.open({path}, "r")
  local key = file and file:read("*l")
  if file then file:close() end
  key = key and key:match("^%s*(.-)%s*$")
  if not key or key == "" or key:find("[^!-~]") then
    h:respond({[":status"] = "503"}, "the pool's API key is not mounted, or its file holds none")
    return
  end
  h:headers():replace("authorization", "Bearer " .. key)
"""

_KEY_REFUSED = """\
function envoy_on_response(h)
  if h:headers():get(":status") == "401" then
    h:headers():replace(":status", "502")
    h:headers():replace("content-type", "application/json")
    h:headers():remove("content-encoding")
    h:headers():remove("www-authenticate")
    local length = h:body(true):setBytes({body})
    h:headers():replace("content-length", tostring(length))
  end
end
"""
"""A key of the pool's own that is refused is the pool's failure: the client gave none, and the next pool is
tried. What the provider says of it, often with a part of the key, is not for the client.
"""

_MODEL = """\
  local body = h:body()
  if body ~= nil then
    local text = body:getBytes(0, body:length())
    local from = find_value(text, "model")
    if from ~= nil and text:sub(from, from) == '"' then
      local to = string_end(text, from)
      if to ~= nil then
        local length = body:setBytes(text:sub(1, from - 1) .. {model} .. text:sub(to + 1))
        h:headers():replace("content-length", tostring(length))
      end
    end
  end
"""


def rewrite_script(place: Place, pool: TablePool) -> str | None:
    """What is changed in a request to this pool, if anything beside its path."""
    script = ""
    body = ""
    after = ""
    if pool.model is not None:
        script += json_lua.FIND
        body += _MODEL.replace("{model}", quote(json.dumps(pool.model)))
    if pool.api_key_file is not None:
        path = str(place.keys / pool.api_key_file) if place.keys is not None else ""
        body = _KEY.replace("{path}", quote(path)) + body
        after = _KEY_REFUSED.replace("{body}", quote(json.dumps(replies.KEY_REFUSED)))
    return f"{script}function envoy_on_request(h)\n{body}end\n{after}" if body else None


def _host(place: Place, pool: TablePool, domain: str, cluster: str, **more: object) -> Json:
    action: Json = {"cluster": cluster, "timeout": "0s", "auto_host_rewrite": True, **more}
    if pool.path_prefix is not None:
        action["prefix_rewrite"] = pool.path_prefix.rstrip("/") + "/"
    route: Json = {"match": {"prefix": "/"}, "route": action, "request_body_buffer_limit": BODY_BYTES}
    script = rewrite_script(place, pool)
    if script is not None:
        route["typed_per_filter_config"] = {
            EGRESS_FILTER: {
                "@type": TYPE + "extensions.filters.http.lua.v3.LuaPerRoute",
                "source_code": {"inline_string": script},
            }
        }
    return {
        "name": domain,
        "domains": [domain],
        "routes": [route],
        "request_headers_to_remove": [*_STRIPPED, *(_CREDENTIALS if pool.api_key_file is not None else ())],
    }


def egress_routes(place: Place, table: RoutingTable | None) -> Json:
    """A virtual host per pool that needs rewrites, and another one for its requests with a session."""
    hosts: list[Json] = []
    for pool in sorted(table.pools, key=lambda pool: pool.name) if table is not None else ():
        if not naming.uses_egress(pool):
            continue
        hosts.append(_host(place, pool, pool.name, naming.servers(pool)))
        if table is not None and sessions_act(table):
            by_session = naming.servers(pool, session=True)
            hosts.append(_host(place, pool, any_slot(pool.name), by_session, hash_policy=hash_by_slot()))
    return {
        "@type": TYPE + "config.route.v3.RouteConfiguration",
        "name": EGRESS_ROUTES,
        "virtual_hosts": hosts,
    }
