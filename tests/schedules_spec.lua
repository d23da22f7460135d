-- When the next cycle comes.
local lsa = require "lsa"
local registry = require "lsa.registry"

-- A cycle as a schedule sees it; its state lasts.
local function opened(spec)
  local entry = registry.open("schedules", spec)
  local state = {}
  return function(cycle)
    cycle.state = state
    local ok, steps = entry:call(cycle)
    assert.is_true(ok, steps)
    return steps
  end, state
end

local function set_of(n, ids)
  return lsa.set(n):add(ids)
end

describe("schedules", function()
  it("are found by being there", function()
    assert.same({"event", "fixed", "jaccard", "stagger"}, registry.names "schedules")
  end)

  it("fixed: every `every` steps, 64 when nothing is said", function()
    assert.equal(64, opened "fixed" {})
    assert.equal(7, opened {"fixed", every = 7} {})
  end)

  it("jaccard: waits longer while selections agree, and not when they do not", function()
    local step, state = opened "jaccard"
    local function cycle(n, ids, kept)
      return step{n = n, selected = set_of(n, ids):union(set_of(n, kept or {})), keep = set_of(n, kept or {})}
    end
    assert.equal(64, cycle(100, {1, 2, 3, 4}))
    assert.equal(128, cycle(100, {1, 2, 3, 4}))
    -- 4 of 6: neither.
    assert.equal(128, cycle(100, {1, 2, 3, 4, 5, 6}))
    -- 1 of 7.
    assert.equal(64, cycle(100, {1, 9}))
    -- What was no candidate before says nothing, and neither does what is kept anyway.
    assert.equal(128, cycle(120, {1, 9, 110, 119}))
    assert.equal(256, cycle(130, {1, 9, 110, 119, 125}, {120, 121, 122}))
    assert.equal(512, cycle(130, {1, 9, 110, 119, 125}, {2, 3}))
    assert.equal(512, cycle(130, {1, 9, 110, 119, 125}))
    local shortest
    for i = 1, 10 do shortest = cycle(130, {i}) end
    assert.equal(8, shortest)
    assert.equal(130, state.jaccard.chosen:size())
  end)

  it("jaccard: two empty choices agree, limits and start are options", function()
    local step = opened{"jaccard", every = 10, most = 15, least = 4, agree = 1, disagree = 0.9}
    local empty = {n = 5, selected = lsa.set(5), keep = lsa.set(5)}
    assert.equal(10, step(empty))
    assert.equal(15, step(empty))
    local one = {n = 5, selected = set_of(5, {1}), keep = lsa.set(5)}
    assert.equal(7, step(one))
    assert.equal(4, step(empty))
    assert.equal(4, step(one))
  end)

  it("event: comes back soon after a newline since the last cycle", function()
    local step = opened{"event", entropy = false}
    local tokens = {5, 10, 5, 5, 5, 5, 10, 5, 5}
    local function cycle(t)
      local first = {}
      for i = 1, t do first[i] = tokens[i] end
      return step{t = t, tokens = lsa.tensor(first, "i32")}
    end
    -- The prompt's own newlines are no event.
    assert.equal(64, cycle(3))
    assert.equal(64, cycle(6))
    assert.equal(16, cycle(8))
    assert.equal(64, cycle(9))
    assert.equal(64, cycle(9))
    local other = opened{"event", entropy = false, tokens = {5, 7}, every = 40, soon = 3}
    assert.equal(40, other{t = 1, tokens = lsa.tensor({7}, "i32")})
    assert.equal(3, other{t = 2, tokens = lsa.tensor({7, 7}, "i32")})
    assert.equal(40, other{t = 3, tokens = lsa.tensor({7, 7, 1}, "i32")})
  end)

  it("event: comes back soon after a spike of entropy, once there is something to compare with", function()
    local step = opened{"event", tokens = {}}
    assert.equal(64, step{t = 0, entropy = 9})
    for i = 1, 20 do assert.equal(64, step{t = i, entropy = i % 2 == 0 and 1 or 1.2}) end
    assert.equal(16, step{t = 21, entropy = 6})
    assert.equal(64, step{t = 22, entropy = 1.1})
    assert.equal(64, step{t = 23, entropy = 0})
  end)

  it("stagger: spreads sessions over the interval and keeps them apart", function()
    for index, first in pairs{[0] = 64, [1] = 16, [2] = 32, [3] = 48} do
      local step = opened{"stagger", index = index, of = 4}
      assert.equal(first, step{t = 1000})
      assert.equal(64, step{t = 1000 + first})
      assert.equal(64, step{t = 1064 + first})
      -- A prefill in between.
      assert.equal(54, step{t = 1138 + first})
      assert.equal(64, step{t = 1192 + first})
    end
    assert.equal(64, opened "stagger" {t = 7})
    assert.equal(5, opened{"stagger", every = 10, index = 1, of = 2}{t = 7})
  end)
end)
