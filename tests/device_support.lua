-- Under `lsa test --device cuda` every call of lsa_X_cpu that a spec makes runs lsa_X_cuda, too, on copies of the same
-- inputs, twice: both halves fail alike or agree within the bounds that stand here, and the GPU gives the same bits again.
-- Buffers on the GPU end where the kernel's contract ends, so that compute-sanitizer sees what goes beyond.
local ffi = require "ffi"
local bit = require "bit"

local M = {}

-- ---- what pointers point to: the leading arguments of every kernel, outputs first ----

local function bytes(n, offset) return {bytes = n, offset = offset} end
local function result(n, offset) return {bytes = n, offset = offset, changed = true} end
local function floats(n) return {bytes = 4 * n} end

-- bound: of an error, against the largest value of the result; 0: the same bits, or NaN on both sides.
local function numbers(n, bound) return {bytes = 4 * n, changed = true, bound = bound} end

-- The same of doubles.
local function doubles(n, bound) return {bytes = 8 * n, changed = true, bound = bound, ctype = "double *"} end

local function words(n) return 8 * math.floor((n + 63) / 64) end
local function rows_of(n, stride, last) return n > 0 and (n - 1) * stride + last or 0 end
local function value_bytes(C, n, dtype) return dtype == C.LSA_F4_E2M1 and n / 2 or n * tonumber(C.lsa_dtype_size(dtype)) end

-- Elements before and behind the first of a view.
local function extent(rank, shape, stride)
  local low, high = 0, 1
  for i = 0, rank - 1 do
    local n, s = tonumber(shape[i]), tonumber(stride[i])
    if n == 0 then return 0, 0 end
    low, high = low + math.min(0, (n - 1) * s), high + math.max(0, (n - 1) * s)
  end
  return low, high
end

local function view(what, size, rank, shape, stride)
  if rank < 0 or rank > 6 then return what(0) end
  local low, high = extent(rank, shape, stride)
  return what((high - low) * size, low * size)
end

local function vocabulary(tokens, n)
  local most = -1
  for i = 0, tokens ~= nil and n - 1 or -1 do most = math.max(most, tokens[i]) end
  return most + 1
end

-- How many records the first `tokens` queries name, from the first on.
local function records_seen(ids, counts, tokens, stride)
  local most = 0
  for t = 0, counts ~= nil and tokens - 1 or -1 do
    for j = 0, counts[t] - 1 do most = math.max(most, ids ~= nil and ids[t * stride + j] + 1 or j + 1) end
  end
  return most
end

local function record(C, format, dim, rope) return tonumber(C.lsa_kv_record_bytes(format, dim, rope)) end
local function key(C, format, dim) return tonumber(C.lsa_index_key_bytes(format, dim)) end
local function pages(n, size) return size < 1 and 0 or math.ceil(n / size) end

