-- Owns the names of devices: "cpu", "cuda" (the first GPU), "cuda:1" (by number, from 0).
--
--   d = devices.parse("cuda:1", "lsa.model: device")     {name = "cuda:1", kind = "cuda", code = C.LSA_CUDA, gpu = 1}
--
-- A name that no device can have is an error here; a GPU that is not there, in C.
local C = require("lsa.ffi").C
local options = require "lsa.options"
local raise = require "lsa.raise"

local M = {}

function M.parse(value, what)
  if value == "cpu" then return {name = value, kind = "cpu", code = C.LSA_CPU, gpu = 0} end
  local number = type(value) == "string" and (value == "cuda" and "0" or value:match "^cuda:(%d%d?%d?)$")
  if number then return {name = value, kind = "cuda", code = C.LSA_CUDA, gpu = tonumber(number), numbered = value ~= "cuda"} end
  raise('%s is %s; it can be: cpu, cuda, cuda:NUMBER%s', what, options.shown(value),
    require "lsa.nearest".hint(tostring(value), {cpu = true, cuda = true}))
end

return M
