-- Owns the names of devices: "cpu", "cuda" (the first GPU), "cuda:1" (by number, from 0).
--
--   d = devices.parse("cuda:1", "lsa.model: device")     {name = "cuda:1", kind = "cuda", code = C.LSA_CUDA, gpu = 1}
--
--   devices.on(gpu, f, ...)     f(...), in which GPU `gpu` is in use: what is asked for and launched is there; nil: a CPU's affair, just f(...)
--   devices.methods(Class, of)  every method of a class, in place, is called so from here on; of(self) gives the GPU
--
-- A name that no device can have is an error here; a GPU that is not there, in C.
local C = require("lsa.ffi").C
local arity = require "lsa.arity"
local ffi = require "ffi"
local options = require "lsa.options"
local raise = require "lsa.raise"

local M = {}

function M.parse(value, what)
  if value == "cpu" then return {name = value, kind = "cpu", code = C.LSA_CPU, gpu = 0} end
  local number = type(value) == "string" and (value == "cuda" and "0" or value:match "^cuda:(%d%d?%d?)$")
  if number then
    M.know(tonumber(number))
    return {name = value, kind = "cuda", code = C.LSA_CUDA, gpu = tonumber(number), numbered = value ~= "cuda"}
  end
  raise('%s is %s; it can be: cpu, cuda, cuda:NUMBER%s', what, options.shown(value),
    require "lsa.nearest".hint(tostring(value), {cpu = true, cuda = true}))
end

-- Whether a GPU but the first was ever named: until then there is none to turn to.
local several = false

-- Named by number, it may be used.
function M.know(gpu)
  several = several or gpu > 0
end

local function back(before, ok, ...)
  local rc = C.lsa_device_back(before, C.LSA_OK)
  if not ok then error((...), 0) end -- it has its line
  raise.check(rc)
  return ...
end

function M.on(gpu, f, ...)
  if not several or not gpu or C.lsa_device_in_use() == gpu then return f(...) end
  local before = ffi.new "int32_t[1]"
  raise.check(C.lsa_device_enter(gpu, before))
  return back(before[0], pcall(f, ...))
end

function M.methods(class, of)
  for name, f in pairs(class) do
    if type(f) == "function" and name:sub(1, 2) ~= "__" then
      class[name] = arity.stands(function(self, ...)
        if not several then return f(self, ...) end
        return M.on(of(self), f, self, ...)
      end, f)
    end
  end
end

return M
