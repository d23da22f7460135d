-- Selection policies: each formula by hand, then every policy on real models.
local lsa = require "lsa"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local files = require "file_support"
local support = require "policy_support"

local function tokens_of(vocab, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(vocab) end
  return out
end

-- What `spec` selects beside what is kept, as ids.
local function ask(spec, given)
  local cycle = getmetatable(given) and given or support.cycle(given)
  local ok, answer = registry.open("policies", spec):call(cycle)
  assert(ok, answer)
  return require("lsa.cycle.cycle").as_set(answer, cycle.n):minus(cycle.keep):ids():totable()
end

local function scores_of(list) return lsa.tensor(list) end

local ten = scores_of {0.1, 0.9, 0.2, 0.8, 0.5, 0.7, 0.3, 0.6, 0.05, 0.4}

describe("policies of the Memory Indexer", function()
  it("lsa_threshold selects what reaches theta", function()
    assert.same({1, 3, 4, 5, 7}, ask("lsa_threshold", {scores = ten}))
    assert.same({1, 3}, ask({"lsa_threshold", theta = 0.8}, {scores = ten}))
  end)

  it("lsa_topk fills the budget with the best, beside what is kept", function()
    assert.same({1, 3, 5}, ask("lsa_topk", {scores = ten, budget = 3}))
    assert.same({3, 5}, ask("lsa_topk", {scores = ten, budget = 4, keep = {1, 9}}))
    assert.same({}, ask("lsa_topk", {scores = ten, budget = 1, keep = {1, 9}}))
  end)

  it("lsa_threshold keeps the best of what is over its budget, and the cycle counts as clipped", function()
    local cycle = support.cycle{scores = ten, budget = 4, keep = {1, 9}}
    assert.same({3, 5}, ask("lsa_threshold", cycle))
    assert.is_true(cycle.clipped)
    -- Exactly the budget is not over it, and what is kept anyway is over it alone.
    for _, given in ipairs {{budget = 5}, {budget = 1, keep = {1, 3, 4, 5, 7}}} do
      cycle = support.cycle{scores = ten, budget = given.budget, keep = given.keep}
      ask("lsa_threshold", cycle)
      assert.is_nil(cycle.clipped)
    end
    -- Inside another policy, the best of its share; the outermost cycle is the one that is clipped.
    cycle = support.cycle{scores = ten, budget = 5, keep = {9}}
    assert.same({1, 3, 5, 7}, ask({"hybrid", of = {"none", "lsa_threshold"}}, cycle))
    assert.is_true(cycle.clipped)
  end)

  it("cycle.clip keeps the best pages where pages are fetched", function()
    -- Pages of 2 with the best of theirs: 0.9, 0.8, 0.7, 0.6, 0.4; three chunks lie in three pages, which are six.
    local cycle = support.cycle{scores = ten, budget = 4, unit = 2}
    assert.same({1, 3}, cycle.clip(lsa.set(10):add{1, 3, 7}, ten):ids():totable())
    assert.is_true(cycle.clipped)
    cycle = support.cycle{scores = ten, budget = 4, unit = 2}
    assert.same({1, 3}, cycle.clip(lsa.set(10):add{1, 3}, ten):ids():totable())
    assert.is_nil(cycle.clipped)
    cycle = support.cycle{scores = ten, budget = 5, unit = 2, keep = {9}}
    assert.same({1, 9}, cycle.clip(lsa.set(10):add{1, 3, 7, 9}, ten):ids():totable())
    assert.error_matches(function() cycle.clip({1}, ten) end, "cycle.clip: chosen is a table; a set over 10 is wanted")
  end)

  it("the default session works at every length", function()
    local model = lsa.model(require("lsa.ffi").root .. "/experiments/models/needle")
    local text = files.read(require("lsa.ffi").root .. "/README.md")
    text = text:rep(math.ceil(15000 / #text))
    local clipped = 0
    for _, n in ipairs {500, 2000, 15000} do
      local s = model:session()
      s:prefill(text:sub(1, n))
      for i = 1, 70 do s:decode(text:byte(i)) end
      local stats = s:stats()
      assert.same({2, 0}, {stats.cycles, stats.failed}, stats.last_error)
      local counted = 0
      for _, row in ipairs(s:cycles()) do
        assert.is_true(row.selected <= math.floor(0.135 * row.n))
        if row.clipped then counted = counted + 1 end
      end
      assert.equal(counted, stats.clipped)
      if counted > 0 then assert.matches("not as asked  " .. counted .. " of 2 cycles clipped to the budget", tostring(stats), nil, true) end
      clipped = clipped + counted
      s:close()
    end
    assert.is_true(clipped > 0)
  end)

  it("lsa_cap stops at the threshold or the budget, whichever comes first", function()
    assert.same({1, 3}, ask({"lsa_cap", theta = 0.6}, {scores = ten, budget = 2}))
    assert.same({1, 3, 5, 7}, ask({"lsa_cap", theta = 0.6}, {scores = ten, budget = 8}))
  end)

  it("lsa_topp takes the fewest that make up the mass", function()
    -- The sum is 4.55: 0.9 + 0.8 = 1.7 is below 0.5 of it, 2.4 is not.
    assert.same({1, 3, 5}, ask({"lsa_topp", mass = 0.5}, {scores = ten}))
    assert.same({1, 3}, ask({"lsa_topp", mass = 0.5}, {scores = ten, budget = 2}))
    assert.same({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, ask({"lsa_topp", mass = 1}, {scores = ten}))
  end)

  it("lsa_page_density takes the pages with the most chunks above theta, those of kept chunks first", function()
    -- Above 0.35: pages of 2 have 1, 1, 2, 1, 1.
    local given = {scores = ten, page = 2, budget = 4}
    assert.same({0, 1, 4, 5}, ask({"lsa_page_density", theta = 0.35}, given))
    given.keep = {9}
    assert.same({4, 5, 8}, ask({"lsa_page_density", theta = 0.35}, given))
    -- Exactly theta is not above it.
    given.keep = {}
    assert.same({0, 1, 2, 3}, ask({"lsa_page_density", theta = 0.6}, given))
    -- Where whole pages of kept chunks do not fit, whole pages fill what is left beside them.
    assert.same({4, 5}, ask({"lsa_page_density", theta = 0.35}, {scores = ten, page = 2, budget = 5, keep = {1, 3, 9}}))
    assert.same({}, ask({"lsa_page_density", theta = 0.35}, {scores = ten, page = 2, budget = 4, keep = {1, 3, 9}}))
  end)

  it("lsa_page_max and lsa_page_mean order pages by those", function()
    local x = scores_of {1, 0, 0.6, 0.6, 0.7, 0.1, 0.2}
    assert.same({0, 1, 4, 5}, ask("lsa_page_max", {scores = x, page = 2, budget = 4}))
    assert.same({0, 1, 2, 3}, ask("lsa_page_mean", {scores = x, page = 2, budget = 5}))
    assert.same({0, 1, 2, 3, 4, 5, 6}, ask("lsa_page_mean", {scores = x, page = 2, budget = 8}))
  end)
end)

describe("policies that look at no score", function()
  local given = {scores = ten, budget = 5, keep = {0, 9}}

  it("full, none and stride", function()
    assert.same({1, 2, 3, 4, 5, 6, 7, 8}, ask("full", given))
    assert.same({}, ask("none", given))
    assert.same({4, 8}, ask("stride", given))
    assert.same({}, ask("stride", {scores = ten, budget = 2, keep = {0, 9}}))
  end)

  it("recency takes the newest beside what is kept, wherever that is", function()
    assert.same({6, 7, 8}, ask("recency", given))
    assert.same({3, 5, 7}, ask("recency", {scores = ten, budget = 8, keep = {0, 4, 6, 8, 9}}))
    assert.same({1, 2, 3, 5, 7}, ask("recency", {scores = ten, budget = 20, keep = {0, 4, 6, 8, 9}}))
    assert.same({}, ask("recency", {scores = ten, budget = 5, keep = {0, 4, 6, 8, 9}}))
  end)

  it("random draws evenly, and again the same from the same seed", function()
    local hits = {}
    for seed = 1, 3000 do
      local ids = ask("random", {scores = ten, budget = 5, keep = {0, 9}, rng = rng.new(seed)})
      assert.equal(3, #ids)
      for _, id in ipairs(ids) do hits[id] = (hits[id] or 0) + 1 end
    end
    for id = 1, 8 do assert.is_true(math.abs(hits[id] - 3000 * 3 / 8) <= 120, ("%d: %d"):format(id, hits[id])) end
    local function wide(random) return support.cycle{n = 1000, budget = 40, rng = random} end
    local random = rng.new(4)
    local first = ask("random", wide(random))
    assert.same(first, ask("random", wide(rng.new(4))))
    assert.not_same(first, ask("random", wide(random)))
    assert.not_same(first, ask("random", wide(rng.new(5))))
  end)
end)

-- One head that scores a chunk by its first dimension at some tokens and by its second at others.
local function two_dimensional(list)
  local keys = lsa.tensor(list)
  local q = lsa.tensor {{{1, 0}}, {{0, 1}}, {{0, 1}}}
  return {keys = {keys}, queries = {{q, lsa.tensor {{1}, {1}, {1}}}}}
end

describe("policies of index scores", function()
  -- Scores of the three last tokens: chunk 1 gets 10, 0, 0, chunks 4 and 5 get 0, 3, 3.
  local given = two_dimensional {{0, 0}, {10, 0}, {0, 0}, {0, 0}, {0, 3}, {0, 2.9}, {0, 0}}

  it("native_topk joins layers by rank", function()
    local logits = {[0] = scores_of {1, 2, 3, 4, 5, 6}, scores_of {100, 500, 300, 200, 0, 0}}
    local function native(layer) return logits[layer] end
    local function picks(budget, keep)
      return ask("native_topk", {n = 6, layers = 2, native = native, budget = budget, keep = keep})
    end
    assert.same({5}, picks(1))
    assert.same({1, 5}, picks(2))
    assert.same({1, 4, 5}, picks(3))
    assert.same({1, 2, 4, 5}, picks(4))
    assert.same({1, 2, 3, 4, 5}, picks(5))
    assert.same({1, 4}, picks(3, {5}))
  end)

  it("joins by rank as the definition says, whatever the scores", function()
    local uniform = lsa.kernels.uniform
    for case = 1, 60 do
      local n, layers, list = 5 + case % 40, 1 + case % 4, {}
      for i = 1, layers do list[i] = uniform(n, 100 * case + i):mul(case % 7):add(0.5):to "i32":to "f32" end
      local cycle = support.cycle{n = n, scores = list[1], budget = case % 13, keep = {0, 3}}
      local open, want = cycle.keep:invert(), lsa.set(n)
      for k = 1, n do
        for i = 1, layers do
          for id in list[i]:where(open, -math.huge):topk(k):each() do
            if want:count() < cycle.room then want:add(id) end
          end
        end
      end
      assert.same(want:ids():totable(), cycle.top(list):ids():totable())
    end
  end)

  it("expected_index takes the mean over the last queries", function()
    given.budget = 1
    assert.same({1}, ask("expected_index", given))
    assert.same({4}, ask({"expected_index", w = 2}, given))
    given.budget = 2
    assert.same({1, 4}, ask("expected_index", given))
  end)

  it("snap_window counts votes, and neighbours of a hit come along", function()
    -- Softmaxes: chunk 1 has nearly all of one vote; chunk 4 has e^3 / (e^3 + e^2.9 + 5) = 0.46 of two, so 0.93.
    given.budget = 1
    assert.same({1}, ask({"snap_window", radius = 0}, given))
    assert.same({4}, ask({"snap_window", radius = 0, w = 2}, given))
    given.budget = 3
    assert.same({0, 1, 2}, ask({"snap_window", radius = 1}, given))
    given.budget = 5
    assert.same({0, 1, 2, 3, 4}, ask({"snap_window", radius = 1}, given))
    given.budget = 3
    assert.same({2, 3, 4}, ask({"snap_window", radius = 2, w = 2}, given))
    -- The mean of scores would have chosen chunk 1: 10 / 4 against 9 / 4.
    local four = two_dimensional {{10, 0}, {0, 3}, {0, 0}, {0, 0}}
    four.queries[1] = {lsa.tensor {{{1, 0}}, {{0, 1}}, {{0, 1}}, {{0, 1}}}, lsa.tensor {{1}, {1}, {1}, {1}}}
    four.budget = 1
    assert.same({1}, ask({"snap_window", radius = 0}, four))
    assert.same({0}, ask("expected_index", four))
  end)

  it("keynorm prefers short keys, layers joined by rank, and looks at each key once", function()
    local state = {}
    local keys = lsa.tensor {{3, 4}, {1, 0}, {0, 2}, {6, 8}, {0, 0}}
    assert.same({1, 4}, ask("keynorm", {keys = {keys:narrow(0, 0, 5)}, budget = 2, state = state}))
    local longer = lsa.tensor {{0, 0}, {1, 0}, {0, 2}, {6, 8}, {0, 0}, {0.1, 0}}
    -- The first five norms are remembered, whatever the keys say now.
    assert.same({1, 4, 5}, ask("keynorm", {keys = {longer}, budget = 3, state = state}))
    assert.same({0, 4}, ask("keynorm", {keys = {lsa.tensor {{1}, {2}, {3}, {4}, {5}}, lsa.tensor {{5}, {4}, {3}, {2}, {1}}},
      budget = 2}))
  end)

  it("keydiff prefers keys unlike the mean direction, whatever their length, as chunks are born, too", function()
    -- Unit keys: three times (1, 0), once (0, 1), once (-1, 0): the anchor is (2, 1) / 5.
    local list = {{1, 0}, {5, 0}, {0, 0.1}, {2, 0}, {-9, 0}, {0, 0}}
    assert.same({4}, ask("keydiff", {keys = {lsa.tensor(list)}, budget = 1}))
    assert.same({2, 4, 5}, ask("keydiff", {keys = {lsa.tensor(list)}, budget = 3}))
    local state = {}
    for n = 1, 6 do
      local part = {unpack(list, 1, n)}
      local at_once = ask("keydiff", {keys = {lsa.tensor(part)}, budget = 2})
      assert.same(at_once, ask("keydiff", {keys = {lsa.tensor(part)}, budget = 2, state = state}))
    end
  end)

  it("lagkv prefers keys that stand out from what the next part has, the newest parts first", function()
    -- Parts of two: the first is measured by (0, 0) .. (1, 1), the second by (0, 0) .. (2, 4), the third has none whole after it.
    local keys = {lsa.tensor {{0, 0}, {0, 4}, {0, 0}, {1, 1}, {0, 0}, {2, 4}, {9, 9}}}
    assert.same({4, 5, 6}, ask({"lagkv", lag = 2}, {keys = keys, budget = 3}))
    assert.same({1, 4, 5, 6}, ask({"lagkv", lag = 2}, {keys = keys, budget = 4}))
    -- (1, 1) is (0.5, 0.25) of its measure, (0, 0) is (0, 0).
    assert.same({1, 3, 4, 5, 6}, ask({"lagkv", lag = 2}, {keys = keys, budget = 5}))
    assert.same({0, 1, 2}, ask("lagkv", {keys = keys, budget = 3}))
    -- A channel in which the next part is constant divides by nothing.
    local flat = {lsa.tensor {{0, 0}, {1, 0}, {0, 0}, {0, 0}, {0, 0}, {0, 0}}}
    assert.same({1, 4, 5}, ask({"lagkv", lag = 2}, {keys = flat, budget = 3}))
  end)

  it("q_filter prefers keys along the direction that weighted queries have in common", function()
    local keys = {lsa.tensor {{-3, 0}, {0, 5}, {2, 0}, {1, 0}, {0, -9}}}
    local function of(q, weights, budget)
      return ask("q_filter", {keys = keys, budget = budget or 1, queries = {{lsa.tensor(q), lsa.tensor(weights)}}})
    end
    assert.same({2}, of({{{1, 0}}, {{2, 0}}}, {{1}, {1}}))
    assert.same({2, 3}, of({{{1, 0}}, {{2, 0}}}, {{1}, {1}}, 2))
    assert.same({0}, of({{{-1, 0}}}, {{1}}))
    assert.same({0}, of({{{1, 0}}}, {{-1}}))
    -- The direction is the one of most length, not that of the sum; a head without weight has no say.
    assert.same({1}, of({{{1, 0}, {0, 3}}, {{1, 0}, {0, -2}}}, {{1, 1}, {1, 1}}))
    assert.same({2}, of({{{1, 0}, {0, 3}}}, {{1, 0}}))
    -- Without a direction all are equal.
    assert.same({0}, of({{{0, 0}}}, {{1}}))
  end)

  it("tova is the last query's vote", function()
    local four = {keys = {lsa.tensor {{1, 0}, {0, 1}, {0.5, 0}, {0, 0.6}}}, budget = 2,
      queries = {{lsa.tensor {{{9, 0}}, {{0, 1}}}, lsa.tensor {{1}, {1}}}}}
    assert.same({1, 3}, ask("tova", four))
    assert.same({0, 1}, ask({"snap_window", radius = 0}, four))
  end)

  it("quest_pages bounds every chunk's score from above, and takes the pages with the highest bounds", function()
    local random = rng.new(11)
    local function values(shape)
      local x = lsa.zeros(shape)
      for i = 0, x:count() - 1 do x:pointer()[i] = 2 * random() - 1 end
      return x
    end
    local state, page, heads, dim = {}, 5, 3, 4
    local keys, q, w = values {43, dim}, values {2, heads, dim}, values {2, heads}
    local bounds
    for _, n in ipairs {3, 17, 20, 43} do
      local cycle = support.cycle{keys = {keys:narrow(0, 0, n)}, queries = {{q, w}}, page = page, budget = 10, state = state}
      rawset(cycle, "top_pages", function(list)
        bounds = list[1]
        return lsa.set(n)
      end)
      ask("quest_pages", cycle)
      local scores = cycle.native(0)
      local best = scores:pages(page, "max")
      assert.equal(math.ceil(n / page), #bounds)
      for p = 0, #bounds - 1 do
        assert.is_true(bounds:get(p) >= best:get(p) - 1e-5, ("page %d of %d chunks"):format(p, n))
        -- A page of one chunk is bounded by its score.
        if n - p * page == 1 then assert.is_true(math.abs(bounds:get(p) - scores:get(n - 1)) <= 1e-5) end
      end
      assert.equal(math.floor(n / page), state[0].pages)
    end
    -- By hand: bounds of pages of two for q = (1, -1), w = 1: 1 - 0, 3 - (-2), 2 - 2.
    local by_hand = {keys = {lsa.tensor {{1, 1}, {0, 0}, {3, 1}, {0, -2}, {2, 2}}}, page = 2, budget = 2,
      queries = {{lsa.tensor {{{1, -1}}}, lsa.tensor {{1}}}}}
    assert.same({2, 3}, ask("quest_pages", by_hand))
    by_hand.budget = 4
    assert.same({0, 1, 2, 3}, ask("quest_pages", by_hand))
    -- A negative weight makes the lower bound count: page 1's, of q.k >= -2, is 0; those of 0 and 2 are 0 as well.
    by_hand.queries[1][2], by_hand.budget = lsa.tensor {{-1}}, 2
    assert.same({0, 1}, ask("quest_pages", by_hand))
  end)
end)

describe("linked", function()
  local filler = "abcd efgh ijkl mnop qrst uvwx yz01 2345 6789 "

  -- Running text without repetitions of five letters, with statements at given offsets.
  local function context(statements, question)
    local random, parts = rng.new(9), {}
    for i = 1, 500 do
      local n = 1 + random(#filler)
      parts[i] = filler:sub(n, n)
    end
    local text = table.concat(parts)
    for _, one in ipairs(statements) do
      text = text:sub(1, one[1]) .. one[2] .. text:sub(one[1] + #one[2] + 1)
    end
    text = text .. question
    local ids = {}
    for i = 1, #text do ids[i] = text:byte(i) end
    return text, {n = math.floor(#text / 4), t = #text, tokens = lsa.tensor(ids, "i32"), scores = lsa.zeros{math.floor(#text / 4)}}
  end

  -- Whether the chunks of a statement are all among the ids.
  local function has(ids, from, text)
    local found = {}
    for _, id in ipairs(ids) do found[id] = true end
    for chunk = math.floor(from / 4), math.floor((from + #text - 1) / 4) do
      if not found[chunk] then return false end
    end
    return true
  end

  local a, b, c, other = " VAR NARCY = 56222. ", " VAR EUTND = VAR NARCY. ", " VAR BBLZN = VAR EUTND. ", " VAR QQWXK = 99999. "
  local options = {"linked", w = 24, indexed = 0}

  it("finds what the latest text repeats, what follows there, and what that leads to, hop by hop", function()
    local _, given = context({{40, a}, {200, other}, {280, b}, {400, c}}, "Trace VAR BBLZN: ")
    local ids = ask(options, given)
    assert.same({true, true, true, false}, {has(ids, 40, a:sub(1, -3)), has(ids, 280, b), has(ids, 400, c), has(ids, 200, other)})
    assert.is_true(#ids < 45, "much beside them")
    local one = ask({"linked", w = 24, indexed = 0, hops = 0}, given)
    assert.same({false, false, true}, {has(one, 40, a:sub(1, -3)), has(one, 280, b), has(one, 400, c)})
  end)

  it("is silent about what is said often, keeps the latest text, and gives the indexer its share", function()
    local said = {}
    for i = 0, 5 do said[i + 1] = {40 + 60 * i, " VAR BBLZN = "} end
    local _, given = context(said, "Trace VAR BBLZN: ")
    local newest = {}
    for chunk = given.n - 6, given.n - 1 do newest[#newest + 1] = chunk end
    assert.same(newest, ask(options, given))
    given.scores, given.budget = lsa.arange(0, given.n, 1, "f32"):mul(-1), 8
    local ids = ask({"linked", w = 8, indexed = 0.5}, given)
    assert.same({0, 1, 2, 3, given.n - 2, given.n - 1}, ids)
  end)

  it("goes on with its index as the context grows, as if it were made anew", function()
    local text, given = context({{40, a}, {280, b}, {400, c}}, "Trace VAR BBLZN: EUTND = ")
    local whole, state = ask(options, given), {}
    for t = #text - 9, #text, 3 do
      given.t, given.n, given.state = t, math.floor(t / 4), state
      given.scores = lsa.zeros{given.n}
      local grown = ask(options, given)
      given.state = {}
      assert.same(ask(options, given), grown)
    end
    assert.is_true(#whole > 0)
  end)
end)

describe("policies of observed attention", function()
  local function masses(...)
    local list = {...}
    return function(layer) return lsa.tensor(list[layer + 1]) end
  end

  it("h2o sums mass over layers and time, keeps what is unobserved, and gives half to the newest", function()
    local state = {}
    local function picks(number, n, ...)
      return ask("h2o", {n = n, layers = 2, number = number, budget = 4, state = state, mass = masses(...)})
    end
    assert.same({1, 2, 6, 7}, picks(0, 8, {0, 3, 1, 0, 0, 0, 9, 0}, {0, 0, 3, 2, 0, 0, 0, 9}))
    -- 3 has 2 + 9 + 2; 6 and 7 still have 9.
    assert.same({3, 6, 8, 9}, picks(1, 10, {0, 0, 0, 9, 0, 0, 0, 0, 9, 0}, {0, 0, 0, 2, 0, 0, 0, 0, 0, 0}))
    assert.same({0, 9, 0, 13}, {state.total:get(0), state.total:get(6), state.total:get(9), state.total:get(3)})
    -- Asked again in the same cycle, nothing is added.
    picks(1, 10, {1e9, 0, 0, 1, 0, 0, 0, 0, 9, 0}, {0, 0, 0, 2, 0, 0, 0, 0, 0, 0})
    assert.equal(0, state.total:get(0))
  end)

  it("h2o gives the newest the share that is said", function()
    local given = {n = 8, budget = 4, mass = masses {9, 8, 7, 6, 5, 4, 3, 2}}
    assert.same({0, 1, 2, 7}, ask({"h2o", recent = 0.25}, given))
    assert.same({0, 1, 2, 3}, ask({"h2o", recent = 0}, given))
    assert.same({4, 5, 6, 7}, ask({"h2o", recent = 1}, given))
  end)

  it("h2o_ema fades what was observed, and leaves what was not as it is", function()
    local state = {}
    local function picks(number, observed, ...)
      return ask({"h2o_ema", decay = 0.5, recent = 0}, {n = 4, layers = 1, number = number, budget = 1, state = state,
        mass = masses(...), observed = support.set(4, observed)})
    end
    assert.same({1}, picks(0, {0, 1, 2, 3}, {1, 2, 1, 0}))
    assert.same({0.125, 0.25, 0.125, 0}, state.mean:totable())
    assert.same({3}, picks(1, {0, 3}, {0, 0, 0, 8}))
    assert.same({0.0625, 0.25, 0.125, 0.5}, state.mean:totable())
    picks(2, {0, 3}, {0, 0, 0, 0})
    assert.same({0.0625, 0.25, 0.125, 0.5}, state.mean:totable())
  end)
end)

describe("oracles", function()
  it("know the future in a replay, and say so elsewhere", function()
    local future = {native = support.set(10, {2, 3, 7}), counts = scores_of {0, 0, 5, 9, 0, 0, 0, 1, 0, 0},
      golden = support.set(10, {3})}
    local given = {scores = ten, budget = 2, future = future}
    assert.same({2, 3, 7}, ask("oracle_native", given))
    assert.same({3}, ask("oracle_golden", given))
    assert.same({2, 3}, ask("oracle_budget", given))
    given.budget = 9
    assert.same({2, 3, 7}, ask("oracle_budget", given))
    given.future = {native = future.native, counts = future.counts}
    assert.error_matches(function() ask("oracle_golden", given) end, "oracle_golden: cycle.future.golden is not there")
    given.future = nil
    for _, name in ipairs {"oracle_native", "oracle_golden", "oracle_budget"} do
      assert.error_matches(function() ask(name, given) end, name .. ".lua:%d+: " .. name .. ": cycle.future.*replay only")
    end
  end)
end)

describe("replay", function()
  local model = lsa.model(require("lsa.ffi").root .. "/tests/golden/flash")

  it("lets oracles cover all that is used, and no policy more than oracle_budget", function()
    files.with_folder(function(folder)
      local path, s = folder .. "/trace.safetensors", model:session{select = "full", every = 8}
      s:prefill(tokens_of(64, 200, 3))
      s:record(path)
      for _, token in ipairs(tokens_of(64, 40, 4)) do s:decode(token) end
      s:record(false)
      local function coverage(select, budget)
        return lsa.replay(path, {select = select, budget = budget, every = 8, tail = 0, strict = true}):stats().step_coverage
      end
      assert.equal(1, coverage("oracle_native", 1))
      local best = coverage("oracle_budget", 9)
      for _, name in ipairs {"lsa_topk", "native_topk", "recency", "h2o", "snap_window", "quest_pages", "keydiff", "expected_index",
        "tova", "lagkv", "q_filter", "none"} do
        local other = coverage(name, 9)
        assert.is_true(other <= best, name)
      end
      assert.is_true(best < 1)
      assert.error_matches(function() coverage("oracle_golden", 1) end, "future.golden is not there")
    end)
  end)
end)

describe("wrappers", function()
  it("hybrid gives each policy its share, and later ones what earlier ones left", function()
    local given = {scores = ten, budget = 5, keep = {9}}
    assert.same({1, 3, 7, 8}, ask("hybrid", given))
    assert.same({1, 3, 5, 8}, ask({"hybrid", of = {"recency", "lsa_topk"}, shares = {1, 3}}, given))
    assert.same({1, 3, 5, 7}, ask({"hybrid", of = {"none", "lsa_topk"}}, given))
    assert.same({1, 3}, ask({"hybrid", of = {"lsa_topk", "none"}}, given))
    assert.error_matches(function() ask({"hybrid", of = {"none", "full"}}, given) end,
      "of 2 full: 9 chunks beside what is kept, its share is 4")
    -- What one has chosen is not chosen again.
    assert.same({1, 3, 5, 7}, ask({"hybrid", of = {"lsa_topk", "lsa_topk"}}, given))
  end)

  it("dilate takes neighbours along, within the budget", function()
    local x = scores_of {0, 0, 0, 0.9, 0, 0, 0.8, 0, 0, 0, 0.7, 0}
    assert.same({2, 3, 4}, ask({"dilate", of = "lsa_topk"}, {scores = x, budget = 3}))
    assert.same({2, 3, 4, 5, 6, 7}, ask({"dilate", of = "lsa_topk", radius = 1}, {scores = x, budget = 6}))
    assert.same({2, 3, 4}, ask("dilate", {scores = x, budget = 5}))
    -- Neighbours that overlap leave room for another hit.
    local close = scores_of {0, 0.9, 0.8, 0, 0, 0, 0.7, 0, 0, 0}
    assert.same({0, 1, 2, 3, 5, 6, 7}, ask("dilate", {scores = close, budget = 7}))
    for budget = 0, 12 do
      for radius = 0, 3 do
        assert.is_true(#ask({"dilate", radius = radius}, {scores = x, budget = budget, keep = {0, 11}}) <= math.max(0, budget - 2))
      end
    end
  end)

  it("hysteresis lets a chunk go only after some cycles, as long as there is room", function()
    local state = {}
    local function picks(number, scores)
      return ask({"hysteresis", of = "lsa_topk", margin = 0.5, wait = 2}, {scores = scores_of(scores), budget = 4,
        number = number, state = state})
    end
    assert.same({0, 1}, picks(0, {9, 8, 0, 0, 0, 0, 0}))
    assert.same({0, 1, 2, 3}, picks(1, {0, 0, 8, 9, 0, 0, 0}))
    -- 2 and 3 were selected later than 0 and 1.
    assert.same({2, 3, 4, 5}, picks(2, {0, 0, 0, 0, 9, 9, 0}))
    assert.same({4, 5, 6, 7}, picks(3, {0, 0, 0, 0, 0, 0, 1, 1}))
    assert.same({4, 5, 6, 7}, picks(4, {0, 0, 0, 0, 0, 0, 1, 1}))
    assert.same({6, 7}, picks(5, {0, 0, 0, 0, 0, 0, 1, 1}))
  end)

  it("stale1 is a cycle behind", function()
    local state = {}
    local function picks(number, scores, keep, budget)
      return ask({"stale1", of = "lsa_topk"}, {scores = scores_of(scores), budget = budget or 2, number = number, state = state,
        keep = keep})
    end
    assert.same({0, 1}, picks(0, {9, 8, 0, 0}))
    assert.same({0, 1}, picks(1, {0, 0, 8, 9, 0}))
    assert.same({2, 3}, picks(2, {0, 0, 0, 0, 9, 8}))
    assert.same({2, 3}, picks(2, {9, 8, 0, 0, 0, 0}))
    assert.same({5}, picks(3, {1, 1, 1, 1, 1, 1, 1}, {6}))
  end)

  it("fallback_full takes all that fits where the policy fails, finds too little, or the model is unsure", function()
    local given = {scores = ten, budget = 4, entropy = 1.5}
    assert.same({1, 3}, ask({"fallback_full", of = {"lsa_threshold", theta = 0.75}}, given))
    assert.same({1, 3, 5, 7}, ask({"fallback_full", of = {"lsa_threshold", theta = 0.75}, least = 3}, given))
    assert.same({1, 3, 5, 7}, ask({"fallback_full", of = "none"}, given))
    assert.same({1, 3, 5, 7}, ask({"fallback_full", of = function() error "no" end}, given))
    assert.same({1, 3, 5, 7}, ask({"fallback_full", of = "lsa_threshold"}, given))
    assert.same({1, 3, 5, 7}, ask({"fallback_full", of = {"lsa_threshold", theta = 0.75}, entropy = 1}, given))
    assert.same({1, 3}, ask({"fallback_full", of = {"lsa_threshold", theta = 0.75}, entropy = 2}, given))
    given.budget = 10
    assert.equal(10, #ask({"fallback_full", of = "none"}, given))
  end)

  it("name the inner policy's mistakes", function()
    local given = {scores = ten, budget = 4}
    assert.error_matches(function() ask({"dilate", of = "recncy"}, given) end, "no policy 'recncy'")
    assert.error_matches(function() ask({"stale1", of = "full"}, given) end,
      "of full: 10 chunks beside what is kept, its share is 4")
    assert.error_matches(function() ask({"stale1", of = function() return 7 end}, given) end, "the policy returned a number")
  end)
end)

-- Every policy that needs no replay, and every wrapper around some.
local everything = {}
for _, name in ipairs(registry.names "policies") do
  if not name:find "^oracle" then everything[#everything + 1] = {name} end
end
for _, wrapper in ipairs {"dilate", "hysteresis", "stale1", "fallback_full"} do
  for _, of in ipairs {"h2o", "quest_pages", "random", {"hybrid", of = {"snap_window", {"dilate", of = "recency"}}}} do
    everything[#everything + 1] = {wrapper, of = of}
  end
end

local function label(spec)
  local of = type(spec.of) == "table" and spec.of[1] or spec.of
  return spec[1] .. (of and " of " .. of or "")
end

-- Policies that are a rule, not a budget's worth: they may select more than the budget, which is an error.
local unbounded = {full = true}

local root = require("lsa.ffi").root

-- Prefills, decodes over several cycles; the residents of each cycle, and the session.
local function run(model, spec, options, n, steps)
  local sets = {}
  options.select = spec
  local s = model:session(options)
  local tokens = tokens_of(tonumber(model.config.vocab), n + steps, 7)
  local prefix = {unpack(tokens, 1, n)}
  s:prefill(prefix)
  for i = n + 1, n + steps do
    s:decode(tokens[i])
    if #s:cycles() > #sets then sets[#sets + 1] = s:resident():ids():totable() end
  end
  return sets, s
end

describe("every policy", function()
  local models = {golden = lsa.model(root .. "/tests/golden/flash"), needle = lsa.model(root .. "/experiments/models/needle")}

  for _, spec in ipairs(everything) do
    it(label(spec) .. " stays within the budget, and does the same again from the same seed", function()
      for _, model in pairs(models) do
        for _, budget in ipairs {0.25, 9} do
          local options = {budget = unbounded[spec[1]] and 1 or budget, every = 6, page = 4, sink = 1, strict = true}
          local copy = {}
          for k, v in pairs(options) do copy[k] = v end
          local sets, s = run(model, spec, options, 150, 20)
          if spec[1] ~= "full" then
            assert.equal(4, #sets)
            for _, row in ipairs(s:cycles()) do
              local most = options.budget <= 1 and math.floor(options.budget * row.n) or options.budget
              assert.is_true(row.selected <= most, ("%d of %d"):format(row.selected, most))
            end
          end
          assert.same(sets, (run(model, spec, copy, 150, 20)))
        end
      end
    end)

    it(label(spec) .. " accepts no candidates, few, budgets of 0 and 1, and sinks and tails beyond them", function()
      local model = models.golden
      for _, n in ipairs {2, 5, 70} do
        for _, options in ipairs {{budget = 0}, {budget = 0.5}, {budget = 2, sink = 9}, {budget = 3, tail = 100}, {budget = 1},
          {budget = 0.3, sink = 3, tail = 3}} do
          options.page, options.every, options.strict = 8, 3, true
          if unbounded[spec[1]] then options.budget = 1000 end
          local _, s = run(model, spec, options, n, 7)
          assert.equal(n + 7, s:tokens())
        end
      end
    end)
  end
end)
