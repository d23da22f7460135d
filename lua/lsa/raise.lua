-- Owns how the library's Lua code raises: at the line of the script that called it, however deep inside the
-- mistake is noticed. The library is lua/lsa, less the folders of rules, which are scripts.
--
--   raise("topk: k is %d, the tensor has %d elements", k, n)
--   raise.check(rc)          raises the C library's message when rc < 0; passes rc otherwise
--   raise.kind(value)        how a message calls a value: "a string", "nil", "a set"
local ffi = require "ffi"
local lsa = require "lsa.ffi"

local home = debug.getinfo(1, "S").source:match "^(.*/)raise%.lua$"

local scripts = {policies = true, evictions = true, schedules = true, samplers = true, tasks = true, benches = true}

local function in_library(source)
  return source:sub(1, #home) == home and not scripts[source:match("^[^/]*", #home + 1)]
end

-- The level of the nearest function outside the library, as seen by the function that calls this one.
local function script_level()
  for level = 3, 60 do
    local info = debug.getinfo(level, "S")
    if not info then break end
    if info.what ~= "C" and not in_library(info.source) then return level - 1 end
  end
  return 2
end

local M = {}

function M.check(rc)
  if rc < 0 then
    local level = script_level()
    error(ffi.string(lsa.C.lsa_error()), level)
  end
  return rc
end

-- Pairs of a predicate and how its values are called; the modules that own a kind of object add theirs.
M.kinds = {}

function M.kind(value)
  if value == nil then return "nil" end
  for _, kind in ipairs(M.kinds) do
    if kind[1](value) then return kind[2] end
  end
  return "a " .. type(value)
end

return setmetatable(M, {
  __call = function(_, format, ...)
    local text = select("#", ...) > 0 and format:format(...) or format
    local level = script_level()
    error(text, level)
  end,
})
