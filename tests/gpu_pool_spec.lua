-- Pools of a GPU: records come to cells from memory and from disk, gathered or packed, at once and in the background; a call that
-- fails on the way loses nothing. Without a GPU, on a stub (tests/stub_support.lua).
local ffi = require "ffi"
local lib = require "lsa.ffi"
local files = require "file_support"
local stub = require "stub_support"

local C = lib.C

if C.lsa_device_count() == 0 then
  describe("a pool of a GPU", function()
    it("is right on a stub", function() assert.is_nil(stub.failure_of "gpu_pool_spec.lua") end)
  end)
  return
end

local LAYERS, RECORD = 3, 36
local WAYS = {gather = C.LSA_TRANSFER_GATHER, pack = C.LSA_TRANSFER_PACK}

local function byte_of(layer, chunk, at) return (chunk * 31 + layer * 7 + at * 3) % 251 end

local function ok(rc) if rc < 0 then error(ffi.string(C.lsa_error()), 2) end end

-- A pool of `chunks` chunks with known bytes, and so many cells; unit: chunks a cell. directory: where it has a disk.
local function new_pool(chunks, cells, unit, directory)
  local box = ffi.new "lsa_pool *[1]"
  ok(C.lsa_pool_new(box, LAYERS, RECORD, unit))
  local pool = ffi.gc(box[0], C.lsa_pool_free)
  ok(C.lsa_pool_set_gpu(pool))
  if directory then ok(C.lsa_pool_set_disk(pool, directory, nil)) end
  ok(C.lsa_pool_resize(pool, chunks))
  local ids, records = ffi.new("int32_t[?]", chunks), ffi.new("uint8_t[?]", chunks * RECORD)
  for i = 0, chunks - 1 do ids[i] = i end
  for layer = 0, LAYERS - 1 do
    for i = 0, chunks - 1 do
      for at = 0, RECORD - 1 do records[i * RECORD + at] = byte_of(layer, i, at) end
    end
    ok(C.lsa_pool_write(pool, layer, ids, chunks, records))
  end
  ok(C.lsa_pool_set_cells(pool, cells))
  return pool
end

