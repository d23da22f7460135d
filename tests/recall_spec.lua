local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local CHUNKS, STEPS = 150, 12
local horizon = ffi.new("lsa_horizon", {1, 3, 2})

-- Step i is at position 30 i + 9; some have golden chunks.
local function golden(seed)
  local uniform = support.uniform(seed)
  local pointers, ids, positions = {0}, {}, {}
  for i = 0, STEPS - 1 do
    positions[i + 1] = 30 * i + 9
    if i % 3 ~= 2 then
      for _ = 1, 6 do ids[#ids + 1] = math.floor(uniform(0, CHUNKS)) end
    end
    pointers[i + 2] = #ids
  end
  local votes = {}
  for i = 1, #ids do votes[i] = 1 end
  local keep = {support.array("int32_t", pointers), support.array("int32_t", ids), support.array("int32_t", votes),
    support.array("int64_t", positions)}
  return ffi.new("lsa_golden", {keep[1], keep[2], keep[3], keep[4], STEPS, #ids, CHUNKS}), keep
end

-- Counts by the definition, with steps that see the next three positions only when they are steps of their own.
local function naive(g, h, steps, limits, scores, ranks, stride, theta, strict, k)
  local c = {steps = 0, golden_steps = 0, candidates = 0, golden = 0, selected = 0, right = 0, recall_at_k = 0,
    bin_count = {}, bin_golden = {}, bin_score = {}}
  for r, step in ipairs(steps) do
    local n, is, count = limits[r], {}, 0
    for i = 0, STEPS - 1 do
      local away = tonumber(g.positions[i] - g.positions[step])
      if away >= tonumber(h.first) and away < tonumber(h.first + h.span) then
        for at = g.pointers[i], g.pointers[i + 1] - 1 do is[g.indices[at]] = true end
      end
    end
    local order = {}
    for id = 0, n - 1 do
      local s = scores[(r - 1) * stride + id]
      if is[id] then count = count + 1 end
      if s == s then
        order[#order + 1] = {ranks[(r - 1) * stride + id], id}
        local bin = math.min(14, math.floor(s * 15))
        c.bin_count[bin] = (c.bin_count[bin] or 0) + 1
        c.bin_golden[bin] = (c.bin_golden[bin] or 0) + (is[id] and 1 or 0)
        c.bin_score[bin] = (c.bin_score[bin] or 0) + s
        if strict == 1 and s > theta or strict == 0 and s >= theta then
          c.selected = c.selected + 1
          if is[id] then c.right = c.right + 1 end
        end
      end
    end
    if n > 0 then c.steps = c.steps + 1 end
    c.candidates, c.golden = c.candidates + n, c.golden + count
    if count > 0 then
      table.sort(order, function(a, b) return a[1] > b[1] or a[1] == b[1] and a[2] < b[2] end)
      local found = 0
      for i = 1, math.min(k, #order) do if is[order[i][2]] then found = found + 1 end end
      c.golden_steps, c.recall_at_k = c.golden_steps + 1, c.recall_at_k + found / count
    end
  end
  return c
end

describe("lsa_recall_add", function()
  it("counts what the definition counts", function()
    for seed = 1, 4 do
      local g, keep = golden(seed)
      local h = ffi.new("lsa_horizon", {1, 65, 2})
      local steps, limits, uniform, stride = {}, {}, support.uniform(seed + 50), CHUNKS
      for i = 0, STEPS - 1 do
        steps[i + 1] = i
        local candidates = tonumber(C.lsa_golden_candidates(g, h, i))
        limits[i + 1] = i % 4 == 3 and 0 or i % 2 == 0 and candidates or math.floor(candidates / 2)
      end
      local n = #steps * stride
      local scores, ranks = support.buffer("float", n), support.buffer("float", n)
      for i = 0, n - 1 do
        ranks[i] = math.floor(uniform(-8, 8))          -- with ties
        scores[i] = 1 / (1 + math.exp(-ranks[i]))
        if i % 37 == 0 then scores[i], ranks[i] = 0 / 0, 0 / 0 end
        if i % 41 == 0 then scores[i] = i % 2 end
      end
      for strict = 0, 1 do
        for _, k in ipairs{0, 5, 1000} do
          local want = naive(g, h, steps, limits, scores, ranks, stride, 0.5, strict, k)
          for threads = 1, 2 do
            C.lsa_threads_set(threads)
            local got = ffi.new "lsa_recall_counts"
            check(C.lsa_recall_add(got, scores, ranks, g, h, support.array("int64_t", steps),
              support.array("int64_t", limits), #steps, stride, 0.5, strict, k))
            assert.is_true(want.golden > 10)
            for _, name in ipairs{"steps", "golden_steps", "candidates", "golden", "selected", "right"} do
              assert.equal(want[name], tonumber(got[name]), name)
            end
            assert.is_true(math.abs(got.recall_at_k - want.recall_at_k) <= 1e-12)
            for bin = 0, 14 do
              assert.equal(want.bin_count[bin] or 0, tonumber(got.bin_count[bin]))
              assert.equal(want.bin_golden[bin] or 0, tonumber(got.bin_golden[bin]))
              assert.is_true(math.abs((want.bin_score[bin] or 0) - got.bin_score[bin]) <= 1e-9)
            end
          end
        end
      end
      C.lsa_threads_set(0)
      assert.is_not_nil(keep)
    end
  end)

  it("adds to what is there, and takes no rows", function()
    local g, keep = golden(1)
    local counts = ffi.new("lsa_recall_counts", {steps = 5})
    check(C.lsa_recall_add(counts, nil, nil, g, horizon, nil, nil, 0, 0, 0.5, 0, 1))
    assert.equal(5, tonumber(counts.steps))
    local scores = support.array("float", {1, 0, 0.5, 0.5, 0.5})
    check(C.lsa_recall_add(counts, scores, scores, g, horizon, support.array("int64_t", {0}),
      support.array("int64_t", {5}), 1, 5, 0.5, 1, 1))
    assert.equal(6, tonumber(counts.steps))
    assert.equal(1, tonumber(counts.selected))
    assert.is_not_nil(keep)
  end)

  it("refuses steps and limits that are not there", function()
    local g, keep = golden(1)
    local counts, scores = ffi.new "lsa_recall_counts", support.buffer("float", 6)
    local function call(step, limit, stride, k)
      return C.lsa_recall_add(counts, scores, scores, g, horizon, support.array("int64_t", {step}),
        support.array("int64_t", {limit}), 1, stride, 0.5, 0, k)
    end
    assert.equal(0, call(0, 5, 6, 1))
    for _, case in ipairs{{0, 6, 6, 1}, {0, 5, 4, 1}, {0, -1, 6, 1}, {-1, 0, 6, 1}, {STEPS, 0, 6, 1}, {0, 5, 6, -1}} do
      assert.equal(C.LSA_EARG, call(unpack(case)))
    end
    assert.is_not_nil(keep)
  end)
end)

describe("coverage", function()
  it("counts the ids of rows that a set has, up to each row's end", function()
    local uniform = support.uniform(3)
    for _, k in ipairs {0, 1, 15, 32, 37} do
      local n, rows = 200, 9
      local bits, ids = support.buffer("uint64_t", 4), support.buffer("int32_t", rows * k)
      local has, covered, total = {}, 0, 0
      for id = 0, n - 1 do
        has[id] = uniform(0, 1) < 0.4
        if has[id] then bits[math.floor(id / 64)] = bit.bor(bits[math.floor(id / 64)], bit.lshift(1ULL, id % 64)) end
      end
      for row = 0, rows - 1 do
        local size = math.floor(uniform(0, k + 1))
        for j = 0, k - 1 do
          ids[row * k + j] = j < size and math.floor(uniform(0, n)) or j == size and -1 or 5
          if j < size then total = total + 1; covered = covered + (has[ids[row * k + j]] and 1 or 0) end
        end
      end
      local all = ffi.new "int64_t[1]"
      assert.equal(covered, tonumber(C.lsa_recall_covered(bits, ids, rows, k, all)))
      assert.equal(total, tonumber(all[0]))
    end
  end)
end)