-- name = function(C, arguments of the kernel) -> what each of its pointers points to. `workspace`: which argument is one.
local KERNELS = {
  rmsnorm = function(_, _, _, _, rows, n) return numbers(rows * n, 2e-6), floats(rows * n), floats(n) end,
  rope_table = function(_, _, _, _, n, half) return numbers(2 * n * half, 2.4e-7), floats(half), bytes(4 * n) end,
  rope = function(_, _, _, rows, heads, dim, rope) return numbers(rows * heads * dim, 0), floats(rows * rope) end,
  hadamard = function(_, _, rows, dim) return numbers(rows * dim, 0) end,
  hc_open = function(_, _, _, _, _, _, _, _, tokens, hc, dim)
    local width = (2 + hc) * hc
    return numbers(tokens * dim, 1e-5), numbers(tokens * hc, 1e-5), numbers(tokens * hc * hc, 1e-5),
      floats(tokens * hc * dim), floats(tokens * width), floats(width), floats(3)
  end,
  hc_close = function(_, _, _, _, _, tokens, hc, dim)
    return numbers(tokens * hc * dim, 0), floats(tokens * dim), floats(tokens * hc), floats(tokens * hc * hc)
  end,
  hc_head = function(_, _, _, _, _, _, tokens, hc, dim)
    return numbers(tokens * dim, 1e-5), floats(tokens * hc * dim), floats(tokens * hc), floats(hc), floats(1)
  end,
  moe_route = function(_, _, _, _, _, _, tokens, n, experts, k)
    return result(4 * n * k), numbers(n * k, 0), floats(n * experts), floats(experts),
      bytes(4 * k * vocabulary(tokens, n)), bytes(4 * n)
  end,
  swiglu = function(_, _, _, _, n) return numbers(n, 0), floats(n), floats(n) end,
  -- bf16 rounds what goes from one product to the next: numbers that differ in their last bit may part there.
  experts = function(C, _, _, _, _, _, _, tokens, hidden, count, k, _, compute)
    return numbers(tokens * hidden, compute == C.LSA_COMPUTE_BF16 and 1e-2 or 2e-5), floats(tokens * hidden),
      bytes(4 * tokens * k), floats(tokens * k), {experts = count, bytes = 0}, {experts = 1, bytes = 0}
  end,
  linear = function(_, _, _, w, tokens, _, rows, x_stride, y_stride)
    return numbers(rows_of(tokens, y_stride, rows), 1e-5), floats(rows_of(tokens, x_stride, tonumber(w.cols))), "weight"
  end,
  kv_encode = function(C, _, _, n, dim, rope, stride, format)
    return result(rows_of(n, stride, record(C, format, dim, rope))), floats(n * dim)
  end,
  kv_decode = function(C, _, _, n, dim, rope, stride, format)
    return numbers(n * dim, 0), bytes(rows_of(n, stride, record(C, format, dim, rope)))
  end,
  index_encode = function(C, _, _, n, dim, stride, format)
    return result(rows_of(n, stride, key(C, format, dim))), floats(n * dim)
  end,
  index_decode = function(C, _, _, n, dim, stride, format)
    return numbers(n * dim, 0), bytes(rows_of(n, stride, key(C, format, dim)))
  end,
  convert = function(C, _, _, n, to, from) return result(value_bytes(C, n, to)), bytes(value_bytes(C, n, from)) end,
  topk = function(_, _, _, _, _, rows, n, stride, k)
    return result(4 * rows * k), result(4 * rows * k), result(4 * rows), floats(rows_of(rows, stride, n))
  end,
  select_above = function(_, _, _, n) return result(words(n)), floats(n) end,
  select_topk = function(_, _, _, n) return result(words(n)), floats(n) end,
  select_topp = function(_, _, _, n) return result(words(n)), floats(n) end,
  ensemble = function(_, _, _, layers, n) return numbers(n, 0), floats(layers * n) end,
  softmax_sum = function(_, _, _, rows, n) return numbers(n, 2e-6), floats(rows * n) end,
  reduce = function(_, _, _, outer, n, inner) return numbers(outer * inner, 0), floats(outer * n * inner) end,
  argmax = function(_, _, _, rows, n) return result(4 * rows), floats(rows * n) end,
  pages = function(_, _, _, rows, n, size) return numbers(rows * pages(n, size), 0), floats(rows * n) end,
  density = function(_, _, _, n, size) return numbers(pages(n, size), 0), bytes(words(n)) end,
  where = function(_, _, _, _, _, n, b_step) return result(4 * n), bytes(words(n)), floats(n), floats(b_step == 0 and 1 or n) end,
  copy = function(_, _, _, size, rank, shape, out, from)
    return view(result, size, rank, shape, out), view(bytes, size, rank, shape, from)
  end,
  uniform = function(_, _, n) return numbers(n, 0) end,
  spread = function(_, _, _, n) return numbers(n, 0), floats(n) end,
  bound_query = function(_, _, _, _, _, rows, heads, dim)
    return numbers(4 * rows * heads * dim, 0), numbers(2 * rows * heads, 0), floats(rows * heads * dim), floats(rows * heads)
  end,
  attention = function(C, _, _, _, _, _, records, ids, counts, tokens, heads, dim, rope, room, _, _, stride)
    local seen = {records = records ~= nil and records_seen(ids, counts, tokens, stride) or 0, bytes = 0}
    if seen.records > 0 then seen.record_bytes = record(C, records.format, dim, rope) end
    return numbers(tokens * heads * dim, 2e-6), numbers(tokens * stride, 2e-6), floats(tokens * heads * dim),
      floats(room * dim), floats(heads), seen, bytes(4 * tokens * stride), bytes(4 * tokens)
  end,
  binary = function(_, _, _, _, n, period) return numbers(n, 0), floats(n), floats(n == 0 and 0 or period) end,
  unary = function(_, _, _, n) return numbers(n, 0), floats(n) end,
  scale = function(_, _, _, n) return numbers(n, 0) end,
  compress = function(_, _, _, _, _, _, _, n, m, dim, overlap)
    local width = overlap == 0 and dim or 2 * dim
    return numbers(n * dim, 0), floats(n * m * width), floats(n * m * width), floats(m * width), floats(m * width),
      floats(m * width)
  end,
  sample = function(_, _, _, _, _, n, vocab) return result(4 * n), floats(n * vocab), result(8 * n), bytes(8 * n) end,
  embed = function(_, _, _, _, n, hc, hidden) return numbers(n * hc * hidden, 0), bytes(4 * n), "weight" end,
  gemm = function(_, _, _, _, m, n, k, c, a, b, across_a, across_b)
    return numbers(rows_of(m, c, n), 1e-5), floats(across_a ~= 0 and rows_of(k, a, m) or rows_of(m, a, k)),
      floats(across_b ~= 0 and rows_of(n, b, k) or rows_of(k, b, n))
  end,
  rmsnorm_gradient = function(_, _, _, _, _, _, rows, n)
    return numbers(rows * n, 1e-5), numbers(n, 1e-5), floats(rows * n), floats(rows * n), floats(n)
  end,
  adamw = function(_, _, _, _, _, n) return numbers(n, 1e-6), numbers(n, 1e-6), numbers(n, 1e-6), floats(n) end,
  square_sum = function(_, _, _, n) return doubles(1, 1e-12), floats(n) end,
  entropy = function(_, _, _, n, vocab) return doubles(n, 1e-12), floats(n * vocab) end,
}

