local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C = lsa.C

-- Labels as lists: steps[i] = {position, {chunk, votes}, ...}. Returns the C struct and what keeps it alive.
local function golden(steps, chunks)
  local pointers, indices, votes, positions = {0}, {}, {}, {}
  for i, step in ipairs(steps) do
    positions[i] = step[1]
    for j = 2, #step do indices[#indices + 1], votes[#votes + 1] = step[j][1], step[j][2] end
    pointers[i + 1] = #indices
  end
  local keep = {support.array("int32_t", pointers), support.array("int32_t", indices), support.array("int32_t", votes),
    support.array("int64_t", positions)}
  return ffi.new("lsa_golden", {keep[1], keep[2], keep[3], keep[4], #steps, #indices, chunks}), keep
end

local function made_up(seed, count, chunks)
  local uniform, steps, position = support.uniform(seed), {}, 0
  for i = 1, count do
    local step, seen = {position}, {}
    for _ = 1, math.floor(uniform(0, 5)) do
      local id = math.floor(uniform(0, chunks))
      if not seen[id] then step[#step + 1] = {id, math.floor(uniform(1, 9))} end
      seen[id] = true
    end
    steps[i], position = step, position + math.floor(uniform(1, 4))
  end
  return steps
end

local function positives(g, horizon, step)
  local n = tonumber(g.chunks)
  local ids, votes, seen = support.buffer("int32_t", n), support.buffer("int32_t", n), support.buffer("int32_t", n)
  local count, out = tonumber(C.lsa_golden_positives(ids, votes, g, horizon, step, seen)), {}
  for i = 0, n - 1 do assert.equal(0, seen[i]) end
  for i = 0, count - 1 do
    assert.is_nil(out[ids[i]])
    out[ids[i]] = votes[i]
  end
  return out, count
end

describe("lsa_golden_positives", function()
  it("are the union over a step's horizon with the most votes, of chunks that are whole", function()
    for seed = 1, 6 do
      local chunks = 20
      local steps = made_up(seed, 30, chunks)
      local g, keep = golden(steps, chunks)
      assert.equal(0, C.lsa_golden_check(g))
      for _, h in ipairs{{1, 8, 2}, {0, 8, 2}, {1, 1, 4}, {3, 100, 1}} do
        local horizon = ffi.new("lsa_horizon", h)
        local some = {}
        for i, step in ipairs(steps) do
          local candidates, want = math.min(chunks, math.floor((step[1] + 1) / h[3])), {}
          for _, other in ipairs(steps) do
            if other[1] >= step[1] + h[1] and other[1] < step[1] + h[1] + h[2] then
              for j = 2, #other do
                local id, v = other[j][1], other[j][2]
                if id < candidates then want[id] = math.max(want[id] or 0, v) end
              end
            end
          end
          assert.same(want, (positives(g, horizon, i - 1)))
          assert.equal(candidates, tonumber(C.lsa_golden_candidates(g, horizon, i - 1)))
          if next(want) then some[#some + 1] = i - 1 end
        end
        local out = support.buffer("int32_t", #steps)
        assert.equal(#some, tonumber(C.lsa_golden_eligible(out, g, horizon)))
        for i, step in ipairs(some) do assert.equal(step, out[i - 1]) end
      end
      assert.is_not_nil(keep)
    end
  end)
end)

describe("lsa_golden_check", function()
  local function message(change)
    local g, keep = golden({{0, {1, 1}}, {3, {0, 1}, {2, 4}}, {4}}, 3)
    assert.equal(0, C.lsa_golden_check(g))
    change(keep, g)
    assert.equal(C.LSA_EFORMAT, C.lsa_golden_check(g))
    return ffi.string(C.lsa_error())
  end

  it("names what is wrong with damaged labels", function()
    assert.equal("labels: pointers of step 1 go from 9 to 3", message(function(k) k[1][1] = 9 end))
    assert.equal("labels: pointers go from 1 to 3, there are 3 entries", message(function(k) k[1][0] = 1 end))
    assert.equal("labels: pointers go from 0 to 4, there are 3 entries", message(function(k) k[1][3] = 4 end))
    assert.equal("labels: chunk 3 of 3", message(function(k) k[2][2] = 3 end))
    assert.equal("labels: chunk -1 of 3", message(function(k) k[2][0] = -1 end))
    assert.equal("labels: position 3 of step 2 does not ascend", message(function(k) k[4][2] = 3 end))
    assert.equal("labels: position -1 of step 0 does not ascend", message(function(k) k[4][0] = -1 end))
    assert.equal("labels: position 2147483648 of step 2 is above 2147483647", message(function(k) k[4][2] = 2 ^ 31 end))
  end)
end)

describe("lsa_golden_weights", function()
  it("are the formula's", function()
    local weights = support.buffer("float", 4)
    local ids, votes = support.array("int32_t", {5, 70, 6, 7}), support.array("int32_t", {3, 21, 12, 21})
    C.lsa_golden_weights(weights, ids, votes, 4, 3, 21, support.array("uint64_t", {2 ^ 7, 0}))
    assert.equal(0.5, weights[0])
    assert.equal(2, weights[1])
    assert.equal(1.25, weights[2])
    assert.equal(0.5, weights[3])
    C.lsa_golden_weights(weights, ids, votes, 2, 1, 1, nil)
    assert.equal(3.5, weights[0])
  end)
end)

describe("lsa_golden_frequent", function()
  it("has the chunks golden in more than the share of steps", function()
    local steps = {}
    for i = 0, 9 do
      steps[i + 1] = {i, {70, 1}}
      if i < 8 then table.insert(steps[i + 1], {1, 1}) end
      if i < 9 then table.insert(steps[i + 1], {2, 1}) end
    end
    local g, keep = golden(steps, 71)
    local bits, count = support.buffer("uint64_t", 2), support.buffer("int32_t", 71)
    C.lsa_golden_frequent(bits, g, 0.8, count)
    assert.equal(4, tonumber(bits[0]))
    assert.equal(64, tonumber(bits[1]))
    assert.is_not_nil(keep)
  end)
end)

describe("lsa_sample_others", function()
  it("gives different chunks outside the excluded set, each as often", function()
    for _, case in ipairs{{100, 10, 20}, {100, 10, 70}, {70, 60, 8}, {70, 65, 2}, {3000, 2980, 5}} do
      local n, out, want = unpack(case)
      local words = math.ceil(n / 64)
      local bits, state = support.buffer("uint64_t", words), ffi.new("uint64_t[1]", 99)
      local excluded, uniform = {}, support.uniform(n)
      local left = out
      while left > 0 do
        local id = math.floor(uniform(0, n))
        if not excluded[id] then
          excluded[id], left = true, left - 1
          bits[math.floor(id / 64)] = bits[math.floor(id / 64)] + 2ULL ^ (id % 64)
        end
      end
      local before, times, rounds = ffi.string(bits, words * 8), {}, 2000
      for _ = 1, rounds do
        local ids, seen = support.buffer("int32_t", want), {}
        assert.equal(want, tonumber(C.lsa_sample_others(ids, want, n, bits, state)))
        for i = 0, want - 1 do
          local id = ids[i]
          assert.is_true(id >= 0 and id < n and not excluded[id] and not seen[id])
          seen[id], times[id] = true, (times[id] or 0) + 1
        end
        assert.is_true(before == ffi.string(bits, words * 8))
      end
      local expected = rounds * want / (n - out)
      for id = 0, n - 1 do
        if not excluded[id] then
          assert.is_true(math.abs((times[id] or 0) - expected) <= 6 * math.sqrt(expected))
        end
      end
    end
  end)

  it("gives what there is, or nothing", function()
    local bits, state = support.array("uint64_t", {0xfd}), ffi.new("uint64_t[1]", 1)
    local ids = support.buffer("int32_t", 3)
    assert.equal(1, tonumber(C.lsa_sample_others(ids, 3, 8, bits, state)))
    assert.equal(1, ids[0])
    assert.equal(0, tonumber(C.lsa_sample_others(ids, 3, 1, bits, state)))
    assert.equal(0, tonumber(C.lsa_sample_others(ids, 0, 8, bits, state)))
    assert.equal(0, tonumber(C.lsa_sample_others(ids, 3, 0, bits, state)))
  end)
end)

describe("lsa_sample_subset", function()
  it("keeps each subset as often, votes with their ids", function()
    local state, times = ffi.new("uint64_t[1]", 5), {}
    for _ = 1, 6000 do
      local ids, votes = support.array("int32_t", {0, 1, 2, 3}), support.array("int32_t", {10, 11, 12, 13})
      C.lsa_sample_subset(ids, votes, 4, 2, state)
      for i = 0, 3 do assert.equal(ids[i] + 10, votes[i]) end
      local key = math.min(ids[0], ids[1]) * 4 + math.max(ids[0], ids[1])
      times[key] = (times[key] or 0) + 1
    end
    local kinds = 0
    for _, count in pairs(times) do
      kinds = kinds + 1
      assert.is_true(math.abs(count - 1000) <= 150)
    end
    assert.equal(6, kinds)
  end)
end)

describe("lsa_sample_seed", function()
  it("differs in each of its numbers, and is never 0", function()
    local seen = {}
    for seed = 0, 3 do
      for step = 0, 30 do
        for i = 0, 30 do
          local s = C.lsa_sample_seed(seed, step, i)
          assert.is_true(s ~= 0)
          assert.is_nil(seen[tostring(s)])
          seen[tostring(s)] = true
        end
      end
    end
  end)
end)

describe("lsa_sample_normals", function()
  it("has mean 0 and the given deviation", function()
    local n, state = 20000, ffi.new("uint64_t[1]", 3)
    local x, sum, squares = support.buffer("float", n), 0, 0
    C.lsa_sample_normals(x, n, 2, state)
    for i = 0, n - 1 do sum, squares = sum + x[i], squares + x[i] ^ 2 end
    assert.is_true(math.abs(sum / n) <= 0.06)
    assert.is_true(math.abs(math.sqrt(squares / n) - 2) <= 0.05)
  end)
end)
