local ffi = require "ffi"
local bit = require "bit"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local F32, BF16, FP8 = C.LSA_KV_F32, C.LSA_KV_BF16, C.LSA_KV_FP8
local UNTOUCHED = -2 ^ -20  -- no mass is negative
local FORMATS = {[F32] = "f32", [BF16] = "bf16", [FP8] = "fp8"}

local cell = ffi.new "union { float f; uint32_t u; }"

local function f32_of_bits(bits)
  cell.u = bits
  return cell.f
end

local function e4m3(code)
  local exponent, mantissa = bit.band(bit.rshift(code, 3), 15), bit.band(code, 7)
  local v = exponent == 0 and mantissa * 2 ^ -9 or (8 + mantissa) * 2 ^ (exponent - 10)
  return code >= 128 and -v or v
end

-- n records of random bytes that hold numbers of about one, in blocks of 2^shift records with gaps between them.
local function new_records(format, n, dim, rope_dim, shift, seed)
  local random = support.uniform(seed)
  local size = tonumber(C.lsa_kv_record_bytes(format, dim, rope_dim))
  local r = {format = format, dim = dim, rope_dim = rope_dim, size = size, n = n, shift = shift, held = {}}
  r.offset, r.stride = seed % 3 * 4, size + seed % 2 * 8
  local count = math.max(1, math.ceil(n / 2 ^ shift))
  r.blocks = support.buffer("uint8_t *", count)
  for b = 0, count - 1 do
    local here = math.min(2 ^ shift, n - b * 2 ^ shift)
    local bytes = support.buffer("uint8_t", math.max(0, (here - 1) * r.stride + r.offset + size))
    r.held[b], r.blocks[b] = bytes, bytes
  end
  function r.at(i) return r.held[math.floor(i / 2 ^ shift)] + i % 2 ^ shift * r.stride + r.offset end
  local function number() return (random() + random() + random() - 1.5) * 2 end
  local function bf16_bits()
    cell.f = number()
    return bit.rshift(cell.u, 16)
  end
  for i = 0, n - 1 do
    local at, nope = r.at(i), format == FP8 and dim - rope_dim or 0
    if format == F32 then
      local values = ffi.new("float[?]", dim)
      for c = 0, dim - 1 do values[c] = number() end
      ffi.copy(at, values, dim * 4)
    else
      for c = 0, nope - 1 do at[c] = math.floor(random() * 2) * 128 + math.floor(random() * 70) end
      for c = 0, dim - nope - 1 do
        local bits = bf16_bits()
        at[nope + 2 * c], at[nope + 2 * c + 1] = bit.band(bits, 255), bit.rshift(bits, 8)
      end
      local tiles = math.ceil(nope / 64)
      for tile = 0, tiles - 1 do at[nope + 2 * (dim - nope) + tile] = 125 + math.floor(random() * 4) end
      if tiles > 0 and i % 3 == 0 then -- the smallest codes, by a scale that makes large ones overflow a half
        for c = 64 * (tiles - 1), nope - 1 do at[c] = math.floor(random() * 2) * 128 + 1 end
        at[nope + 2 * (dim - nope) + tiles - 1] = 135
      end
    end
  end
  r.c = ffi.new("lsa_records", {r.blocks, r.stride, r.offset, shift, format})
  return r
end

local function decoded(r, i)
  local at, out = r.at(i), ffi.new("double[?]", r.dim)
  local nope = r.format == FP8 and r.dim - r.rope_dim or 0
  if r.format == F32 then
    local values = ffi.new("float[?]", r.dim)
    ffi.copy(values, at, r.dim * 4)
    for c = 0, r.dim - 1 do out[c] = values[c] end
    return out
  end
  local scales = at + nope + 2 * (r.dim - nope)
  for c = 0, r.dim - 1 do
    if c < nope then out[c] = e4m3(at[c]) * 2 ^ (scales[math.floor(c / 64)] - 127)
    else
      local low, high = at[nope + 2 * (c - nope)], at[nope + 2 * (c - nope) + 1]
      out[c] = f32_of_bits(low * 65536 + high * 16777216)
    end
  end
  return out
