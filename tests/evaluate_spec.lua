local lsa = require "lsa"
local support = require "trainer_support"

local LAYERS = {0, 2}
local model, traces

setup(function()
  model = lsa.model "experiments/models/needle"
  traces = {}
  for seed = 1, 2 do
    traces[seed] = support.trace(model, LAYERS, {steps = 300, topics = 4, stay = 20, seed = seed, noise = 0.3})
  end
end)

-- Precision, recall, recall@k and calibration of scores(doc, step, n) by the definition, over steps 0, every, 2 every, ...
local function by_hand(scores, ranks, opt, tail)
  local documents = require "lsa.train.documents"
  local m = {selected = 0, right = 0, golden = 0, candidates = 0, recall = 0, steps = 0, bins = {}}
  for _, trace in ipairs(traces) do
    local doc = documents.open(trace, LAYERS, model, documents.horizon(model, opt.window, 1))
    for step = 0, doc.steps - 1, opt.every do
      local n = doc:candidates(step)
      local s, rank, is, count = scores(doc, step, n), ranks(doc, step, n), {}, 0
      local limit = n - tail(n)
      for _, id in ipairs((doc:positives(step)):totable()) do
        if id < limit then is[id], count = true, count + 1 end
      end
      local found = 0
      local first = limit > 0 and rank:narrow(0, 0, limit):contiguous():topk(opt.k) or lsa.set(0)
      for id = 0, limit - 1 do
        local x = s:get(id)
        local bin = math.min(14, math.floor(x * 15))
        m.bins[bin] = m.bins[bin] or {0, 0, 0}
        m.bins[bin][1], m.bins[bin][2] = m.bins[bin][1] + 1, m.bins[bin][2] + x
        m.bins[bin][3] = m.bins[bin][3] + (is[id] and 1 or 0)
        if x >= opt.theta then m.selected, m.right = m.selected + 1, m.right + (is[id] and 1 or 0) end
        if is[id] and first:has(id) then found = found + 1 end
      end
      m.golden, m.candidates = m.golden + count, m.candidates + limit
      if count > 0 then m.steps, m.recall = m.steps + 1, m.recall + found / count end
    end
  end
  local ece = 0
  for _, bin in pairs(m.bins) do ece = ece + math.abs(bin[2] - bin[3]) end
  return {precision = m.right / m.selected, recall = m.right / m.golden, f1 = 2 * m.right / (m.selected + m.golden),
    recall_at_k = m.recall / m.steps, ece = ece / m.candidates, candidates = m.candidates, golden = m.golden,
    selected = m.selected}
end

describe("lsa.evaluate", function()
  it("has the metrics of the definition, per layer and for both ensembles, in and outside the tail", function()
    local ix = lsa.indexer{model = model, layers = LAYERS}
    local opt = {window = 8, every = 7, k = 6, theta = 0.5}
    local function logits(layer)
      return function(doc, step, n)
        return ix:logits(layer, doc.hidden[layer]:row(step), doc.keys[layer]:narrow(0, 0, n), step)
      end
    end
    local first, second = logits(0), logits(2)
    local function highest(...) return first(...):maximum(second(...)) end
    local function mean(...) return first(...):sigmoid():add(second(...):sigmoid()):mul(0.5) end
    local function sigmoid(f) return function(...) return f(...):sigmoid() end end
    local result = lsa.evaluate{indexer = ix, traces = traces, window = opt.window, every = opt.every, k = opt.k}
    local names = {}
    for i, row in ipairs(result) do names[i] = row.name end
    assert.same({"layer 0", "layer 2", "max", "mean"}, names)
    for name, series in pairs{["layer 0"] = {sigmoid(first), first}, ["layer 2"] = {sigmoid(second), second},
      max = {sigmoid(highest), highest}, mean = {mean, mean}} do
      for part, tail in pairs{all = function() return 0 end, outside = function(n) return math.floor(0.135 * n / 4) end} do
        local want = by_hand(series[1], series[2], opt, tail)
        for key, value in pairs(want) do
          local got = result[name][part][key]
          assert.is_true(value ~= value and got ~= got or math.abs(got - value) <= 1e-5 * math.max(1, value),
            ("%s %s %s: %g, %g by hand"):format(name, part, key, got, value))
        end
      end
    end
    assert.truthy(tostring(result):find("recall@6", 1, true))
  end)

  it("is perfect for scores that know, useless for scores that do not, and takes a tail and a strict threshold", function()
    local ix = lsa.indexer{model = model, layers = LAYERS}
    local asked = 0
    local result = lsa.evaluate{indexer = ix, traces = traces, window = 8, every = 10, k = 512, tail = 10, theta = 1,
      also = {
        oracle = function(doc, step, n)
          asked = asked + 1
          local out = lsa.zeros{n}
          for _, id in ipairs((doc:positives(step)):totable()) do out:set(id, 1) end
          return out
        end,
        nothing = function(_, _, n) return lsa.zeros{n} end,
      }}
    assert.equal(58, asked)                         -- step 0 of either has no whole chunk
    for _, part in ipairs{"all", "outside"} do
      local oracle, nothing = result.oracle[part], result.nothing[part]
      assert.same({1, 1, 1, 1, 0}, {oracle.precision, oracle.recall, oracle.f1, oracle.recall_at_k, oracle.ece})
      assert.equal(0, nothing.selected)
      assert.is_true(nothing.precision ~= nothing.precision)
      assert.equal(0, nothing.recall)
    end
    local all, outside = result.oracle.all, result.oracle.outside
    assert.is_true(outside.candidates < all.candidates and outside.candidates >= all.candidates - 10 * all.steps)
    local strict = lsa.evaluate{indexer = ix, traces = traces, every = 50, theta = 1, strict = true,
      also = {ones = function(_, _, n) return lsa.zeros{n}:add(1) end}}
    assert.equal(0, strict.ones.all.selected)
  end)

  it("refuses what is missing or unknown", function()
    local ix = lsa.indexer{model = model, layers = LAYERS}
    for opt, message in pairs{
      [{traces = traces}] = "indexer is nil",
      [{indexer = ix}] = "traces is nil",
      [{indexer = ix, traces = traces, kk = 1}] = "no option 'kk'",
      [{indexer = ix, traces = traces, k = 0}] = "k is 0",
    } do
      local ok, why = pcall(lsa.evaluate, opt)
      assert.is_false(ok)
      assert.truthy(why:find(message, 1, true), why)
    end
  end)
end)
