"""A filter in Lua that a route switches on where the SLA is about tokens, `addUsage` is set, or requests have
size classes.

Time to first token ends with the first `data:` event; SSE comments before it do not count. The filter leaves
the body alone after that, so the rest of the stream costs nothing. Time per output token needs the last
event's time too, and the number of tokens from the answer's `usage`, which the body parsers found by then.

The verdict goes into dynamic metadata, where the access loggers read it (`render.loggers`). Wrappers of the
stream die while a script waits for the next chunk: they are taken anew each time.
"""

from meritorder_api import names
from meritorder_api.policy import SLAMetric
from meritorder_api.table import TableSLA
from meritorder_router.render.json_lua import FIND, MOST_STEPS, OUTERMOST
from meritorder_router.render.loggers import COMPLETION, NAMESPACE, SAMPLE, SLOW, TOKENS, WAITING
from meritorder_router.render.lua import quote
from meritorder_router.render.sizes import (
    ASKED_BY,
    BYTES_PER_TOKEN,
    DIGITS,
    ENDING,
    LONGEST,
    READ_BYTES,
    SIZES,
)

STREAM_FILTER = "meritorder.streams"

_HEAD = """\
local NS = {namespace}
local TARGET = {target}
local function now(h) return tonumber(h:timestamp(EnvoyTimestampResolution.MILLISECOND)) end
local function noted(h, key)
  local all = h:streamInfo():dynamicMetadata():get(NS)
  return all and all[key]
end
local function is_stream(h)
  local kind = h:headers():get("content-type")
  local status = h:headers():get(":status")
  return kind ~= nil and kind:sub(1, 17) == "text/event-stream" and status ~= nil and status:sub(1, 1) == "2"
end
local function has_data(text)
  if text:sub(1, 5) == "data:" then return true end
  return text:find("\\ndata:", 1, true) ~= nil or text:find("\\rdata:", 1, true) ~= nil
end
"""

_TTFT = """\
function envoy_on_response(h)
  if not is_stream(h) then return end
  h:streamInfo():dynamicMetadata():set(NS, {waiting}, true)
  local rest = ""
  for chunk in h:bodyChunks() do
    local text = rest .. chunk:getBytes(0, chunk:length())
    if has_data(text) then
      local took = now(h) - noted(h, "began")
      local metadata = h:streamInfo():dynamicMetadata()
      metadata:set(NS, {waiting}, false)
      metadata:set(NS, {sample}, true)
      metadata:set(NS, {slow}, took > TARGET)
      return
    end
    rest = text:sub(-5)
  end
end
"""

_TPOT = """\
function envoy_on_response(h)
  if not is_stream(h) then return end
  local first, last
  local rest = ""
  for chunk in h:bodyChunks() do
    local text = rest .. chunk:getBytes(0, chunk:length())
    if has_data(text) then
      local at = now(h)
      if first == nil then first = at end
      if text:find('"usage":{', 1, true) == nil and text:find("data: [DONE]", 1, true) ~= 1 then last = at end
    end
    rest = text:sub(-5)
  end
  local found = h:streamInfo():dynamicMetadata():get(TOKENS)
  local tokens = found and found[COMPLETION]
  if first ~= nil and last ~= nil and tokens ~= nil and tokens > 1 then
    local metadata = h:streamInfo():dynamicMetadata()
    metadata:set(NS, {sample}, true)
    metadata:set(NS, {slow}, (last - first) / (tokens - 1) > TARGET)
  end
end
"""


_BEGAN = """\
  h:streamInfo():dynamicMetadata():set(NS, "began", now(h))
"""

_ADD_USAGE = """\
  local body = h:body()
  if body ~= nil then
    local text = body:getBytes(0, body:length())
    local stream = find_value(text, "stream")
    local streams = stream ~= nil and text:sub(stream, stream + 3) == "true"
    if streams and find_value(text, "stream_options") == nil then
      local first = text:find("{", 1, true)
      local asked = '{"stream_options": {"include_usage": true}, '
      local length = body:setBytes(text:sub(1, first - 1) .. asked .. text:sub(first + 1))
      h:headers():replace("content-length", tostring(length))
    end
    -- Reading the body has taken time, in which others may have been let in: the pool is chosen anew.
    h:clearRouteCache()
  end
"""

_CLASSES = f"""\
local HEADER_CLASS = {quote(names.HEADER_CLASS)}
local RANK = {{{", ".join(f"[{quote(key)}] = {rank}" for rank, key in enumerate(ASKED_BY, 1))}}}
local function asked(text)
  local best, tokens = {len(ASKED_BY) + 1}, nil
  local at = 1
  left = {MOST_STEPS}
  while left > 0 do
    left = left - 1
    local _, quoted = text:find({quote(ENDING)} .. '"', at, true)
    if quoted == nil then break end
    at = quoted + 1
    local key = text:sub(math.max(quoted - {LONGEST + 1}, 1), quoted):match('"([a-z_]+)"$')
    if key and (RANK[key] or best) < best then
      local from = quoted - #key - 1
      local digits, to = text:match("^%s*:%s*([1-9]%d*)()%s*[,}}]", at)
      if digits and #digits <= {DIGITS} and text:byte(from - 1) ~= 92 and outermost(text, from, to) then
        best, tokens = RANK[key], tonumber(digits)
      end
    end
  end
  return tokens
end
local function class_of(tokens)
  local class = {SIZES[0]}
  while class < tokens and class < {SIZES[-1]} do class = class * 2 end
  return tostring(class)
end
"""

_CLASSIFY = f"""\
  local told = h:headers():get("content-length")
  local length = told and tonumber(told)
  if length then
    local body = length <= {READ_BYTES} and h:body() or nil
    local tokens = body and asked(body:getBytes(0, body:length())) or length / {BYTES_PER_TOKEN}
    h:headers():replace(HEADER_CLASS, class_of(tokens))
    -- For the class; and reading the body has taken time, in which others may have been let in.
    h:clearRouteCache()
  end
"""


def _judge(sla: TableSLA) -> tuple[str, str, str]:
    """What an SLA needs: at the head, in a request, in a response."""
    if sla.metric is SLAMetric.END_TO_END:
        return "", "", ""
    head = _HEAD.replace("{namespace}", quote(NAMESPACE)).replace("{target}", str(sla.target_milliseconds))
    if sla.metric is SLAMetric.TTFT:
        response = _TTFT
    else:
        head += f"local TOKENS = {quote(TOKENS)}\nlocal COMPLETION = {quote(COMPLETION)}\n"
        response = _TPOT
    for word, key in (("{waiting}", WAITING), ("{sample}", SAMPLE), ("{slow}", SLOW)):
        response = response.replace(word, quote(key))
    return head, _BEGAN, response


def stream_script(sla: TableSLA, *, add_usage: bool, size_classes: bool) -> str | None:
    """The filter's source, where there is something to do."""
    head, request, response = _judge(sla)
    if size_classes:
        head += OUTERMOST + _CLASSES
        request += _CLASSIFY
    if add_usage:
        head += FIND
        request += _ADD_USAGE
    if not request and not response:
        return None
    return f"{head}function envoy_on_request(h)\n{request}end\n{response}"
