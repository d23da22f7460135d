-- Transfers in the background: what arrives, what does not, and what a session sees of them.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local long = require "long_support"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local support = require "file_support"
local C, check = lib.C, require("lsa.raise").check

local RECORD = 16

local function ids(list) return ffi.new("int32_t[?]", math.max(1, #list), list) end

local function new_pool(chunks, cells, unit, folder)
  local out = ffi.new "lsa_pool *[1]"
  check(C.lsa_pool_new(out, 1, RECORD, unit or 1))
  local pool = ffi.gc(out[0], C.lsa_pool_free)
  if folder then check(C.lsa_pool_set_disk(pool, folder, nil)) end
  check(C.lsa_pool_resize(pool, chunks))
  check(C.lsa_pool_set_cells(pool, cells))
  for chunk = 0, chunks - 1 do
    check(C.lsa_pool_write(pool, 0, ids {chunk}, 1, ("%08d........"):format(chunk)))
  end
  return pool
end

-- What lies in a chunk's cell, or nil.
local function in_cell(pool, chunk)
  local slot = ffi.new "int32_t[1]"
  C.lsa_pool_slots(pool, ids {chunk}, 1, slot)
  if slot[0] < 0 then return nil end
  local r = C.lsa_pool_hot_records(pool, 0, 0)
  local block, mask = bit.rshift(slot[0], r.block_shift), bit.lshift(1, r.block_shift) - 1
  return ffi.string(r.blocks[block] + bit.band(slot[0], mask) * r.stride, RECORD)
end

local function counters(pool)
  local out = ffi.new "lsa_pool_counters"
  C.lsa_pool_count(pool, out)
  return out
end

describe("a transfer in the background", function()
  it("takes cells at its start and publishes at its finish", function()
    support.with_folder(function(folder)
      for _, disk in ipairs {false, folder} do
        local pool = new_pool(3000, 6, 1, disk)
        check(C.lsa_pool_spill(pool))
        check(C.lsa_pool_fetch(pool, ids {7}, 1))
        check(C.lsa_pool_start(pool, ids {5, 8, 2999}, 3))
        assert.equal(1, C.lsa_pool_under_way(pool))
        assert.equal(2, tonumber(C.lsa_pool_free_cells(pool)))
        assert.equal(0, C.lsa_pool_has(pool, 5))
        assert.equal(1, tonumber(C.lsa_pool_present(pool, ffi.new "int32_t[6]")))
        assert.equal(C.LSA_ESTATE, C.lsa_pool_start(pool, ids {9}, 1))
        check(C.lsa_pool_fetch(pool, ids {6}, 1)) -- others come and go meanwhile
        check(C.lsa_pool_evict(pool, ids {7}, 1))
        check(C.lsa_pool_finish(pool))
        for _, chunk in ipairs {5, 6, 8, 2999} do assert.equal(("%08d........"):format(chunk), in_cell(pool, chunk)) end
        assert.equal(2, tonumber(C.lsa_pool_free_cells(pool)))
        local c = counters(pool)
        assert.same({5, 5 * RECORD}, {tonumber(c.fetched_chunks), tonumber(c.fetched_bytes)})
        assert.is_true(c.transfer_ns > 0 and c.stall_ns > 0)
        check(C.lsa_pool_finish(pool)) -- none is under way
      end
    end)
  end)

  it("does not bring what changes meanwhile, nor what is there by then", function()
    local pool = new_pool(40, 20, 4)
    check(C.lsa_pool_start(pool, ids {0, 1, 2, 3, 9}, 5))
    check(C.lsa_pool_write(pool, 0, ids {5}, 1, ("x"):rep(RECORD)))   -- page 1
    check(C.lsa_pool_publish(pool, 0, 8, ("y"):rep(RECORD)))         -- page 2
    check(C.lsa_pool_fetch(pool, ids {3}, 1))
    check(C.lsa_pool_resize(pool, 38))                                -- page 9
    check(C.lsa_pool_finish(pool))
    local has = {}
    for u = 0, 9 do has[#has + 1] = C.lsa_pool_has(pool, u) end
    assert.same({1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, has)
    assert.equal(18, tonumber(C.lsa_pool_free_cells(pool)))
    assert.equal("00000013........", in_cell(pool, 13))
  end)

  it("is not the fork's, and does not disturb it", function()
    local pool = new_pool(40, 8)
    check(C.lsa_pool_fetch(pool, ids {1}, 1))
    check(C.lsa_pool_start(pool, ids {2, 3}, 2))
    local out = ffi.new "lsa_pool *[1]"
    check(C.lsa_pool_fork(out, pool))
    local fork = ffi.gc(out[0], C.lsa_pool_free)
    assert.same({0, 7, 5}, {C.lsa_pool_under_way(fork), tonumber(C.lsa_pool_free_cells(fork)), tonumber(C.lsa_pool_free_cells(pool))})
    check(C.lsa_pool_fetch(fork, ids {10, 11, 12, 13, 14, 15, 16}, 7))
    check(C.lsa_pool_finish(pool))
    assert.equal("00000002........", in_cell(pool, 2))
    assert.equal("00000003........", in_cell(pool, 3))
    assert.equal("00000010........", in_cell(fork, 10))
    assert.equal(0, C.lsa_pool_has(fork, 2))
  end)

  it("that fails says why at its finish, and leaves the cells free", function()
    support.with_folder(function(folder)
      local pool = new_pool(2048, 4, 1, folder)
      check(C.lsa_pool_spill(pool))
      check(C.lsa_pool_fetch(pool, ids {0}, 1))
      C.lsa_io_fail_after(0)
      check(C.lsa_pool_start(pool, ids {1, 2}, 2))
      local rc = C.lsa_pool_finish(pool)
      C.lsa_io_fail_after(-1)
      assert.equal(C.LSA_EIO, rc)
      assert.matches("cannot be read: Input/output error", ffi.string(C.lsa_error()))
      assert.same({3, 0, 1}, {tonumber(C.lsa_pool_free_cells(pool)), C.lsa_pool_has(pool, 1), C.lsa_pool_has(pool, 0)})
      check(C.lsa_pool_start(pool, ids {1, 2}, 2))
      check(C.lsa_pool_finish(pool))
      assert.equal(1, C.lsa_pool_has(pool, 2))
    end)
  end)

  it("ends with its pool", function()
    for _ = 1, 50 do
      local pool = new_pool(64, 32)
      check(C.lsa_pool_start(pool, ids {1, 2, 3, 5, 8, 13, 21}, 7))
      C.lsa_pool_free(ffi.gc(pool, nil))
    end
  end)
end)

describe("an asynchronous session", function()
  local N = 9000

  -- Runs f with the registry's warnings collected.
  local function quiet(f)
    local said, warn = {}, registry.warn
    registry.warn = function(text) said[#said + 1] = text end
    local ok, e = pcall(f, said)
    registry.warn = warn
    assert(ok, e)
  end

  local function run(s, n, m)
    local random = rng.new(4)
    s:prefill(long.tokens(s.model, n, random))
    local out = {}
    for i = 1, m do out[i] = long.bytes(s:decode(random(64))) end
    return out
  end

  it("decodes the same bits from disk as in memory, with transfers under way or not", function()
    long.with_model("flash", function(model, folder)
      for _, case in ipairs {{}, {hot = 700, evict = "sieve"}, {hot = 1200}, {granularity = "page", page = 16}} do
        local function session(cold)
          local opt = {select = {"random"}, budget = 0.2, every = 8, async = true, cold = cold}
          for name, value in pairs(case) do opt[name] = value end
          return model:session(opt)
        end
        local a, b = session("disk:" .. folder), session "ram"
        local x, y = run(a, N, 60), run(b, N, 60)
        for i = 1, 60 do assert.is_true(x[i] == y[i], "step " .. i) end
        local p, q = a:stats(), b:stats()
        assert.same({q.fetched_chunks, q.evicted_chunks, q.hits}, {p.fetched_chunks, p.evicted_chunks, p.hits})
        assert.is_true(p.transfer_ms > 0 and p.transfer_stall_ms > 0)
      end
    end)
  end)

  it("brings a set while decode runs, so that applying it fetches nothing more", function()
    long.with_model("csa", function(model)
      local s = model:session{tail = 0, budget = 100, every = 8, async = true, select = function(cycle)
        local out = {}
        for i = 1, 50 do out[i] = (cycle.number * 101 + i * 7) % 2000 end
        return out
      end}
      run(s, N, 9) -- cycle 1 starts to bring its set; it applies that of cycle 0, which was applied at once
      local rows = s:cycles()
      assert.equal(1, C.lsa_pool_under_way(s.pool))
      assert.same({50, 0, 0, 50}, {rows[1].fetched_chunks, rows[1].hits, rows[2].fetched_chunks, rows[2].hits - 2})
      for _ = 1, 8 do s:decode(1) end -- cycle 2 applies what cycle 1 chose, and two chunks that were born since
      assert.same({50, 2}, {rows[3].fetched_chunks, rows[3].hits})
      assert.equal(52, rows[3].resident)
    end)
  end)

  it("keeps the previous set when a background read fails, says so at the next cycle, and goes on", function()
    long.with_model("csa", function(model, folder)
      quiet(function(said)
        local s = model:session{tail = 0, budget = 100, every = 4, async = true, cold = "disk:" .. folder,
          select = function(cycle) return {cycle.number == 2 and 1500 or cycle.number * 10, 500} end}
        run(s, N, 5)
        assert.same({0, 500, 2250}, s:resident():ids():totable())
        long.damage(folder, 1024 * 64, 65536) -- chunks 1024 to 2047
        for _ = 1, 4 do s:decode(1) end -- cycle 2 applies {10, 500} and starts to fetch {1500, 500}
        assert.same({10, 500, 2251}, s:resident():ids():totable())
        for _ = 1, 4 do s:decode(1) end
        assert.matches("chunk 1500 is damaged: its checksum differs; the previous set stays in force", said[1])
        assert.same({10, 500, 2251, 2252}, s:resident():ids():totable())
        for _ = 1, 4 do s:decode(1) end
        assert.same({30, 500, 2253}, s:resident():ids():totable())
      end)
    end)
  end)
end)
