-- A chain against its stages' own kernels, on the same device: the same bits. What the stages compute, their specs say.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local chain = support.over_spans "chain"
local single = {linears = support.over_spans "linears", turn = support.over_spans "hc_turn", route = support.over_spans "moe_route",
  experts = support.over_spans "experts", settle = support.over_spans "settle"}
local EPS, MIB = 1e-6, 2 ^ 20
local RATE, ROPE, HEADS, DIM, INDEX_HEADS, INDEX_DIM = 4, 16, 3, 64, 4, 32

-- A pass of `n` rows between two attentions: weights, buffers, and stages over them. Two cases of one seed have the same numbers.
local function new_case(n, opt)
  local case = {keep = {}, n = n, outputs = {}, stages = ffi.new("lsa_stage[?]", C.LSA_CHAIN_MOST), count = 0}
  local seed = 0
  local function hold(p) case.keep[#case.keep + 1] = p return p end
  local function floats(count, scale)
    seed = seed + 1
    return hold(support.span_copy("float", support.normals(count, seed, scale), count))
  end
  local function output(name, count)
    local p = floats(count)
    case.outputs[#case.outputs + 1] = {name = name, p = p, bytes = 4 * count}
    return p
  end
  local function weight(rows, cols, bf16)
    local w, values = hold(ffi.new "lsa_weight"), floats(rows * cols, 0.2)
    w.rows, w.cols, w.block_rows, w.block_cols, w.dtype, w.data = rows, cols, 1, 1, C.LSA_F32, values
    if bf16 then
      local stored, bits = hold(support.span_buffer("uint16_t", rows * cols)), ffi.cast("uint32_t *", values)
      for i = 0, rows * cols - 1 do stored[i] = bit.rshift(bits[i], 16) end
      w.dtype, w.data = C.LSA_BF16, stored
    end
    return w
  end
  local function next_stage(kind)
    local stage = case.stages[case.count]
    case.count, stage.kind = case.count + 1, kind
    return stage
  end
  local function linears(products, norm)
    local l = next_stage(C.LSA_STAGE_LINEARS).linears
    l.count, l.norm, l.norm_eps, l.compute = #products, norm, EPS, opt.compute
    for i, p in ipairs(products) do
      local to = l.products[i - 1]
      to.y, to.x, to.w, to.row_from, to.rows, to.x_stride, to.y_stride = p.y, p.x, p.w, p.from or 0, p.rows or p.w.rows, p.x_stride or p.w.cols, p.y_stride or p.w.rows
    end
  end
  local hidden, hc = opt.hidden, opt.hc
  local streams, post, comb = output("streams", n * hc * hidden), output("post", n * hc), output("comb", n * hc * hc)
  local mix, x, y = floats(n * (2 + hc) * hc), output("x", n * hidden), output("y", n * hidden)
  local function turn(closes, head)
    local rows = head and hc or (2 + hc) * hc
    local t = next_stage(C.LSA_STAGE_TURN).turn
    t.x, t.streams, t.y, t.post, t.comb, t.mix = x, streams, closes and y or nil, post, comb, mix
    t.fn, t.base, t.scale, t.norm = weight(rows, hc * hidden), floats(rows), floats(3), floats(hidden)
    t.hc, t.dim, t.iters, t.norm_eps, t.hc_eps, t.compute, t.head = hc, hidden, 3, EPS, 1e-6, opt.compute, head and 1 or 0
  end
  -- Two groups of what was attended to, and their way back.
  local attended, low = floats(n * 128), output("low", n * 64)
  local o_a = weight(64, 64, opt.bf16)
  linears {{y = low, x = attended, w = o_a, rows = 32, x_stride = 128, y_stride = 64},
    {y = low + 32, x = attended + 64, w = o_a, from = 32, rows = 32, x_stride = 128, y_stride = 64}}
  linears {{y = y, x = low, w = weight(hidden, 64, opt.bf16)}}
  turn(true)
  -- Experts, chosen by scores or by the token.
  local count, k = 4, 2
  local router, ids, weights = output("router", n * count), hold(support.span_buffer("int32_t", n * k)), output("weights", n * k)
  case.outputs[#case.outputs + 1] = {name = "ids", p = ids, bytes = 4 * n * k}
  linears {{y = router, x = x, w = weight(count, hidden)}}
  local r = next_stage(C.LSA_STAGE_ROUTE).route
  r.ids, r.weights, r.logits, r.experts, r.k, r.scaling = ids, weights, router, count, k, 1.5
  if opt.hashed then
    local of_token, tokens = hold(support.span_buffer("int32_t", 5 * k)), hold(support.span_buffer("int32_t", n))
    for i = 0, 5 * k - 1 do of_token[i] = (3 * i + 1) % count end
    for i = 0, n - 1 do tokens[i] = i * 3 % 5 end
    r.token_experts, r.tokens = of_token, tokens
  else
    r.bias = floats(count)
  end
  local function expert(to, inner)
    to.gate, to.up, to.down = weight(inner, hidden, opt.bf16), weight(inner, hidden), weight(hidden, inner, opt.bf16)
  end
  local experts, shared = hold(support.span_buffer("lsa_expert_weights", count)), nil
  for e = 0, count - 1 do expert(experts[e], e == 1 and opt.inner_of_one or opt.inner) end
  if opt.shared then
    shared = hold(ffi.new "lsa_expert_weights[1]")
    expert(shared[0], opt.inner)
  end
  local m = next_stage(C.LSA_STAGE_EXPERTS).experts
  m.y, m.x, m.ids, m.weights, m.experts, m.shared = y, x, ids, weights, experts, shared
  m.hidden, m.count, m.k, m.limit, m.compute = hidden, count, k, 4, opt.compute
  turn(true, opt.head)
  if opt.head then
    linears {{y = output("logits", n * 70), x = x, w = weight(70, hidden, opt.bf16)}}
    return case
  end
  -- The next layer's queries, records and keys.
  local q_low, window = output("q_low", n * 48), output("window", n * DIM)
  local kv, gate, index_kv, index_gate = floats(n * 2 * DIM), floats(n * 2 * DIM), floats(n * 2 * INDEX_DIM), floats(n * 2 * INDEX_DIM)
  local q, index_q, index_w = output("q", n * HEADS * DIM), output("index_q", n * INDEX_HEADS * INDEX_DIM), output("index_w", n * INDEX_HEADS)
  linears {{y = q_low, x = x, w = weight(48, hidden, opt.bf16)}, {y = window, x = x, w = weight(DIM, hidden)}, {y = kv, x = x, w = weight(2 * DIM, hidden)},
    {y = gate, x = x, w = weight(2 * DIM, hidden)}, {y = index_kv, x = x, w = weight(2 * INDEX_DIM, hidden)},
    {y = index_gate, x = x, w = weight(2 * INDEX_DIM, hidden)}, {y = index_w, x = x, w = weight(INDEX_HEADS, hidden)}}
  linears({{y = q, x = q_low, w = weight(HEADS * DIM, 48, opt.bf16)}, {y = index_q, x = q_low, w = weight(INDEX_HEADS * INDEX_DIM, 48)}}, floats(48))
  local spans, record = hold(support.span_buffer("lsa_span", n)), tonumber(C.lsa_kv_record_bytes(C.LSA_KV_FP8, DIM, ROPE))
  local key = tonumber(C.lsa_index_key_bytes(C.LSA_KV_FP8, INDEX_DIM))
  for i = 0, n - 1 do
    local progress, layers = hold(support.span_buffer("lsa_progress", 1)), hold(support.span_buffer("lsa_layer_store", 1))
    progress[0].tokens, progress[0].passes = 7 + i % 5, i
    spans[i].progress, spans[i].layers, spans[i].row, spans[i].rows = progress, layers, i, 1
    local function ring(name, room, width)
      local to = layers[0][name]
      to.data, to.room, to.width = output(name .. " of " .. i, room * width), room, width
    end
    ring("window", 20, DIM)
    ring("kv", 12, 2 * DIM)
    ring("gate", 12, 2 * DIM)
    ring("index_kv", 12, 2 * INDEX_DIM)
    ring("index_gate", 12, 2 * INDEX_DIM)
    ring("queries", 12, INDEX_HEADS * INDEX_DIM)
    ring("query_weights", 12, INDEX_HEADS)
    ring("hidden", 3, hidden)
    for name, bytes in pairs {cold = record, keys = key} do
      local blocks, block = hold(support.span_buffer("uint8_t *", 1)), hold(support.span_buffer("uint8_t", 8 * bytes))
      blocks[0] = block
      case.outputs[#case.outputs + 1] = {name = name .. " of " .. i, p = block, bytes = 8 * bytes, raw = true}
      local to = layers[0][name]
      to.blocks, to.stride, to.offset, to.block_shift, to.format = blocks, bytes, 0, 3, C.LSA_KV_FP8
    end
  end
  local s = next_stage(C.LSA_STAGE_SETTLE).settle
  s.spans, s.count, s.layer = spans, n, 0
  local of = s.of
  of.q, of.window, of.window_norm, of.table = q, window, floats(DIM), floats(n * ROPE)
  of.heads, of.dim, of.rope_dim, of.norm_eps = HEADS, DIM, ROPE, EPS
  of.entries, of.key_entries, of.index_q, of.index_w, of.index_table = floats(n * DIM), floats(n * INDEX_DIM), index_q, index_w, floats(n * ROPE)
  of.index_heads, of.index_dim, of.index_scale, of.transformed, of.hidden, of.hidden_width = INDEX_HEADS, INDEX_DIM, 0.1, 1, x, hidden
  local function extension(e, what, dim, of_kv, of_gate)
    e.what, e.format, e.rate, e.dim, e.overlap = what, C.LSA_KV_FP8, RATE, dim, 1
    e.bias, e.norm, e.inv_freq, e.rope_dim, e.norm_eps = floats(RATE * 2 * dim), floats(dim), floats(ROPE / 2), ROPE, EPS
    e.kv, e.gate = of_kv, of_gate
  end
  extension(s.records, C.LSA_EXTEND_RECORDS, DIM, kv, gate)
  extension(s.keys, C.LSA_EXTEND_KEYS, INDEX_DIM, index_kv, index_gate)
  of.records, of.keys = s.records, s.keys -- that they are there
  return case
end

local function run_single(case, workspace)
  local n = case.n
  for i = 0, case.count - 1 do
    local stage = case.stages[i]
    local l, r, e, s = stage.linears, stage.route, stage.experts, stage.settle
    if stage.kind == C.LSA_STAGE_LINEARS then
      check(single.linears(l.products, l.count, n, l.norm, l.norm_eps, l.compute, workspace, nil))
    elseif stage.kind == C.LSA_STAGE_TURN then
      check(single.turn(stage.turn, n, workspace, nil))
    elseif stage.kind == C.LSA_STAGE_ROUTE then
      check(single.route(r.ids, r.weights, r.logits, r.bias, r.token_experts, r.tokens, n, r.experts, r.k, r.scoring, r.scaling, nil))
    elseif stage.kind == C.LSA_STAGE_EXPERTS then
      check(single.experts(e.y, e.x, e.ids, e.weights, e.experts, e.shared, n, e.hidden, e.count, e.k, e.limit, e.compute, workspace, nil))
    else
      check(single.settle(s.spans, s.count, s.layer, s.of, n, workspace, nil))
    end
  end
end

local function expect_alike(n, opt)
  local workspace = support.span_buffer("uint8_t", 64 * MIB)
  local case, other = new_case(n, opt), new_case(n, opt)
  check(chain(case.stages, case.count, n, workspace, nil))
  run_single(other, workspace)
  for i, output in ipairs(case.outputs) do
    for j = 0, output.raw and -1 or output.bytes / 4 - 1 do
      assert.is_true(output.p[j] == output.p[j], output.name .. " is NaN")
    end
    assert.is_true(support.same_bits(output.p, other.outputs[i].p, output.bytes), ("%s of %d rows"):format(output.name, n))
  end
end

describe("chain", function()
  it("gives what its stages give, between two attentions", function()
    for _, n in ipairs {1, 3, 20} do
      expect_alike(n, {hidden = 128, hc = 2, inner = 64, shared = true, compute = C.LSA_COMPUTE_F32})
    end
  end)

  it("gives it of other widths, formats and numbers of streams", function()
    for _, n in ipairs {1, 5} do
      expect_alike(n, {hidden = 256, hc = 4, inner = 96, shared = true, bf16 = true, compute = C.LSA_COMPUTE_F32})
      expect_alike(n, {hidden = 40, hc = 1, inner = 24, compute = C.LSA_COMPUTE_F32})
      expect_alike(n, {hidden = 128, hc = 2, inner = 64, shared = true, hashed = true, bf16 = true, compute = C.LSA_COMPUTE_BF16})
    end
  end)

  it("gives it up to the logits", function()
    for _, n in ipairs {1, 9, 130} do
      expect_alike(n, {hidden = 128, hc = 2, inner = 64, shared = true, head = true, compute = C.LSA_COMPUTE_F32})
    end
  end)

  it("gives it where a stage is not short", function()
    expect_alike(2, {hidden = 128, hc = 2, inner = 64, inner_of_one = 32, shared = true, compute = C.LSA_COMPUTE_F32})
    expect_alike(2, {hidden = 36, hc = 2, inner = 20, compute = C.LSA_COMPUTE_F32})
  end)

  it("refuses what is no stage, and too many; none is none", function()
    local stages = ffi.new("lsa_stage[?]", C.LSA_CHAIN_MOST + 1)
    stages[0].kind = 9
    assert.equal(C.LSA_EARG, chain(stages, 1, 1, nil, nil))
    assert.equal("chain: stage of kind 9, 0 to 4 are known", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_EARG, chain(stages, C.LSA_CHAIN_MOST + 1, 1, nil, nil))
    assert.equal("chain: 13 stages, 0 to 12 are possible", ffi.string(C.lsa_error()))
    assert.equal(0, chain(stages, 0, 1, nil, nil))
  end)
end)
