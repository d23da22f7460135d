-- Owns how a weight in a checkpoint's format becomes an f32 tensor.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local M = {}

-- [rows, cols] f32 of an lsa_weight.
function M.tensor(weight)
  local rows, cols = tonumber(weight.rows), tonumber(weight.cols)
  local out = tensor.zeros({rows, cols}, "f32")
  raise.check(C.lsa_weight_rows(ffi.cast("float *", out.c.data), weight, 0, rows))
  return out
end

return M
