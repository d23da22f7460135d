-- Owns how a weight in a checkpoint's format becomes an f32 tensor: W times the identity, through the linear kernel, so
-- that every format is read by the one piece of code that knows it.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local tensor = require "lsa.tensor"

local C = lib.C

local M = {}

-- [rows, cols] f32 of an lsa_weight.
function M.tensor(weight)
  local rows, cols = tonumber(weight.rows), tonumber(weight.cols)
  local out = tensor.zeros({rows, cols}, "f32")
  local to = ffi.cast("float *", out.c.data)
  if weight.scale == nil and weight.dtype < C.LSA_DTYPES then
    lib.check(C.lsa_convert_cpu(to, weight.data, rows * cols, C.LSA_F32, weight.dtype, nil), 2)
    return out
  end
  local workspace = tensor.zeros({tonumber(C.lsa_linear_workspace(weight, 1, rows, 0))}, "u8")
  local unit, column = ffi.new("float[?]", cols), ffi.new("float[?]", rows)
  for c = 0, cols - 1 do
    unit[c] = 1
    lib.check(C.lsa_linear_cpu(column, unit, weight, 1, 0, rows, cols, rows, 0, workspace.c.data, nil), 2)
    unit[c] = 0
    for r = 0, rows - 1 do to[r * cols + c] = column[r] end
  end
  return out
end

return M
