-- Level 2's picks over the spans of a pass. Numbers are small integers, so that every order of sums gives the same scores and
-- all code paths pick the same, ties included.
local ffi = require "ffi"
local bit = require "bit"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local F32, BF16, FP8 = C.LSA_KV_F32, C.LSA_KV_BF16, C.LSA_KV_FP8
local FORMATS = {[F32] = "f32", [BF16] = "bf16", [FP8] = "fp8"}
local COMPUTES = {[C.LSA_COMPUTE_F32] = "f32", [C.LSA_COMPUTE_BF16] = "bf16"}
local E4M3 = {[0] = 0, 0x38, 0x40, 0x44}  -- of 0 .. 3
local SCALE, UNTOUCHED = 0.5, -77

local Float = ffi.typeof "float[1]"

-- One index key at `at`.
local function write_key(at, format, values, dim, scale)
  for d = 0, dim - 1 do
    local v = values[d]
    local f = Float(v)
    if format == F32 then ffi.copy(at + 4 * d, f, 4)
    elseif format == BF16 then ffi.copy(at + 2 * d, ffi.cast("uint16_t *", f) + 1, 2)
    elseif v ~= v then at[d] = 0x7f
    else at[d] = bit.bor(E4M3[math.abs(v)], v < 0 and 0x80 or 0) end
  end
  if format == FP8 then ffi.copy(at + dim, Float(scale), 4) end
end

-- A span's n keys: values [n][dim], scales, and where they lie: packed, or in blocks of 2^shift with gaps.
local function new_keys(t, n, seed)
  local random, size = support.uniform(seed), tonumber(C.lsa_index_key_bytes(t.format, t.dim))
  local per_block, keys = 2 ^ t.shift, {values = {}, scales = {}, n = n, held = {}}
  keys.stride = size + (t.gap or 0)
  keys.packed = support.shared("uint8_t", math.max(1, n * size))
  keys.blocks = support.shared("uint8_t *", math.max(1, math.ceil(n / per_block)))
  for b = 0, math.ceil(n / per_block) - 1 do
    keys.held[b] = support.shared("uint8_t", per_block * keys.stride)
    keys.blocks[b] = keys.held[b]
  end
  for i = 0, n - 1 do
    local v = {}
    for d = 0, t.dim - 1 do v[d] = math.floor(random() * 5) - 2 end
    if t.nan and i % 7 == 3 then v[t.dim - 1] = 0 / 0 end
    local scale = t.format ~= FP8 and 1 or t.infinite and i % 11 == 5 and math.huge or SCALE
    keys.values[i], keys.scales[i] = v, scale
    write_key(keys.packed + i * size, t.format, v, t.dim, scale)
    write_key(keys.held[math.floor(i / per_block)] + i % per_block * keys.stride, t.format, v, t.dim, scale)
  end
  return keys
end

local function candidates_at(t, s, row)
  local chunks = math.floor((s.tokens + row + 1) / t.rate)
  return s.residents and s.residents + chunks - s.chunks or chunks
end

