local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local F32, BF16, FP8 = C.LSA_KV_F32, C.LSA_KV_BF16, C.LSA_KV_FP8
local RECORDS, KEYS = C.LSA_EXTEND_RECORDS, C.LSA_EXTEND_KEYS
local NAN, EPS, FILL = 0 / 0, 1e-6, 0xa5
local LAYER = 1
local keep_rows, extend = support.over_spans "keep_rows", support.over_spans "extend"

local function normals(n, seed) return support.span_copy("float", support.normals(n, seed), n) end
local function nans(n) return support.poison(support.span_buffer("float", n), n) end

-- A span's memory that nothing but its pointers keeps.
local function new_span(s, known, passes, row, rows, keep)
  local progress, layers = support.span_buffer("lsa_progress", 1), support.span_buffer("lsa_layer_store", LAYER + 1)
  progress[0].tokens, progress[0].passes = known, passes
  s.progress, s.layers, s.row, s.rows = progress, layers, row, rows
  keep[#keep + 1], keep[#keep + 2] = progress, layers
  return layers[LAYER]
end

-- NaN but for the rows of positions from .. known - 1 of history.
local function fill_ring(ring, room, width, history, from, known, keep)
  local data = nans(room * width)
  ring.data, ring.room, ring.width = data, room, width
  for p = from, known - 1 do ffi.copy(data + p % room * width, history + p * width, 4 * width) end
  keep[#keep + 1] = data
end

-- Whether a ring has exactly what it had from `from` on and the new rows.
local function expect_ring(ring, history, from, known, rows, n, what)
  local room, width = tonumber(ring.room), tonumber(ring.width)
  local seen = {}
  for p = from, known + n - 1 do
    local want = p < known and history + p * width or rows + (p - known) * width
    seen[p % room] = true
    assert.is_true(support.same_bits(ring.data + p % room * width, want, 4 * width), what .. ", position " .. p)
  end
  for i = 0, room - 1 do
    for c = 0, seen[i] and -1 or width - 1 do assert.is_true(ring.data[i * width + c] ~= ring.data[i * width + c], what) end
  end
end

describe("keep_rows", function()
  it("copies each span's rows into its ring, by position, around its end", function()
    for what, name in pairs {[C.LSA_KEEP_WINDOW] = "window", [C.LSA_KEEP_QUERIES] = "queries",
                             [C.LSA_KEEP_QUERY_WEIGHTS] = "query_weights", [C.LSA_KEEP_HIDDEN] = "hidden"} do
      for _, width in ipairs {1, 6, 64, 1030} do
        local keep, lengths = {}, {{0, 1, 3}, {10, 7, 7}, {25, 5, 8}, {1000003, 2, 3}, {8, 1, 9}}
        local spans, row = support.span_buffer("lsa_span", #lengths), 0
        for i, l in ipairs(lengths) do
          fill_ring(new_span(spans[i - 1], l[1], 5, row, l[2], keep)[name], l[3], width, nil, l[1], l[1], keep)
          row = row + l[2]
        end
        local rows = normals(row * width, width)
        check(keep_rows(spans, #lengths, LAYER, what, rows, width, nil))
        for i, l in ipairs(lengths) do
          local s = spans[i - 1]
          expect_ring(s.layers[LAYER][name], nil, l[1], l[1], rows + s.row * width, l[2], name .. i)
        end
      end
    end
  end)

  it("takes no spans, and refuses rows that no layer keeps", function()
    check(keep_rows(nil, 0, 0, C.LSA_KEEP_WINDOW, nil, 4, nil))
    assert.equal(C.LSA_EARG, keep_rows(nil, 0, 0, 4, nil, 4, nil))
    assert.equal("keep_rows: 4 is none of the rows that a layer keeps", ffi.string(C.lsa_error()))
  end)
end)

-- ---- extend ----

local SHIFT, OFFSET = 2, 3

-- Room for n records between bytes of FILL.
local function new_records(r, n, bytes, format, keep)
  local blocks, stride = support.span_buffer("uint8_t *", math.max(math.ceil(n / 4), 1)), bytes + 8
  for i = 0, math.max(math.ceil(n / 4), 1) - 1 do
    local block = support.span_buffer("uint8_t", 4 * stride)
    ffi.fill(block, 4 * stride, FILL)
    blocks[i], keep[#keep + 1] = block, block
  end
  r.blocks, r.stride, r.offset, r.block_shift, r.format = blocks, stride, OFFSET, SHIFT, format
  keep[#keep + 1] = blocks
end

-- Whether of n records exactly those in `want` (bytes by number) were written.
local function expect_records(r, n, bytes, want, what)
  local stride = tonumber(r.stride)
  for i = 0, n - 1 do
    local at = r.blocks[math.floor(i / 4)] + i % 4 * stride
    for b = 0, stride - 1 do
      local own = want[i] and b >= OFFSET and b < OFFSET + bytes
      assert.equal(own and want[i][b - OFFSET] or FILL, at[b], ("%s %d, byte %d"):format(what, i, b))
    end
  end
end

-- Channel c of window w, in doubles; at(series, position, column).
local function mixed(case, at, w, c)
  local most, sum, out, slots = -math.huge, 0, 0, {}
  local function add(window, column)
    for i = 0, case.rate - 1 do
      local p = window * case.rate + i
      slots[#slots + 1] = {at("gate", p, column) + case.bias[i * case.width + column], at("kv", p, column)}
    end
  end
  if case.overlap == 1 and w > 0 then add(w - 1, c) end
  add(w, c + case.width - case.dim)
  for _, slot in ipairs(slots) do most = math.max(most, slot[1]) end
  for _, slot in ipairs(slots) do
    local p = math.exp(slot[1] - most)
    sum, out = sum + p, out + p * slot[2]
  end
  return out / sum
end

local function entry(case, at, w)
  local x, squares, angle = {}, 0, ffi.new "float[1]"
  for c = 0, case.dim - 1 do
    x[c] = mixed(case, at, w, c)
    squares = squares + x[c] ^ 2
  end
  for c = 0, case.dim - 1 do x[c] = x[c] / math.sqrt(squares / case.dim + EPS) * case.norm[c] end
  for i = 0, case.rope / 2 - 1 do
    local a = case.dim - case.rope + 2 * i
    angle[0] = w * case.rate * case.inv_freq[i]
    local c, s = math.cos(angle[0]), math.sin(angle[0])
    x[a], x[a + 1] = x[a] * c - x[a + 1] * s, x[a + 1] * c + x[a] * s
  end
  return x
end

-- spans: {known, rows, slots of the hot tier by new chunk or nil, residents or nil, whether records are mirrored}
local function new_case(what, format, rate, dim, rope, overlap, spans)
  local case = {what = what, format = format, rate = rate, dim = dim, rope = rope, overlap = overlap, keep = {}, of = {},
    width = overlap == 1 and 2 * dim or dim, list = spans, rows = 0}
  local width, keep, keys = case.width, case.keep, what == KEYS
  case.bytes = tonumber(keys and C.lsa_index_key_bytes(format, dim) or C.lsa_kv_record_bytes(format, dim, rope))
  case.bias, case.norm, case.inv_freq = normals(rate * width, 7), normals(dim, 8), support.span_buffer("float", rope / 2)
  for i = 0, rope / 2 - 1 do case.inv_freq[i] = 10 ^ (-i / 3) end
  case.spans = support.span_buffer("lsa_span", #spans)
  for i, l in ipairs(spans) do
    local known, rows, s = l[1], l[2], case.spans[i - 1]
    local store, from = new_span(s, known, 1, case.rows, rows, keep), math.max(0, known - 2 * rate)
    local of = {kv = support.normals(known * width, 10 * i), gate = support.normals(known * width, 10 * i + 1, 2), from = from,
      first = math.floor(known / rate), fresh = math.floor((known + rows) / rate) - math.floor(known / rate)}
    case.of[i] = of
    fill_ring(keys and store.index_kv or store.kv, 2 * rate + rows + 1, width, of.kv, from, known, keep)
    fill_ring(keys and store.index_gate or store.gate, 2 * rate + rows + 1, width, of.gate, from, known, keep)
    new_records(keys and store.keys or store.cold, of.first + of.fresh + 1, case.bytes, format, keep)
    if l.mirrored then new_records(store.mirror, of.first + of.fresh + 1, case.bytes, format, keep) end
    if l.slots then
      new_records(keys and store.hot_keys or store.hot, 9, case.bytes, format, keep)
      local slots = support.span_buffer("int32_t", #l.slots)
      for j, slot in ipairs(l.slots) do slots[j - 1] = slot end
      s.born_slot, s.born_from, keep[#keep + 1] = slots, of.first, slots
    end
    if l.residents then
      s.among_residents, s.residents, s.chunks, of.places = 1, l.residents, of.first, l.residents + of.fresh + 1
      local packed = support.span_buffer("uint8_t", of.places * case.bytes)
      ffi.fill(packed, of.places * case.bytes, FILL)
      store.resident_keys, keep[#keep + 1] = packed, packed
    end
    case.rows = case.rows + rows
  end
  case.kv, case.gate = normals(case.rows * width, 5), normals(case.rows * width, 6)
  return case
end

local function run(case)
  local x = ffi.new("lsa_extension", {what = case.what, format = case.format, rate = case.rate, dim = case.dim,
    overlap = case.overlap, bias = case.bias, norm = case.norm, inv_freq = case.inv_freq, rope_dim = case.rope,
    norm_eps = EPS, kv = case.kv, gate = case.gate})
  local entries = nans(case.rows * case.dim)
  local work = support.workspace(C.lsa_extend_workspace(case.rows, case.rate, case.dim, case.rope, case.overlap))
  check(extend(entries, case.spans, #case.list, LAYER, x, work, nil))
  return entries
end

local function encoded(case, x)
  local out, values = support.buffer("uint8_t", case.bytes), support.buffer("float", case.dim)
  ffi.copy(values, x, 4 * case.dim)
  if case.what == KEYS then check(C.lsa_index_encode_cpu(out, values, 1, case.dim, case.bytes, case.format, nil))
  else check(C.lsa_kv_encode_cpu(out, values, 1, case.dim, case.rope, case.bytes, case.format, nil)) end
  return out
end

local function expect_span(case, i, entries)
  local s, of, width, keys = case.spans[i - 1], case.of[i], case.width, case.what == KEYS
  local store, row, known = s.layers[LAYER], tonumber(s.row), case.list[i][1]
  local function at(series, p, c)
    if p < known then return of[series][p * width + c] end
    return case[series][(row + p - known) * width + c]
  end
  local cold, hot, packed = {}, {}, {}
  for j = 0, tonumber(s.rows) - 1 do
    local got = entries + (row + j) * case.dim
    local want = j < of.fresh and entry(case, at, of.first + j)
    for c = 0, case.dim - 1 do
      if want then assert.is_true(math.abs(got[c] - want[c]) <= 2e-5 * math.max(1, math.abs(want[c])), ("span %d, entry %d"):format(i, j))
      else assert.is_true(got[c] ~= got[c]) end
    end
    if want then
      cold[of.first + j] = encoded(case, got)
      local slot = case.list[i].slots and case.list[i].slots[j + 1] or -1
      if slot >= 0 then hot[slot] = cold[of.first + j] end
      if keys and s.among_residents ~= 0 then packed[tonumber(s.residents) + j] = cold[of.first + j] end
    end
  end
  expect_records(keys and store.keys or store.cold, of.first + of.fresh + 1, case.bytes, cold, "chunk")
  if case.list[i].mirrored then
    expect_records(store.mirror, of.first + of.fresh + 1, case.bytes, keys and {} or cold, "mirrored chunk") -- which has no keys
  end
  if case.list[i].slots then expect_records(keys and store.hot_keys or store.hot, 9, case.bytes, hot, "slot") end
  for place = 0, keys and of.places and of.places - 1 or -1 do
    for b = 0, case.bytes - 1 do
      assert.equal(packed[place] and packed[place][b] or FILL, store.resident_keys[place * case.bytes + b])
    end
  end
  expect_ring(keys and store.index_kv or store.kv, of.kv, of.from, known, case.kv + row * width, tonumber(s.rows), "kv")
  expect_ring(keys and store.index_gate or store.gate, of.gate, of.from, known, case.gate + row * width, tonumber(s.rows),
    "gate")
end

-- From nothing, from within a window, on a boundary, a step that completes no window and one that does.
local SPANS = {{0, 9, mirrored = true}, {3, 1, slots = {4}, residents = 2}, {7, 2, slots = {-1}, residents = 0, mirrored = true},
  {4, 4, slots = {8}}, {5, 1, mirrored = true}, {23, 14, slots = {3, -1, 0, 7}, residents = 3, mirrored = true}, {1, 1}}

describe("extend", function()
  for name, format in pairs {f32 = F32, bf16 = BF16, fp8 = FP8} do
    it("makes records of windows that are complete, and puts them where they belong: " .. name, function()
      for _, overlap in ipairs {0, 1} do
        for _, shape in ipairs {{4, 96, 16}, {4, 6, 2}, {1, 70, 0}} do
          local case = new_case(RECORDS, format, shape[1], shape[2], shape[3], overlap,
            shape[1] == 4 and SPANS or {{0, 3}, {5, 1, slots = {2}}})
          local entries = run(case)
          for i = 1, #case.list do expect_span(case, i, entries) end
        end
      end
    end)

    it("makes index keys, among residents as well: " .. name, function()
      for _, shape in ipairs {{4, 64, 16}, {4, 8, 4}} do
        local case = new_case(KEYS, format, shape[1], shape[2], shape[3], 1, SPANS)
        local entries = run(case)
        for i = 1, #case.list do expect_span(case, i, entries) end
      end
    end)
  end

  it("gives a span the same bits alone as beside others, and long windows their sums", function()
    local all = run(new_case(RECORDS, F32, 4, 40, 8, 1, SPANS))
    local again = run(new_case(RECORDS, F32, 4, 40, 8, 1, SPANS))
    for i = 0, 31 * 40 - 1 do assert.is_true(all[i] == again[i] or (all[i] ~= all[i] and again[i] ~= again[i])) end
    local alone = new_case(RECORDS, F32, 4, 40, 8, 1, {SPANS[1]})
    ffi.copy(alone.kv, normals(31 * 80, 5), 9 * 80 * 4)
    local entries = run(alone)
    assert.is_true(support.same_bits(entries, all, 2 * 40 * 4))
    local case = new_case(RECORDS, F32, 128, 16, 4, 0, {{200, 300}, {127, 1, slots = {1}}})
    entries = run(case)
    for i = 1, 2 do expect_span(case, i, entries) end
  end)

  it("keeps NaN in the entry that sees it", function()
    local case = new_case(RECORDS, F32, 4, 8, 2, 0, {{0, 12}})
    case.kv[5 * 8 + 3] = NAN
    local entries = run(case)
    for i = 0, 3 * 8 - 1 do assert.equal(i >= 8 and i < 16, entries[i] ~= entries[i]) end
  end)

  it("takes no spans, and refuses what is neither records nor keys", function()
    local x = ffi.new("lsa_extension", {what = RECORDS, rate = 4, dim = 8, rope_dim = 2})
    check(extend(nil, nil, 0, 0, x, nil, nil))
    x.what = 2
    assert.equal(C.LSA_EARG, extend(nil, nil, 0, 0, x, nil, nil))
    assert.equal("extend: 2 is neither records nor keys", ffi.string(C.lsa_error()))
  end)
end)
