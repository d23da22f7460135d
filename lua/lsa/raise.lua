-- Owns how the library's Lua code raises: at the line of the script that called it, however deep inside the
-- mistake is noticed. The library is lua/lsa, less the folders of rules, which are scripts.
--
--   raise("topk: k is %d, the tensor has %d elements", k, n)
--   raise.check(rc)          raises the C library's message when rc < 0; passes rc otherwise
--   raise.kind(value)        how a message calls a value: "a string", "nil", "a set"
--   raise.place(f)           how a message calls a function that has no name: "function at script.lua:3"
--   raise.words(problem)     what was raised and caught within one call of the script's, without the line that it was given: for
--                            messages that are kept, or that say more: raise("%s: %s", path, raise.words(problem))
--   error(problem, 0)        passes on what was caught, which has its line
--   raise.calling(f, handler, …)      xpcall(f, handler, …) of a script's function, which errors in it then name
--   raise.calling_unmasked(…)         the same, and Ctrl-C may break it off (lua/lsa/interrupts.lua)
local ffi = require "ffi"
local interrupts = require "lsa.interrupts"
local lsa = require "lsa.ffi"

local home = debug.getinfo(1, "S").source:match "^(.*/)raise%.lua$"

local scripts = {policies = true, evictions = true, schedules = true, samplers = true, benches = true}

local function in_library(source)
  if source:sub(1, 5) == "=lsa." then return true end -- code that the library writes
  return source:sub(1, #home) == home and not scripts[source:match("^[^/]*", #home + 1)]
end

local M = {}

-- "script.lua:12: " of the nearest function outside the library; "" without one. A script's function that ends in a call of the
-- library's (return cycle.top(…)) is not on the stack any more: it is named by its first line.
local function position()
  for level = 3, math.huge do
    local info = debug.getinfo(level, "Slf")
    if not info then return "" end
    if info.func == M.calling or info.func == M.calling_unmasked then
      local _, f = debug.getlocal(level, 1)
      local called = type(f) == "function" and debug.getinfo(f, "S")
      if called and called.what ~= "C" and not in_library(called.source) then
        return ("%s:%d: "):format(called.short_src, called.linedefined)
      end
    elseif info.what ~= "C" and not in_library(info.source) then
      return ("%s:%d: "):format(info.short_src, info.currentline)
    end
  end
end

function M.check(rc)
  if lsa.C.lsa_files_lost ~= 0 and lsa.C.lsa_files_check() < 0 then rc = -1 end -- what was read was not there
  if rc < 0 then error(position() .. ffi.string(lsa.C.lsa_error()), 0) end
  return rc
end

function M.words(problem)
  local text, at = tostring(problem), position()
  return text:sub(1, #at) == at and text:sub(#at + 1) or text
end

local function passed(...) return ... end

function M.calling(f, handler, ...)
  return passed(xpcall(f, handler, ...))
end

function M.calling_unmasked(f, handler, ...)
  return passed(xpcall(interrupts.unmasked, handler, f, ...))
end

-- Pairs of a predicate and how its values are called; the modules that own a kind of object add theirs.
M.kinds = {}

function M.place(f)
  local info = debug.getinfo(f, "S")
  return info.what == "C" and tostring(f) or ("function at %s:%d"):format(info.short_src, info.linedefined)
end

function M.kind(value)
  if value == nil then return "nil" end
  for _, kind in ipairs(M.kinds) do
    if kind[1](value) then return kind[2] end
  end
  return "a " .. type(value)
end

return setmetatable(M, {
  __call = function(_, format, ...)
    error(position() .. (select("#", ...) > 0 and format:format(...) or format), 0)
  end,
})