end

-- A call: queries, window and sinks of normal numbers; ids are random without repetition when `records` are given.
local function new_call(t)
  t.rope_dim = t.rope_dim or 0
  t.q = support.normals(t.tokens * t.heads * t.dim, 11)
  t.window = support.normals((t.own + t.tokens) * t.dim, 12)
  t.sinks = support.normals(t.heads, 13)
  t.scale = t.scale or t.dim ^ -0.5
  local records = t.records
  if records then
    local random = support.uniform(17)
    t.id_stride = math.max(1, t.most)
    t.counts = support.buffer("int32_t", t.tokens)
    t.ids = not t.all and support.buffer("int32_t", t.tokens * t.id_stride) or nil
    for i = 0, t.tokens - 1 do
      t.counts[i] = i == t.tokens - 1 and t.most or math.floor(random() * (t.most + 1))
      if t.ids then
        local picked, at = {}, 0
        for j = 0, t.id_stride - 1 do t.ids[i * t.id_stride + j] = -1 end
        while at < t.counts[i] do
          local id = math.floor(random() * records.n)
          if not picked[id] then picked[id], t.ids[i * t.id_stride + at], at = true, id, at + 1 end
        end
      end
    end
  end
  return t
end

local function run(t, mass)
  local out = support.buffer("float", t.tokens * t.heads * t.dim)
  local bytes = C.lsa_attention_workspace(t.tokens, t.heads, t.dim, t.window_size, t.most or 0, mass and t.id_stride or 0)
  local workspace = support.workspace(bytes)
  local floats = ffi.cast("float *", workspace)
  for i = 0, tonumber(bytes) / 4 - 1 do floats[i] = 0 / 0 end    -- what is read before it is written shows
  check(C.lsa_attention_cpu(out, mass, t.q, t.window, t.sinks, t.records and t.records.c or nil, t.ids, t.counts,
    t.tokens, t.heads, t.dim, t.rope_dim, t.room or t.own + t.tokens, t.own, t.window_size, t.id_stride or 0, t.scale, workspace, nil))
  return out
end

