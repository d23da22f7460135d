-- What kernel specs share: buffers that end at an unmapped page, seeded numbers, comparisons that NaN
-- fails, and a walk over the code paths.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local raise = require "lsa.raise"
if rawget(_G, "LSA_TEST_DEVICE") == "cuda" then lsa.C = require("device_support").library(lsa.C) end
local C = lsa.C

ffi.cdef [[
void *mmap(void *, size_t, int, int, int, long);
int mprotect(void *, size_t, int);
int munmap(void *, size_t);
int memcmp(const void *, const void *, size_t);
]]

local M = {}

-- What the specs of kernels with a CUDA version run on: "cpu", or "cuda" under `lsa test --device cuda`.
M.device = rawget(_G, "LSA_TEST_DEVICE") or "cpu"

local PAGE = 4096
local maps = 0

-- A zeroed array of exactly n elements of a named type: the next byte after it faults. It starts where its size puts it, so
-- only elements are aligned; `workspace` aligns to 64 bytes instead. Keep the result while pointers into it live.
local function map(ctype, n, round)
  maps = maps + 1
  if maps % 1000 == 0 then collectgarbage() end   -- mappings are few, and small to the collector
  local bytes = ffi.sizeof(ctype) * n
  local held = math.ceil((bytes + round - 1) / PAGE) * PAGE
  local base = ffi.cast("uint8_t *", ffi.C.mmap(nil, held + PAGE, 3, 0x22, -1, 0))
  assert(ffi.cast("intptr_t", base) ~= -1, "no memory for a test buffer")
  assert(ffi.C.mprotect(base + held, PAGE, 0) == 0)
  local start = held - math.ceil(bytes / round) * round
  return ffi.gc(ffi.cast(ctype .. " *", base + start),
                function() ffi.C.munmap(base, held + PAGE) end)
end

function M.buffer(ctype, n) return map(ctype, n, 1) end

function M.workspace(bytes) return map("uint8_t", tonumber(bytes), 64) end

-- A zeroed array that the device that specs run on reads, too: what spans (kernels/span.h) point to.
function M.shared(ctype, n)
  if M.device ~= "cuda" then return map(ctype, n, 1) end
  local out, count = ffi.new "void *[1]", math.max(1, n)
  raise.check(C.lsa_device_alloc_shared(out, count * ffi.sizeof(ctype), 0))
  return ffi.gc(ffi.cast(ctype .. " *", out[0]), C.lsa_device_free)
end

-- A buffer of the list's numbers.
function M.array(ctype, list)
  local out = M.buffer(ctype, #list)
  for i = 1, #list do out[i - 1] = list[i] end
  return out
end

-- Park and Miller's generator; each call gives a number of [low, high), by default [0, 1).
function M.uniform(seed)
  local state = seed * 7919 % 2147483646 + 1
  return function(low, high)
    state = state * 16807 % 2147483647
    local u = (state - 1) / 2147483646
    return low and low + u * (high - low) or u
  end
end

-- n f32 of a normal distribution, times scale.
function M.normals(n, seed, scale)
  local u, out = M.uniform(seed), M.buffer("float", n)
  for i = 0, n - 1 do
    out[i] = math.sqrt(-2 * math.log(1 - u())) * math.cos(2 * math.pi * u()) * (scale or 1)
  end
  return out
end

-- The largest |got - want| / max(|want|, floor) of n elements; NaN and infinity match only themselves, or
-- the error is infinite.
function M.max_error(got, want, n, floor)
  local worst = 0
  for i = 0, n - 1 do
    local g, w = tonumber(got[i]), tonumber(want[i])
    if g ~= w and (g == g or w == w) then
      local size = math.max(math.abs(w), floor or 0)
      local error = math.abs(g - w) / size
      if not (error <= math.huge and size < math.huge) then return math.huge end
      worst = math.max(worst, error)
    end
  end
  return worst
end

function M.same_bits(a, b, bytes) return ffi.C.memcmp(a, b, bytes) == 0 end

-- Calls fn(level, name) with the library limited to each code path this processor has, plainest first.
function M.for_each_cpu_level(fn)
  for level = 0, C.lsa_cpu_best() do
    C.lsa_cpu_limit(level)
    local name = ffi.string(C.lsa_cpu_level_name(level))
    local ok, message = pcall(fn, level, name)
    C.lsa_cpu_limit(C.lsa_cpu_best())
    if not ok then
      error(type(message) == "string" and name .. ": " .. message or message, 0)
    end
  end
end

-- Fills with f32 NaN. (Bytes of 0xff would do for C, but Lua takes such a NaN for something else.)
function M.poison(floats, n)
  for i = 0, n - 1 do floats[i] = 0 / 0 end
  return floats
end

-- GPU memory of exactly that size: a copy of `host`, or NaN where there is none.
function M.device_buffer(bytes, host)
  bytes = tonumber(bytes)
  host = host or M.poison(ffi.new("float[?]", math.ceil(bytes / 4)), math.ceil(bytes / 4))
  local out = ffi.new "void *[1]"
  raise.check(C.lsa_device_alloc(out, bytes))
  raise.check(C.lsa_device_copy(out[0], host, bytes))
  return ffi.gc(ffi.cast("uint8_t *", out[0]), C.lsa_device_free)
end

-- Waits for what runs, and copies back.
function M.from_device(host, device, bytes)
  raise.check(C.lsa_device_synchronize())
  raise.check(C.lsa_device_copy(host, device, bytes))
end

-- The CUDA version of a kernel: device_kernel("lsa_rope_cuda", "lsa_rope_fn").
function M.device_kernel(name, ctype)
  local address = C.lsa_device_symbol(name)
  if address == nil then error(ffi.string(C.lsa_error()), 2) end
  return ffi.cast(ctype .. " *", address)
end

-- Kernels over spans follow pointers, so their specs lay everything in memory that the device reads: like `buffer`, or
-- memory that host and GPU share.
function M.span_buffer(ctype, n)
  if M.device == "cpu" then return M.buffer(ctype, n) end
  local out = ffi.new "void *[1]"
  raise.check(C.lsa_device_alloc_shared(out, ffi.sizeof(ctype) * n, 0))
  return ffi.gc(ffi.cast(ctype .. " *", out[0]), C.lsa_device_free)
end

function M.span_copy(ctype, from, n)
  local out = M.span_buffer(ctype, n)
  ffi.copy(out, from, ffi.sizeof(ctype) * n)
  return out
end

-- The kernel of the device that specs run on; when it returns, its work is done.
function M.over_spans(name)
  if M.device == "cpu" then return C["lsa_" .. name .. "_cpu"] end
  local kernel = M.device_kernel("lsa_" .. name .. "_cuda", "lsa_" .. name .. "_fn")
  return function(...)
    local rc = kernel(...)
    if rc == 0 then raise.check(C.lsa_device_synchronize()) end
    return rc
  end
end

return M
