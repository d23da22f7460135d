local ffi = require "ffi"
local support = require "kernel_support"
local C = require("lsa.ffi").C

local INF, NAN = math.huge, 0 / 0

local function words(n) return math.floor((n + 63) / 64) end

-- The set's ids are these, in any order; a bit past n would differ too.
local function assert_ids(ids, bits, n)
  local want = ffi.new("uint64_t[?]", words(n) + 1)
  local halves = ffi.cast("uint32_t *", want)
  for _, id in ipairs(ids) do
    local h = bit.rshift(id, 5)
    halves[h] = bit.bor(halves[h], bit.lshift(1, bit.band(id, 31)))
  end
  assert.is_true(support.same_bits(want, bits, words(n) * 8))
end

-- Best first, the lower id first among equals.
local function ordered(scores, n, counts)
  local order = {}
  for i = 0, n - 1 do
    if counts(scores[i]) then order[#order + 1] = i end
  end
  table.sort(order, function(a, b) return scores[a] > scores[b] or (scores[a] == scores[b] and a < b) end)
  return order
end

local function first(order, k)
  local ids = {}
  for i = 1, math.min(k, #order) do ids[i] = order[i] end
  return ids
end

-- Oracles that sort once: k -> ids, mass -> ids.
local function topk_oracle(scores, n)
  local order = ordered(scores, n, function(v) return v > -INF end)
  return function(k) return first(order, k) end
end

local function topp_of(scores, order, mass)
  local total, sum, k = 0, 0, 0
  for _, id in ipairs(order) do total = total + scores[id] end
  if mass == 1 then return first(order, #order) end
  while k < #order and sum < mass * total do
    k = k + 1
    sum = sum + scores[order[k]]
  end
  return first(order, k)
end

local function topp_oracle(scores, n)
  local order = ordered(scores, n, function(v) return v > 0 end)
  return function(mass) return topp_of(scores, order, mass) end
end

local function garbage_bits(n)
  local bits = support.buffer("uint64_t", words(n))
  for i = 0, words(n) - 1 do bits[i] = -1ULL end
  return bits
end

local function above(scores, n, limit, strict)
  local bits = garbage_bits(n)
  assert.equal(0, C.lsa_select_above_cpu(bits, scores, n, limit, strict, nil))
  return bits
end

local function topk(scores, n, k)
  local bits, work = garbage_bits(n), support.workspace(C.lsa_select_workspace(n))
  assert.equal(0, C.lsa_select_topk_cpu(bits, scores, n, k, work, nil))
  return bits
end

local function topp(scores, n, mass)
  local bits, work = garbage_bits(n), support.workspace(C.lsa_select_workspace(n))
  assert.equal(0, C.lsa_select_topp_cpu(bits, scores, n, mass, work, nil))
  return bits
end

local function fill(n, f)
  local x = support.buffer("float", n)
  for i = 0, n - 1 do x[i] = f(i) end
  return x
end

-- What scores may look like; every one is a function of the place and a generator.
local shapes = {
  normal = function(_, u) return math.sqrt(-2 * math.log(1 - u())) * math.cos(2 * math.pi * u()) end,
  sigmoid = function(_, u) return 1 / (1 + math.exp(8 - 12 * u())) end,
  tied = function(_, u) return math.floor(u() * 4) / 4 end,
  constant = function() return 0.5 end,
  zero = function(i) return i % 2 == 0 and 0 or -1 / INF end,
  broken = function(i, u) return ({NAN, -INF, INF, u(), -u(), -NAN})[i % 7 + 1] or u() end,
  masked = function(_, u) return u() < 0.9 and -INF or u() end,
  nothing = function(i) return i % 2 == 0 and NAN or -INF end,
  tiny = function(_, u) return u() * 1e-41 end,
  rising = function(i) return i end,
  falling = function(i) return -i end,
  one_peak = function(i) return i == 3 and 1000 or i * 1e-9 end,
  neighbours = function(i) return (i % 2 == 0 and 1 or -1) * (1 + i * 7 % 13 * 2 ^ -23) end,
  all_sizes = function(_, u) return (u() < 0.5 and -1 or 1) * 2 ^ (u() * 270 - 145) end,
  heavy = function(_, u) return math.exp(30 * u()) end,
}

local short = {0, 1, 2, 15, 16, 17, 63, 64, 65, 130, 999}
-- Long rows take the sampled path.
local long = {16384, 17011}

local function for_rows(lengths, fn)
  for name, shape in pairs(shapes) do
    for _, n in ipairs(lengths) do
      local u = support.uniform(n + #name)
      fn(fill(n, function(i) return shape(i, u) end), n, name)
    end
  end
end

describe("selection above a threshold", function()
  it("is a comparison of each score, with and without equality, on every code path", function()
    support.for_each_cpu_level(function()
      for_rows(short, function(scores, n)
        for _, limit in ipairs {0, 0.5, 0.25, -INF, INF, 1e-41} do
          local t, ge, gt = tonumber(ffi.new("float", limit)), {}, {}
          for i = 0, n - 1 do
            if scores[i] >= t then ge[#ge + 1] = i end
            if scores[i] > t then gt[#gt + 1] = i end
          end
          assert_ids(ge, above(scores, n, limit, 0), n)
          assert_ids(gt, above(scores, n, limit, 1), n)
        end
        assert_ids({}, above(scores, n, NAN, 0), n)
      end)
    end)
  end)
end)

describe("top-k selection", function()
  it("takes the k largest, ties by the lower id, on every code path", function()
    for_rows(short, function(scores, n)
      local oracle = topk_oracle(scores, n)
      support.for_each_cpu_level(function()
        for _, k in ipairs {0, 1, 2, 7, math.floor(n / 3), n - 1, n, n + 5} do
          if k >= 0 then assert_ids(oracle(k), topk(scores, n, k), n) end
        end
      end)
    end)
  end)

  it("is exact on long rows too", function()
    for_rows(long, function(scores, n)
      local oracle = topk_oracle(scores, n)
      for _, k in ipairs {1, 50, 700, 4000, math.floor(n / 2), n - 3} do
        assert_ids(oracle(k), topk(scores, n, k), n)
      end
    end)
  end)

  it("gives the same set on every code path", function()
    for_rows({20000}, function(scores, n)
      local k_bits, p_bits
      support.for_each_cpu_level(function()
        local work, bits = support.workspace(C.lsa_select_workspace(n)), garbage_bits(n)
        assert.equal(0, C.lsa_select_topk_cpu(bits, scores, n, 3001, work, nil))
        k_bits = k_bits or bits
        assert.is_true(support.same_bits(k_bits, bits, words(n) * 8))
        bits = garbage_bits(n)
        assert.equal(0, C.lsa_select_topp_cpu(bits, scores, n, 0.6, work, nil))
        p_bits = p_bits or bits
        assert.is_true(support.same_bits(p_bits, bits, words(n) * 8))
      end)
    end)
  end)

  it("is not misled by a row that a sample cannot see", function()
    local n = 65536
    local rows = {
      -- The 100 that count are next to each other; or the sample sees nothing but them.
      fill(n, function(i) return i >= 30000 and i < 30100 and 1 + i * 1e-3 or i * 1e-9 end),
      fill(n, function(i) return i % 16 < 15 and 1 or i / n end),
      fill(n, function(i) return i < n / 2 and 0 or 1e-3 * i end),
    }
    for _, scores in ipairs(rows) do
      local oracle = topk_oracle(scores, n)
      for _, k in ipairs {1, 99, 100, 101, 5000, 61440, 61441} do
        assert_ids(oracle(k), topk(scores, n, k), n)
      end
    end
  end)

  it("refuses a negative k", function()
    local scores = fill(3, function(i) return i end)
    assert.equal(C.LSA_EARG, C.lsa_select_topk_cpu(garbage_bits(3), scores, 3, -1, nil, nil))
    assert.equal("select_topk: k is -1", ffi.string(C.lsa_error()))
  end)
end)

describe("top-p selection", function()
  it("takes the fewest largest scores that reach the share, on every code path", function()
    for_rows(short, function(scores, n, name)
      if name == "broken" then return end
      local oracle = topp_oracle(scores, n)
      support.for_each_cpu_level(function()
        for _, mass in ipairs {0, 0.05, 0.3, 0.5, 0.6, 0.95, 1} do
          assert_ids(oracle(mass), topp(scores, n, mass), n)
        end
      end)
    end)
  end)

  it("is exact on long rows too", function()
    for_rows(long, function(scores, n, name)
      if name == "broken" then return end
      local oracle = topp_oracle(scores, n)
      for _, mass in ipairs {0.01, 0.3, 0.6, 0.99} do
        assert_ids(oracle(mass), topp(scores, n, mass), n)
      end
    end)
  end)

  it("is reached by one infinite score", function()
    local scores = support.array("float", {1, INF, NAN, INF, 5})
    assert_ids({1}, topp(scores, 5, 0.5), 5)
    assert_ids({0, 1, 3, 4}, topp(scores, 5, 1), 5)
  end)

  it("selects nothing where nothing is positive", function()
    local scores = support.array("float", {0, -1, NAN, -INF})
    assert_ids({}, topp(scores, 4, 0.5), 4)
    assert_ids({}, topp(scores, 4, 1), 4)
  end)

  it("refuses a share outside 0..1", function()
    local scores = fill(3, function(i) return i end)
    for _, mass in ipairs {-0.1, 1.1, NAN} do
      assert.equal(C.LSA_EARG, C.lsa_select_topp_cpu(garbage_bits(3), scores, 3, mass, nil, nil))
    end
  end)
end)