-- t: heads, dim, k, rate, format, compute, shift, spans = {{tokens =, rows =, residents =, chunks =}, ..}.
local function new_pass(t)
  local rows, random = 0, support.uniform(5)
  t.most = 0
  t.c = support.shared("lsa_span", #t.spans)
  t.progress = support.shared("lsa_progress", #t.spans)
  t.stores = support.shared("lsa_layer_store", 2 * #t.spans)
  for i, s in ipairs(t.spans) do
    local n = candidates_at(t, s, s.rows - 1)
    t.most = math.max(t.most, n)
    s.row, rows = rows, rows + s.rows
    s.keys = new_keys(t, n, i)
    s.slot = support.shared("int32_t", math.max(1, n))
    for j = 0, n - 1 do s.slot[j] = 1000 - 3 * j end
    t.progress[i - 1].tokens = s.tokens
    local store, span = t.stores[2 * i - 1], t.c[i - 1]  -- layer 1 of two
    store.keys.stride, store.keys.block_shift, store.keys.format = s.keys.stride, t.shift, t.format
    store.keys.blocks, store.resident_keys = s.keys.blocks, s.keys.packed
    span.progress, span.layers = t.progress + i - 1, t.stores + 2 * i - 2
    span.row, span.rows, span.slot = s.row, s.rows, s.slot
    if s.residents then span.among_residents, span.residents, span.chunks = 1, s.residents, s.chunks end
  end
  t.rows = rows
  t.queries, t.weights = support.shared("float", rows * t.heads * t.dim), support.shared("float", rows * t.heads)
  for i = 0, rows * t.heads * t.dim - 1 do t.queries[i] = math.floor(random() * 5) - 2 end
  for i = 0, rows * t.heads - 1 do t.weights[i] = math.floor(random() * 4) - 1 end
  return t
end

local function score(t, row, keys, j)
  local total, v = 0, keys.values[j]
  for h = 0, t.heads - 1 do
    local q, dot = t.queries + (row * t.heads + h) * t.dim, 0
    for d = 0, t.dim - 1 do dot = dot + q[d] * v[d] end
    total = total + t.weights[row * t.heads + h] * (dot < 0 and 0 or dot)
  end
  return total * keys.scales[j]
end

-- Places, ascending, and scores by place.
local function oracle(t, s, row)
  local all, scores = {}, {}
  for j = 0, candidates_at(t, s, row) - 1 do
    scores[j] = score(t, s.row + row, s.keys, j)
    if scores[j] > -math.huge then all[#all + 1] = j end
  end
  table.sort(all, function(a, b)
    if scores[a] ~= scores[b] then return scores[a] > scores[b] end
    return a < b
  end)
  local best = {}
  for i = 1, math.min(t.k, #all) do best[i] = all[i] end
  table.sort(best)
  return best, scores
end

local function run(t, path, values)
  local places, counts = support.shared("int32_t", t.rows * t.k), support.shared("int32_t", t.rows)
  local picking = ffi.new("lsa_picking", {queries = t.queries, weights = t.weights, heads = t.heads, dim = t.dim, k = t.k,
    rate = t.rate, rows = t.rows, most = t.most + (t.more or 0), key_format = t.format, compute = t.compute})
  local bytes = path.workspace(t.rows, picking.most, t.k, t.heads, t.dim, t.format, t.compute)
  local workspace = path.cuda and support.shared("uint8_t", tonumber(bytes)) or support.workspace(bytes)
  check(path.pick(places, values, counts, t.c, #t.spans, 1, picking, workspace, nil))
  if path.cuda then check(C.lsa_device_synchronize()) end
  return places, counts
end

local function each_path(fn)
  support.for_each_cpu_level(function(_, name)
    fn {name = name, pick = C.lsa_pick_cpu, workspace = C.lsa_pick_workspace, locate = C.lsa_locate_cpu}
  end)
  if support.device ~= "cuda" then return end
  fn {name = "cuda", cuda = true, pick = support.device_kernel("lsa_pick_cuda", "lsa_pick_fn"),
    workspace = support.device_kernel("lsa_pick_workspace_cuda", "lsa_pick_workspace_fn"),
    locate = support.device_kernel("lsa_locate_cuda", "lsa_locate_fn")}
end

local function proves(t)
  new_pass(t)
  local want, scores = {}, {}
  for _, s in ipairs(t.spans) do
    for row = 0, s.rows - 1 do want[s.row + row], scores[s.row + row] = oracle(t, s, row) end
  end
  each_path(function(path)
    local what = ("%s: %d heads of %d, %s keys, %s, k %d"):format(path.name, t.heads, t.dim, FORMATS[t.format],
      COMPUTES[t.compute], t.k)
    local values = support.shared("float", t.rows * t.k)
    local places, counts = run(t, path, values)
    local alone, alone_counts = run(t, path)
    local ids = support.shared("int32_t", t.rows * t.k)
    for i = 0, t.rows * t.k - 1 do ids[i] = UNTOUCHED end
    check(path.locate(ids, places, counts, t.c, #t.spans, t.k, nil))
    if path.cuda then check(C.lsa_device_synchronize()) end
    for _, s in ipairs(t.spans) do
      for row = s.row, s.row + s.rows - 1 do
        assert(counts[row] == #want[row] and alone_counts[row] == counts[row],
          ("%s: row %d has %d picks, not %d"):format(what, row, counts[row], #want[row]))
        for j = 0, t.k - 1 do
          local place, at = want[row][j + 1], row * t.k + j
          if place then
            assert(places[at] == place and alone[at] == place, ("%s: row %d's pick %d is %d, not %d"):format(what, row, j,
              places[at], place))
            assert(values[at] == scores[row][place], ("%s: row %d, place %d: %g"):format(what, row, place, values[at]))
            assert.equal(s.residents and 1000 - 3 * place or place, ids[at])
          else
            assert.equal(UNTOUCHED, ids[at])
          end
        end
      end
    end
  end)
end

local function each_kind(fn)
  for format in pairs(FORMATS) do
    for compute in pairs(COMPUTES) do fn(format, compute) end
  end
end

describe("pick", function()
  it("finds the best of all chunks and of residents, of spans of any lengths", function()
    each_kind(function(format, compute)
      for index, shape in ipairs {{1, 1, 1}, {3, 16, 4}, {9, 32, 33}} do
        local heads, dim, k = unpack(shape)
        proves {heads = heads, dim = dim, k = k, rate = 4, format = format, compute = compute, shift = index + 1, gap = index - 1,
          spans = {{tokens = 0, rows = 1}, {tokens = 3, rows = 1}, {tokens = 250, rows = 5, residents = 40, chunks = 50},
            {tokens = 97, rows = 34}, {tokens = 20, rows = 1, residents = 0, chunks = 5}, {tokens = 300, rows = 1}}}
      end
    end)
  end)

  it("has the tensor cores' shapes: keys one behind the other, and in blocks with gaps", function()
    for _, gap in ipairs {0, 4, 1} do
      each_kind(function(format, compute)
        proves {heads = 10, dim = 128, k = 16, rate = 1, format = format, compute = compute, shift = 6, gap = gap,
          spans = {{tokens = 299, rows = 2}, {tokens = 70, rows = 3, residents = 300, chunks = 60}}}
      end)
    end
    proves {heads = 70, dim = 128, k = 5, rate = 1, format = FP8, compute = C.LSA_COMPUTE_F32, shift = 4, nan = true,
      infinite = true, spans = {{tokens = 130, rows = 1}, {tokens = 9, rows = 2, residents = 30, chunks = 9}}}
    proves {heads = 3, dim = 64, k = 8, rate = 1, format = FP8, compute = C.LSA_COMPUTE_BF16, shift = 3,
      spans = {{tokens = 130, rows = 1}}}
  end)

  it("breaks ties by the lower place, and takes all where there are few", function()
    each_kind(function(format, compute)
      proves {heads = 1, dim = 2, k = 70, rate = 1, format = format, compute = compute, shift = 5,
        spans = {{tokens = 500, rows = 1}, {tokens = 60, rows = 20}}}
    end)
  end)

  it("never picks NaN or -inf", function()
    each_kind(function(format, compute)
      proves {heads = 2, dim = 8, k = 60, rate = 1, format = format, compute = compute, shift = 4, nan = true, infinite = true,
        spans = {{tokens = 62, rows = 4}, {tokens = 3, rows = 1, residents = 50, chunks = 3}}}
    end)
  end)

  -- So many that a group first looks at the newest, and scores twice where one pass is in bf16. Scores are index_score's, one query
  -- at a time, since no sum of these numbers is exact.
  local function proves_many(t)
    new_pass(t)
    local s, size = t.spans[1], tonumber(C.lsa_index_key_bytes(t.format, t.dim))
    local n, random = s.keys.n, support.uniform(t.seed)
    local values = support.buffer("float", n * t.dim)
    for i = 0, n * t.dim - 1 do values[i] = t.key(random, math.floor(i / t.dim), i % t.dim) end
    for i = 0, t.rows * t.heads * t.dim - 1 do t.queries[i] = t.query(random, i) end
    for i = 0, t.rows * t.heads - 1 do t.weights[i] = random() * 2 - 0.7 end
    check(C.lsa_index_encode_cpu(s.keys.packed, values, n, t.dim, size, t.format, nil))
    if t.spoil then t.spoil(s.keys.packed, size) end
    if t.picked then
      local store = t.stores[1]
      t.held = {support.array("int32_t", t.picked), support.array("int32_t", {#t.picked})}
      store.picked[0], store.picked_count[0] = t.held[1], t.held[2]
    end
    for i = 0, n - 1 do
      ffi.copy(s.keys.held[math.floor(i / 2 ^ t.shift)] + i % 2 ^ t.shift * s.keys.stride, s.keys.packed + i * size, size)
    end
    each_path(function(path)
      if path.cuda then return end
      local got = support.shared("float", t.rows * t.k)
      local places, counts = run(t, path, got)
      local scores = support.buffer("float", n)
      local work = support.workspace(C.lsa_index_score_workspace(1, n, t.heads, t.dim, t.format, t.compute))
      for row = 0, s.rows - 1, t.every or 1 do
        check(C.lsa_index_score_cpu(scores, t.queries + row * t.heads * t.dim, t.weights + row * t.heads, s.keys.packed, 1, n,
          t.heads, t.dim, size, n, t.format, t.compute, work, nil))
        local all = {}
        for j = 0, candidates_at(t, s, row) - 1 do
          if scores[j] > -math.huge then all[#all + 1] = j end
        end
        table.sort(all, function(a, b)
          if scores[a] ~= scores[b] then return scores[a] > scores[b] end
          return a < b
        end)
        local best = {}
        for i = 1, math.min(t.k, #all) do best[i] = all[i] end
        table.sort(best)
        assert.equal(#best, counts[row])
        for j, place in ipairs(best) do
          local at = row * t.k + j - 1
          assert(places[at] == place and got[at] == scores[place], ("%s, %s: row %d's pick %d is %d, not %d"):format(t.what,
            path.name, row, j - 1, places[at], place))
        end
      end
    end)
  end

  it("has the same picks among many candidates, whatever it looks at first", function()
    local function normal(random) return random() + random() + random() - 1.5 end
    local kinds = {
      {what = "in no order", key = normal},
      {what = "rising", key = function(random, i) return normal(random) * (0.2 + i / 9000) end},
      {what = "tied by pairs", key = function(_, i, d) return math.sin((i - i % 2 + 1) * (d + 1) * 12.9898) end},
      {what = "few different ones", key = function(_, i, d) return math.sin((i % 20 + 1) * (d + 1) * 12.9898) end},
      {what = "all equal", key = function(_, _, d) return math.cos(d) end},
      {what = "NaN and infinite keys", key = normal, spoil = function(keys, size)
        for i = 0, 8000, 13 do keys[i * size + 1] = 0x7f end
        ffi.cast("float *", keys + 5000 * size + size - 4)[0] = math.huge
        ffi.cast("float *", keys + 700 * size + size - 4)[0] = 0 / 0
      end},
      {what = "huge queries", key = normal, query = function(random) return normal(random) * 1e37 end},
      {what = "tiny queries", key = normal, query = function(random) return normal(random) * 1e-38 end},
      {what = "an infinite query", key = normal, query = function(random, i) return i == 77 and math.huge or normal(random) end},
    }
    for seed, t in ipairs(kinds) do
      for name, value in pairs {heads = 4, dim = 32, k = 32, rate = 4, format = FP8, compute = C.LSA_COMPUTE_F32, shift = 10, seed = seed,
        query = t.query or normal, spans = {{tokens = 4 * 16500 + 2, rows = 37}}} do t[name] = value end
      t.every = 6
      proves_many(t)
      t.spans = {{tokens = 4 * 16500 + 2, rows = 1}}
      proves_many(t)
      t.spans = {{tokens = 2, rows = 1, residents = 9000, chunks = 0}}
      proves_many(t)
    end
    proves_many {what = "among residents", heads = 3, dim = 16, k = 100, rate = 4, format = FP8, compute = C.LSA_COMPUTE_F32, shift = 5,
      seed = 3, key = normal, query = normal, every = 4, spans = {{tokens = 400, rows = 33, residents = 16500, chunks = 100}}}
    proves_many {what = "very many", heads = 2, dim = 8, k = 20, rate = 1, format = FP8, compute = C.LSA_COMPUTE_F32, shift = 10, seed = 4,
      key = normal, query = normal, every = 16, spans = {{tokens = 35000, rows = 33}}}
    proves_many {what = "very many, bf16", heads = 2, dim = 8, k = 20, rate = 1, format = BF16, compute = C.LSA_COMPUTE_BF16, shift = 10,
      seed = 5, key = normal, query = normal, every = 16, spans = {{tokens = 35000, rows = 33}}}
  end)

  it("has the same picks among as many as bounds are taken from, and whatever the last pass picked", function()
    local function normal(random) return random() + random() + random() - 1.5 end
    local function ramp(_, i, d) return math.cos(d) * (1 + i / 4000) end
    local last = {}
    for i = 1, 32 do last[i] = 31 * i end
    for seed, n in ipairs {4095, 4106, 4165, 5001} do
      for _, key in ipairs {normal, ramp} do
        for _, shape in ipairs {{4, 32, 32}, {5, 64, 1}, {1, 128, 63}, {2, 32, 200}} do
          proves_many {what = n .. " candidates", heads = shape[1], dim = shape[2], k = shape[3], rate = 4, format = FP8,
            compute = seed % 2 == 0 and C.LSA_COMPUTE_BF16 or C.LSA_COMPUTE_F32, shift = 4 + seed, seed = seed, key = key, query = normal,
            every = 5, picked = seed % 3 > 0 and last or nil, spans = {{tokens = 4 * n - 40, rows = seed % 2 == 0 and 1 or 41}}}
        end
      end
    end
  end)

  it("gives the same whatever bound it is told", function()
    for _, more in ipairs {0, 1, 1000, 60000} do
      proves {heads = 2, dim = 8, k = 9, rate = 2, format = F32, compute = C.LSA_COMPUTE_F32, shift = 10, more = more,
        spans = {{tokens = 90, rows = 3}, {tokens = 1, rows = 1, residents = 70, chunks = 0}}}
    end
  end)
end)
