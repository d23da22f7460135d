-- lsa.pool: two tiers and an eviction policy, without a model.
local lsa = require "lsa"

local function bytes(n, record, value)
  local t = lsa.zeros({n, record}, "u8")
  for i = 0, n - 1 do
    for j = 0, record - 1 do t:set(i, j, (value + 7 * i + j) % 256) end
  end
  return t
end

local function says(pattern, f)
  local ok, e = pcall(f)
  assert.is_false(ok)
  assert.matches(pattern, e)
end

describe("lsa.pool", function()
  it("keeps records and moves sets between its tiers", function()
    local pool = lsa.pool{layers = 2, record = 16, chunks = 100, hot = 8}
    pool:write(1, {3, 50, 99}, bytes(3, 16, 5))
    assert.equal(0, pool:fetch {3, 50, 60})
    assert.same({3, 50, 60}, pool:resident():ids():totable())
    assert.same(bytes(3, 16, 5):totable(), pool:read(1, {3, 50, 99}):totable())
    assert.equal(2, pool:fetch {3, 50, 99})
    local s = pool:stats()
    assert.same({4, 4 * 32, 0, 8, 4}, {s.fetched_chunks, s.fetched_bytes, s.evicted_chunks, s.cells, s.resident})
  end)

  it("lets the least recently used leave, and a hit refreshes", function()
    local pool = lsa.pool{record = 8, chunks = 20, hot = 3, evict = "lru"}
    pool:fetch {1}
    pool:fetch {2}
    pool:fetch {3}
    pool:fetch {1}
    pool:fetch {4}
    assert.same({1, 3, 4}, pool:resident():ids():totable())
    local fifo = lsa.pool{record = 8, chunks = 20, hot = 3, evict = "fifo"}
    for _, id in ipairs {1, 2, 3, 1, 4} do fifo:fetch {id} end
    assert.same({2, 3, 4}, fifo:resident():ids():totable())
  end)

  it("never lets a wanted chunk leave", function()
    local pool = lsa.pool{record = 8, chunks = 50, hot = 4}
    pool:fetch {0, 1, 2, 3}
    pool:fetch {0, 10, 11}
    assert.same({0, 10, 11}, pool:resident():intersect(lsa.set(50):add {0, 10, 11}):ids():totable())
  end)

  it("names both counts when a set does not fit, and nothing changes", function()
    local pool = lsa.pool{record = 8, chunks = 50, hot = 4}
    pool:fetch {7}
    says("the set has 5 chunks and 0 cells must stay free for what is born; the hot pool has 4", function()
      pool:fetch {0, 1, 2, 3, 4}
    end)
    assert.same({7}, pool:resident():ids():totable())
  end)

  it("takes sizes in bytes, grows without a size, forks and closes", function()
    assert.equal(2048, lsa.pool{layers = 2, record = 512, chunks = 9, hot = "2 MiB"}:stats().cells)
    local pool = lsa.pool{record = 8, chunks = 50}
    pool:fetch {1, 2, 3, 4, 5}
    pool:fetch {5, 6}
    assert.same({5, 6}, pool:resident():ids():totable())
    local fork = pool:fork()
    fork:evict {5}
    assert.same({5, 6}, pool:resident():ids():totable())
    assert.same({6}, fork:resident():ids():totable())
    pool:close()
    says("the pool is closed", function() pool:fetch {1} end)
    fork:fetch {6, 7}
  end)

  it("names what is wrong", function()
    says("lsa.pool: record is missing", function() lsa.pool{layers = 2} end)
    says("no option 'size'; there are: chunks, cold, evict, hot, layers, record", function() lsa.pool{size = 3} end)
    local pool = lsa.pool{record = 8, chunks = 5}
    says("a u8 tensor %[2, 8%] is wanted", function() pool:write(0, {1, 2}, lsa.zeros({2, 7}, "u8")) end)
    says("pool: layer 1, the pool has 1", function() pool:read(1, {0}) end)
    says("pool: chunk 5, the pool has 5", function() pool:read(0, {5}) end)
  end)
end)
