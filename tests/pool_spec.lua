-- The two tiers against a shadow model: random operations, every invariant checked after each.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local C, check = lib.C, require("lsa.raise").check

local LAYERS, RECORD = 3, 24
-- Operations of the random test; `./lsa test --operations 1e6` runs more.
local OPERATIONS = (package.loaded["lsa.prompt.test"] or {}).operations or 1e5

local function ids(list) return ffi.new("int32_t[?]", math.max(1, #list), list) end

local function new_pool(unit)
  local out = ffi.new "lsa_pool *[1]"
  check(C.lsa_pool_new(out, LAYERS, RECORD, unit or 1))
  return ffi.gc(out[0], C.lsa_pool_free)
end

local function fork_of(pool)
  local out = ffi.new "lsa_pool *[1]"
  check(C.lsa_pool_fork(out, pool))
  return ffi.gc(out[0], C.lsa_pool_free)
end

ffi.cdef "int memcmp(const void *, const void *, size_t);"

-- Buffers that are used again: a million operations would otherwise make tens of millions.
local written, got, one, slot = ffi.new("int32_t[?]", RECORD / 4), ffi.new("int32_t[?]", RECORD / 4),
  ffi.new "int32_t[1]", ffi.new "int32_t[1]"

-- A record whose bytes tell layer, chunk and version; zeros for version nil. Valid until the next call.
local function record(layer, chunk, version)
  for i = 0, RECORD / 4 - 1 do
    written[i] = version and bit.bxor(chunk * 64 + layer * 8 + i, version * 40503) or 0
  end
  return written
end

-- A list of one id, valid until the next call.
local function id(x)
  one[0] = x
  return one
end

local function read(pool, layer, chunk)
  check(C.lsa_pool_read(pool, layer, id(chunk), 1, got))
  return got
end

local function same(a, b) return ffi.C.memcmp(a, b, RECORD) == 0 end

-- What lies in the hot arena for a chunk that has a cell.
local function hot_record(pool, layer, chunk)
  C.lsa_pool_slots(pool, id(chunk), 1, slot)
  if slot[0] < 0 then return nil end
  local r = C.lsa_pool_hot_records(pool, layer, 0)
  local block, mask = bit.rshift(slot[0], r.block_shift), bit.lshift(1, r.block_shift) - 1
  return r.blocks[block] + bit.band(slot[0], mask) * r.stride + r.offset
end

describe("a pool", function()
  it("reads back what was written, from either tier", function()
    local pool = new_pool()
    check(C.lsa_pool_resize(pool, 700))
    for chunk = 0, 699, 13 do
      for layer = 0, LAYERS - 1 do check(C.lsa_pool_write(pool, layer, id(chunk), 1, record(layer, chunk, 1))) end
    end
    check(C.lsa_pool_set_cells(pool, 10))
    check(C.lsa_pool_fetch(pool, ids {0, 13, 650}, 3))
    for chunk = 0, 699, 13 do
      for layer = 0, LAYERS - 1 do assert.is_true(same(record(layer, chunk, 1), read(pool, layer, chunk))) end
    end
    assert.is_true(same(record(2, 650, 1), hot_record(pool, 2, 650)))
    assert.is_nil(hot_record(pool, 0, 26))
  end)

  it("takes a stale cell from a chunk that is rewritten, and fetches it anew", function()
    local pool = new_pool()
    check(C.lsa_pool_resize(pool, 4))
    check(C.lsa_pool_set_cells(pool, 2))
    check(C.lsa_pool_fetch(pool, ids {2}, 1))
    check(C.lsa_pool_write(pool, 1, ids {2}, 1, record(1, 2, 3)))
    assert.equal(0, C.lsa_pool_has(pool, 2))
    check(C.lsa_pool_fetch(pool, ids {2}, 1))
    assert.is_true(same(record(1, 2, 3), hot_record(pool, 1, 2)))
  end)

  it("counts what moves where records have no bytes", function()
    for unit, chunks in pairs {3, 5} do
      local box, counters = ffi.new "lsa_pool *[1]", ffi.new "lsa_pool_counters"
      check(C.lsa_pool_new(box, 1, 0, unit * 2 - 1))
      local pool = ffi.gc(box[0], C.lsa_pool_free)
      check(C.lsa_pool_resize(pool, chunks))
      check(C.lsa_pool_set_cells(pool, 2))
      check(C.lsa_pool_fetch(pool, ids {0, 1}, 2))
      check(C.lsa_pool_resize(pool, chunks + 1))
      check(C.lsa_pool_evict(pool, ids {0}, 1))
      C.lsa_pool_count(pool, counters)
      assert.equal(unit == 1 and 2 or 5, tonumber(counters.fetched_chunks))
      assert.equal(unit == 1 and 1 or 3, tonumber(counters.evicted_chunks))
      assert.equal(0, tonumber(counters.fetched_bytes))
      assert.same({0, 1}, {C.lsa_pool_has(pool, 0), C.lsa_pool_has(pool, 1)})
    end
  end)

  it("refuses to fetch what is present, unordered, unknown, or more than is free, and changes nothing", function()
    local pool = new_pool()
    check(C.lsa_pool_resize(pool, 8))
    check(C.lsa_pool_set_cells(pool, 2))
    check(C.lsa_pool_fetch(pool, ids {5}, 1))
    assert.equal(C.LSA_ESTATE, C.lsa_pool_fetch(pool, ids {4, 5}, 2))
    assert.equal(C.LSA_ESTATE, C.lsa_pool_fetch(pool, ids {1, 2}, 2))
    assert.matches("fetch of 2, 1 cells are free", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_EARG, C.lsa_pool_fetch(pool, ids {8}, 1))
    assert.equal(C.LSA_ESTATE, C.lsa_pool_set_cells(pool, 0))
    assert.equal(1, tonumber(C.lsa_pool_free_cells(pool)))
    assert.equal(0, C.lsa_pool_has(pool, 4))
  end)

  it("shares memory with its fork until one side writes", function()
    local pool = new_pool()
    check(C.lsa_pool_resize(pool, 5000))
    local before = C.lsa_memory_in_use()
    local fork = fork_of(pool)
    assert.is_true(C.lsa_memory_in_use() - before < 5000 * LAYERS * RECORD / 4)
    check(C.lsa_pool_write(fork, 0, ids {7}, 1, record(0, 7, 2)))
    check(C.lsa_pool_resize(pool, 5001))
    check(C.lsa_pool_write(pool, 0, ids {5000}, 1, record(0, 5000, 1)))
    assert.is_false(same(record(0, 7, 2), read(pool, 0, 7)))
    assert.is_true(same(record(0, 7, 2), read(fork, 0, 7)))
    assert.equal(5000, tonumber(C.lsa_pool_chunks(fork)))
  end)

  it("gives its cells to the pools that are attached to it, each of which frees exactly its own", function()
    local a, b, host = new_pool(), new_pool(), ffi.new "lsa_pool *[1]"
    check(C.lsa_pool_new_host(host, a))
    host = ffi.gc(host[0], C.lsa_pool_free)
    check(C.lsa_pool_set_cells(host, 5))
    for i, pool in ipairs {a, b} do
      check(C.lsa_pool_resize(pool, 10))
      for chunk = 0, 9 do check(C.lsa_pool_write(pool, 1, id(chunk), 1, record(1, chunk, i))) end
    end
    check(C.lsa_pool_set_cells(a, 3))
    check(C.lsa_pool_fetch(a, ids {7}, 1))
    check(C.lsa_pool_attach(a, host))
    assert.equal(0, C.lsa_pool_has(a, 7))
    check(C.lsa_pool_attach(b, host))
    check(C.lsa_pool_fetch(a, ids {1, 2}, 2))
    check(C.lsa_pool_fetch(b, ids {0, 1, 2}, 3))
    assert.equal(C.LSA_ESTATE, C.lsa_pool_fetch(a, ids {3}, 1))
    assert.is_true(same(record(1, 2, 1), hot_record(a, 1, 2)))
    assert.is_true(same(record(1, 2, 2), hot_record(b, 1, 2)))
    local fork = fork_of(a)
    assert.same({2, 0}, {tonumber(C.lsa_pool_cells(fork)), tonumber(C.lsa_pool_free_cells(fork))})
    check(C.lsa_pool_write(a, 1, ids {2}, 1, record(1, 2, 3)))
    assert.is_true(same(record(1, 2, 1), hot_record(fork, 1, 2)))
    assert.same({1, 3, 1}, {tonumber(C.lsa_pool_held_cells(a)), tonumber(C.lsa_pool_held_cells(b)),
      tonumber(C.lsa_pool_free_cells(host))})
    check(C.lsa_pool_evict(b, ids {2}, 1))
    check(C.lsa_pool_start(b, ids {8, 9}, 2))
    assert.same({4, 0}, {tonumber(C.lsa_pool_held_cells(b)), tonumber(C.lsa_pool_free_cells(host))})
    C.lsa_pool_free(ffi.gc(b, nil)) -- with two units on their way
    assert.same({1, 4}, {tonumber(C.lsa_pool_held_cells(a)), tonumber(C.lsa_pool_free_cells(host))})
    C.lsa_pool_free(ffi.gc(host, nil))
    assert.is_true(same(record(1, 1, 1), hot_record(a, 1, 1)))
  end)

  it("does not attach to a pool that is no host, or whose cells differ", function()
    local a, host = new_pool(), ffi.new "lsa_pool *[1]"
    assert.equal(C.LSA_ESTATE, C.lsa_pool_attach(a, new_pool()))
    check(C.lsa_pool_new_host(host, new_pool(2)))
    assert.equal(C.LSA_ESHAPE, C.lsa_pool_attach(a, ffi.gc(host[0], C.lsa_pool_free)))
    assert.matches("cells of 1 chunks of 128 %+ 0 bytes, the host's are 2 of 128 %+ 0", ffi.string(C.lsa_error()))
  end)

  for _, unit in ipairs {1, 4, 6} do
    it(("keeps its invariants under random operations, cells of %d chunks"):format(unit), function()
      local seed = 20 + unit
      local random = require("lsa.cycle.rng").new(seed)
      -- One shadow a pool: cold[layer][chunk] = version, which no other write has; has[unit] = true.
      -- shared: its cells are the host's.
      local pools, host, writes = {{c = new_pool(unit), cold = {}, has = {}, used = 0, chunks = 0}}, ffi.new "lsa_pool *[1]", 0
      check(C.lsa_pool_new_host(host, pools[1].c))
      host = ffi.gc(host[0], C.lsa_pool_free)
      local operations = {}

      local function used(p) return p.used end
      local function set_has(p, u, value)
        if (p.has[u] == true) ~= (value == true) then p.used = p.used + (value and 1 or -1) end
        p.has[u] = value
      end
      local function version(p, layer, chunk) return p.cold[chunk * LAYERS + layer] end

      -- Reports of the operation under way, so that a failure can be replayed from the seed.
      local function fits(condition, what, ...)
        if not condition then error(("seed %d: "):format(seed) .. what:format(...), 2) end
      end

      local function check_chunk(p, chunk)
        for layer = 0, LAYERS - 1 do
          local v = version(p, layer, chunk)
          local expected = record(layer, chunk, v)
          fits(same(expected, read(p.c, layer, chunk)), "chunk %d of layer %d reads other bytes", chunk, layer)
          local hot = hot_record(p.c, layer, chunk)
          fits((hot ~= nil) == (p.has[math.floor(chunk / unit)] == true), "residency of chunk %d", chunk)
          if hot then fits(same(expected, hot), "chunk %d of layer %d has other bytes in its cell", chunk, layer) end
        end
      end

      -- Cells in use in p's hot tier.
      local function in_use(p)
        local all = 0
        for _, q in ipairs(pools) do
          if q == p or (p.shared and q.shared) then all = all + used(q) end
        end
        return all
      end

      local function check_counts(p)
        local all = in_use(p)
        fits(tonumber(C.lsa_pool_held_cells(p.c)) == used(p), "%d cells are its own, %d units have one",
          tonumber(C.lsa_pool_held_cells(p.c)), used(p))
        fits(tonumber(C.lsa_pool_cells(p.c) - C.lsa_pool_free_cells(p.c)) == all, "cells leak: %d in use, %d units have one",
          tonumber(C.lsa_pool_cells(p.c) - C.lsa_pool_free_cells(p.c)), all)
      end

      local function new_version()
        writes = writes + 1
        return writes
      end

      function operations.attach(p)
        if p.shared and random(4) > 0 then return end
        check(C.lsa_pool_attach(p.c, host))
        if not p.shared then p.has, p.used = {}, 0 end
        p.shared = true
      end

      function operations.grow(p)
        local chunks = p.chunks + random(8)
        if C.lsa_pool_resize(p.c, chunks) == 0 then p.chunks = chunks end
      end
      function operations.cut(p)
        local chunks = math.max(0, p.chunks - random(6))
        if C.lsa_pool_resize(p.c, chunks) ~= 0 then return end
        for chunk = chunks, p.chunks - 1 do
          for layer = 0, LAYERS - 1 do p.cold[chunk * LAYERS + layer] = nil end
        end
        p.chunks = chunks
        for u in pairs(p.has) do
          if u >= math.ceil(chunks / unit) then set_has(p, u, nil) end
        end
      end
      function operations.write(p)
        if p.chunks == 0 then return end
        local chunk, layer, v = random(p.chunks), random(LAYERS), new_version()
        if C.lsa_pool_write(p.c, layer, id(chunk), 1, record(layer, chunk, v)) == 0 then
          p.cold[chunk * LAYERS + layer] = v
          set_has(p, math.floor(chunk / unit), nil)
        end
      end
      function operations.publish(p)
        if p.chunks == 0 then return end
        local chunk, layer, v = random(p.chunks), random(LAYERS), new_version()
        if C.lsa_pool_publish(p.c, layer, chunk, record(layer, chunk, v)) == 0 then p.cold[chunk * LAYERS + layer] = v end
      end
      function operations.adopt(p)
        if p.chunks == 0 then return end
        local chunk = random(p.chunks)
        local possible = p.has[math.floor(chunk / unit)] or C.lsa_pool_free_cells(p.c) > 0
        local rc = C.lsa_pool_adopt(p.c, chunk)
        if rc == 0 then set_has(p, math.floor(chunk / unit), true)
        else fits(rc == C.LSA_ENOMEM or not possible, "adopt refused with free cells") end
      end
      function operations.cells(p)
        local n = random(p.shared and 60 or 24)
        if C.lsa_pool_set_cells(p.c, n) ~= 0 then fits(n < in_use(p) or n > 0, "cells refused") end
      end
      function operations.fetch(p)
        local units, list = math.ceil(p.chunks / unit), {}
        for u = 0, units - 1 do
          if not p.has[u] and random(6) == 0 and #list < tonumber(C.lsa_pool_free_cells(p.c)) then list[#list + 1] = u end
        end
        if C.lsa_pool_fetch(p.c, ids(list), #list) == 0 then
          for _, u in ipairs(list) do set_has(p, u, true) end
        end
      end
      function operations.evict(p)
        local list = {}
        for u in pairs(p.has) do
          if random(3) == 0 then list[#list + 1] = u end
        end
        check(C.lsa_pool_evict(p.c, ids(list), #list))
        for _, u in ipairs(list) do set_has(p, u, nil) end
      end
      function operations.fork(p)
        if #pools >= 4 then return end
        local out = ffi.new "lsa_pool *[1]"
        if C.lsa_pool_fork(out, p.c) ~= 0 then return end
        local copy = {c = ffi.gc(out[0], C.lsa_pool_free), cold = {}, has = {}, used = p.used, chunks = p.chunks}
        for k, v in pairs(p.cold) do copy.cold[k] = v end
        for k, v in pairs(p.has) do copy.has[k] = v end
        pools[#pools + 1] = copy
      end
      function operations.free(_, at)
        if #pools == 1 then return end
        C.lsa_pool_free(ffi.gc(pools[at].c, nil))
        table.remove(pools, at)
      end

      local names = {}
      for name in pairs(operations) do names[#names + 1] = name end
      table.sort(names)
      for step = 1, math.floor(OPERATIONS / 3) do
        local at = 1 + random(#pools)
        local p = pools[at]
        local name = names[1 + random(#names)]
        if (name == "fork" or name == "free" or name == "attach") and random(20) > 0 then name = "write" end
        if random(50) == 0 then C.lsa_memory_fail_after(random(3)) end -- out of memory somewhere in it
        operations[name](p, at)
        C.lsa_memory_fail_after(-1)
        p = pools[math.min(at, #pools)]
        check_counts(p)
        if p.chunks > 0 then check_chunk(p, random(p.chunks)) end
        if step % 4096 == 0 then
          for _, q in ipairs(pools) do
            for chunk = 0, q.chunks - 1 do check_chunk(q, chunk) end
          end
        end
      end
    end)
  end
end)
