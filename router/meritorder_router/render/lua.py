"""The Lua that Envoy runs per request: which chain of pools takes it, in merit order and under the limits.

Every string of a table comes in through `quote`, the only way into a script. The script is a few comparisons
over what Envoy counts itself: requests in flight per pool cluster, over all of its workers.

A request of a size class is held to that class's limits instead of the pools' own.

A request without room anywhere goes to the last pool, or is shed: the script then names a cluster that does
not exist, which Envoy answers at once, and the listener turns that answer into a 429 (`render.replies`).
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from meritorder_api import names
from meritorder_api.policy import SteeringHeader
from meritorder_api.table import Fill, RoutingTable, TablePool
from meritorder_router.render.naming import chain, way
from meritorder_router.render.sizes import SIZES, held_to

SHED = "shed"
"""Name of the cluster that does not exist."""


def quote(text: str) -> str:
    """A Lua string literal of exactly these characters (as UTF-8), whatever they are."""
    out = []
    for byte in text.encode("utf-8", "surrogatepass"):
        char = chr(byte)
        out.append(char if char.isascii() and (char.isalnum() or char in " -_./:") else f"\\{byte:03d}")
    return '"' + "".join(out) + '"'


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the script knows of a pool, in merit order."""

    pool: TablePool
    limit: int | None
    weight: int


def listed(items: Iterable[str]) -> str:
    """A Lua table of these expressions, in order."""
    return "{" + ", ".join(items) + "}"


def _limit(pool: _Choice) -> str:
    return "HUGE" if pool.limit is None else str(pool.limit)


def _spare(pools: Sequence[_Choice], index: int) -> int:
    """Where a failed try goes when no other pool has room: to the last in use; from that, to the first."""
    others = [i for i, pool in enumerate(pools) if i != index and pool.limit != 0]
    if not others:
        return index
    return others[0] if index > others[-1] else others[-1]


_IN_FLIGHT = """\
local function in_flight(h, i)
  local c = h:getCluster(POOL[i])
  if c == nil then return HUGE end
  return c:numRequests() + c:numPendingRequests()
end
"""

_IN_FLIGHT_OF_BOTH = """\
local function in_flight(h, i)
  local c, s = h:getCluster(POOL[i]), h:getCluster(SESSION_POOL[i])
  if c == nil or s == nil then return HUGE end
  return c:numRequests() + c:numPendingRequests() + s:numRequests() + s:numPendingRequests()
end
"""

_ROOM = """\
local function room(h, i)
  local limit = LIMIT[i]
  if limit == HUGE then return true end
  if limit == 0 then return false end
  return in_flight(h, i) < limit
end
"""

_FILL = """\
  local first
  for i = 1, N do
    if {usable}room(h, i) then
      if first then return CHAIN[first][i] end
      first = i
    end
  end
  if first then return CHAIN[first][SPARE[first]] end
  return FULL
"""

_SPLIT = """\
  local first
  local at = math.random() * TOTAL
  for i = 1, N do
    at = at - WEIGHT[i]
    if at < 0 then
      if {usable}room(h, i) then first = i end
      break
    end
  end
  for i = 1, N do
    if i ~= first and {usable}room(h, i) then
      if first then return CHAIN[first][i] end
      first = i
    end
  end
  if first then return CHAIN[first][SPARE[first]] end
  return FULL
"""

_SEED = """\
math.randomseed(os.time() + (tonumber(tostring({}):match("0x(%x+)") or "0", 16) or 0) % 1000000)
"""

_CLASS = """\
  {names} = unpack(OF_CLASS[h:headers():get(HEADER_CLASS)] or OWN)
"""

_SESSION = """\
  local session = headers:get(HEADER_SESSION)
  local CHAIN, FULL = CHAIN, FULL
  if session ~= nil and session ~= "" then CHAIN, FULL = SESSION_CHAIN, SESSION_FULL end
"""

_PIN = """\
  local pin = headers:get(HEADER_POOL)
  if pin ~= nil and INDEX[pin] ~= nil then return CHAIN[INDEX[pin]][INDEX[pin]] end
"""

_EXCLUDE = """\
  local out
  local list = headers:get(HEADER_EXCLUDE)
  if list ~= nil then
    out = {}
    for name in string.gmatch(list, "[^, ]+") do
      if INDEX[name] ~= nil then out[INDEX[name]] = true end
    end
  end
"""

_PRIORITY = """\
  local priority = headers:get(HEADER_PRIORITY)
  if priority == "low" and N > 1 then
    if {usable}room(h, CHEAPEST) then return CHAIN[CHEAPEST][SPARE[CHEAPEST]] end
    return SHED
  end
  if priority == "high" then
    for i = 1, N do
      if {usable}LIMIT[i] ~= 0 and (LIMIT[i] == HUGE or ahead(h, i)) then return CHAIN[i][SPARE[i]] end
    end
  end
"""

_AHEAD = """\
local function ahead(h, i) return in_flight(h, i) < 0.75 * LIMIT[i] end
"""


def _alive(table: RoutingTable, dead: Set[str], size: int | None = None) -> list[_Choice]:
    """The pools with the limits that a request is held to, by its size class if it has one."""
    pools = [
        _Choice(p, p.limit if size is None else held_to(p, size), p.weight_percent or 0) for p in table.pools
    ]
    if any(p.name not in dead for p in table.pools):
        pools = [p if p.pool.name not in dead else _Choice(p.pool, 0, 0) for p in pools]
    return pools