local WORKSPACES = {
  experts = {13, "lsa_experts_workspace", function(a) return a[5], a[6], a[7], a[8], a[9], a[10], a[12] end},
  linear = {10, "lsa_linear_workspace", function(a) return a[3], a[4], a[6], a[9] end},
  attention = {18, "lsa_attention_workspace", function(a)
    return a[9], a[10], a[11], a[15], a[16], a[2] ~= nil and a[16] or 0
  end},
  square_sum = {4, "lsa_square_sum_workspace", function(a) return a[3] end, both = true},
  select_topk = {5, "lsa_select_workspace", function(a) return a[3] end},
  select_topp = {5, "lsa_select_workspace", function(a) return a[3] end},
}

-- ---- both halves ----

local Block, Bytes, Numbers = ffi.typeof "void *[1]", ffi.typeof "uint8_t *", ffi.typeof "float *"
local Words, Untyped, Storage, Vector = ffi.typeof "uint32_t *", ffi.typeof "void *", ffi.typeof "uint8_t[?]", ffi.typeof "uintptr_t[2]"
local Address, Weight = ffi.typeof "uintptr_t", ffi.typeof "const lsa_weight *"
local Records, BlockTable, Blocks = ffi.typeof "const lsa_records *", ffi.typeof "uint8_t *const *", ffi.typeof "uint8_t *[?]"
local found = {} -- functions of the CUDA library, by name; each cast would make a type anew

local function cuda_function(C, name, ctype)
  if not found[name] then
    local symbol = C.lsa_device_symbol(name)
    if symbol == nil then error(ffi.string(C.lsa_error()), 0) end
    found[name] = ffi.cast(ctype .. " *", symbol)
  end
  return found[name]
end

local MOST = 2 ^ 31 -- more can only be a size that is to be refused

local function size_of(n) return n == n and n > 0 and n < MOST and n or 0 end

ffi.cdef [[
int getpid(void);
long process_vm_readv(int, const void *, unsigned long, const void *, unsigned long, unsigned long);
]]

-- A copy of n bytes, by the kernel: nil, instead of a crash, where a call that is to be refused says too much.
local function copy_of(from, n)
  local out = Storage(n)
  local to, at = Vector(ffi.cast(Address, out), n), Vector(ffi.cast(Address, from), n)
  if n > 0 and ffi.C.process_vm_readv(ffi.C.getpid(), to, 1, at, 1, 0) ~= n then return nil end
  return out
