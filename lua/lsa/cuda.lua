-- The GPU as scripts see it.
--
--   print(lsa.cuda)                   what it is; where there is none, why, in one line
--   lsa.cuda.missing()                nil where there is a GPU that can be used, else that line
--   lsa.cuda.synchronize()            waits for what runs there, and raises its errors
--   lsa.cuda.transfers()              how records come to the GPU's cells, {alone =, beside =}: alone and beside decoding: way "gather", "pack" or
--                                     "unknown" (not measured yet), and GB/s of both (core/pool/gpu_transfer.h)
--   k = lsa.cuda.kernel(source, name) a kernel of your own, compiled now; print(k) shows its arguments
--   k(grid, block, shared, ...)       launches it: sizes as numbers or {x, y, z}, bytes of shared memory; then the kernel's
--                                     arguments: numbers, tensors on the GPU, and, where it only reads (const), tensors of the host
--                                     and sets (as const unsigned long long *), which are copied there; nil is a null pointer
local ffi = require "ffi"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"

local M = {}

function M.missing()
  if C.lsa_device_count() == 0 or C.lsa_device_check() < 0 then return (ffi.string(C.lsa_error()):gsub("%s*\n%s*", " ")) end
end

function M.synchronize()
  raise.check(C.lsa_device_synchronize())
end

local WAYS = {[C.LSA_TRANSFER_UNKNOWN] = "unknown", [C.LSA_TRANSFER_GATHER] = "gather", [C.LSA_TRANSFER_PACK] = "pack"}

function M.transfers()
  local out, mode = {}, ffi.new "lsa_transfer_mode[1]"
  for beside, name in pairs {[0] = "alone", "beside"} do
    C.lsa_transfer_mode_of(mode, beside)
    local m = mode[0]
    out[name] = {way = WAYS[m.way], gather = m.gather_rate, pack = m.pack_rate, gather_cost = m.gather_cost, pack_cost = m.pack_cost}
  end
  return out
end

function M.kernel(source, name, options)
  return require("lsa.cuda.kernel").new(source, name, options)
end

local function describe()
  local missing = M.missing()
  if missing then return missing end
  local name, free, total = ffi.new "char[256]", ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  raise.check(C.lsa_device_describe(0, name, 256, free, total))
  local text = ("%s, %.1f of %.1f GiB free"):format(ffi.string(name), tonumber(free[0]) / 2 ^ 30, tonumber(total[0]) / 2 ^ 30)
  local unpinned = ffi.string(C.lsa_device_unpinned())
  return unpinned == "" and text or text .. "; " .. unpinned .. ", so transfers are slower"
end

require("lsa.arity").functions(M, "lsa.cuda.")

return setmetatable(M, {__tostring = describe})