def _figures(table: RoutingTable, pools: Sequence[_Choice], steering: Set[SteeringHeader]) -> dict[str, str]:
    """All that follows from limits, as Lua, by the names that it has in the script."""
    cheapest = next((i for i, pool in enumerate(pools) if pool.limit != 0), len(pools) - 1)
    # What nobody has room for goes to the last pool, or to the last one that is alive.
    last = max((i for i, pool in enumerate(pools) if pool.limit != 0), default=len(pools) - 1)
    spare = pools[_spare(pools, last)].pool

    def full(*, session: bool) -> str:
        to = chain(pools[last].pool, spare, table.pools[-1], session=session)
        return quote(SHED if table.shed else to)

    figures = {
        "LIMIT": listed(_limit(p) for p in pools),
        "SPARE": listed(str(_spare(pools, i) + 1) for i in range(len(pools))),
        "FULL": full(session=False),
    }
    if SteeringHeader.SESSION in steering:
        figures["SESSION_FULL"] = full(session=True)
    if SteeringHeader.PRIORITY in steering:
        figures["CHEAPEST"] = str(cheapest + 1)
    return figures


def _figures_by_class(
    table: RoutingTable, dead: Set[str], steering: Set[SteeringHeader], own: Mapping[str, str]
) -> dict[int, dict[str, str]]:
    """The same for the size classes for which something is different."""
    if not table.size_classes:
        return {}
    figures = {size: _figures(table, _alive(table, dead, size), steering) for size in SIZES}
    return {size: of_class for size, of_class in figures.items() if of_class != own}


def choice_script(table: RoutingTable, dead: Set[str] = frozenset(), *, steered: bool = True) -> str:
    """The cluster specifier's source for a table; `dead` pools have no healthy endpoint and are passed
    over. Not `steered` is for requests that have none of the steering headers: to look for them costs.
    """
    steering = set(table.requests.headers) if steered else set()
    pools = _alive(table, dead)
    own = _figures(table, pools, steering)
    by_class = _figures_by_class(table, dead, steering, own)
    total = sum(pool.weight for pool in pools)
    split = table.fill is Fill.SPLIT and total > 0
    sessions = SteeringHeader.SESSION in table.requests.headers
    excluding = SteeringHeader.EXCLUDE in steering
    usable = "not (out and out[i]) and " if excluding else ""
    bottom = table.pools[-1]

    def ways(*, session: bool) -> str:
        return listed(quote(way(p.pool, session=session)) for p in pools)

    def chains(*, session: bool) -> str:
        return listed(
            listed(quote(chain(a.pool, b.pool, bottom, session=session)) for b in pools) for a in pools
        )

    lines = [
        "local HUGE = math.huge",
        f"local N = {len(pools)}",
        f"local POOL = {ways(session=False)}",
        f"local LIMIT = {own['LIMIT']}",
        f"local CHAIN = {chains(session=False)}",
        f"local SPARE = {own['SPARE']}",
        f"local FULL = {own['FULL']}",
    ]
    if sessions:
        lines += [f"local SESSION_POOL = {ways(session=True)}"]
    if SteeringHeader.SESSION in steering:
        lines += [
            f"local HEADER_SESSION = {quote(names.HEADER_SESSION)}",
            f"local SESSION_CHAIN = {chains(session=True)}",
            f"local SESSION_FULL = {own['SESSION_FULL']}",
        ]
    if split:
        lines += [f"local WEIGHT = {listed(str(p.weight) for p in pools)}", f"local TOTAL = {total}"]
    if steering & {SteeringHeader.POOL, SteeringHeader.EXCLUDE}:
        index = listed(f"[{quote(p.pool.name)}] = {i + 1}" for i, p in enumerate(pools))
        lines += [f"local INDEX = {index}"]
    if SteeringHeader.POOL in steering:
        lines += [f"local HEADER_POOL = {quote(names.HEADER_POOL)}"]
    if excluding:
        lines += [f"local HEADER_EXCLUDE = {quote(names.HEADER_EXCLUDE)}"]
    if SteeringHeader.PRIORITY in steering:
        lines += [
            f"local HEADER_PRIORITY = {quote(names.HEADER_PRIORITY)}",
            f"local CHEAPEST = {own['CHEAPEST']}",
            f"local SHED = {quote(SHED)}",
        ]
    if by_class:
        of_class = (f"[{quote(str(size))}] = {listed(by_class[size].values())}" for size in by_class)
        lines += [
            f"local HEADER_CLASS = {quote(names.HEADER_CLASS)}",
            f"local OWN = {listed(own)}",
            f"local OF_CLASS = {listed(of_class)}",
        ]
    script = "\n".join(lines) + "\n"
    if split:
        script += _SEED
    script += _IN_FLIGHT_OF_BOTH if sessions else _IN_FLIGHT
    script += _ROOM
    if SteeringHeader.PRIORITY in steering:
        script += _AHEAD
    script += "function envoy_on_route(h)\n"
    if by_class:
        script += _CLASS.replace("{names}", ", ".join(own))
    if steering:
        script += "  local headers = h:headers()\n"
    if SteeringHeader.SESSION in steering:
        script += _SESSION
    if excluding:
        script += _EXCLUDE
    if SteeringHeader.POOL in steering:
        script += _PIN
    if SteeringHeader.PRIORITY in steering:
        low = "not (out and out[CHEAPEST]) and " if excluding else ""
        script += _PRIORITY.replace("{usable}room(h, CHEAPEST)", low + "room(h, CHEAPEST)").replace(
            "{usable}", usable
        )
    script += (_SPLIT if split else _FILL).replace("{usable}", usable)
    return script + "end\n"
