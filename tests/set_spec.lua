local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C = lsa.C
local set = require "lsa.tensor.set"
local support = require "kernel_support"

-- The oracle: a table with a key for each member, and n.
local function members(s)
  local list = {}
  for id in s:each() do list[#list + 1] = id end
  return list
end

local function list_of(has, n)
  local list = {}
  for id = 0, n - 1 do
    if has[id] then list[#list + 1] = id end
  end
  return list
end

local function random_set(n, density, uniform)
  local s, has = set.new(n), {}
  for id = 0, n - 1 do
    if uniform() < density then
      s:add(id)
      has[id] = true
    end
  end
  return s, has
end

local sizes = {0, 1, 5, 63, 64, 65, 127, 128, 129, 200, 640, 1000}

-- Calls fn(n, a, has_a, b, has_b) for sets of every size and density.
local function for_sets(fn)
  local uniform = support.uniform(11)
  for _, n in ipairs(sizes) do
    for _, density in ipairs {0, 0.02, 0.5, 0.97, 1} do
      local a, has_a = random_set(n, density, uniform)
      local b, has_b = random_set(n, 0.4, uniform)
      fn(n, a, has_a, b, has_b)
    end
  end
end

local function assert_members(want, n, s)
  assert.equal(n, s:size())
  assert.same(list_of(want, n), members(s))
  -- The words past n stay zero, or a count would see them.
  assert.equal(#list_of(want, n), s:count())
end

describe("ids in turn", function()
  it("are added list by list, rank by rank, until as many are new", function()
    local uniform = support.uniform(5)
    for case = 1, 200 do
      local n, count, most = 1 + case % 70, case % 4, case % 23
      local s, has = random_set(n, 0.2, uniform)
      local without, left_out = random_set(n, case % 3 / 5, uniform)
      local lists, lengths, kept, longest = ffi.new("const int32_t *[?]", count + 1), ffi.new("int64_t[?]", count + 1), {}, 0
      for i = 0, count - 1 do
        lengths[i] = math.floor(uniform() * 12)
        kept[i] = ffi.new("int32_t[?]", lengths[i] + 1)
        for j = 0, tonumber(lengths[i]) - 1 do kept[i][j] = math.floor(uniform() * n) end
        lists[i], longest = kept[i], math.max(longest, tonumber(lengths[i]))
      end
      local left, open = most, {}
      for i = 0, count - 1 do
        open[i] = {}
        for j = 0, tonumber(lengths[i]) - 1 do
          if not left_out[kept[i][j]] then table.insert(open[i], kept[i][j]) end
        end
      end
      for turn = 1, longest do
        for i = 0, count - 1 do
          local id = open[i][turn]
          if id and left > 0 and not has[id] then has[id], left = true, left - 1 end
        end
      end
      assert.equal(C.LSA_OK, C.lsa_set_add_in_turn(s.c, lists, lengths, count, most, without.c))
      assert_members(has, n, s)
    end
  end)

  it("outside are refused, and none is added", function()
    local s, good, bad = set.new(70), ffi.new("int32_t[2]", 1, 2), ffi.new("int32_t[2]", 3, 70)
    local lists, lengths = ffi.new("const int32_t *[2]", good, bad), ffi.new("int64_t[2]", 2, 2)
    assert.equal(C.LSA_ESHAPE, C.lsa_set_add_in_turn(s.c, lists, lengths, 2, 10, set.new(71).c))
    assert.equal(C.LSA_EARG, C.lsa_set_add_in_turn(s.c, lists, lengths, 2, 10, set.new(70).c))
    assert.matches("id 70 is outside 0..69", ffi.string(C.lsa_error()))
    assert.equal(0, s:count())
  end)
end)

describe("a set", function()
  it("has what was added, and says how many", function()
    local s = set.new(130)
    s:add(0):add(64):add(129):add(64)
    assert.is_true(s:has(0) and s:has(64) and s:has(129))
    assert.is_false(s:has(1) or s:has(-1) or s:has(130) or s:has(2 ^ 40))
    assert.equal(3, s:count())
    assert.equal(3, #s)
    s:remove(64)
    assert.same({0, 129}, members(s))
  end)

  it("takes one argument at a time", function()
    local s = set.new(10):add {5}
    for _, name in ipairs {"add", "remove"} do
      local ok, message = pcall(s[name], s, 1, 2)
      assert.is_false(ok)
      assert.is_truthy(message:find("set " .. name .. ": 2 arguments are given, it takes 1: ids", 1, true))
    end
    for _, name in ipairs {"union", "intersect", "minus"} do
      local one = set.new(9)
      assert.error_matches(function() one[name](one, one, one) end, "set " .. name .. ": 2 arguments are given, it takes 1: r")
    end
    assert.error_matches(function() set.new(9):range(1, 5, 2) end, "set range: 3 arguments are given, it takes 2: a, b")
    assert.same({5}, members(s))
  end)

  it("takes ids as lists, tensors and sets", function()
    local tensor = require "lsa.tensor.tensor"
    local s = set.new(10):add({1, 2, 3}):add(tensor.new({7, 8}, "i32")):add(set.new(10):range(0, 2))
    assert.same({0, 1, 2, 3, 7, 8}, members(s))
    assert.same({1, 3, 7, 8}, members(s:remove({0, 2})))
    assert.same({1, 7, 8}, members(s:remove(set.new(10):add(3))))
    local odd = tensor.new({{1, 9}, {2, 9}, {3, 9}}, "i32"):narrow(1, 0, 1):reshape {3}
    assert.same({1, 2, 3}, members(set.new(4):add(odd)))
  end)

  it("adds nothing when one id of a list is out of range", function()
    local s = set.new(10)
    assert.has_error(function() s:add({1, 2, 10}) end)
    assert.equal(0, s:count())
    local ids = ffi.new("int32_t[2]", {3, -1})
    assert.equal(C.LSA_EARG, C.lsa_set_add_ids(s.c, ids, 2))
    assert.equal(0, s:count())
  end)

  it("fills ranges across words", function()
    for _, n in ipairs(sizes) do
      for _, range in ipairs {{0, n}, {0, 0}, {math.floor(n / 3), math.ceil(n / 2)}, {n, n}, {0, math.min(64, n)}} do
        local want = {}
        for id = range[1], range[2] - 1 do want[id] = true end
        assert_members(want, n, set.new(n):range(range[1], range[2]))
      end
    end
  end)

  it("takes every so many-th id", function()
    for _, n in ipairs(sizes) do
      for _, step in ipairs {1, 2, 7, 64, 100, 5000} do
        local want = {}
        for id = 0, n - 1, step do want[id] = true end
        assert_members(want, n, set.new(n):every(step))
      end
    end
  end)

  it("gives its ids as a tensor, on every code path", function()
    support.for_each_cpu_level(function()
      for_sets(function(n, a, has_a)
        local ids = a:ids()
        assert.equal("i32", ids:dtype())
        assert.same(list_of(has_a, n), ids:totable())
        local exact = support.buffer("int32_t", a:count())
        assert.equal(a:count(), tonumber(C.lsa_set_ids(a.c, exact)))
      end)
    end)
  end)

  it("unites, intersects, subtracts and inverts as tables do, on every code path", function()
    support.for_each_cpu_level(function()
      for_sets(function(n, a, has_a, b, has_b)
        local either, both, only, neither, common = {}, {}, {}, {}, 0
        for id = 0, n - 1 do
          either[id] = has_a[id] or has_b[id]
          both[id] = has_a[id] and has_b[id]
          only[id] = has_a[id] and not has_b[id]
          neither[id] = not has_a[id]
          if both[id] then common = common + 1 end
        end
        assert_members(either, n, a:union(b))
        assert_members(both, n, a:intersect(b))
        assert_members(only, n, a:minus(b))
        assert_members(neither, n, a:invert())
        assert_members(has_a, n, a)
        assert.equal(common, a:intersect_count(b))
        assert.equal(n, (a:union(a:invert())):count())
      end)
    end)
  end)

  it("operates in place in C", function()
    local a, b = set.new(100):range(0, 60), set.new(100):range(50, 100)
    assert.equal(0, C.lsa_set_minus(a.c, a.c, b.c))
    assert.equal(50, a:count())
    assert.equal(0, C.lsa_set_union(b.c, a.c, b.c))
    assert.equal(100, b:count())
  end)

  -- The ids within `radius` of a member of a sorted list, as runs {from, to}, ascending and apart.
  local function runs_of(list, n, radius)
    local runs = {}
    for _, id in ipairs(list) do
      local from, to, last = math.max(0, id - radius), math.min(n - 1, id + radius), runs[#runs]
      if last and from <= last[2] + 1 then last[2] = to else runs[#runs + 1] = {from, to} end
    end
    return runs
  end

  local function assert_runs(runs, n, s)
    local want = set.new(n)
    for _, run in ipairs(runs) do want:range(run[1], run[2] + 1) end
    assert.is_true(s:equals(want))
  end

  it("dilates by any radius, on every code path", function()
    support.for_each_cpu_level(function()
      for_sets(function(n, a, has_a)
        local list = list_of(has_a, n)
        for _, radius in ipairs {0, 1, 2, 7, 31, 32, 33, 62, 63, 64, 65, 127, 128, 130, 2000, 2 ^ 52} do
          assert_runs(runs_of(list, n, radius), n, a:dilate(radius))
        end
      end)
    end)
  end)

  local page_sizes = {1, 2, 3, 4, 5, 7, 8, 13, 16, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 500, 512, 513, 640, 700, 2 ^ 52}

  it("turns ids into pages and pages into ids, on every code path", function()
    for_sets(function(n, a, has_a)
      for _, size in ipairs(page_sizes) do
        local pages, chunks, counts = {}, {}, {}
        local p_count = math.ceil(n / size)
        for p = 1, p_count do counts[p] = 0 end
        for id in pairs(has_a) do
          local p = math.floor(id / size)
          pages[p] = true
          counts[p + 1] = counts[p + 1] + 1
        end
        for id = 0, n - 1 do chunks[id] = pages[math.floor(id / size)] end
        support.for_each_cpu_level(function()
          local s = a:pages(size)
          assert_members(pages, p_count, s)
          assert_members(chunks, n, s:chunks(size, n))
        end)
        if size < 1000 then
          local s = a:pages(size)
          assert_members(chunks, n, s:copy():union(s):chunks(size))
          assert_members(chunks, n, a:density(size):add(0.25):gt(1):chunks(size))
          assert.equal(p_count * size, set.new(p_count):chunks(size):size())
          assert.same(counts, a:density(size):totable())
        end
      end
    end)
  end)

  -- Members here and there: around what one thread, one block of words and one word take.
  local function sparse(n)
    local list, seen = {}, {}
    local uniform = support.uniform(3)
    local function take(id)
      if id >= 0 and id < n and not seen[id] then
        seen[id] = true
        list[#list + 1] = id
      end
    end
    for _, at in ipairs {0, 64, 4096, 32768, n / 4, n / 2, n - 32768, n} do
      for d = -70, 70, 7 do take(math.floor(at) + d) end
    end
    for _ = 1, 100 do take(math.floor(uniform(0, n))) end
    table.sort(list)
    return list, set.new(n):add(list)
  end

  it("does the same in many blocks of words, and where threads share the work", function()
    for _, n in ipairs {70001, 4000037} do
      local list, a = sparse(n)
      assert.equal(#list, a:count())
      for _, radius in ipairs {1, 50, 63, 64, 1000, 3000000} do
        assert_runs(runs_of(list, n, radius), n, a:dilate(radius))
      end
      for _, size in ipairs {2, 3, 8, 16, 48, 64, 65, 300, 1000} do
        local runs, pages = {}, set.new(math.ceil(n / size))
        for _, id in ipairs(list) do
          local p = math.floor(id / size)
          pages:add(p)
          runs[#runs + 1] = {p * size, math.min(n, (p + 1) * size) - 1}
        end
        local s = a:pages(size)
        assert.is_true(s:equals(pages))
        assert_runs(runs, n, s:chunks(size))
      end
      local half = set.new(n):range(0, math.floor(n / 2))
      local low = 0
      for _, id in ipairs(list) do low = low + (id < math.floor(n / 2) and 1 or 0) end
      assert.equal(low, a:intersect(half):count())
      assert.equal(low, a:intersect_count(half))
      assert.equal(#list - low, a:minus(half):count())
      assert.equal(half:count() + #list - low, a:union(half):count())
      assert.equal(n, a:invert():union(a):count())
    end
  end)

  it("is the same after a copy, and its own", function()
    for_sets(function(n, a, has_a)
      local b = a:copy()
      assert.is_true(a:equals(b))
      if n > 0 then
        b:add(0):remove(0)
        if has_a[0] then assert.is_false(a:equals(b)) end
      end
      assert_members(has_a, n, a)
    end)
    assert.is_false(set.new(3):equals(set.new(4)))
  end)

  it("shrinks and grows", function()
    local s = set.new(200):range(50, 200)
    for _, n in ipairs {0, 1, 60, 64, 100, 128, 200, 300} do
      local want = {}
      for id = 50, math.min(n, 200) - 1 do want[id] = true end
      assert_members(want, n, s:resize(n))
    end
  end)

  it("survives random operations as a table does", function()
    local uniform = support.uniform(5)
    for _, n in ipairs {70, 257} do
      local s, has = set.new(n), {}
      for _ = 1, 600 do
        local a, b = math.floor(uniform(0, n)), math.floor(uniform(0, n + 1))
        local what = math.floor(uniform(0, 5))
        if what == 0 then
          s:add(a)
          has[a] = true
        elseif what == 1 then
          s:remove(a)
          has[a] = nil
        elseif what == 2 and a <= b and b - a < 20 then
          s:range(a, b)
          for id = a, b - 1 do has[id] = true end
        elseif what == 3 then
          local cut = set.new(n):range(math.min(a, b), math.min(n, math.min(a, b) + 9))
          s = s:minus(cut)
          for id in cut:each() do has[id] = nil end
        elseif what == 4 then
          assert.equal(has[a] == true, s:has(a))
        end
      end
      assert_members(has, n, s)
    end
  end)

  it("prints its runs", function()
    assert.equal("set: 0 of 5 ids", tostring(set.new(5)))
    assert.equal("set: 5 of 100 ids: 0..2, 7, 99", tostring(set.new(100):add {0, 1, 2, 7, 99}))
    local many = set.new(100)
    for id = 0, 98, 2 do many:add(id) end
    assert.equal("set: 50 of 100 ids: 0, 2, 4, 6, 8, 10, 12, 14, ...", tostring(many))
  end)

  it("names the argument and both values in its errors, at the caller's line", function()
    local s = set.new(5)
    local cases = {
      {"set: id 5 is outside 0..4", function() s:add(5) end},
      {"set: id -1 is outside 0..4", function() s:remove(-1) end},
      {"set: range 2..6 (end excluded) is outside 0..5", function() s:range(2, 6) end},
      {"set: range 3..2 (end excluded) is outside 0..5", function() s:range(3, 2) end},
      {"set union: one set is of 5 ids, the other of 6", function() s:union(set.new(6)) end},
      {"set intersect: r is nil, a set is wanted", function() s:intersect() end},
      {"set add: ids: element 2 is a string, an id is wanted", function() s:add {1, "x"} end},
      {"set add: id is 1.5, a whole number is wanted", function() s:add(1.5) end},
      {"set: every 0-th id, at least 1 is wanted", function() s:every(0) end},
      {"set pages: size is 0, at least 1 is wanted", function() s:pages(0) end},
      {"set: -1 ids, from 0 to 2147483647 are possible", function() set.new(-1) end},
      {"set chunks: 11 ids are 3 pages of 4, the set of pages has 5", function() s:chunks(4, 11) end},
    }
    for _, case in ipairs(cases) do
      local ok, message = pcall(case[2])
      assert.is_false(ok)
      assert.equal("tests/set_spec.lua:", message:match "^[^:]-(tests/set_spec%.lua:)%d+: ")
      assert.equal(case[1], message:match ":%d+: (.*)$")
    end
  end)

  it("is refused when memory is short", function()
    collectgarbage()
    for n = 0, 3 do
      C.lsa_memory_fail_after(n % 2)
      local ok, message = pcall(n < 2 and set.new or set.result, 1000)
      C.lsa_memory_fail_after(-1)
      assert.is_false(ok)
      assert.is_truthy(message:find "out of memory")
    end
  end)

  it("gives its memory back", function()
    collectgarbage()
    collectgarbage()
    local before = tonumber(C.lsa_memory_in_use())
    for _ = 1, 50 do set.new(2 ^ 20):invert() end
    collectgarbage()
    collectgarbage()
    assert.is_true(tonumber(C.lsa_memory_in_use()) <= before + 2 ^ 17)
  end)
end)
