-- Batches: many sessions in one step give what each gives alone.
local ffi = require "ffi"
local lsa = require "lsa"
local rng = require "lsa.cycle.rng"
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

-- One step of each session, by its own token: what went wrong, by the place of each session that took none.
local function decode_together(sessions, tokens)
  local asks, problems = {}, {}
  for i, s in ipairs(sessions) do asks[i] = {session = s, given = {tokens[i]}} end
  for i, result in ipairs(session.run_together(asks, 1)) do problems[i] = result.problem end
  return problems
end

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
    assert.same({}, decode_together(together, tokens))
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

  -- What a step must not change where it fails: as text.
  local function state(s)
    local out = {s:tokens(), bits(s:logits()), table.concat(s:resident():ids():totable(), " ")}
    for layer = 0, s.csa_layers - 1 do
      local used, mass = s:observations(layer, tonumber(C.lsa_session_chunks(s.c)))
      out[#out + 1] = bits(s:hidden(layer)) .. bits(used) .. bits(mass)
    end
    return table.concat(out, "|")
  end

  local csa = lsa.model(golden .. "csa")

  it("passes over a bad token: its session stays, the others move", function()
    local a, b = prefilled(csa, {select = "recency", budget = 5}, 50, 1), prefilled(csa, {select = "full"}, 31, 2)
    a.loop:before_step(a)
    local before = state(a)
    local problems = decode_together({a, b}, {64, 3})
    assert.same({"session: token 0 is 64; the vocabulary has 64"}, problems)
    assert.equal(before, state(a))
    assert.equal(32, b:tokens())
    assert.same({}, decode_together({a, b}, {63, 3}))
    assert.equal(51, a:tokens())
  end)

  it("refuses sessions that cannot share one, and then moves none", function()
    local a, b = prefilled(csa, {select = "full"}, 10, 1), prefilled(lsa.model(golden .. "csa"), {select = "full"}, 10, 1)
    local ok, e = pcall(decode_together, {a, b}, {1, 1})
    assert.is_false(ok)
    assert.matches("run: sessions 0 and 1 are of different models, activations, computes or scorings", e)
    ok, e = pcall(decode_together, {a, a}, {1, 1})
    assert.is_false(ok)
    assert.matches("run: 0 and 1 are the same session", e)
    assert.same({10, 10}, {a:tokens(), b:tokens()})
    assert.same({}, decode_together({}, {}))
  end)

  it("takes memory before its first step alone: a step cannot fail for want of it", function()
    C.lsa_cpu_limit(C.LSA_CPU_GENERIC)
    local flash = lsa.model(golden .. "flash")
    local lengths, steps = {30, 47, 65, 28}, 9
    local function open()
      local out = {}
      for i, n in ipairs(lengths) do
        local options = {strict = true}
        for name, value in pairs(several[i]) do options[name] = value end
        out[i] = prefilled(flash, options, n, i)
        out[i].loop:before_step(out[i]) -- the cycle
      end
      return out
    end
    local function begin(sessions)
      local asks, before = {}, {}
      for i, s in ipairs(sessions) do asks[i], before[i] = {session = s, given = tokens_of(flash, steps, i)}, state(s) end
      return asks, before
    end
    local expected, failures = {}, 0
    for i, result in ipairs(session.run_together(begin(open()), 3)) do expected[i] = result end
    for n = 0, 60 do
      local sessions = open()
      local asks, before = begin(sessions)
      C.lsa_memory_fail_after(n)
      local ok, results = pcall(session.run_together, asks, 3)
      C.lsa_memory_fail_after(-1)
      for i, s in ipairs(sessions) do
        local problem = not ok and results or results[i].problem
        if problem then -- it took no step at all
          failures = failures + 1
          assert.matches("out of memory", problem)
          assert.is_true(before[i] == state(s))
        else
          assert.equal(lengths[i] + 3, s:tokens())
        end
      end
    end
    assert.is_true(failures >= 1)
    C.lsa_cpu_limit(C.lsa_cpu_best())
    assert.equal(#lengths, #expected)
  end)

  it("takes no memory between two cycles", function()
    local flash = lsa.model(golden .. "flash")
    for _, options in ipairs(several) do
      local s = prefilled(flash, options, 40, 1)
      local run, out = ffi.new "lsa_run[1]", ffi.new "int32_t[1]"
      s.loop:before_step(s)
      C.lsa_session_reserve_steps(s.c, 60)
      for token = 1, math.min(60, s.loop:steps_left()) do
        local given = ffi.new("int32_t[1]", token % 50)
        run[0].session, run[0].steps, run[0].given, run[0].given_count, run[0].out = s.c, 1, given, 1, out
        C.lsa_memory_fail_after(0)
        local rc = C.lsa_session_run(run, 1)
        C.lsa_memory_fail_after(-1)
        assert.equal(0, rc)
        assert.equal(0, run[0].code, ffi.string(run[0].message))
        assert.equal(40 + token, s:tokens())
      end
    end
  end)
end)
