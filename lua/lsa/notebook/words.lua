-- What a front end asks about the code around the cursor: completions and help.
--
--   list, from = words.complete(code, pos)       pos: bytes before the cursor; each of the list replaces code:sub(from, pos)
--   text = words.describe(code, pos, source)     nil where there is nothing to tell
local complete = require "lsa.prompt.complete"
local help = require "lsa.prompt.help"
local repl = require "lsa.prompt.repl"

local M = {}

function M.complete(code, pos)
  return complete.at(code:sub(1, pos), repl.environment)
end

-- The name that the cursor is in or behind, with what is in front of it.
local function name_at(code, pos)
  local before, after = code:sub(1, pos):match "[%a_][%w_%.:]*$", code:match("^[%w_]*", pos + 1)
  if before then return before .. after end
  return code:sub(1, pos):match "([%a_][%w_%.:]*)%s*[%({][^%(%){}]*$" -- the function whose arguments are being typed
end

function M.describe(code, pos, source)
  local name = name_at(code, pos)
  local facts = name and help.find(name, repl.environment)
  if not facts then return nil end
  local text = source and help.source(facts)
  return help.text(facts) .. (text and "\n\n" .. text or "")
end

return M