local function keys_of(t, i)
  local keys = {}
  for row = math.max(0, t.own + i + 1 - t.window_size), t.own + i do keys[#keys + 1] = t.window + row * t.dim end
  local first = #keys
  for j = 0, t.records and t.counts[i] - 1 or -1 do
    keys[#keys + 1] = decoded(t.records, t.ids and t.ids[i * t.id_stride + j] or j)
  end
  return keys, first
end

local function oracle(t)
  local out = ffi.new("double[?]", t.tokens * t.heads * t.dim)
  local mass = ffi.new("double[?]", t.tokens * (t.id_stride or 0) + 1)
  for i = 0, t.tokens - 1 do
    local keys, first = keys_of(t, i)
    for h = 0, t.heads - 1 do
      local q, o, p = t.q + (i * t.heads + h) * t.dim, out + (i * t.heads + h) * t.dim, {}
      local max, nan = t.sinks[h], false
      for j, key in ipairs(keys) do
        local dot = 0
        for c = 0, t.dim - 1 do dot = dot + q[c] * key[c] end
        p[j] = dot * t.scale
        nan = nan or dot ~= dot
        if p[j] > max then max = p[j] end
      end
      local sum = math.exp(t.sinks[h] - max)
      if t.sinks[h] == -math.huge then sum = 0 end
      for j in ipairs(keys) do
        p[j] = math.exp(p[j] - max)
        sum = sum + p[j]
      end
      for j, key in ipairs(keys) do
        for c = 0, t.dim - 1 do o[c] = o[c] + p[j] / sum * key[c] end
        if j > first then
          local at = i * t.id_stride + j - first - 1
          mass[at] = mass[at] + p[j] / sum / t.heads
        end
      end
      if nan then for c = 0, t.dim - 1 do o[c] = 0 / 0 end end
    end
  end
  return out, mass
end

local function describe_call(t)
  return ("tokens %d heads %d dim %d rope %d own %d window %d most %d %s"):format(t.tokens, t.heads, t.dim, t.rope_dim,
    t.own, t.window_size, t.most or 0, t.records and FORMATS[t.records.format] or "-")
end

local function proves(t)
  local want, want_mass = oracle(t)
  support.for_each_cpu_level(function(_, name)
    local n = t.tokens * t.heads * t.dim
    local err = support.max_error(run(t), want, n, 1)
    assert.is_true(err <= 3e-6, ("%s %s: %g"):format(name, describe_call(t), err))
    if not t.records then return end
    local mass = support.buffer("float", t.tokens * t.id_stride)
    for i = 0, t.tokens * t.id_stride - 1 do mass[i] = UNTOUCHED end
    err = support.max_error(run(t, mass), want, n, 1)
    assert.is_true(err <= 3e-6, ("%s %s with mass: %g"):format(name, describe_call(t), err))
    for i = 0, t.tokens - 1 do
      local row = i * t.id_stride
      err = support.max_error(mass + row, want_mass + row, t.counts[i], 1e-3)
      assert.is_true(err <= 1e-4, ("%s %s mass: %g"):format(name, describe_call(t), err))
      for j = t.counts[i], t.id_stride - 1 do assert(mass[row + j] == UNTOUCHED) end
    end
  end)
end

local shapes = {  -- heads, dim, rope_dim, window, own, tokens, most
  {1, 1, 0, 1, 0, 1, 1}, {2, 5, 2, 3, 0, 4, 3}, {3, 16, 4, 1, 2, 2, 0}, {4, 64, 16, 64, 100, 5, 32},
  {5, 40, 8, 7, 3, 9, 65}, {6, 96, 32, 130, 200, 2, 70}, {4, 80, 16, 0, 5, 3, 17}, {17, 48, 16, 20, 0, 25, 9},
  {9, 512, 64, 128, 140, 2, 100}, {1, 192, 64, 66, 70, 1, 513}, {6, 32, 32, 5, 9, 3, 1100}, {3, 72, 64, 4, 4, 40, 30},
}

describe("attention", function()
  it("is the softmax over window, records and sink, at any shape and in every format", function()
    for index, shape in ipairs(shapes) do
      local heads, dim, rope_dim, window, own, tokens, most = unpack(shape)
      for format in pairs(FORMATS) do
        for _, all in ipairs {true, false} do
          local records = new_records(format, most + 5, dim, rope_dim, index % 5, index)
          proves(new_call {heads = heads, dim = dim, rope_dim = rope_dim, window_size = window, own = own, tokens = tokens,
            most = most, records = records, all = all})
        end
      end
      proves(new_call {heads = heads, dim = dim, window_size = window, own = own, tokens = tokens})
    end
  end)

  -- Many tokens, heads and records, so that calls are cut over threads, heads and sections.
  local function large(format, all, own)
    return new_call {heads = 9, dim = 80, rope_dim = 16, window_size = 40, own = own, tokens = 70, most = 1500, all = all,
      records = new_records(format, 1700, 80, 16, 6, 5)}
  end

  local function one_query(t, i)
    local one = setmetatable({tokens = 1, own = t.own + i, q = t.q + i * t.heads * t.dim}, {__index = t})
    one.counts = t.counts + i
    if t.ids then one.ids = t.ids + i * t.id_stride end
    return one
  end

  it("gives a query the same bits whatever else is in the call and on however many threads", function()
    local row = 9 * 80 * 4
    for _, format in ipairs {F32, FP8} do
      for _, all in ipairs {true, false} do
        local t = large(format, all, 30)
        support.for_each_cpu_level(function(_, name)
          C.lsa_threads_set(1)
          local want = run(t)
          for _, threads in ipairs {2, 3, 16} do
            C.lsa_threads_set(threads)
            assert.is_true(support.same_bits(want, run(t), row * t.tokens), name .. " threads " .. threads)
            for _, i in ipairs {0, 1, 33, 69} do
              assert.is_true(support.same_bits(want + i * 720, run(one_query(t, i)), row), name .. " alone " .. i)
            end
          end
          C.lsa_threads_set(0)
        end)
      end
    end
  end)

  it("gives the same mass whatever else is in the call and on however many threads", function()
    local t = large(BF16, false, 30)
    local want
    for _, threads in ipairs {1, 2, 5} do
      C.lsa_threads_set(threads)
      local mass, alone = support.buffer("float", 70 * 1500), support.buffer("float", 1500)
      run(t, mass)
      want = want or mass
      assert.is_true(support.same_bits(want, mass, 70 * 1500 * 4))
      run(one_query(t, 69), alone)
      assert.is_true(support.same_bits(want + 69 * 1500, alone, 1500 * 4))
    end
    C.lsa_threads_set(0)
  end)

  it("gives the same bits wherever the records lie and however they are named", function()
    local a = new_records(FP8, 700, 96, 32, 20, 2)
    local b = new_records(FP8, 1400, 96, 32, 3, 3)
    for i = 0, 699 do ffi.copy(b.at(2 * i + 1), a.at(i), a.size) end
    local call = {heads = 4, dim = 96, rope_dim = 32, window_size = 64, own = 70, tokens = 3, most = 700, all = true}
    call.records = a
    local t = new_call(call)
    for i = 0, 2 do t.counts[i] = 700 - 9 * i end
    local ids, moved = support.buffer("int32_t", 3 * 700), support.buffer("int32_t", 3 * 700)
    for i = 0, 2099 do ids[i], moved[i] = i % 700, i % 700 * 2 + 1 end
    support.for_each_cpu_level(function()
      local bytes = 3 * 4 * 96 * 4
      local want = run(t)
      assert.is_true(support.same_bits(want, run(setmetatable({ids = ids}, {__index = t})), bytes))
      assert.is_true(support.same_bits(want, run(setmetatable({ids = moved, records = b}, {__index = t})), bytes))
    end)
  end)

  it("shares weight alike among tied keys", function()
    support.for_each_cpu_level(function()
      local t = new_call {heads = 2, dim = 8, window_size = 70, own = 80, tokens = 1}
      for i = 0, 81 * 8 - 1 do t.window[i] = (i % 8 + 1) / 8 end
      t.sinks[0], t.sinks[1] = -math.huge, -math.huge
      local out = run(t)
      for i = 0, 15 do assert.is_true(math.abs(out[i] - (i % 8 + 1) / 8) <= 1e-6) end
    end)
  end)

  it("gives zeros where there are no keys, with any sink", function()
    support.for_each_cpu_level(function()
      local records = new_records(FP8, 1, 48, 16, 0, 1)
      local t = new_call {heads = 3, dim = 48, rope_dim = 16, window_size = 0, own = 0, tokens = 2, most = 0, records = records}
      t.sinks[1], t.sinks[2] = -math.huge, 1e30
      local out = run(t)
      for i = 0, 2 * 3 * 48 - 1 do assert.is_true(out[i] == 0) end
    end)
  end)

  it("lets a large sink or score win without overflow", function()
    support.for_each_cpu_level(function()
      local t = new_call {heads = 2, dim = 16, window_size = 3, own = 5, tokens = 1, scale = 1e4}
      t.sinks[1] = 3e38
      local want = oracle(t)
      local out = run(t)
      assert.is_true(support.max_error(out, want, 32, 1) <= 1e-5)
      for i = 16, 31 do assert.is_true(out[i] == 0) end
    end)
  end)

  it("keeps NaN in the queries and heads that meet it", function()
    for _, all in ipairs {true, false} do
      local records = new_records(FP8, 90, 64, 16, 4, 8)
      local t = new_call {heads = 5, dim = 64, rope_dim = 16, window_size = 4, own = 3, tokens = 8, most = 80, all = all,
        records = records}
      for i = 0, 7 do t.counts[i] = 10 * i + 10 end
      if t.ids then for i = 0, 8 * 80 - 1 do t.ids[i] = i % 80 end end
      records.at(35)[20] = 0x7f                 -- seen from query 3 on
      t.window[0] = 0 / 0                       -- row 0: seen by query 0 alone
      t.q[(1 * 5 + 2) * 64 + 63] = 0 / 0        -- head 2 of query 1
      support.for_each_cpu_level(function(_, name)
        local out = run(t)
        for i = 0, 7 do
          for h = 0, 4 do
            local nan = i >= 3 or i == 0 or (i == 1 and h == 2)
            for c = 0, 63 do
              local v = out[(i * 5 + h) * 64 + c]
              assert(nan == (v ~= v), ("%s query %d head %d value %d: %g"):format(name, i, h, c, v))
            end
          end
        end
      end)
    end
  end)

  -- A pass over spans of different lengths, each over its own window and store; t of each span as new_call makes it.
  local function new_pass(source, format, heads, dim, rope_dim, k, lengths)
    local p = {spans = {}, rows = 0, count = #lengths, heads = heads, dim = dim, most = 0}
    p.c, p.progress = support.shared("lsa_span", p.count), support.shared("lsa_progress", p.count)
    p.stores, p.held = support.shared("lsa_layer_store", p.count), {}
    local function shared(ctype, from, n)
      local out = support.shared(ctype, math.max(1, n))
      ffi.copy(out, from, n * ffi.sizeof(ctype))
      p.held[#p.held + 1] = out
      return out
    end
    for i, length in ipairs(lengths) do
      local own, rows = unpack(length)
      local entries = math.floor((own + rows) / 4)
      local n = source == C.LSA_ATTEND_ENTRIES and entries or k
      local records = source ~= C.LSA_ATTEND_WINDOW and new_records(format, math.max(n, 1) + 3, dim, rope_dim, i % 3 + 2, 2 * i)
      local t = new_call {heads = heads, dim = dim, rope_dim = rope_dim, window_size = 6, own = own, tokens = rows, most = n,
        records = records or nil, all = source == C.LSA_ATTEND_ENTRIES}
      t.row, p.rows, p.most = p.rows, p.rows + rows, math.max(p.most, n)
      for r = 0, source == C.LSA_ATTEND_ENTRIES and rows - 1 or -1 do t.counts[r] = math.floor((own + r + 1) / 4) end
      p.spans[i], p.progress[i - 1].tokens = t, own
      local store, span = p.stores[i - 1], p.c[i - 1]
      store.window.data, store.window.room = shared("float", t.window, (own + rows) * dim), own + rows
      span.in_cells = source == C.LSA_ATTEND_PICKED and i % 2 or 0
      if records then
        local blocks, count = {}, math.ceil(records.n / 2 ^ records.shift)
        for b = 0, count - 1 do
          local here = math.min(2 ^ records.shift, records.n - b * 2 ^ records.shift)
          blocks[b + 1] = shared("uint8_t", records.blocks[b], (here - 1) * records.stride + records.offset + records.size)
        end
        -- The others have NaNs: a mirror is read before the cold tier, which for HCA's entries has none, and cells before both.
        local mirrored = source == C.LSA_ATTEND_PICKED and i % 4 < 2
        local where = span.in_cells == 1 and store.hot or mirrored and store.mirror or store.cold
        for _, r in ipairs {store.hot, store.cold, mirrored and store.mirror or nil} do
          r.stride, r.offset, r.block_shift, r.format = records.stride, records.offset, records.shift, format
          local read, nans = r == where, {}
          for b = 0, read and -1 or count - 1 do
            local bytes = 2 ^ records.shift * records.stride
            nans[b + 1] = shared("uint8_t", ("\255"):rep(bytes), bytes)
          end
          r.blocks = shared("uint8_t *", ffi.new("uint8_t *[?]", count, read and blocks or nans), count)
        end
      end
      span.progress, span.layers, span.row, span.rows = p.progress + i - 1, p.stores + i - 1, t.row, rows
    end
    p.q, p.ids = support.shared("float", p.rows * heads * dim), support.shared("int32_t", math.max(1, p.rows * k))
    p.counts = support.shared("int32_t", p.rows)
    p.sinks = shared("float", p.spans[1].sinks, heads)
    for _, t in ipairs(p.spans) do
      ffi.copy(p.q + t.row * heads * dim, t.q, t.tokens * heads * dim * 4)
      if source == C.LSA_ATTEND_PICKED then
        ffi.copy(p.ids + t.row * k, t.ids, t.tokens * k * 4)
        ffi.copy(p.counts + t.row, t.counts, t.tokens * 4)
      end
    end
    p.attending = {source = source, q = p.q, sinks = p.sinks, ids = p.ids, counts = p.counts, heads = heads, dim = dim,
      rope_dim = rope_dim, window_size = 6, k = k, rate = 4, most = p.most, scale = dim ^ -0.5}
    return p
  end

  -- `first`: span from which on the call goes, as a pass of its own rows where it is one row alone.
  local function attend(p, path, first, count, rows, mass)
    local out = support.shared("float", p.rows * p.heads * p.dim)
    p.attending.rows = rows
    local a = ffi.new("lsa_attending", p.attending)
    local bytes = tonumber(path.workspace(rows, p.heads, p.dim, 6, math.max(p.most, tonumber(a.k)), mass and a.k or 0))
    local workspace = path.cuda and support.shared("uint8_t", bytes) or support.workspace(bytes)
    check(path.attend(out, mass, p.c + first, count, 0, a, workspace, nil))
    if path.cuda then check(C.lsa_device_synchronize()) end
    return out
  end

  local function each_path(fn)
    support.for_each_cpu_level(function(_, name)
      fn {name = name, attend = C.lsa_attend_cpu, workspace = C.lsa_attention_workspace}
    end)
    if support.device ~= "cuda" then return end
    fn {name = "cuda", cuda = true, attend = support.device_kernel("lsa_attend_cuda", "lsa_attend_fn"),
      workspace = support.device_kernel("lsa_attention_workspace_cuda", "lsa_attention_workspace_fn")}
  end

  it("attends to every span's own window and records, and gives a span the same bits in any pass", function()
    local lengths = {{700, 1}, {0, 3}, {20, 17}, {3, 1}, {1100, 2}}
    for format in pairs(FORMATS) do
      for _, source in ipairs {C.LSA_ATTEND_WINDOW, C.LSA_ATTEND_PICKED, C.LSA_ATTEND_ENTRIES} do
        for _, shape in ipairs {{3, 20, 4, 9}, {18, 192, 64, 9}, {70, 512, 64, 150, rounded = true}} do   -- in bf16, the last
          local heads, dim, rope_dim, k = unpack(shape)
          local p = new_pass(source, format, heads, dim, rope_dim, k, lengths)
          p.attending.compute = shape.rounded and C.LSA_COMPUTE_BF16 or C.LSA_COMPUTE_F32
          local wants, masses = {}, {}
          for i, t in ipairs(p.spans) do wants[i], masses[i] = oracle(t) end
          each_path(function(path)
            local mass = source == C.LSA_ATTEND_PICKED and support.shared("float", p.rows * k) or nil
            local out = attend(p, path, 0, p.count, p.rows, mass)
            for i, t in ipairs(p.spans) do
              local at, n = t.row * heads * dim, t.tokens * heads * dim
              local err = support.max_error(out + at, wants[i], n, 1)
              local bound = path.cuda and shape.rounded and 2e-2 or 3e-6
              assert.is_true(err <= bound, ("%s span %d: %g"):format(path.name, i, err))
              for r = 0, mass and t.tokens - 1 or -1 do
                err = support.max_error(mass + (t.row + r) * k, masses[i] + r * k, t.counts[r], 1e-3)
                assert.is_true(err <= (bound > 1e-3 and 6e-2 or 1e-4), ("%s span %d mass: %g"):format(path.name, i, err))
              end
              for r = 0, source == C.LSA_ATTEND_ENTRIES and t.tokens - 1 or -1 do
                assert.equal(math.floor((lengths[i][1] + r + 1) / 4), p.counts[t.row + r])
              end
            end
            local alone = attend(p, path, 0, 1, 1)  -- the first span: row 0, and few enough to be cut otherwise
            assert.is_true(support.same_bits(out, alone, heads * dim * 4), path.name .. " alone")
          end)
        end
      end
    end
  end)

  -- Heads of 512 in bf16 on a GPU: many queries go another way than few, and many keys are cut.
  it("gives a query of many heads the same bits among few queries and many, with long contexts, turned back or not", function()
    for format in pairs(FORMATS) do
      for _, source in ipairs {C.LSA_ATTEND_PICKED, C.LSA_ATTEND_ENTRIES} do
        local heads, dim, rope_dim, k = 5, 512, 64, 150
        local p = new_pass(source, format, heads, dim, rope_dim, k, {{9000, 1}, {0, 2}, {20, 70}})
        p.attending.compute = C.LSA_COMPUTE_BF16
        local wants, turns = {}, support.shared("float", p.rows * rope_dim)
        ffi.copy(turns, support.normals(p.rows * rope_dim, 19), p.rows * rope_dim * 4)
        for i, t in ipairs(p.spans) do wants[i] = oracle(t) end
        each_path(function(path)
          local mass, again = support.shared("float", p.rows * k), support.shared("float", p.rows * k)
          p.attending.table = nil
          local out = attend(p, path, 0, p.count, p.rows, mass)
          for i, t in ipairs(p.spans) do
            local err = support.max_error(out + t.row * heads * dim, wants[i], t.tokens * heads * dim, 1)
            assert.is_true(err <= (path.cuda and 2e-2 or 3e-6), ("%s span %d: %g"):format(path.name, i, err))
          end
          local alone = attend(p, path, 0, 1, 1, again)
          assert.is_true(support.same_bits(out, alone, heads * dim * 4), path.name .. " alone")
          local n = source == C.LSA_ATTEND_PICKED and p.counts[0] or 0
          assert.is_true(support.same_bits(mass, again, n * 4), path.name .. " mass alone")
          p.attending.table = turns
          for _, rows in ipairs {1, p.rows} do
            local turned = attend(p, path, 0, rows == 1 and 1 or p.count, rows)
            ffi.copy(alone, out, rows * heads * dim * 4)
            check(C.lsa_rope_cpu(alone, turns, rows, heads, dim, rope_dim, 1, nil))
            assert.is_true(support.same_bits(alone, turned, rows * heads * dim * 4), path.name .. " turned back")
          end
          if source ~= C.LSA_ATTEND_ENTRIES or format ~= FP8 then return end
          local r = p.stores[0].cold
          local code = r.blocks[bit.rshift(1001, r.block_shift)] + 1001 % 2 ^ r.block_shift * r.stride + r.offset + 20
          local before = code[0]
          code[0], p.attending.table = 0x7f, nil
          local nans = attend(p, path, 0, p.count, p.rows, mass)
          code[0] = before
          for i = 0, heads * dim - 1 do assert.is_true(nans[i] ~= nans[i], path.name .. " NaN") end
          assert.is_true(support.same_bits(out + heads * dim, nans + heads * dim, (p.rows - 1) * heads * dim * 4), path.name)
        end)
      end
    end
  end)

  it("takes no queries and refuses what cannot be", function()
    local function rc(tokens, heads, dim, rope_dim, format)
      local records = ffi.new("lsa_records", {format = format})
      return C.lsa_attention_cpu(nil, nil, nil, nil, nil, records, nil, nil, tokens, heads, dim, rope_dim, 1, 0, 1, 0, 1, nil, nil)
    end
    assert.equal(0, rc(0, 1, 16, 0, F32))
    assert.equal(C.LSA_ESHAPE, rc(1, 0, 16, 0, F32))
    assert.equal(C.LSA_ESHAPE, rc(1, 1, 16, 17, F32))
    assert.equal(C.LSA_EARG, rc(1, 1, 16, 0, 9))
    assert.is_truthy(ffi.string(C.lsa_error()):find "format 9")
  end)
end)
