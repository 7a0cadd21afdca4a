"""Lua that finds a key of a JSON text's outermost object, without reading the rest into tables.

Strings are skipped as strings, so a prompt that looks like JSON cannot mislead it; a text that is no JSON
object is left alone.
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
