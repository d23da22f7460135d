local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local LAYER, EPS = 1, 1e-6
local settle = support.over_spans "settle"
local HEADS, DIM, ROPE, INDEX_HEADS, INDEX_DIM, HIDDEN, RATE = 5, 64, 16, 9, 32, 48, 4

local function shared(n, seed) return support.span_copy("float", support.normals(n, seed), n) end

-- A row of n numbers from `at`, normed by a weight or none, its last `rope` numbers turned by row t of the table.
local function settled(x, at, n, weight, table_, t, rope)
  local out, sum = {}, 0
  if weight ~= false then
    for i = 0, n - 1 do sum = sum + x[at + i] ^ 2 end
  end
  local scale = weight == false and 1 or 1 / math.sqrt(sum / n + EPS)
  for i = 0, n - 1 do out[i] = x[at + i] * scale * (weight and weight[i] or 1) end
  for i = 0, rope / 2 - 1 do
    local c, s = table_[(t * rope / 2 + i) * 2], table_[(t * rope / 2 + i) * 2 + 1]
    local a, b = out[n - rope + 2 * i], out[n - rope + 2 * i + 1]
    out[n - rope + 2 * i], out[n - rope + 2 * i + 1] = a * c - b * s, b * c + a * s
  end
  return out
end

local function hadamard(x, n)
  local h = 1
  while h < n do
    for i = 0, n - 1 do
      if i % (2 * h) < h then x[i], x[i + h] = x[i] + x[i + h], x[i] - x[i + h] end
    end
    h = 2 * h
  end
  for i = 0, n - 1 do x[i] = x[i] / math.sqrt(n) end
end

local function expect(got, at, want, n, bound, what)
  for i = 0, n - 1 do
    assert.is_true(math.abs(got[at + i] - want[i]) <= bound, ("%s, number %d: %g, not %g"):format(what, i, got[at + i], want[i]))
  end
end

