local ffi = require "ffi"
local support = require "kernel_support"
local binding = require "lsa.ffi"
local C, check = binding.C, require("lsa.raise").check

ffi.cdef [[double lsa_moe_log1p(double) __asm__("log1p");]]
local log1p = ffi.C.lsa_moe_log1p
local SOFTPLUS, SIGMOID = C.LSA_SCORING_SQRTSOFTPLUS, C.LSA_SCORING_SIGMOID
local inf, nan = math.huge, 0 / 0

local function score(x, scoring)
  if scoring == SIGMOID then return 1 / (1 + math.exp(-x)) end
  return math.sqrt(math.max(x, 0) + log1p(math.exp(-math.abs(x))))
end

local function route(logits, bias, n, experts, k, scoring, scaling, token_experts, tokens)
  local ids, weights = support.buffer("int32_t", n * k), support.buffer("float", n * k)
  check(C.lsa_moe_route_cpu(ids, weights, logits, bias, token_experts, tokens, n, experts, k, scoring, scaling, nil))
  return ids, weights
end

-- Hash routing where token i's experts are the i-th k of a list.
local function route_by(list, logits, n, experts, k, scoring, scaling)
  local tokens = support.buffer("int32_t", n)
  for i = 0, n - 1 do tokens[i] = i end
  return route(logits, nil, n, experts, k, scoring, scaling, support.array("int32_t", list), tokens)
end

-- The ids by a full sort, given the keys.
local function sorted(key, experts, k)
  local order = {}
  for e = 0, experts - 1 do order[e + 1] = e end
  table.sort(order, function(a, b)
    if key(a) ~= key(b) then return key(a) > key(b) end
    return a < b
  end)
  local out = {}
  for i = 1, k do out[i] = order[i] end
  return out
end

local function list(p, n)
  local out = {}
  for i = 1, n do out[i] = p[i - 1] end
  return out
end

describe("moe_route", function()
  it("picks the best of score + bias and weighs by the score alone", function()
    support.for_each_cpu_level(function(_, level)
      for _, scoring in ipairs {SOFTPLUS, SIGMOID} do
        for _, shape in ipairs {{1, 1, 1}, {3, 4, 2}, {5, 16, 16}, {4, 37, 6}, {7, 256, 6}, {2, 300, 40}} do
          local tokens, experts, k = shape[1], shape[2], shape[3]
          local logits, bias = support.normals(tokens * experts, 11, 3), support.normals(experts, 12, 0.5)
          for _, b in ipairs {false, bias} do
            local ids, weights = route(logits, b or nil, tokens, experts, k, scoring, 1.5)
            for t = 0, tokens - 1 do
              local function own(e) return score(logits[t * experts + e], scoring) end
              local function key(e) return own(e) + (b and b[e] or 0) end
              local want, sum = sorted(key, experts, k), 1e-20
              assert.are.same(want, list(ids + t * k, k), level)
              for i = 1, k do sum = sum + own(want[i]) end
              for i = 1, k do
                local w = own(want[i]) / sum * 1.5
                assert.is_true(math.abs(weights[t * k + i - 1] - w) <= 2e-6 * w, level)
              end
            end
          end
        end
      end
    end)
  end)

  it("breaks ties toward the lower expert", function()
    support.for_each_cpu_level(function()
      local logits = support.array("float", {1, 2, 2, 1, 2, 3, 1, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 3})
      local ids = route(logits, nil, 1, 18, 8, SOFTPLUS, 1)
      assert.are.same({5, 7, 17, 1, 2, 4, 8, 0}, list(ids, 8))
    end)
  end)

  it("takes the experts that the table has for a token, in their order", function()
    support.for_each_cpu_level(function()
      local logits = support.array("float", {1, -2, 3, 4, -5, 6})
      local token_experts = support.array("int32_t", {0, 1, 1, 1, 2, 2, 2, 0})
      local tokens = support.array("int32_t", {3, 1})
      for _, scoring in ipairs {SOFTPLUS, SIGMOID} do
        local bias = support.array("float", {9, 9, 9})
        local ids, weights = route(logits, bias, 2, 3, 2, scoring, 2.5, token_experts, tokens)
        assert.are.same({2, 0, 1, 1}, list(ids, 4))
        local a, b = score(3, scoring), score(1, scoring)
        assert.is_true(math.abs(weights[0] - a / (a + b) * 2.5) <= 2e-6)
        assert.is_true(math.abs(weights[1] - b / (a + b) * 2.5) <= 2e-6)
        assert.is_true(math.abs(weights[2] - 1.25) <= 1e-6 and math.abs(weights[3] - 1.25) <= 1e-6)
      end
    end)
  end)

  it("keeps the ratios of scores far from zero", function()
    support.for_each_cpu_level(function()
      local logits = support.array("float", {-80, -81, 80, 90})
      local _, w = route_by({0, 1, 2, 3}, logits, 1, 4, 4, SOFTPLUS, 1)
      assert.is_true(math.abs(w[0] / w[1] - math.exp(0.5)) <= 1e-5)
      assert.is_true(math.abs(w[3] / w[2] - math.sqrt(90 / 80)) <= 1e-6)
      _, w = route_by({0, 1}, logits, 1, 4, 2, SIGMOID, 1)
      assert.is_true(math.abs(w[0] / (math.exp(-80) / 1e-20) - 1) <= 1e-5)
      logits[0], logits[1] = -20, -22
      _, w = route_by({0, 1}, logits, 1, 4, 2, SIGMOID, 1)
      assert.is_true(math.abs(w[0] / w[1] - math.exp(2)) <= 1e-5)
    end)
  end)

  it("picks NaN last, and lets it show in the weights", function()
    support.for_each_cpu_level(function()
      local logits = support.array("float", {nan, 1, nan, -3, 2,  nan, nan, nan, nan, 0})
      local ids, w = route(logits, nil, 2, 5, 3, SOFTPLUS, 1)
      assert.are.same({4, 1, 3, 4, 0, 1}, list(ids, 6))
      for i = 0, 2 do assert.is_true(w[i] > 0 and w[i] < 1) end
      for i = 3, 5 do assert.is_true(w[i] ~= w[i]) end
    end)
  end)

  it("takes no tokens, and picks none", function()
    local none = support.buffer("float", 0)
    check(C.lsa_moe_route_cpu(nil, none, none, nil, nil, nil, 0, 4, 2, SIGMOID, 1, nil))
    check(C.lsa_moe_route_cpu(nil, none, support.array("float", {1, 2}), nil, nil, nil, 1, 2, 0, SIGMOID, 1, nil))
  end)

  it("gives the same bits for any number of threads", function()
    local tokens, experts, k = 700, 64, 6
    local logits = support.normals(tokens * experts, 4)
    C.lsa_threads_set(1)
    local ids, w = route(logits, nil, tokens, experts, k, SOFTPLUS, 1.5)
    C.lsa_threads_set(3)
    local ids3, w3 = route(logits, nil, tokens, experts, k, SOFTPLUS, 1.5)
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(ids, ids3, 4 * tokens * k) and support.same_bits(w, w3, 4 * tokens * k))
  end)

  it("names what is wrong with a call", function()
    local logits, ids, w = support.array("float", {1, 2}), support.buffer("int32_t", 3), support.buffer("float", 3)
    local function fails(code, pattern, experts, k, scoring)
      assert.are.equal(code, C.lsa_moe_route_cpu(ids, w, logits, nil, nil, nil, 1, experts, k, scoring, 1, nil))
      assert.is_truthy(ffi.string(C.lsa_error()):find(pattern, 1, true))
    end
    fails(C.LSA_ESHAPE, "the best 3 of 2 experts", 2, 3, SIGMOID)
    fails(C.LSA_EARG, "scoring 5", 2, 1, 5)
  end)
