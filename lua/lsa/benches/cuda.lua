-- The GPU's kernels, `./lsa bench --device cuda`: each beside the least time in which its bytes can come from memory, or its products
-- be made, and beside what other software takes for the same work. A time is that of one run among many of a replayed graph; runs
-- take turns on copies that together outgrow the L2 cache, as decoding finds weights and keys.
local bit = require "bit"
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local ownership = require "lsa.ownership"
local C, check = lsa.C, require("lsa.raise").check

local COLD = 128 * 2 ^ 20        -- bytes that together outgrow the cache
local FP8, BF16 = C.LSA_KV_FP8, C.LSA_COMPUTE_BF16

-- What peers take, in us: medians on one H100 80GB HBM3 (CUDA 13.0, cold L2, graph replays). Level 1: a fused kernel in
-- Triton; Level 2: DeepGEMM and SGLang's top-k; top-k: SGLang; attention: FlashMLA; linear: cublasLt. Fetches: what the bus gave
-- a gather of 16-byte loads.
local PEERS = {
  linear_bf16 = {["1024 x 4096"] = 7.5, ["32768 x 1024"] = 24.7, ["512 x 4096"] = 6.4, ["8192 x 4096"] = 24.7, ["4096 x 8192"] = 26.9},
  linear_fp8 = {["1024 x 4096"] = 5.5, ["32768 x 1024"] = 13.9, ["512 x 4096"] = 5.3, ["8192 x 4096"] = 13.7, ["4096 x 8192"] = 14.1},
  level1 = {[16384] = 6.6, [65536] = 15.2, [262144] = 45.9},
  level2 = {12.5, [8] = 21.6, [32] = 53.2},
  topk = {8.7, [32] = 25.6},
  sparse = {13.0, [32] = 25.4, [128] = 46.0},
  hca = {29.6, [8] = 49.7, [32] = 127},
  gather = {[16] = 10, [256] = 67, [2621] = 640},
}

-- ---- memory of the GPU ----