local function list(units)
  return ffi.new("int32_t[?]", #units, units), #units
end

-- That cells have their chunks' records, as attention would read them.
local function check_cells(pool, units, unit)
  local got = ffi.new("uint8_t[?]", RECORD)
  for _, u in ipairs(units) do
    assert.equal(1, C.lsa_pool_has(pool, u))
    for chunk = u * unit, math.min((u + 1) * unit, tonumber(C.lsa_pool_chunks(pool))) - 1 do
      for layer = 0, LAYERS - 1 do
        ok(C.lsa_pool_read(pool, layer, ffi.new("int32_t[1]", chunk), 1, got))
        for at = 0, RECORD - 1 do assert.equal(byte_of(layer, chunk, at), got[at]) end
      end
    end
  end
end

local function some(n, step, from)
  local units = {}
  for i = 0, n - 1 do units[i + 1] = (from or 0) + i * step end
  return units
end

local function choose(way)
  for beside = 0, 1 do C.lsa_transfer_choose(beside, way) end
end

describe("a pool of a GPU", function()
  for name, way in pairs(WAYS) do
    it("has records in its cells: " .. name, function()
      choose(way)
      for unit = 1, 5, 4 do
        local pool = new_pool(1403, 70, unit)
        local first, second = some(40, 7), some(30, 6, 3)
        ok(C.lsa_pool_fetch(pool, list(first)))
        check_cells(pool, first, unit)
        ok(C.lsa_pool_evict(pool, list(first)))
        local last = math.floor(1402 / unit)
        second[#second + 1] = last -- which may be a page with fewer chunks
        ok(C.lsa_pool_start(pool, list(second)))
        ok(C.lsa_pool_set_cells(pool, 200)) -- the tables move
        ok(C.lsa_pool_finish(pool))
        check_cells(pool, second, unit)
        local counters = ffi.new "lsa_pool_counters[1]"
        C.lsa_pool_count(pool, counters)
        assert.equal(2, tonumber(counters[0].fetches))
        assert.is_true(counters[0].transfer_ns >= 0 and counters[0].stall_ns >= 0)
      end
    end)

    it("has them from disk, too: " .. name, function()
      choose(way)
      files.with_folder(function(folder)
        local pool = new_pool(3 * 1024 + 17, 400, 1, folder)
        ok(C.lsa_pool_spill(pool))
        assert.equal(1, C.lsa_pool_spilled(pool))
        local first, second = some(300, 10), some(90, 30, 5)
        ok(C.lsa_pool_fetch(pool, list(first)))
        check_cells(pool, first, 1)
        local box = ffi.new "lsa_pool *[1]"
        ok(C.lsa_pool_fork(box, pool))
        local fork = ffi.gc(box[0], C.lsa_pool_free)
        ok(C.lsa_pool_start(fork, list(second)))
        ok(C.lsa_pool_evict(pool, list(first)))
        ok(C.lsa_pool_finish(fork))
        check_cells(fork, second, 1)
        check_cells(fork, first, 1)
        ok(C.lsa_pool_load(pool))
        ok(C.lsa_pool_fetch(pool, list(second)))
        check_cells(pool, second, 1)
      end)
    end)

    it("loses nothing by a call that fails: " .. name, function()
      choose(way)
      local pool, wanted = new_pool(600, 40, 1), some(20, 29)
      local function attempt(at, f)
        C.lsa_device_fail_after(at)
        local rc = f()
        C.lsa_device_fail_after(-1)
        return rc
      end
      local function fetch() return C.lsa_pool_fetch(pool, list(wanted)) end
      local function beside()
        local rc = C.lsa_pool_start(pool, list(wanted))
        local finished = C.lsa_pool_finish(pool)
        return rc < 0 and rc or finished
      end
      for _, f in ipairs {fetch, beside} do
        local at = 0
        while attempt(at, f) < 0 do
          assert.matches("refused, as a test asked for", ffi.string(C.lsa_error()))
          assert.equal(0, tonumber(C.lsa_pool_held_cells(pool)))
          assert.equal(40, tonumber(C.lsa_pool_free_cells(pool)))
          at = at + 1
          assert.is_true(at < 100)
        end
        assert.is_true(at > 0)
        check_cells(pool, wanted, 1)
        ok(C.lsa_pool_evict(pool, list(wanted)))
      end
    end)
  end

  it("is measured once by each mode, and then goes the way that served it better", function()
    choose(C.LSA_TRANSFER_UNKNOWN)
    local pool, wanted, mode = new_pool(600, 40, 1), some(20, 29), ffi.new "lsa_transfer_mode[1]"
    ok(C.lsa_pool_fetch(pool, list(wanted)))
    C.lsa_transfer_mode_of(mode, 0)
    assert.is_true(mode[0].gather_rate > 0 and mode[0].pack_rate > 0)
    assert.equal(mode[0].pack_rate > mode[0].gather_rate and C.LSA_TRANSFER_PACK or C.LSA_TRANSFER_GATHER, mode[0].way)
    local rate = mode[0].gather_rate
    C.lsa_transfer_mode_of(mode, 1)
    assert.equal(C.LSA_TRANSFER_UNKNOWN, mode[0].way)
    ok(C.lsa_pool_evict(pool, list(wanted)))
    ok(C.lsa_pool_start(pool, list(wanted)))
    ok(C.lsa_pool_finish(pool))
    check_cells(pool, wanted, 1)
    C.lsa_transfer_mode_of(mode, 1)
    assert.is_true(mode[0].way ~= C.LSA_TRANSFER_UNKNOWN and mode[0].gather_cost >= 0 and mode[0].pack_cost >= 0)
    C.lsa_transfer_mode_of(mode, 0)
    assert.equal(rate, mode[0].gather_rate)
  end)
end)
