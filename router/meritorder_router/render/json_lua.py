"""Lua that finds a key of a JSON text's outermost object, without reading the rest into tables.

Strings are skipped as strings, so a prompt that looks like JSON cannot mislead it; a text that is no JSON
object is left alone.

`FIND` reads from the beginning. `OUTERMOST` is for who has found a key by its letters, which costs little:
from the nearer end of the text it tells whether that is a key of the outermost object.
"""

FIND = """\
-- Where the string that begins at i ends.
local function string_end(text, i)
  local j = i + 1
  while true do
    j = text:find('["\\\\]', j)
    if j == nil then return nil end
    if text:sub(j, j) == '"' then return j end
    j = j + 2
  end
end
-- Where the value of a key of the outermost object begins.
local function find_value(text, key)
  local depth, at = 0, text:match("^%s*(){")
  if at == nil then return nil end
  while true do
    local i = text:find('["{}%[%]]', at)
    if i == nil then return nil end
    local c = text:sub(i, i)
    if c == '"' then
      local j = string_end(text, i)
      if j == nil then return nil end
      at = j + 1
      if depth == 1 and text:sub(i + 1, j - 1) == key then
        local value = text:match("^%s*:%s*()", at)
        if value ~= nil then return value end
      end
    else
      depth = depth + ((c == "{" or c == "[") and 1 or -1)
      at = i + 1
    end
  end
end
"""

MOST_STEPS = 20_000
"""Brackets, quotes and backslashes after which it is given up, a millisecond or two."""

OUTERMOST = """\
local left = 0
-- Where it goes on after the string that begins at i.
local function after_string(text, i)
  local j = i
  while left > 0 do
    j = text:find('"', j + 1, true)
    if j == nil then return nil end
    local k = j - 1
    while text:byte(k) == 92 do k = k - 1 end
    left = left - (j - k)
    if (j - k) % 2 == 1 then return j + 1 end
  end
end
-- Reads on within an object, to a place or to where the object is closed: where that is, and how deep.
local function read_on(text, at, place)
  local depth = 1
  while left > 0 do
    left = left - 1
    local i = text:find('["{}%[%]]', at)
    if i == nil or i >= place then return i, depth end
    local c = text:byte(i)
    if c == 34 then
      at = after_string(text, i)
      if at == nil then return nil end
    else
      depth = depth + ((c == 123 or c == 91) and 1 or -1)
      at = i + 1
      if depth == 0 then return i, depth end
    end
  end
end
-- Whether a key is the outermost object's: its first quote is at `from`, its value ends before `to`.
local function outermost(text, from, to)
  if from > #text - to then
    local closed = read_on(text, to, math.huge)
    return closed ~= nil and text:find("^}%s*$", closed) ~= nil
  end
  local first = text:match("^%s*{()")
  if first == nil then return false end
  local place, depth = read_on(text, first, from)
  return place == from and depth == 1
end
"""
