-- Owns that an argument too many is an error: Lua drops it, so that x:softmax(0, 2) would be x:softmax(0) in silence.
--
--   arity.methods(Class, "pool:")        every method of a class, in place, counts what it is given from here on; so do
--   arity.functions(M, "lsa.tasks.")     every function of a module, and
--   arity.counted(f, "lsa.set")          one function
--   arity.refuse(what, names, n, ...)    raises where ... is more than nil, for what cannot be wrapped: n are given, it takes `names`
--   arity.stands(g, f)                   g, a function of ... that passes what it is given on to f: it takes what f takes
--   arity.original(f)                    what a function counts or stands for; any other is itself
-- How many a function takes is how many it declares; one that takes any number (...) counts for itself.
local M = {}

local originals = setmetatable({}, {__mode = "k"})
local counting = setmetatable({}, {__mode = "k"})

function M.refuse(what, names, n, ...)
  local more = false
  for i = 1, select("#", ...) do more = more or type((select(i, ...))) ~= "nil" end
  if not more then return end
  local takes = #names > 0 and ("it takes %d: %s"):format(#names, table.concat(names, ", ")) or "it takes none"
  require "lsa.raise"("%s: %d %s given, %s", what, n, n == 1 and "argument is" or "arguments are", takes)
end

-- Each wrapper is code of its own, so that compiled loops know what it calls.
local text = [[
local f, refuse, what, names = ...
return function(%s...)
  if select("#", ...) > 0 then refuse(what, names, #names + select("#", ...), ...) end
  return f(%s)
end]]

-- own: how many of the first parameters the caller does not write, as the self of a method.
local function counted(f, what, own)
  local declared, names, places = M.original(f), {}, {}
  local info = debug.getinfo(declared, "u")
  if info.isvararg or counting[f] then return f end
  for i = 1, info.nparams do
    places[i] = "a" .. i
    if i > own then names[i - own] = debug.getlocal(declared, i) end
  end
  local list = table.concat(places, ", ")
  local code = text:format(#places > 0 and list .. ", " or "", list)
  local g = assert(loadstring(code, "=lsa." .. what))(f, M.refuse, what, names)
  counting[g] = true
  return M.stands(g, declared)
end

local function each(class, what, own)
  for name, f in pairs(class) do
    if type(name) == "string" and type(f) == "function" and name:sub(1, 2) ~= "__" then class[name] = counted(f, what .. name, own) end
  end
  return class
end

function M.counted(f, what) return counted(f, what, 0) end
function M.functions(module, what) return each(module, what, 0) end
function M.methods(class, what) return each(class, what, 1) end
function M.stands(g, f)
  originals[g] = M.original(f)
  return g
end

function M.original(f) return originals[f] or f end

return M
