-- Batches: many sessions in one step give what each gives alone.
local ffi = require "ffi"
local lsa = require "lsa"
local rng = require "lsa.rng"
local session = require "lsa.session"
local C = require("lsa.ffi").C

local golden = require("lsa.ffi").root .. "/tests/golden/"

local function tokens_of(model, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

local function bits(t) return ffi.string(t.c.data, t:count() * 4) end

-- The largest difference of two logit rows over the largest logit; NaN where either is.
local function distance(a, b)
  local worst, most = 0, 0
  for i = 0, a:count() - 1 do
    local d = math.abs(a:get(i) - b:get(i))
    if not (d <= worst) then worst = d end
    most = math.max(most, math.abs(a:get(i)))
  end
  return worst / most
end

-- A session with n tokens of its own prefilled.
local function prefilled(model, options, n, seed)
  local s = model:session(options)
  s:prefill(tokens_of(model, n, seed))
  return s
end

local several = {
  {select = "full"}, {select = "recency", budget = 6, every = 5}, {select = "random", budget = 0.4, every = 3, hot = 60},
  {select = "lsa_topk", budget = 0.5, every = {"stagger", every = 8, index = 1, of = 2}},
  {select = "none", tail = 0, every = 7}, {select = "recency", budget = 16, granularity = "page", page = 4, every = 4},
}

-- Decodes `steps` tokens with sessions of several policies and lengths, alone and together; calls compare(alone, together)
-- with the logits of each.
local function both_ways(model, count, steps, kv, compare)
  local alone, together, inputs = {}, {}, {}
  for i = 1, count do
    local options = {kv = kv}
    for name, value in pairs(several[(i - 1) % #several + 1]) do options[name] = value end
    alone[i], together[i] = prefilled(model, options, 20 + 17 * i, i), prefilled(model, options, 20 + 17 * i, i)
    inputs[i] = tokens_of(model, steps, 100 + i)
  end
  for t = 1, steps do
    local tokens = {}
    for i = 1, count do tokens[i] = inputs[i][t] end
    assert.same({}, session.decode_together(together, tokens))
    for i = 1, count do compare(alone[i]:decode(tokens[i]), together[i]:logits(), alone[i], together[i]) end
  end
end

local models = {"flash", "csa", "hash", "hca", "swa", "experts", "odd"}

describe("a step of many sessions", function()
  teardown(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

  for _, name in ipairs(models) do
    local model = lsa.model(golden .. name)
    local full = #model.csa_layers == 0
    local kv = name == "odd" and "bf16" or "fp8"

    it("is to the bit what each takes alone, where products do not depend on the number of rows: " .. name, function()
      C.lsa_cpu_limit(C.LSA_CPU_GENERIC)
      local pick = several
      if full then several = {{select = "full"}} end
      both_ways(model, 7, 20, kv, function(a, b, s, t)
        assert.is_true(bits(a) == bits(b))
        assert.equal(s:tokens(), t:tokens())
        if not full then
          assert.same(s:resident():ids():totable(), t:resident():ids():totable())
          for layer = 0, #model.csa_layers - 1 do
            assert.is_true(bits(s:hidden(layer)) == bits(t:hidden(layer)))
            assert.is_true(bits(s:entries(layer)) == bits(t:entries(layer)))
          end
        end
      end)
      several = pick
      C.lsa_cpu_limit(C.lsa_cpu_best())
    end)

    it("is what each takes alone but for rounding, on every path: " .. name, function()
      local pick = several
      if full then several = {{select = "full"}} end
      for level = C.LSA_CPU_AVX2, C.lsa_cpu_best() do
        for _, count in ipairs {3, 9, 30} do
          C.lsa_cpu_limit(level)
          both_ways(model, count, 9, "f32", function(a, b)
            local off = distance(a, b)
            assert.is_true(off <= 1e-5, ("%d sessions, path %d: off by %.2g"):format(count, level, off))
          end)
        end
      end
      several = pick
      C.lsa_cpu_limit(C.lsa_cpu_best())
    end)
  end
end)
