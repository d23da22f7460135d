local ffi = require "ffi"
local lsa = require "lsa"
local support = require "kernel_support"
local binding = require "lsa.ffi"
local C, check = binding.C, require("lsa.raise").check
local inf, nan = math.huge, 0 / 0

-- Weights in f32, or rounded to bf16; `keep` holds their memory.
local function weight(w, keep, rows, cols, seed, bf16)
  local numbers = support.normals(rows * cols, seed, 0.3)
  w.rows, w.cols, w.block_rows, w.block_cols, w.dtype = rows, cols, 1, 1, bf16 and C.LSA_BF16 or C.LSA_F32
  w.data = numbers
  if bf16 then
    local rounded = support.buffer("uint16_t", rows * cols)
    check(C.lsa_convert_cpu(rounded, numbers, rows * cols, C.LSA_BF16, C.LSA_F32, nil))
    w.data, numbers = rounded, rounded
  end
  keep[#keep + 1] = numbers
end

local function expert(e, keep, inner, hidden, seed, bf16)
  weight(e.gate, keep, inner, hidden, seed, bf16)
  weight(e.up, keep, inner, hidden, seed + 1, bf16)
  weight(e.down, keep, hidden, inner, seed + 2, bf16)
end

-- A layer of experts of the given widths; every other one is bf16.
local function layer(hidden, widths, shared)
  local m = {hidden = hidden, count = #widths, keep = {}, limit = 7, compute = C.LSA_COMPUTE_F32}
  m.experts = support.buffer("lsa_expert_weights", #widths)
  for i, inner in ipairs(widths) do expert(m.experts[i - 1], m.keep, inner, hidden, 10 * i, i % 2 == 0) end
  if shared then
    m.shared = support.buffer("lsa_expert_weights", 1)
    expert(m.shared, m.keep, shared, hidden, 5)
  end
  return m
end

local function run(m, x, ids, weights, tokens, k)
  local y = support.poison(support.buffer("float", tokens * m.hidden), tokens * m.hidden)
  local work = support.workspace(C.lsa_experts_workspace(m.experts, m.shared, tokens, m.hidden, m.count, k, m.compute))
  check(C.lsa_experts_cpu(y, x, ids, weights, m.experts, m.shared, tokens, m.hidden, m.count, k, m.limit, m.compute, work,
    nil))
  return y
end

local function linear(m, x, w, n)
  local y = support.buffer("float", n * tonumber(w.rows))
  local work = support.workspace(C.lsa_linear_workspace(w, n, w.rows, m.compute))
  check(C.lsa_linear_cpu(y, x, w, n, 0, w.rows, w.cols, w.rows, m.compute, work, nil))
  return y
end

local function of_expert(m, e, x, n)
  local gate, up = linear(m, x, e.gate, n), linear(m, x, e.up, n)
  check(C.lsa_swiglu_cpu(gate, gate, up, n * e.gate.rows, m.limit, nil))
  return linear(m, gate, e.down, n)
end

-- The contract word by word: every expert's tokens in one product, f32 products and additions one after the other.
local function oracle(m, x, ids, weights, tokens, k)
  local d, product = m.hidden, ffi.new "float[1]"
  local y = m.shared and of_expert(m, m.shared, x, tokens) or support.buffer("float", tokens * d)
  for e = 0, m.count - 1 do
    local members = {}
    for i = 0, tokens * k - 1 do
      if ids[i] == e then members[#members + 1] = i end
    end
    local gathered = support.buffer("float", #members * d)
    for i, place in ipairs(members) do ffi.copy(gathered + (i - 1) * d, x + math.floor(place / k) * d, d * 4) end
    local down = #members > 0 and of_expert(m, m.experts[e], gathered, #members)
    for i, place in ipairs(members) do
      local to = y + math.floor(place / k) * d
      for j = 0, d - 1 do
        product[0] = weights[place] * down[(i - 1) * d + j]
        to[j] = to[j] + product[0]
      end
    end
  end
  return y
end

-- k different experts a token, in no order.
local function routes(tokens, k, count, seed)
  local ids, uniform = support.buffer("int32_t", tokens * k), support.uniform(seed)
  for t = 0, tokens - 1 do
    local left = {}
    for e = 1, count do left[e] = e - 1 end
    for j = 0, k - 1 do ids[t * k + j] = table.remove(left, math.floor(uniform(1, #left + 1))) end
  end
  return ids, support.normals(tokens * k, seed + 1)
end

describe("experts", function()
  it("sums the shared expert and the routed ones in the order of their number, to the bit", function()
    support.for_each_cpu_level(function(_, level)
      for _, case in ipairs {
        {tokens = 1, k = 1, hidden = 1, widths = {1}},
        {tokens = 1, k = 2, hidden = 8, widths = {4, 4, 4}, shared = 4},
        {tokens = 7, k = 3, hidden = 17, widths = {5, 19, 1, 8, 33}, shared = 21},
        {tokens = 60, k = 2, hidden = 33, widths = {16, 7}},
        {tokens = 64, k = 1, hidden = 16, widths = {32, 8, 16}},
        {tokens = 130, k = 4, hidden = 24, widths = {16, 9, 40, 3, 12, 16}, shared = 50},
        {tokens = 211, k = 3, hidden = 40, widths = {16, 16, 24, 1, 9}, shared = 16, again = 5},
      } do
        local m = layer(case.hidden, case.widths, case.shared)
        local x = support.normals(case.tokens * case.hidden, 3)
        local ids, weights = routes(case.tokens, case.k, m.count, 4)
        for t = 0, case.again and case.tokens - 1 or -1, case.again or 1 do ids[t * case.k + 2] = ids[t * case.k] end
        for _, compute in ipairs {C.LSA_COMPUTE_F32, C.LSA_COMPUTE_BF16} do
          m.compute = compute
          local got, want = run(m, x, ids, weights, case.tokens, case.k), oracle(m, x, ids, weights, case.tokens, case.k)
          assert.is_true(support.same_bits(got, want, case.tokens * case.hidden * 4),
            ("%s: %d tokens, compute %d"):format(level, case.tokens, compute))
        end
      end
    end)
  end)

  it("is the formula", function()
    local m = layer(3, {2, 2}, 2)
    local x, ids, weights = support.normals(6, 1), support.array("int32_t", {1, 0}), support.array("float", {0.25, 2})
    local function of(e, t)
      local g, u, y, gate, up, down = {}, {}, {}, support.buffer("float", 6), support.buffer("float", 6),
        support.buffer("float", 6)
      check(C.lsa_weight_rows(gate, e.gate, 0, 2))
      check(C.lsa_weight_rows(up, e.up, 0, 2))
      check(C.lsa_weight_rows(down, e.down, 0, 3))
      for i = 0, 1 do
        g[i], u[i] = 0, 0
        for c = 0, 2 do g[i], u[i] = g[i] + gate[i * 3 + c] * x[t * 3 + c], u[i] + up[i * 3 + c] * x[t * 3 + c] end
      end
      for c = 0, 2 do
        y[c] = 0
        for i = 0, 1 do y[c] = y[c] + down[c * 2 + i] * u[i] * g[i] / (1 + math.exp(-g[i])) end
      end
      return y
    end
    local y = run(m, x, ids, weights, 2, 1)
    for t = 0, 1 do
      local own, shared = of(m.experts[ids[t]], t), of(m.shared[0], t)
      for c = 0, 2 do
        assert.is_true(math.abs(y[t * 3 + c] - shared[c] - weights[t] * own[c]) <= 1e-6, ("token %d, %d"):format(t, c))
      end
    end
  end)

  it("takes an expert as often as a token has it", function()
    local m, tokens, k = layer(9, {6, 4}), 3, 4
    local x, weights = support.normals(tokens * 9, 1), support.normals(tokens * k, 2)
    local ids = support.array("int32_t", {1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0})
    local y = run(m, x, ids, weights, tokens, k)
    local own = {[0] = of_expert(m, m.experts[0], x, tokens), of_expert(m, m.experts[1], x, tokens)}
    for i = 0, tokens * 9 - 1 do
      local want, t = 0, math.floor(i / 9)
      for j = t * k, t * k + k - 1 do want = want + weights[j] * own[ids[j]][i] end
      assert.is_true(math.abs(y[i] - want) <= 1e-5 * math.max(1, math.abs(want)))
    end
  end)

  it("keeps NaN with its token, and reads no expert that nobody has", function()
    support.for_each_cpu_level(function()
      local m, tokens, k = layer(20, {8, 8, 8, 8}, 8), 5, 2
      m.experts[2].gate.data, m.experts[2].up.data, m.experts[2].down.data = nil, nil, nil
      local x, weights = support.normals(tokens * 20, 1), support.normals(tokens * k, 2)
      local ids = support.array("int32_t", {0, 1, 1, 3, 3, 0, 0, 1, 1, 0})
      x[1 * 20 + 7], weights[3 * k + 1] = nan, nan
      local y = run(m, x, ids, weights, tokens, k)
      for i = 0, tokens * 20 - 1 do
        local t = math.floor(i / 20)
        assert.equal(t == 1 or t == 3, y[i] ~= y[i])
      end
    end)
  end)

  it("takes no tokens, no routed experts, none at all", function()
    local m, none = layer(4, {3}, 2), support.buffer("float", 0)
    run(m, none, support.buffer("int32_t", 0), none, 0, 1)
    local x = support.normals(8, 1)
    local y = run(m, x, nil, none, 2, 0)
    assert.is_true(support.same_bits(y, of_expert(m, m.shared, x, 2), 32))
    m = layer(4, {})
    y = run(m, x, nil, none, 2, 0)
    for i = 0, 7 do assert.equal(0, y[i]) end
  end)

  it("gives the same bits for any number of threads", function()
    local m, tokens, k = layer(256, {128, 128, 128, 128}, 200), 90, 2
    local x, ids, weights = support.normals(tokens * 256, 1), routes(tokens, k, 4, 7)
    C.lsa_threads_set(1)
    local one = run(m, x, ids, weights, tokens, k)
    C.lsa_threads_set(3)
    local three = run(m, x, ids, weights, tokens, k)
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, three, tokens * 256 * 4))
  end)

  it("names an expert that does not fit", function()
    local m = layer(4, {3, 3}, 2)
    local function fails(code, pattern)
      assert.equal(code, C.lsa_experts_cpu(nil, nil, nil, nil, m.experts, m.shared, 0, m.hidden, m.count, 1, m.limit,
        m.compute, nil, nil))
      assert.is_truthy(ffi.string(C.lsa_error()):find(pattern, 1, true), ffi.string(C.lsa_error()))
    end
    m.experts[1].up.rows = 2
    fails(C.LSA_ESHAPE, "experts: expert 1 has gate [3, 4], up [2, 4], down [4, 3], x 4 columns")
    m.experts[1].up.rows, m.hidden = 3, 5
    fails(C.LSA_ESHAPE, "experts: shared expert 0 has gate [2, 4]")
    m.hidden, m.count = 4, -1
    fails(C.LSA_ESHAPE, "-1 experts")
  end)

  it("fails as its products do", function()
    local m, x = layer(4, {3}, 2), support.normals(4, 1)
    m.limit = -1
    local work = support.workspace(C.lsa_experts_workspace(m.experts, m.shared, 1, 4, 1, 1, 0))
    assert.equal(C.LSA_EARG, C.lsa_experts_cpu(support.buffer("float", 4), x, support.array("int32_t", {0}),
      support.array("float", {1}), m.experts, m.shared, 1, 4, 1, 1, m.limit, m.compute, work, nil))
  end)

  it("is a call on tensors", function()
    local function tensor(p, shape)
      local t = lsa.zeros(shape)
      ffi.copy(t:pointer(), p, t:bytes())
      return t
    end
    local m = layer(6, {4}, 3)
    expert(m.shared, m.keep, 3, 6, 30)
    local x, weights = support.normals(12, 1), support.array("float", {0.5, -1})
    local given = {x = tensor(x, {2, 6}), ids = lsa.tensor({{0}, {0}}, "i32"), weights = tensor(weights, {2, 1}),
      limit = 7, gate = tensor(m.experts[0].gate.data, {1, 4, 6}), up = tensor(m.experts[0].up.data, {1, 4, 6}),
      down = tensor(m.experts[0].down.data, {1, 6, 4}), shared_gate = tensor(m.shared[0].gate.data, {3, 6}),
      shared_up = tensor(m.shared[0].up.data, {3, 6}), shared_down = tensor(m.shared[0].down.data, {6, 3})}
    local want = run(m, x, support.array("int32_t", {0, 0}), weights, 2, 1)
    assert.is_true(support.same_bits(lsa.kernels.experts(given):pointer(), want, 48))
    local function refused(message, name, value)
      given[name] = value
      local ok, got = pcall(lsa.kernels.experts, given)
      assert.is_false(ok)
      assert.is_truthy(got:find(message, 1, true), got)
    end
    refused("experts: ids has 1, there are 1 experts", "ids", lsa.tensor({{0}, {1}}, "i32"))
    refused("experts: shared_gate, shared_up and shared_down come together", "shared_up", nil)
  end)

  it("keeps its limit", function()
    local m, x = layer(4, {3}), support.normals(4, 1, 100)
    local ids, weights = support.array("int32_t", {0}), support.array("float", {1})
    m.limit = inf
    local free = run(m, x, ids, weights, 1, 1)
    m.limit = 0.5
    local held = run(m, x, ids, weights, 1, 1)
    assert.is_true(support.same_bits(held, oracle(m, x, ids, weights, 1, 1), 16))
    assert.is_false(support.same_bits(held, free, 16))
  end)
end)