-- Random bytes there, `piece` of them again and again: no e4m3 NaN, bf16 and floats around 1 where `what` is "bf16" or "float".
local function filled(bench, held, bytes, what, piece)
  piece = math.min(bytes, piece or 2 ^ 20)
  local is_float = what == "float"
  local host, owner = bench:random(is_float and "float" or "uint8_t", math.ceil(piece / (is_float and 4 or 1)), 1)
  for i = 1, what == "bf16" and piece - 1 or 0, 2 do host[i] = 0x3f + host[i] % 2 * 0x80 end
  local there = bench:to_device(bytes)
  for at = 0, bytes - 1, piece do check(C.lsa_device_copy(there + at, host, math.min(piece, bytes - at))) end
  held[#held + 1], held[#held + 2] = there, owner
  return there
end

local function random(bench, held, bytes) return filled(bench, held, bytes, nil, bytes) end

local function floats(bench, held, n) return ffi.cast("float *", filled(bench, held, 4 * math.max(n, 1), "float")) end

local function room(bench, held, bytes)
  local there = bench:to_device(math.max(tonumber(bytes), 1))
  held[#held + 1] = there
  return there
end

-- Memory that host and GPU have at one address.
local function shared(held, ctype, n)
  local block = ownership.take(C.lsa_device_free, "void", C.lsa_device_alloc_shared, math.max(1, n) * ffi.sizeof(ctype), 0)
  held[#held + 1] = block
  return ffi.cast(ctype .. " *", block)
end

local function ints(held, n, value)
  local list = shared(held, "int32_t", n)
  for i = 0, n - 1 do list[i] = value(i) end
  return list
end

local function copies_of(bytes) return math.max(1, math.min(256, math.ceil(COLD / bytes))) end

-- ---- cases ----

local FORMATS = {bf16 = {dtype = C.LSA_BF16, bytes = 2}, fp8 = {dtype = C.LSA_F8_E4M3, bytes = 1, block = 128}}

local function linear(bench, k, rows, cols, name)
  local format = FORMATS[name]
  local bytes = rows * cols * format.bytes
  local shape = ("%d x %d"):format(rows, cols)
  bench:gpu_case {
    op = "linear", shape = ("1 token, %s %s"):format(shape, name), bytes = bytes, copies = copies_of(bytes),
    peer = PEERS["linear_" .. name][shape],
    setup = function(held, copies)
      local w, x, y = ffi.new("lsa_weight[?]", copies), floats(bench, held, cols), floats(bench, held, rows)
      for i = 0, copies - 1 do
        w[i].data, w[i].rows, w[i].cols, w[i].dtype = filled(bench, held, bytes, name), rows, cols, format.dtype
        if format.block then
          local count = math.ceil(rows / 128) * math.ceil(cols / 128)
          local host, owner = bench:alloc("uint8_t", count)
          ffi.fill(host, count, 126)
          w[i].scale, held[#held + 1] = bench:to_device(count, host), owner
          held[#held + 1] = w[i].scale
          w[i].scale_dtype, w[i].block_rows, w[i].block_cols = C.LSA_F8_E8M0, 128, 128
        end
      end
      local work = room(bench, held, k.linear_workspace(w, 1, rows, BF16))
      return function(i, stream) check(k.linear(y, x, w + i, 1, 0, rows, cols, rows, BF16, work, stream)) end
    end,
  }
end

-- n fp8 records: of attention, or index keys. No e4m3 number is NaN, for which kernels have slow ways; scales are 1. Few are alike,
-- so that top-k has few ties.
local function written(bench, held, n, bytes)
  local piece = math.min(n, 32768)
  local host, owner = bench:random("uint8_t", piece * bytes, 1)
  for i = 0, piece - 1 do
    local at = host + i * bytes
    for j = 0, bytes == 584 and 447 or 127 do at[j] = bit.band(at[j], 0xb7) end
    if bytes == 584 then -- 64 bf16 numbers, 7 scales in e8m0, padding
      for j = 449, 575, 2 do at[j] = 0x3f + at[j] % 2 * 0x80 end
      ffi.fill(at + 576, 7, 127)
      at[583] = 0
    else
      ffi.cast("float *", at + 128)[0] = 1
    end
  end
  local there = bench:to_device(n * bytes)
  for from = 0, n - 1, piece do check(C.lsa_device_copy(there + from * bytes, host, math.min(piece, n - from) * bytes)) end
  held[#held + 1], held[#held + 2] = there, owner
  return there
end

-- One block of them.
local function records(bench, held, n, bytes)
  local blocks = shared(held, "uint8_t *", 1)
  blocks[0] = written(bench, held, n, bytes)
  return ffi.new("lsa_records", {blocks = blocks, stride = bytes, offset = 0, block_shift = 31, format = FP8})
end

-- Level 1 as a cycle has it: scores of three layers, their maximum, what reaches a threshold as a set.
local function level1(bench, k, n, scoring)
  local layers, heads, dim, key = 3, 128, 128, 132
  bench:gpu_case {
    op = "level1", shape = ("%d layers x %d heads, %d keys, %s"):format(layers, heads, n, scoring), bytes = layers * n * key,
    flops = 2 * layers * n * heads * dim, rate = scoring, copies = copies_of(layers * n * key),
    peer = scoring == "fp8" and PEERS.level1[n] or nil,
    setup = function(held, copies)
      local q, w = floats(bench, held, layers * heads * dim), floats(bench, held, layers * heads)
      local calls, how = {}, scoring == "fp8" and C.LSA_SCORE_FP8 or C.LSA_SCORE_BF16
      local bits = ffi.cast("uint64_t *", room(bench, held, n / 8 + 8))
      for i = 0, copies - 1 do
        local request, keys = shared(held, "lsa_lookahead_request", 1), shared(held, "lsa_records", layers)
        for layer = 0, layers - 1 do keys[layer] = records(bench, held, n, key) end
        request.q, request.w, request.keys, request.n, request.bits = q, w, keys, n, bits
        calls[i] = ffi.new("lsa_lookahead", {requests = request, count = 1, layers = layers, heads = heads, dim = dim, most = n,
          key_format = FP8, scoring = how, ensemble = C.LSA_ENSEMBLE_MAX, theta = 0.5})
      end
      local work = room(bench, held, k.lookahead_workspace(calls[0]))
      return function(i, stream) check(k.lookahead(calls[i], work, stream)) end
    end,
  }
end

-- Spans of one decoded token each, of `count` requests; fill(store, span, i) says what is special.
local function spans_of(held, count, tokens, fill)
  local spans, progress, stores = shared(held, "lsa_span", count), shared(held, "lsa_progress", count), shared(held, "lsa_layer_store", count)
  for i = 0, count - 1 do
    progress[i].tokens, progress[i].passes = tokens, 0
    spans[i].progress, spans[i].layers, spans[i].row, spans[i].rows = progress + i, stores + i, i, 1
    fill(stores + i, spans + i, i)
  end
  return spans
end

local function level2(bench, k, requests)
  local residents, heads, dim, key, picks = 26214, 64, 128, 132, 512
  bench:gpu_case {
    op = "level2", shape = ("%d requests, %d residents x %d heads, top %d"):format(requests, residents, heads, picks),
    bytes = requests * residents * key, flops = 2 * requests * residents * heads * dim, rate = "fp8",
    copies = copies_of(requests * residents * key), peer = PEERS.level2[requests],
    setup = function(held, copies)
      local spans = {}
      for i = 0, copies - 1 do
        spans[i] = spans_of(held, requests, 4 * 262144 - 1, function(store, span)
          store.resident_keys = written(bench, held, residents, key)
          store.keys.format, store.keys.stride = FP8, key
          span.among_residents, span.residents, span.chunks = 1, residents, 262144
        end)
      end
      local picking = ffi.new("lsa_picking", {queries = floats(bench, held, requests * heads * dim), weights = floats(bench, held,
        requests * heads), heads = heads, dim = dim, k = picks, rate = 4, rows = requests, most = residents, key_format = FP8, compute = C.LSA_SCORE_FP8})
      local places, counts = ffi.cast("int32_t *", room(bench, held, 4 * requests * picks)), ffi.cast("int32_t *", room(bench, held, 4 * requests))
      local work = room(bench, held, k.pick_workspace(requests, residents, picks, heads, dim, FP8, C.LSA_SCORE_FP8))
      return function(i, stream) check(k.pick(places, nil, counts, spans[i], requests, 0, picking, work, stream)) end
    end,
  }
end

-- Scores in no order, all of one width: none of the largest is far from the next; or each larger than the one before, so that the
-- largest are the last.
local function topk(bench, k, rows, order)
  local n, picks = 262144, 512
  bench:gpu_case {
    op = "topk", shape = ("%d of %d, %d rows, %s"):format(picks, n, rows, order), bytes = 4 * n * rows, copies = copies_of(4 * n * rows),
    peer = order == "random" and PEERS.topk[rows] or nil,
    setup = function(held, copies)
      local scores, host = {}, bench:random("float", n, 3)
      for i = 0, order == "rising" and n - 1 or -1 do host[i] = i end
      for i = 0, copies - 1 do
        local there = bench:to_device(4 * n * rows)
        for row = 0, rows - 1 do check(C.lsa_device_copy(there + 4 * n * row, host, 4 * n)) end
        scores[i], held[#held + 1] = ffi.cast("float *", there), there
      end
      local ids, work = ffi.cast("int32_t *", room(bench, held, 4 * rows * picks)), room(bench, held, k.topk_workspace(rows, picks))
      return function(i, stream) check(k.topk(ids, nil, nil, scores[i], rows, n, n, picks, work, stream)) end
    end,
  }
end

-- V4-Flash's attention of one token of each request: picks of a hot tier, or all entries.
local function attend(bench, k, requests, name, entries)
  local heads, dim, rope, window, record = 64, 512, 64, 128, 584
  local seen, pool = entries or 512, entries or 2048
  local bytes = requests * (seen * record + window * dim * 4)
  bench:gpu_case {
    op = name, shape = ("%d requests, %d + %d x %d x %d, fp8"):format(requests, window, seen, heads, dim), bytes = bytes,
    flops = 4 * requests * (window + seen) * heads * dim, rate = "bf16", copies = copies_of(bytes), peer = PEERS[name][requests],
    setup = function(held, copies)
      local spans, position = {}, 4 * 262144 - 1
      for i = 0, copies - 1 do
        spans[i] = spans_of(held, requests, entries and entries * 128 - 1 or position, function(store, span)
          store.window.data, store.window.room, store.window.width = floats(bench, held, window * dim), window, dim
          local list = records(bench, held, pool, record)
          store.hot, store.cold = list, list
          span.in_cells = entries and 0 or 1
        end)
      end
      local ids = ints(held, requests * 512, function(j) return j % 512 * 4 + j % 3 end)
      local counts = ints(held, requests, function() return seen end)
      local attending = ffi.new("lsa_attending", {source = entries and C.LSA_ATTEND_ENTRIES or C.LSA_ATTEND_PICKED,
        q = floats(bench, held, requests * heads * dim), sinks = floats(bench, held, heads), ids = not entries and ids or nil, counts = counts,
        heads = heads, dim = dim, rope_dim = rope, window_size = window, k = 512, rate = entries and 128 or 4, rows = requests,
        most = seen, scale = dim ^ -0.5, compute = BF16})
      local out, mass = floats(bench, held, requests * heads * dim), not entries and floats(bench, held, requests * 512) or nil
      local work = room(bench, held, k.attention_workspace(requests, heads, dim, window, seen, entries and 0 or 512))
      return function(i, stream) check(k.attend(out, mass, spans[i], requests, 0, attending, work, stream)) end
    end,
  }
end

-- Records of 12,288 bytes out of host memory; the limit is the bus.
local function gather(bench, k, n)
  local record, all = 12288, 32768
  bench:gpu_case {
    op = "gather", shape = ("%d records of %d from host memory"):format(n, record), bytes = n * record, bus = true, copies = 4,
    peer = PEERS.gather[n],
    setup = function(held, copies)
      local everything = ownership.take(C.lsa_device_free, "void", C.lsa_device_alloc_shared, all * record, 1)
      held[#held + 1] = everything
      ffi.fill(everything, all * record, 3)
      local tables = shared(held, "uint8_t *", 2)
      tables[0], tables[1] = ffi.cast("uint8_t *", everything), room(bench, held, n * record)
      local from = ffi.new("lsa_records", {blocks = tables, stride = record, offset = 0, block_shift = 31, format = 0})
      local to = ffi.new("lsa_records", {blocks = tables + 1, stride = record, offset = 0, block_shift = 31, format = 0})
      local slots, chunks = ints(held, n, function(i) return i end), {}
      for c = 0, copies - 1 do chunks[c] = ints(held, n, function(i) return (i * 7919 + c * 8191) % all end) end
      return function(i, stream) check(k.gather(to, slots, from, chunks[i], n, record, stream)) end
    end,
  }
end

local function experts(bench, k, tokens)
  local hidden, inner, count, each = 4096, 2048, 32, 6
  local bytes = 3 * inner * hidden / 2 * (1 + 1 / 16)
  local used = math.min(count, tokens * each)
  bench:gpu_case {
    op = "experts", shape = ("%d tokens, %d of %d, fp4 [%d, %d]"):format(tokens, each, count, inner, hidden), bytes = used * bytes,
    copies = math.max(1, math.floor(count / used)),
    setup = function(held, copies)
      local all = shared(held, "lsa_expert_weights", count)
      for e = 0, count - 1 do
        for i, part in ipairs {"gate", "up", "down"} do
          local w = all[e][part]
          w.rows, w.cols = i < 3 and inner or hidden, i < 3 and hidden or inner
          w.data, w.dtype, w.scale_dtype, w.block_rows, w.block_cols = random(bench, held, inner * hidden / 2), C.LSA_F4_E2M1, C.LSA_F8_E8M0, 1, 32
          local host, owner = bench:alloc("uint8_t", inner * hidden / 32)
          ffi.fill(host, inner * hidden / 32, 126)
          w.scale, held[#held + 1] = bench:to_device(inner * hidden / 32, host), owner
          held[#held + 1] = w.scale
        end
      end
      local x, y, weights = floats(bench, held, tokens * hidden), floats(bench, held, tokens * hidden), floats(bench, held, tokens * each)
      local ids = {}
      for c = 0, copies - 1 do ids[c] = ints(held, tokens * each, function(i) return (i + c * used) % count end) end
      local work = room(bench, held, k.experts_workspace(all, nil, tokens, hidden, count, each, BF16))
      return function(i, stream) check(k.experts(y, x, ids[i], weights, all, nil, tokens, hidden, count, each, 10, BF16, work, stream)) end
    end,
  }
end

-- What has no peer's figure: rows of V4-Flash's sizes.
local function small(bench, k)
  local function case(op, shape, bytes, setup)
    bench:gpu_case {op = op, shape = shape, bytes = bytes, copies = copies_of(bytes), setup = setup}
  end
  case("rmsnorm", "1 x 4096", 4 * 3 * 4096, function(held, copies)
    local x, w, y = floats(bench, held, copies * 4096), floats(bench, held, 4096), floats(bench, held, 4096)
    return function(i, stream) check(k.rmsnorm(y, x + i * 4096, w, 1, 4096, 1e-6, stream)) end
  end)
  case("hc_open", "1 token, 4 streams of 4096", 4 * 5 * 4096, function(held, copies)
    local streams, mix, base, scale = floats(bench, held, copies * 4 * 4096), floats(bench, held, 24), floats(bench, held, 24), floats(bench, held, 3)
    local x, post, comb = floats(bench, held, 4096), floats(bench, held, 4), floats(bench, held, 16)
    return function(i, stream)
      check(k.hc_open(x, post, comb, streams + i * 4 * 4096, mix, base, scale, 1, 4, 4096, 20, 1e-6, 1e-6, stream))
    end
  end)
  case("hc_close", "1 token, 4 streams of 4096", 4 * 9 * 4096, function(held, copies)
    local streams, y, post, comb = floats(bench, held, copies * 4 * 4096), floats(bench, held, 4096), floats(bench, held, 4), floats(bench, held, 16)
    return function(i, stream) check(k.hc_close(streams + i * 4 * 4096, y, post, comb, 1, 4, 4096, stream)) end
  end)
  case("moe_route", "1 token, 6 of 256", 4 * 2 * 256, function(held, copies)
    local logits, bias = floats(bench, held, copies * 256), floats(bench, held, 256)
    local ids, weights = ffi.cast("int32_t *", room(bench, held, 24)), floats(bench, held, 6)
    return function(i, stream)
      check(k.moe_route(ids, weights, logits + i * 256, bias, nil, nil, 1, 256, 6, C.LSA_SCORING_SQRTSOFTPLUS, 1.5, stream))
    end
  end)
  case("sample", "1 of 129280", 4 * 129280, function(held, copies)
    local logits, token = floats(bench, held, copies * 129280), ffi.cast("int32_t *", room(bench, held, 4))
    local state, temperature = shared(held, "uint64_t", 1), shared(held, "double", 1)
    return function(i, stream) check(k.sample(token, logits + i * 129280, state, temperature, 1, 129280, stream)) end
  end)
  case("entropy", "1 of 129280", 4 * 129280, function(held, copies)
    local logits, out = floats(bench, held, copies * 129280), shared(held, "double", 1)
    return function(i, stream) check(k.entropy(out, logits + i * 129280, 1, 129280, stream)) end
  end)
  for _, n in ipairs {262144, 1048576} do
    case("select_topk", ("%d of %d"):format(math.floor(0.135 * n), n), 4 * n, function(held, copies)
      local scores, bits = floats(bench, held, copies * n), ffi.cast("uint64_t *", room(bench, held, n / 8 + 8))
      local work = room(bench, held, k.select_workspace(n))
      return function(i, stream) check(k.select_topk(bits, scores + i * n, n, math.floor(0.135 * n), work, stream)) end
    end)
  end
end

return function(bench)
  if bench.device ~= "cuda" then return end
  local k = C.lsa_kernels_on(C.LSA_CUDA)
  if k == nil then check(-1) end
  for _, name in ipairs {"bf16", "fp8"} do
    for _, shape in ipairs {{1024, 4096}, {32768, 1024}, {512, 4096}, {8192, 4096}, {4096, 8192}} do
      linear(bench, k, shape[1], shape[2], name)
    end
  end
  for _, n in ipairs {16384, 65536, 262144} do
    for _, scoring in ipairs {"fp8", "bf16"} do level1(bench, k, n, scoring) end
  end
  for _, requests in ipairs {1, 8, 32} do level2(bench, k, requests) end
  for _, rows in ipairs {1, 32} do
    for _, order in ipairs {"random", "rising"} do topk(bench, k, rows, order) end
  end
  for _, requests in ipairs {1, 32, 128} do attend(bench, k, requests, "sparse") end
  for _, requests in ipairs {1, 8, 32} do attend(bench, k, requests, "hca", 8192) end
  for _, tokens in ipairs {1, 32} do experts(bench, k, tokens) end
  for _, n in ipairs {16, 256, 2621} do gather(bench, k, n) end
  small(bench, k)
end
