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

  it("that give no number of steps are said, counted, and the last one holds: never a session without cycles", function()
    local model, warn, said = lsa.model "tests/golden/flash", registry.warn, nil
    registry.warn = function(text) said = text end
    finally(function() registry.warn = warn end)
    local prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
    for _, steps in ipairs {1e12, 2 ^ 24 + 1, 0, -1, 1.5, 0 / 0, math.huge, "4", {}} do
      local asked = 0
      local function every()
        asked = asked + 1
        if asked == 1 then return 3 end
        return steps
      end
      local s = model:session {select = "recency", budget = 6, every = every}
      s:prefill(prompt)
      for i = 1, 10 do s:decode(i) end
      local stats = s:stats()
      assert.same({4, 3}, {stats.cycles, stats.policy_errors}, tostring(steps))
      assert.matches("the schedule: .* steps; a whole number from 1 to 16777216 is wanted", said)
      assert.matches("schedules_spec.lua", said)
      s:close()
    end
    local b = lsa.batch(model, {select = "recency", budget = 6, most = 1, every = function() return 1e12 end})
    b:submit {tokens = prompt, n = 70}
    b:run()
    assert.is_true(b:result(0).stats.cycles >= 2)
    assert.equal(b:result(0).stats.cycles, b:result(0).stats.policy_errors)
    b:close()
    for _, every in ipairs {1e12, 0, {"fixed", every = 1e12}} do
      local ok, message = pcall(function()
        local s = model:session {select = "recency", budget = 6, every = every, strict = true}
        s:prefill(prompt)
        s:decode(1)
      end)
      assert.is_false(ok)
      assert.matches("16777216", message)
    end
  end)
end)
