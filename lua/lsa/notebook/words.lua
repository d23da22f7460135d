-- What a front end asks about the code around the cursor. pos: bytes before the cursor.
--
--   list, from = words.complete(code, pos, environment)       each of the list replaces code:sub(from, pos)
--   text = words.describe(code, pos, environment, source)     help, or the source as well; nil where there is nothing to tell
local complete = require "lsa.prompt.complete"
local help = require "lsa.prompt.help"

local M = {}

function M.complete(code, pos, environment)
  return complete.at(code:sub(1, pos), environment)
end

-- The name that the cursor is in or behind, with what is in front of it; else the function whose arguments are being typed.
local function name_at(code, pos)
  local before = code:sub(1, pos)
  local name = before:match "[%a_][%w_%.:]*$"
  if name then return name .. code:match("^[%w_]*", pos + 1) end
  return before:match "([%a_][%w_%.:]*)%s*[%({][^%(%){}]*$"
end

function M.describe(code, pos, environment, source)
  local name = name_at(code, pos)
  local facts = name and help.find(name, environment)
  if not facts then return nil end
  local text, own = help.text(facts, function(title) return title end), source and help.source(facts)
  return own and text .. "\n" .. own or text
end

return M
