-- Owns how what is typed becomes a function: an expression, statements, or statements with an expression at their end.
--
--   run, chunk, quiet = compile.chunk(text, name, line, scope)    run(…) gives the values; quiet: a last ";" says not to show them
--   nil, message, incomplete                                     what is wrong, and whether more lines may mend it
--   scope: {environment =, declare =} (lua/lsa/prompt/session_locals.lua). name is what errors call it, line where it begins there.
local locals = require "lsa.prompt.session_locals"

local M = {}

local function is_incomplete(message) return message:find "near '<eof>'$" ~= nil end

-- A function that gives the values of the expressions `text`, or nil and why it is none.
-- Never by a tail call: an error would lose its line.
function M.expression(text, name)
  local chunk, message = loadstring("return true, " .. text, name)
  if not chunk then return nil, message end
  return function(...) return select(2, chunk(...)) end, chunk
end

local joins = {["and"] = true, ["or"] = true}

-- Where the last expression may begin: behind a ";", or with a name that begins a line, which nothing before it can go on with.
local function last_starts(text)
  local starts, depth, before = {}, 0, nil
  for _, word in ipairs(locals.tokens(text)) do
    local new_line = before and text:sub(before.to, word.from):find "\n"
    local named = word.kind == "name" and not joins[word.text]
    if before and depth == 0 and (before.kind == ";" or new_line and named) then table.insert(starts, 1, word.from) end
    depth = depth + locals.deepens(word)
    before = word
  end
  return starts
end

-- Statements, then an expression: `x = 5; x`.
local function with_value(text, name)
  for _, at in ipairs(last_starts(text)) do
    local head, tail = text:sub(1, at - 1), text:sub(at)
    if loadstring("return " .. tail) and loadstring(head) then
      local lifted, names = locals.lift(head)
      local chunk = loadstring(lifted .. "return true, " .. tail, name)
      if chunk then return function(...) return select(2, chunk(...)) end, chunk, names end
    end
  end
end

function M.chunk(text, name, line, scope)
  local before = ("\n"):rep((line or 1) - 1)
  text = before .. text:gsub("^%s*=", "")
  local list = locals.tokens(text)
  local quiet = list[1] ~= nil and list[#list].kind == ";"
  local run, chunk = M.expression(text, name)
  if not run then
    local as_expression = chunk
    local names
    run, chunk, names = with_value(text, name)
    if not run then
      local lifted, lifted_names = locals.lift(text)
      local message
      chunk, message = loadstring(lifted, name)
      if not chunk then return nil, message, is_incomplete(message) or is_incomplete(as_expression) end
      run, names = chunk, lifted_names
    end
    scope.declare(names)
  end
  setfenv(chunk, scope.environment)
  return run, chunk, quiet
end

return M
