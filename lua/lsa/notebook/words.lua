-- What a front end asks about the code around the cursor: completions and help.
--
--   list, from = words.complete(code, pos)       pos: bytes before the cursor; each of the list replaces code:sub(from, pos)
--   text = words.describe(code, pos, source)     nil where there is nothing to tell
local complete = require "lsa.prompt.complete"
local inspect = require "lsa.prompt.inspect"
local repl = require "lsa.prompt.repl"

local M = {}

function M.complete(code, pos)
  local word = code:sub(1, pos):match "[%w_%.:]*$"
  return complete.complete(word, repl.environment), pos - #word + 1
end

-- The name that the cursor is in or behind, with what is in front of it.
local function name_at(code, pos)
  local before, after = code:sub(1, pos):match "[%a_][%w_%.:]*$", code:match("^[%w_]*", pos + 1)
  if before then return before .. after end
  return code:sub(1, pos):match "([%a_][%w_%.:]*)%s*[%({][^%(%){}]*$" -- the function whose arguments are being typed
end

function M.describe(code, pos, source)
  local name = name_at(code, pos)
  if not name then return nil end
  local value = repl.environment
  for part in name:gmatch "[^%.:]+" do
    local ok, found = pcall(function() return value[part] end)
    if not ok or found == nil then return nil end
    value = found
  end
  local text = ("%s: a %s\n%s"):format(name, type(value), inspect.text(value))
  if type(value) ~= "function" then return text end
  local info = debug.getinfo(value, "S")
  if info.what == "C" or info.source:sub(1, 1) ~= "@" then return text end
  text = ("%s: a function\n%s:%d"):format(name, info.source:sub(2), info.linedefined)
  local file = source and io.open(info.source:sub(2))
  if file then
    local lines, at = {}, 0
    for line in file:lines() do
      at = at + 1
      if at >= info.linedefined and at <= info.lastlinedefined then lines[#lines + 1] = line end
    end
    file:close()
    text = text .. "\n\n" .. table.concat(lines, "\n")
  end
  return text
end

return M