end)

describe("swiglu", function()
  local function want(g, u, limit)
    g, u = math.min(g, limit), math.max(math.min(u, limit), -limit)
    return g / (1 + math.exp(-g)) * u
  end

  it("gates ragged lengths within 1e-6", function()
    support.for_each_cpu_level(function(_, level)
      for _, n in ipairs {0, 1, 15, 16, 17, 100, 4099} do
        for _, limit in ipairs {10, 0.5, inf} do
          local gate, up, out = support.normals(n, 1, 5), support.normals(n, 2, 5), support.buffer("float", n)
          check(C.lsa_swiglu_cpu(out, gate, up, n, limit, nil))
          for i = 0, n - 1 do
            local exact = want(gate[i], up[i], limit)
            assert.is_true(math.abs(out[i] - exact) <= 1e-6 * math.abs(exact), level)
          end
        end
      end
    end)
  end)

  it("clamps the gate above and the value on both sides", function()
    support.for_each_cpu_level(function()
      local gate = support.array("float", {50, inf, -50, 1, 1})
      local up = support.array("float", {1, 1, 1, -inf, inf})
      check(C.lsa_swiglu_cpu(gate, gate, up, 5, 10, nil))
      local exact = {want(10, 1, 10), want(10, 1, 10), want(-50, 1, 10), want(1, -10, 10), want(1, 10, 10)}
      for i = 1, 5 do assert.is_true(math.abs(gate[i - 1] - exact[i]) <= 1e-6 * math.abs(exact[i])) end
    end)
  end)

  it("keeps NaN in its place", function()
    support.for_each_cpu_level(function()
      local gate, up = support.normals(20, 1), support.normals(20, 2)
      gate[3], up[17] = nan, nan
      check(C.lsa_swiglu_cpu(up, gate, up, 20, 10, nil))
      for i = 0, 19 do assert.are.equal(i == 3 or i == 17, up[i] ~= up[i]) end
    end)
  end)

  it("gives the same bits for any number of threads", function()
    local n = 100003
    local gate, up = support.normals(n, 1), support.normals(n, 2)
    local one, many = support.buffer("float", n), support.buffer("float", n)
    C.lsa_threads_set(1)
    check(C.lsa_swiglu_cpu(one, gate, up, n, 10, nil))
    C.lsa_threads_set(3)
    check(C.lsa_swiglu_cpu(many, gate, up, n, 10, nil))
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, many, 4 * n))
  end)

  it("refuses a negative or NaN limit", function()
    assert.are.equal(C.LSA_EARG, C.lsa_swiglu_cpu(nil, nil, nil, 0, -1, nil))
    assert.are.equal(C.LSA_EARG, C.lsa_swiglu_cpu(nil, nil, nil, 0, nan, nil))
  end)
end)
