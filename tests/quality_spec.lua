-- What is told of a policy's quality: needles found, evidence kept, coverage, churn.
local lsa = require "lsa"
local needle = require "lsa.tasks.needle"
local rng = require "lsa.cycle.rng"

local model = lsa.model(lsa.root .. "/experiments/models/needle")
local hay = ("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "):rep(40)
local words = {"river", "stone", "cloud", "apple"}

describe("a haystack", function()
  it("has the length asked for, and its statements where it says", function()
    for seed = 1, 20 do
      local made = needle.build(rng.new(seed), hay, words, 2000, 4)
      assert.equal(2000, #made.text)
      for _, one in ipairs(made.needles) do
        assert.equal(one.statement, made.text:sub(one.at + 1, one.at + #one.statement))
        assert.equal(("The magic number for %s is: %s."):format(one.key, one.answer), one.statement:sub(2, -2))
        assert.is_nil(made.text:find(one.statement, one.at + 2, true))
        local from, to = needle.chunks(model, one)
        -- The first chunk holds the statement's first letter, and the one before the last its last: an entry is made of the chunk before, too.
        assert.equal(math.floor((one.at + 1) / 4), from)
        assert.equal(math.floor((one.at + #one.statement - 2) / 4) + 1, to - 1)
        assert.equal(one.context, made.text)
      end
    end
  end)

  it("is the same again from the same seed", function()
    assert.equal(needle.build(rng.new(3), hay, words, 900, 3).text, needle.build(rng.new(3), hay, words, 900, 3).text)
    assert.error_matches(function() needle.build(rng.new(3), hay, words, 90, 3) end, "needle: 3 needles do not fit in 90 bytes")
  end)
end)

describe("asking a needle", function()
  local made = needle.build(rng.new(2), hay, words, 2000, 3)
  local base = model:session{select = "full"}
  base:prefill(made.text)

  local function ask(i, options)
    local fork = base:fork(options)
    return needle.ask(fork, made.needles[i])
  end

  it("is measured at cycles where that is asked for, and else said not to be", function()
    local function after(coverage)
      local fork = base:fork{select = "none", every = 4, coverage = coverage}
      fork:generate{n = 9}
      return fork:stats(), fork:cycles()
    end
    local without, rows = after(false)
    assert.same({nil, 3}, {without.coverage, without.cycles})
    assert.is_nil(rows[3].coverage)
    assert.matches("coverage +not measured", tostring(without))
    local with
    with, rows = after(true)
    assert.is_true(with.coverage >= 0 and with.coverage < 0.5)
    assert.is_true(rows[3].coverage >= 0)
    assert.matches("coverage +%d+%.%d %% of the native top%-k resident", tostring(with))
    assert.same({without.steps, without.resident_sum, without.hits}, {with.steps, with.resident_sum, with.hits})
  end)

  it("tells digits, evidence and coverage", function()
    for i = 1, 3 do
      local exact, right, quality = ask(i, {select = "full"})
      assert.same({true, 5, 1, 1}, {exact, right, quality.evidence, quality.coverage})
    end
    local from, to = needle.chunks(model, made.needles[1])
    local exact, right, quality = ask(1, {select = "none", budget = 0})
    assert.is_false(exact)
    assert.is_true(right < 5)
    assert.equal(0, quality.evidence)
    assert.is_true(quality.coverage < 0.5)
    -- Half of the statement's chunks, by hand.
    local half = math.floor((from + to) / 2)
    exact, right, quality = ask(1, {select = function() return {{from, half}} end, budget = 100})
    assert.is_true(math.abs(quality.evidence - (half - from) / (to - from)) <= 1e-12)
    assert.is_true(type(exact) == "boolean" and right <= 5)
    exact, right, quality = ask(1, {select = function() return {{from - 4, to + 1}} end, budget = 100})
    assert.same({true, 5, 1}, {exact, right, quality.evidence})
  end)
end)

describe("cycles tell", function()
  local csa = lsa.model(lsa.root .. "/tests/golden/csa")

  it("how much of the set changed, and how alike it is to the one before", function()
    local sets = {{0, 1, 2, 3}, {2, 3, 4, 5}, {2, 3, 4, 5}, {}, {7}}
    local s = csa:session{tail = 0, budget = 10, every = 4, select = function(cycle) return sets[cycle.number + 1] end}
    local tokens = {}
    for i = 1, 40 do tokens[i] = i end
    s:prefill(tokens)
    for i = 1, 17 do s:decode(i) end
    local rows = s:cycles()
    -- One chunk is born between cycles.
    local got = {}
    for i = 2, 5 do got[i] = {rows[i].churn, rows[i].jaccard} end
    assert.is_nil(rows[1].churn)
    assert.is_nil(rows[1].jaccard)
    assert.same({0.5, 2 / 7}, got[2])
    assert.same({0, 4 / 5}, got[3])
    assert.same({0, 0}, got[4])
    assert.same({1, 0}, got[5])
    local stats = s:stats()
    assert.is_true(math.abs(stats.churn - 1.5 / 4) <= 1e-12)
    assert.is_true(math.abs(stats.jaccard - (2 / 7 + 4 / 5) / 4) <= 1e-12)
    assert.matches("between cycles 37.5 %% of the set changes, Jaccard 0.271", tostring(stats))
  end)
end)
