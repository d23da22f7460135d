-- Owns tensors' way between the host and the GPU; tensor.lua calls it where a tensor is on a device.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"

local M = {writes = 0}           -- how often something on a device was written to

function M.written() M.writes = M.writes + 1 end
local check = raise.check
local codes = {cpu = C.LSA_CPU, cuda = C.LSA_CUDA}

local function made(make, ...)
  local out = require("lsa.tensor.tensor").unmade()
  check(make(out.box, ...))
  return out
end

-- A new tensor of a shape (int64_t[6]), contents undefined.
function M.empty(device, dtype, rank, shape)
  return made(C.lsa_tensor_empty_on, codes[device], dtype, rank, shape)
end

-- A view with gaps comes to the host with its gaps: one copy of all that it spans.
local function span_to_host(t)
  local c, last = t.c, 0
  for i = 0, c.rank - 1 do last = last + (tonumber(c.shape[i]) - 1) * tonumber(c.stride[i]) end
  local span = ffi.new("int64_t[1]", last + 1)
  local whole = made(C.lsa_tensor_empty, c.dtype, 1, span)
  check(C.lsa_device_copy(whole.c.data, c.data, span[0] * C.lsa_dtype_size(c.dtype)))
  return made(C.lsa_tensor_view, whole.c, 0, c.rank, c.shape, c.stride)
end

-- The tensor's values on `device`, where it is not.
function M.move(t, device)
  if device == "cpu" and not t:is_contiguous() and t:count() > 0 then return span_to_host(t) end
  local source = t:contiguous()
  return made(C.lsa_tensor_transfer, source.c, codes[device])
end

-- t's values in `into` (of t's shape), or in a new contiguous tensor beside t; one of them is on a device.
function M.copy(t, into)
  if into == nil then
    if not t:is_contiguous() then return M.move(t, "cpu"):contiguous():to(t:device()) end
    return made(C.lsa_tensor_transfer, t.c, t.c.device)
  end
  if into:device() == "cpu" then return into:copy(t:to "cpu") end
  if not into:is_contiguous() then raise "copy: the tensor is a view with gaps on a device, which nothing writes to" end
  local source = t:to(into:dtype()):contiguous()
  M.written()
  check(C.lsa_device_copy(into.c.data, source.c.data, source:bytes()))
  return into
end

return M
