-- lsa.cache: counts on traces; the optimum is one.
local cache = require("lsa").cache
local ffi = require "ffi"
local registry = require "lsa.registry"
local traces = require "traces"

-- Misses of the optimum by its definition: at each miss the future of everyone present is searched.
local function optimum(pages, capacity)
  local present, count, misses = {}, 0, 0
  for i, id in ipairs(pages) do
    if not present[id] then
      misses = misses + 1
      if count == capacity then
        local worst, furthest
        for other in pairs(present) do
          local at = math.huge
          for j = i + 1, #pages do
            if pages[j] == other then
              at = j
              break
            end
          end
          if not furthest or at > furthest then worst, furthest = other, at end
        end
        present[worst] = nil
      else
        count = count + 1
      end
      present[id] = true
    end
  end
  return misses
end

local function list_of(trace)
  local list = {}
  for i = 0, trace.n - 1 do list[i + 1] = trace.ids[i] end
  return list
end

describe("lsa.cache", function()
  it("counts the textbook reference string", function()
    -- Silberschatz, Galvin, Gagne, "Operating system concepts", page replacement: three frames.
    local pages = {7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1}
    for name, misses in pairs{fifo = 15, lru = 12, belady = 9} do
      local got = cache{pages = pages, capacity = 3, evict = name}
      assert.same({hits = 20 - misses, misses = misses, evicted = misses - 3}, got)
    end
    -- Belady's anomaly: more room, more misses.
    pages = {1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5}
    assert.equal(9, cache{pages = pages, capacity = 3, evict = "fifo"}.misses)
    assert.equal(10, cache{pages = pages, capacity = 4, evict = "fifo"}.misses)
  end)

  it("takes no ids that are not 32-bit ones", function()
    for _, id in ipairs {2 ^ 32 + 1, 2 ^ 31, -1} do
      local ids = ffi.new("int64_t[3]", {1, id, 1})
      local ok, message = pcall(cache, {pages = {ids = ids, n = 3}, capacity = 2})
      assert.is_false(ok)
      assert.is_truthy(message:find(("pages: element 1 is %s, ids are integers from 0 to 2147483647"):format(tostring(id)), 1, true), message)
    end
    assert.equal(1, cache{pages = {ids = ffi.new("int64_t[3]", {1, 2147483647, 1}), n = 3}, capacity = 2}.hits)
  end)

  it("counts the same whatever the ids are, small, large and of both kinds", function()
    local random, small = require("lsa.cycle.rng").new(7), {}
    for i = 1, 6000 do small[i] = math.floor(random(60) * random(60) / 30) end
    for _, name in ipairs {"lru", "fifo", "sieve", "s3fifo", "arc", "lfu", "clock", "slru", "belady"} do
      local want = cache{pages = small, capacity = 30, evict = name}
      assert.is_true(want.hits > 100 and want.evicted > 100)
      for _, of in ipairs {function(id) return 2 ^ 20 - 40 + id end, function(id) return 2 ^ 30 + 7919 * id end,
        function(id) return id % 2 == 0 and id or 2 ^ 31 - 1 - id end} do
        local pages = {}
        for i, id in ipairs(small) do pages[i] = of(id) end
        assert.same(want, cache{pages = pages, capacity = 30, evict = name}, name)
      end
    end
  end)

  it("knows no hit without room, and no eviction with room for all", function()
    for _, name in ipairs(registry.names "evictions") do
      assert.same({hits = 0, misses = 4, evicted = 0}, cache{pages = {1, 1, 2, 2}, capacity = 0, evict = name})
      assert.same({hits = 2, misses = 2, evicted = 0}, cache{pages = {1, 1, 2, 2}, capacity = 2, evict = name})
      assert.same({hits = 2, misses = 2, evicted = 1}, cache{pages = {1, 1, 2, 2}, capacity = 1, evict = name})
      assert.same({hits = 0, misses = 0, evicted = 0}, cache{pages = {}, capacity = 3, evict = name})
    end
  end)

  it("makes no policy better than belady, and belady the optimum", function()
    for seed = 1, 5 do
      local uniform = traces.generator(seed)
      local pages = {}
      for i = 1, 400 do pages[i] = uniform(uniform(40) + 1) end
      for _, capacity in ipairs{1, 2, 5, 11, 20} do
        local best = optimum(pages, capacity)
        assert.equal(best, cache{pages = pages, capacity = capacity, evict = "belady"}.misses)
        for _, name in ipairs(registry.names "evictions") do
          assert.is_true(cache{pages = pages, capacity = capacity, evict = name}.misses >= best, name)
        end
      end
    end
  end)

  it("counts what libCacheSim counts", function()
    local peer = require "libcachesim_counts"
    local names = {FIFO = "fifo", LRU = "lru", SLRU = "slru", LFU = "lfu", Clock = "clock",
      Clock2 = {"clock", bits = 2}, Sieve = "sieve", S3FIFO = "s3fifo", ARC = "arc", Belady = "belady"}
    local compared = 0
    for _, trace_name in ipairs(traces.names) do
      local trace = traces.make(trace_name, peer.accesses, peer.seed)
      for capacity, counts in pairs(peer[trace_name]) do
        for name, hits in pairs(counts) do
          compared = compared + 1
          assert.equal(hits, cache{pages = trace, capacity = capacity, evict = names[name]}.hits,
            ("%s %s %d"):format(name, trace_name, capacity))
        end
      end
    end
    assert.equal(240, compared)
  end)

  it("keeps the order of inclusion: more room never costs lru, lfu and belady a hit", function()
    for _, trace_name in ipairs(traces.names) do
      local trace = traces.make(trace_name, 5000, 77)
      for _, name in ipairs{"lru", "belady"} do
        local before = -1
        for _, capacity in ipairs{1, 3, 10, 31, 100, 310} do
          local hits = cache{pages = trace, capacity = capacity, evict = name}.hits
          assert.is_true(hits >= before)
          before = hits
        end
      end
    end
  end)

  it("takes lists, tensors, arrays, and lru when nothing is said", function()
    local list = {5, 6, 5, 7, 5, 6}
    local array = ffi.new("int32_t[6]", list)
    local tensor = require("lsa").tensor(list, "i32")
    local expected = {hits = 2, misses = 4, evicted = 2}
    for _, pages in ipairs{list, {ids = array, n = 6}, tensor} do
      assert.same(expected, cache{pages = pages, capacity = 2})
    end
  end)

  it("treats ids that are far apart like ids that are near", function()
    for _, name in ipairs(registry.names "evictions") do
      -- What a sketch or a seed makes of an id depends on the id.
      if name ~= "wtinylfu" then
        local near = list_of(traces.make("zipf", 3000, 3))
        local far = {}
        for i, id in ipairs(near) do far[i] = id * 262144 + 7 end
        assert.same(cache{pages = near, capacity = 60, evict = name}, cache{pages = far, capacity = 60, evict = name})
      end
    end
  end)

  it("runs a policy of the script's, and names it when it misbehaves", function()
    local function stack(mistake)
      return function()
        local self, order = {}, {}
        function self.hit() end
        function self.insert(_, id) order[#order + 1] = id end
        function self.victim(_, allowed)
          assert(allowed:has(order[#order]))
          if mistake then return mistake end
          return table.remove(order)
        end
        function self.remove() end
        return self
      end
    end
    assert.same({hits = 2, misses = 4, evicted = 2}, cache{pages = {1, 2, 3, 4, 1, 4}, capacity = 2, evict = stack()})
    for _, mistake in ipairs{7, -1, "1", 2 ^ 40, 1.5} do
      local ok, why = pcall(cache, {pages = {1, 2, 3}, capacity = 2, evict = stack(mistake)})
      assert.is_false(ok)
      assert.truthy(why:find(("victim() returned %s at access 2"):format(mistake), 1, true), why)
      assert.truthy(why:find "cache_spec.lua:%d+")
    end
    local ok, why = pcall(cache, {pages = {1, 2, 3}, capacity = 2, evict = function()
      return {hit = function() end, insert = function() end, remove = function() end, victim = function() return {} + 1 end}
    end})
    assert.is_false(ok)
    assert.truthy(why:find "cache_spec.lua:%d+: attempt to perform arithmetic")
  end)

  it("says what is wrong with its arguments", function()
    local cases = {
      {nil, "pages is nil"}, {{capacity = 3}, "pages is nil"}, {{pages = {1}}, "capacity is nil"},
      {{pages = {1}, capacity = -1}, "capacity is -1"}, {{pages = {1}, capacity = 1.5}, "capacity is 1.5"},
      {{pages = {1}, capacity = 0 / 0}, "capacity is "}, {{pages = {-1}, capacity = 1}, "element 0 is -1"},
      {{pages = {1, "x"}, capacity = 1}, "element 1 is x"}, {{pages = 7, capacity = 1}, "pages is a number"},
      {{pages = {ids = ffi.new "int32_t[2]"}, capacity = 1}, "n is nil"},
      {{pages = require("lsa").tensor({1, 2}, "f32"), capacity = 1}, "pages is a tensor of f32"},
      {{pages = {1}, capacity = 1, evict = "lur"}, "no eviction policy 'lur'"},
    }
    for _, case in ipairs(cases) do
      local ok, why = pcall(function() cache(case[1]) end)
      assert.is_false(ok)
      assert.truthy(why:find(case[2], 1, true), why)
      assert.truthy(why:find "cache_spec.lua:%d+", why)
    end
  end)
end)
