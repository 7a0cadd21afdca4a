"""Who may use a gateway: a filter in Lua on the data listener, there only where tokens are asked for.

The agent reads the tokens from their mounted Secret and writes their hashes into a file of the state
directory (`agent.clients`); the filter hashes the bearer token of a request and looks for it there. So no
token is in any file, table or dump of ours; one that is added or taken away acts within a second, on the
next request, and no stream is touched. Without the file nobody passes.

The token ends here: no pool ever sees it. A pool that wants a key of its own gets that one
(`apiKeySecretRef`).
"""

import json

from meritorder_router.render import replies
from meritorder_router.render.lua import quote
from meritorder_router.render.place import Json, Place, typed
from meritorder_router.render.routes import READY_PATH

CLIENT_FILTER = "meritorder.clients"
LONGEST_TOKEN = 4096
"""Characters; a longer one is not looked for."""

_SHA256 = """\
local band, bnot, bxor, rshift = bit.band, bit.bnot, bit.bxor, bit.rshift
local ror, tobit, tohex = bit.ror, bit.tobit, bit.tohex
local K = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}
local function sha256(text)
  local bits = #text * 8
  text = text .. "\\128" .. string.rep("\\0", (55 - #text) % 64 + 4) .. string.char(
    band(rshift(bits, 24), 255), band(rshift(bits, 16), 255), band(rshift(bits, 8), 255), band(bits, 255))
  local H = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}
  local w = {}
  for from = 1, #text, 64 do
    for i = 1, 16 do
      local p, q, r, s = text:byte(from + 4 * i - 4, from + 4 * i - 1)
      w[i] = tobit(p * 16777216 + q * 65536 + r * 256 + s)
    end
    for i = 17, 64 do
      local x, y = w[i - 15], w[i - 2]
      w[i] = tobit(w[i - 16] + bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
        + w[i - 7] + bxor(ror(y, 17), ror(y, 19), rshift(y, 10)))
    end
    local a, b, c, d, e, f, g, h = unpack(H)
    for i = 1, 64 do
      local one = h + bxor(ror(e, 6), ror(e, 11), ror(e, 25))
        + bxor(band(e, f), band(bnot(e), g)) + K[i] + w[i]
      local two = bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + one), c, b, a, tobit(one + two)
    end
    for i, value in ipairs({a, b, c, d, e, f, g, h}) do H[i] = tobit(H[i] + value) end
  end
  local hex = {}
  for i = 1, 8 do hex[i] = tohex(H[i]) end
  return table.concat(hex)
end
"""

_CHECK = """\
local function known(token)
  if #token > {longest} then return false end
  local file = io.open({path}, "r")
  if file == nil then return false end
  local hashes = file:read("*a")
  file:close()
  return hashes ~= nil and hashes:find(sha256(token), 1, true) ~= nil
end
function envoy_on_request(h)
  local headers = h:headers()
  if headers:get(":path") == {ready} then return end
  local token = (headers:get("authorization") or ""):match("^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+) *$")
  if token ~= nil and known(token) then
    headers:remove("authorization")
    return
  end
  h:respond({
    [":status"] = "401", ["content-type"] = "application/json", ["www-authenticate"] = "Bearer",
  }, {answer})
end
"""


def client_script(place: Place) -> str:
    """The filter's source."""
    check = _CHECK
    for word, value in (
        ("{longest}", str(LONGEST_TOKEN)),
        ("{path}", quote(place.clients_file)),
        ("{ready}", quote(READY_PATH)),
        ("{answer}", quote(json.dumps(replies.UNKNOWN_CLIENT))),
    ):
        check = check.replace(word, value)
    return _SHA256 + check


def client_filters(place: Place) -> list[Json]:
    """The listener's filter, where clients must show a token."""
    if not place.clients:
        return []
    return [
        typed(
            CLIENT_FILTER,
            "extensions.filters.http.lua.v3.Lua",
            default_source_code={"inline_string": client_script(place)},
        )
    ]