end

local function check(C, rc) if rc < 0 then error(ffi.string(C.lsa_error()), 0) end end

-- A copy on the GPU, to be freed; memory as it comes where there is nothing to copy.
local function upload(C, held, host, n)
  local out = Block()
  local there = host ~= nil and copy_of(host, n)
  check(C, C.lsa_device_alloc(out, n))
  held[#held + 1] = out[0]
  if there then check(C, C.lsa_device_copy(out[0], there, n)) end
  held.missing = held.missing or host ~= nil and not there
  return ffi.cast(Bytes, out[0])
end

local function weight_bytes(C, w)
  local n = tonumber(w.rows * w.cols)
  return size_of(math.floor(value_bytes(C, n, w.dtype)))
end

local function upload_weight(C, held, w)
  local copy = ffi.new("lsa_weight", w[0])
  copy.data = upload(C, held, w.data, weight_bytes(C, w))
  if w.scale ~= nil then
    local blocks = math.ceil(tonumber(w.rows) / math.max(tonumber(w.block_rows), 1)) *
      math.ceil(tonumber(w.cols) / math.max(tonumber(w.block_cols), 1))
    copy.scale = upload(C, held, w.scale, size_of(blocks) * (w.scale_dtype == C.LSA_F32 and 4 or 1))
  end
  return copy
end

-- The first of a layer's records (kernels/kv_record.h), their blocks on the GPU.
local function upload_records(C, held, r, what)
  local copy, per_block = ffi.new("lsa_records", r[0]), 2 ^ r.block_shift
  local blocks = Blocks(math.max(1, math.ceil(what.records / per_block)))
  for b = 0, what.records > 0 and math.ceil(what.records / per_block) - 1 or -1 do
    local last = math.min(per_block, what.records - b * per_block) - 1
    blocks[b] = upload(C, held, r.blocks[b], last * tonumber(r.stride) + tonumber(r.offset) + what.record_bytes)
  end
  copy.blocks = ffi.cast(BlockTable, upload(C, held, blocks, ffi.sizeof(blocks)))
  return copy
end

-- n experts that host and GPU read, their weights on the GPU.
local function upload_experts(C, held, experts, n)
  local out = Block()
  check(C, C.lsa_device_alloc_shared(out, size_of(n) * ffi.sizeof "lsa_expert_weights", 0))
  held[#held + 1] = out[0]
  local copies = ffi.cast("lsa_expert_weights *", out[0])
  for i = 0, n - 1 do
    for _, part in ipairs {"gate", "up", "down"} do
      copies[i][part] = upload_weight(C, held, ffi.cast(Weight, experts[i][part]))
    end
  end
  return copies
end

local function nan_or_same(a, b)
  local x, y = ffi.cast(Words, a)[0], ffi.cast(Words, b)[0]
  local infinity = 0x7f800000
  return x == y or bit.band(x, 0x7fffffff) > infinity and bit.band(y, 0x7fffffff) > infinity
end

local function alike(a, b) return a == b or a ~= a and b ~= b end

local function compare_numbers(name, got, want, n, bound, doubled)
  local largest = 0
  for i = 0, n - 1 do
    local size = math.abs(want[i])
    if size < math.huge and size > largest then largest = size end
  end
  for i = 0, n - 1 do
    local same
    if doubled then same = alike(got[i], want[i]) else same = nan_or_same(got + i, want + i) end
    if not (same or bound > 0 and math.abs(got[i] - want[i]) <= bound * largest) then
      error(("%s: number %d of %d is %.9g on cuda, %.9g on the CPU"):format(name, i, n, got[i], want[i]), 0)
    end
  end
end

local function compare(name, what, got, want)
  if what.ctype then
    return compare_numbers(name, ffi.cast(what.ctype, got), ffi.cast(what.ctype, want), what.size / 8, what.bound, true)
  elseif what.bound then
    return compare_numbers(name, ffi.cast(Numbers, got), ffi.cast(Numbers, want), what.size / 4, what.bound)
  end
  for i = 0, what.size - 1 do
    if got[i] ~= want[i] then
      error(("%s: byte %d of %d is %d on cuda, %d on the CPU"):format(name, i, what.size, got[i], want[i]), 0)
    end
  end
end

-- The host's bytes where an argument's memory begins.
local function start(argument, what) return ffi.cast(Bytes, argument) + (what.offset or 0) end

-- Runs the CUDA half on what `before` holds of changed memory, and gives what it makes of that.
local function run_cuda(C, name, cuda, a, n, points, before)
  local held, on_device, seen, after = {}, {}, {}, {}
  local ok, rc = pcall(function()
    for i = 1, n do on_device[i] = a[i] end
    for i, what in ipairs(points) do
      local plain = what ~= "weight" and not what.records and not what.experts
      local address = plain and a[i] ~= nil and tostring(ffi.cast(Untyped, a[i]))
      if what == "weight" then
        on_device[i] = upload_weight(C, held, ffi.cast(Weight, a[i]))
      elseif what.records and a[i] ~= nil then
        on_device[i] = upload_records(C, held, ffi.cast(Records, a[i]), what)
      elseif what.experts and a[i] ~= nil then
        on_device[i] = upload_experts(C, held, a[i], what.experts)
      elseif address then
        seen[address] = seen[address] or upload(C, held, before[i] or start(a[i], what), what.size)
        on_device[i] = ffi.cast(Untyped, seen[address] - (what.offset or 0))
      end
    end
    local work = WORKSPACES[name]
    if work then
      local f = work.both and C[work[2]] or cuda_function(C, work[2] .. "_cuda", work[2] .. "_fn")
      on_device[work[1]] = ffi.cast(Untyped, upload(C, held, nil, math.max(tonumber(f(work[3](a))), 0)))
    end
    local code = cuda(unpack(on_device, 1, n))
    if code < 0 then return code end
    if held.missing then error("an argument has less memory than tests/device_support.lua says", 0) end
    check(C, C.lsa_device_synchronize())
    for i in pairs(before) do
      after[i] = Storage(points[i].size)
      check(C, C.lsa_device_copy(after[i], ffi.cast(Bytes, on_device[i]) + (points[i].offset or 0), points[i].size))
    end
    return code
  end)
  local message = ok and rc < 0 and ffi.string(C.lsa_error())
  for _, block in ipairs(held) do C.lsa_device_free(block) end
  if not ok then error(name .. ": " .. tostring(rc), 0) end
  return rc, after, message
end

local function both(C, name, describe, ...)
  local a, n, plain = {...}, select("#", ...), {}
  for i = 1, n do plain[i] = tonumber(a[i]) or a[i] end
  local points, before = {describe(C, unpack(plain, 1, n))}, {}
  for i, what in ipairs(points) do
    if what ~= "weight" then what.size = size_of(what.bytes) end
    if what.changed and a[i] ~= nil then
      before[i] = copy_of(start(a[i], what), what.size)
    end
  end
  -- Inputs that the call changes are uploaded as they are now, so the GPU goes first.
  local cuda = cuda_function(C, "lsa_" .. name .. "_cuda", "lsa_" .. name .. "_fn")
  local rc_cuda, first, message = run_cuda(C, name, cuda, a, n, points, before)
  local _, second = run_cuda(C, name, cuda, a, n, points, before)
  local rc = C["lsa_" .. name .. "_cpu"](...)
  if rc ~= rc_cuda then error(("%s gives %d on cuda, %d on the CPU"):format(name, rc_cuda, rc), 0) end
  if rc < 0 then
    local own = ffi.string(C.lsa_error())
    if own ~= message then error(("%s: cuda says \"%s\", the CPU \"%s\""):format(name, message, own), 0) end
    return rc
  end
  for i in pairs(before) do
    compare(name .. ", again", {size = points[i].size}, second[i], first[i])
    compare(name, points[i], first[i], start(a[i], points[i]))
  end
  return rc
end

-- The library with both halves behind the CPU's names.
function M.library(C)
  local made = {}
  return setmetatable({}, {
    __index = function(_, name)
      local kernel = name:match "^lsa_(.+)_cpu$"
      local describe = kernel and KERNELS[kernel]
      if not describe then return C[name] end
      made[name] = made[name] or function(...) return both(C, kernel, describe, ...) end
      return made[name]
    end,
    __newindex = function(_, name, value) C[name] = value end,
  })
end

return M