-- Spans of {tokens known, rows}; their layer has rings of every kind, and one block of records and of keys.
local function new_case(lengths, format, csa)
  local case = {keep = {}, rows = 0, lengths = lengths, spans = support.span_buffer("lsa_span", #lengths)}
  local function hold(p) case.keep[#case.keep + 1] = p return p end
  local function ring(r, room, width) r.data, r.room, r.width = hold(shared(room * width, width)), room, width end
  local record = tonumber(C.lsa_kv_record_bytes(format, DIM, ROPE))
  local key = tonumber(C.lsa_index_key_bytes(format, INDEX_DIM))
  for i, l in ipairs(lengths) do
    local s, progress, layers = case.spans[i - 1], hold(support.span_buffer("lsa_progress", 1)), hold(support.span_buffer("lsa_layer_store", 2))
    progress[0].tokens, progress[0].passes = l[1], i
    s.progress, s.layers, s.row, s.rows = progress, layers, case.rows, l[2]
    local store = layers[LAYER]
    ring(store.window, 70, DIM)
    ring(store.kv, 40, csa and 2 * DIM or DIM)
    ring(store.gate, 40, csa and 2 * DIM or DIM)
    ring(store.index_kv, 40, 2 * INDEX_DIM)
    ring(store.index_gate, 40, 2 * INDEX_DIM)
    ring(store.queries, 80, INDEX_HEADS * INDEX_DIM)
    ring(store.query_weights, 80, INDEX_HEADS)
    ring(store.hidden, 90, HIDDEN)
    for name, bytes in pairs {cold = record, keys = key} do
      local blocks, block = hold(support.span_buffer("uint8_t *", 1)), hold(support.span_buffer("uint8_t", 64 * bytes))
      blocks[0] = block
      local r = store[name]
      r.blocks, r.stride, r.offset, r.block_shift, r.format = blocks, bytes, 0, 6, format
    end
    case.rows = case.rows + l[2]
  end
  return case
end

local function extension(case, what, dim, width, format)
  local x = ffi.new "lsa_extension"
  local function hold(p) case.keep[#case.keep + 1] = p return p end
  x.what, x.format, x.rate, x.dim, x.overlap = what, format, RATE, dim, 1
  x.bias, x.norm, x.inv_freq = hold(shared(RATE * width, 3)), hold(shared(dim, 4)), hold(shared(ROPE / 2, 5))
  x.rope_dim, x.norm_eps = ROPE, EPS
  x.kv, x.gate = hold(shared(case.rows * width, 6)), hold(shared(case.rows * width, 7))
  case.keep[#case.keep + 1] = x
  return x
end

local function settling(case, format)
  local s, n = ffi.new "lsa_settling", case.rows
  local function hold(p) case.keep[#case.keep + 1] = p return p end
  s.q, s.window, s.window_norm = hold(shared(n * HEADS * DIM, 11)), hold(shared(n * DIM, 12)), hold(shared(DIM, 13))
  s.table, s.heads, s.dim, s.rope_dim, s.norm_eps = hold(shared(n * ROPE, 14)), HEADS, DIM, ROPE, EPS
  s.records, s.keys = extension(case, C.LSA_EXTEND_RECORDS, DIM, 2 * DIM, format), extension(case, C.LSA_EXTEND_KEYS, INDEX_DIM, 2 * INDEX_DIM, format)
  s.entries, s.key_entries = hold(shared(n * DIM, 15)), hold(shared(n * INDEX_DIM, 16))
  s.index_q, s.index_w = hold(shared(n * INDEX_HEADS * INDEX_DIM, 17)), hold(shared(n * INDEX_HEADS, 18))
  s.index_table, s.index_heads, s.index_dim = hold(shared(n * ROPE, 19)), INDEX_HEADS, INDEX_DIM
  s.index_scale, s.transformed = 0.125, format == C.LSA_KV_FP8 and 1 or 0
  s.hidden, s.hidden_width = hold(shared(n * HIDDEN, 20)), HIDDEN
  return s
end

describe("settle", function()
  it("norms, turns and keeps what a naive oracle says, of one row a span and of many", function()
    for _, lengths in ipairs {{{7, 1}}, {{7, 1}, {0, 1}, {130, 1}}, {{5, 9}, {3, 1}}} do
      for _, format in ipairs {C.LSA_KV_F32, C.LSA_KV_FP8} do
        local case = new_case(lengths, format, true)
        local s, n = settling(case, format), case.rows
        local q, window, index_q = support.normals(n * HEADS * DIM, 11), support.normals(n * DIM, 12), support.normals(n * INDEX_HEADS * INDEX_DIM, 17)
        local weights = support.normals(n * INDEX_HEADS, 18)
        local workspace = support.workspace(math.max(64, tonumber(C.lsa_extend_workspace(n, RATE, DIM, ROPE, 1))))
        check(settle(case.spans, #lengths, LAYER, s, n, workspace, nil))
        for i, l in ipairs(lengths) do
          local span, store = case.spans[i - 1], case.spans[i - 1].layers[LAYER]
          for j = 0, l[2] - 1 do
            local t, position = tonumber(span.row) + j, l[1] + j
            for h = 0, HEADS - 1 do
              local at = (t * HEADS + h) * DIM
              expect(s.q, at, settled(q, at, DIM, nil, s.table, t, ROPE), DIM, 2e-5, "query")
            end
            local key = settled(window, t * DIM, DIM, s.window_norm, s.table, t, ROPE)
            expect(store.window.data, position % 70 * DIM, key, DIM, 5e-5, "window key")
            for h = 0, INDEX_HEADS - 1 do
              local at = (t * INDEX_HEADS + h) * INDEX_DIM
              local want = settled(index_q, at, INDEX_DIM, false, s.index_table, t, ROPE)
              if s.transformed == 1 then hadamard(want, INDEX_DIM) end
              expect(s.index_q, at, want, INDEX_DIM, 2e-5, "index query")
              expect(store.queries.data, (position % 80 * INDEX_HEADS + h) * INDEX_DIM, want, INDEX_DIM, 2e-5, "kept query")
              local weight = weights[t * INDEX_HEADS + h] * 0.125
              assert.is_true(math.abs(s.index_w[t * INDEX_HEADS + h] - weight) <= 1e-7)
              assert.is_true(math.abs(store.query_weights.data[position % 80 * INDEX_HEADS + h] - weight) <= 1e-7)
            end
          end
          for j = 0, l[2] - 1 do
            local kept = store.hidden.data + (l[1] + j) % 90 * HIDDEN
            assert.is_true(support.same_bits(kept, s.hidden + (span.row + j) * HIDDEN, 4 * HIDDEN))
          end
        end
      end
    end
  end)

  it("extends records and keys as lsa_extend does", function()
    for _, lengths in ipairs {{{7, 1}, {6, 1}, {11, 1}}, {{5, 9}}} do
      local case, other = new_case(lengths, C.LSA_KV_FP8, true), new_case(lengths, C.LSA_KV_FP8, true)
      local s, n = settling(case, C.LSA_KV_FP8), case.rows
      local extend, workspace = support.over_spans "extend", support.workspace(math.max(64, tonumber(C.lsa_extend_workspace(n, RATE, DIM, ROPE, 1))))
      local entries, key_entries = shared(n * DIM, 15), shared(n * INDEX_DIM, 16)
      check(settle(case.spans, #lengths, LAYER, s, n, workspace, nil))
      check(extend(entries, other.spans, #lengths, LAYER, s.records, workspace, nil))
      check(extend(key_entries, other.spans, #lengths, LAYER, s.keys, workspace, nil))
      assert.is_true(support.same_bits(entries, s.entries, 4 * n * DIM))
      assert.is_true(support.same_bits(key_entries, s.key_entries, 4 * n * INDEX_DIM))
      for i = 0, #lengths - 1 do
        local a, b = case.spans[i].layers[LAYER], other.spans[i].layers[LAYER]
        for _, name in ipairs {"cold", "keys"} do
          assert.is_true(support.same_bits(a[name].blocks[0], b[name].blocks[0], 8 * tonumber(a[name].stride)), name)
        end
        for _, name in ipairs {"kv", "gate", "index_kv", "index_gate"} do
          assert.is_true(support.same_bits(a[name].data, b[name].data, 4 * 40 * tonumber(a[name].width)), name)
        end
      end
    end
  end)

  it("settles a layer that has a window alone", function()
    local case = new_case({{3, 1}, {9, 1}}, C.LSA_KV_F32, false)
    local s = settling(case, C.LSA_KV_F32)
    s.records, s.keys, s.index_q = nil, nil, nil
    local before = ffi.new("float[?]", 80 * INDEX_HEADS)
    ffi.copy(before, case.spans[0].layers[LAYER].query_weights.data, ffi.sizeof(before))
    check(settle(case.spans, 2, LAYER, s, 2, nil, nil))
    expect(s.q, 0, settled(support.normals(2 * HEADS * DIM, 11), 0, DIM, nil, s.table, 0, ROPE), DIM, 2e-5, "query")
    assert.is_true(support.same_bits(before, case.spans[0].layers[LAYER].query_weights.data, ffi.sizeof(before)))
  end)
end)
