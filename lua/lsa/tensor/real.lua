-- Owns how floating-point numbers of memory become Lua's. LuaJIT takes some of the patterns that are no number for values of
-- other types, so what a file or a computation left in memory is looked at as bits first; NaN comes out as one plain NaN.
--
--   real.f32(p, i)    element i of a float *
--   real.f64(p, i)    element i of a double *
local bit = require "bit"
local ffi = require "ffi"

local band = bit.band
local words, floats, doubles = ffi.typeof "const uint32_t *", ffi.typeof "const float *", ffi.typeof "const double *"
local NAN = 0 / 0

local M = {}

function M.f32(p, i)
  if band(ffi.cast(words, p)[i], 0x7fffffff) > 0x7f800000 then return NAN end
  return ffi.cast(floats, p)[i]
end

function M.f64(p, i)
  local halves = ffi.cast(words, p)
  local high = band(halves[2 * i + 1], 0x7fffffff)
  if high > 0x7ff00000 or high == 0x7ff00000 and halves[2 * i] ~= 0 then return NAN end
  return ffi.cast(doubles, p)[i]
end

return M
