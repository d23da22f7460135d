-- Eviction policies by themselves: touches of pages per second through lsa.cache, a hash lookup, the policy and the
-- bookkeeping of presence each. A million touches, ids Zipf-like, 5000 pages present, about two thirds of them hits.
local ffi = require "ffi"
local cache = require("lsa.cache").new
local registry = require "lsa.registry"

local N, IDS, CAPACITY = 1000000, 100000, 5000

local function trace()
  local ids, state = ffi.new("int32_t[?]", N), 1
  for i = 0, N - 1 do
    state = state * 16807 % 2147483647
    ids[i] = IDS ^ (state / 2147483647) - 1
  end
  return {ids = ids, n = N}
end

return function(bench)
  for _, name in ipairs(registry.names "evictions") do
    bench:case{
      op = "cache " .. name, shape = ("%d touches, %d of %d pages"):format(N, CAPACITY, IDS),
      setup = trace,
      note = function(ns) return ("%.1f million touches/s"):format(N / ns * 1e3) end,
      run = function(pages) cache{pages = pages, capacity = CAPACITY, evict = name} end,
    }
  end
end
