-- Owns pools as scripts see them: two tiers of chunk records, without a model.
--
--   pool = lsa.pool{layers = 21, record = 584, chunks = 262144, hot = "64 MiB", cold = "ram", evict = "lru"}
--   pool:write(layer, ids, bytes)       bytes: u8 tensor [#ids, record]
--   pool:read(layer, ids) -> u8 tensor  from the hot tier where the chunk is there
--   pool:fetch(set)                     makes the chunks of the set present; the eviction policy says who leaves for them
--   pool:start(set, kept) pool:finish()     the same in the background
--   pool:evict(set)                     lets the chunks of the set go
--   pool:spill() pool:load()            cold = "disk:DIR": what is written stays in memory until the first fetch, or spill
--   pool:resident() -> set   pool:stats() -> table   pool:fork()   pool:close()
--
-- hot: bytes ("64 MiB") or chunks; without it, as many cells as the largest set fetched needs.
local ffi = require "ffi"
local interrupts = require "lsa.interrupts"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local stats = require "lsa.session.stats"
local tensor = require "lsa.tensor.tensor"
local tier = require "lsa.cycle.hot_tier"

local C = lib.C

local Pool = {}
Pool.__index = Pool

local M = {}

local defaults = {layers = 1, record = false, chunks = 0, hot = false, cold = "ram", evict = "lru"}

M.defaults = defaults

function M.new(opt)
  opt = options.check(opt, defaults, "lsa.pool")
  if not opt.record then raise "lsa.pool: record is missing; it is the bytes of one layer's record" end
  for name, least in pairs {layers = 0, record = 1, chunks = 0} do options.whole(opt[name], least, "lsa.pool: " .. name) end
  local directory = options.cold(opt.cold, "lsa.pool: cold")
  local self = setmetatable({c = ownership.take(C.lsa_pool_free, "lsa_pool", C.lsa_pool_new, opt.layers, opt.record, 1), opt = opt}, Pool)
  if directory then raise.check(C.lsa_pool_set_disk(self.c, directory, nil)) end
  raise.check(C.lsa_pool_resize(self.c, opt.chunks))
  local cells
  if opt.hot then
    local amount, plain = options.bytes(opt.hot, "lsa.pool: hot")
    cells = math.floor(plain and amount or amount / (opt.layers * opt.record))
  end
  self.tier = tier.new(self.c, self, opt.evict, cells)
  return self
end

local MOST_ID = 2 ^ 31 - 1

local function open(self)
  if not self.c then raise "the pool is closed" end
end

-- Open, and not in the middle of what calls the eviction policy, which may look at the pool, not change it.
local function idle(self, what)
  if not self.c then raise "the pool is closed" end
  if self.busy then raise("pool: %s: the eviction policy is being asked, which called this", what) end
end

-- Runs f(self.tier, ...), in which the eviction policy is asked.
local function asking(self, f, ...)
  self.busy = true
  local ok, answer = pcall(f, self.tier, ...)
  self.busy = false
  if not ok then error(answer, 0) end
  return answer
end

-- An int32_t array of a set's, list's or tensor's ids, with its length and what keeps it alive.
local function id_array(ids)
  if set.is(ids) then ids = ids:ids() end
  if tensor.is(ids) then
    if ids:dtype() ~= "i32" then raise("pool: ids are a tensor of %s; i32 is wanted", ids:dtype()) end
    ids = ids:to "cpu":contiguous()
    return ffi.cast("const int32_t *", ids.c.data), ids:count(), ids
  end
  if type(ids) ~= "table" then
    raise("pool: ids are a list, an i32 tensor or a set; this is a %s", type(ids))
  end
  for i = 1, #ids do options.whole(ids[i], 0, ("pool: id %d"):format(i - 1), MOST_ID) end
  local array = ffi.new("int32_t[?]", #ids, ids)
  return array, #ids, array
end

function Pool:write(layer, ids, bytes)
  idle(self, "write")
  options.whole(layer, 0, "pool: layer")
  local array, n, keep = id_array(ids)
  if not tensor.is(bytes) or bytes:dtype() ~= "u8" or bytes:count() ~= n * self.opt.record then
    raise("pool: bytes are %s; a u8 tensor [%d, %d] is wanted", tensor.is(bytes) and ("a %s tensor of %d"):format(
      bytes:dtype(), bytes:count()) or "a " .. type(bytes), n, self.opt.record)
  end
  raise.check(C.lsa_pool_write(self.c, layer, array, n, bytes:contiguous().c.data))
  return self, keep
end

function Pool:read(layer, ids)
  open(self)
  options.whole(layer, 0, "pool: layer")
  local array, n = id_array(ids)
  local out = tensor.zeros({n, self.opt.record}, "u8")
  raise.check(C.lsa_pool_read(self.c, layer, array, n, out.c.data))
  return out
end

local function as_set(self, ids)
  if set.is(ids) then return ids end
  return set.new(tonumber(C.lsa_pool_chunks(self.c))):add(ids)
end

-- Returns how many of the set were present already.
function Pool:fetch(ids)
  idle(self, "fetch")
  local wanted = as_set(self, ids)
  local hits = asking(self, function(own)
    own:refresh()
    own:spill()
    return own:apply(wanted, 0)
  end)
  return hits
end

-- With cold = "disk:DIR": whole segments of 1,024 chunks go to the file, from memory. Every fetch does this first.
function Pool:spill()
  idle(self, "spill")
  raise.check(C.lsa_pool_spill(self.c))
  return self
end

-- Everything is in memory again.
function Pool:load()
  idle(self, "load")
  raise.check(C.lsa_pool_load(self.c))
  return self
end

-- The same in two parts: start fetches on a thread of its own what of the set fits, letting go only of chunks that
-- are not in `kept`; finish waits for it. Until then it is absent.
function Pool:start(ids, kept)
  idle(self, "start")
  local wanted, staying = as_set(self, ids), as_set(self, kept or {})
  asking(self, function(own)
    own:spill()
    own:start(wanted, 0, staying)
  end)
  return self
end

function Pool:finish()
  idle(self, "finish")
  asking(self, self.tier.finish)
  return self
end

function Pool:evict(ids)
  idle(self, "evict")
  asking(self, self.tier.drop, (as_set(self, ids)))
  return self
end

function Pool:resident()
  open(self)
  return self.tier:present()
end

-- More chunks (new ones are zero), or fewer.
function Pool:resize(chunks)
  idle(self, "resize")
  options.whole(chunks, 0, "pool: chunks")
  raise.check(C.lsa_pool_resize(self.c, chunks))
  return self
end

function Pool:fork()
  idle(self, "fork")
  C.lsa_pool_write_back(self.c) -- once, for all forks; where it fails, each spills for itself
  local fork = setmetatable({c = ownership.take(C.lsa_pool_free, "lsa_pool", C.lsa_pool_fork, self.c), opt = self.opt}, Pool)
  fork.tier = asking(self, self.tier.fork, fork.c, fork, nil, self.tier.fixed)
  return fork
end

local Stats = {}

function Stats:__tostring()
  return ("pool: %d chunks of %d B, %d of %d cells in use; fetched %d chunks, %s in %.2f ms; evicted %d"):format(self.chunks,
    self.chunk_bytes, self.resident, self.cells, self.fetched_chunks, stats.bytes(self.fetched_bytes), self.transfer_ms,
    self.evicted_chunks)
end

function Pool:stats()
  open(self)
  local moved = self.tier:counters()
  local chunk = self.opt.layers * self.opt.record
  local cells = tonumber(C.lsa_pool_cells(self.c))
  local resident = cells - tonumber(C.lsa_pool_free_cells(self.c))
  return setmetatable({chunks = tonumber(C.lsa_pool_chunks(self.c)), chunk_bytes = chunk, cells = cells, resident = resident,
    resident_bytes = resident * chunk, hot_bytes = tonumber(C.lsa_pool_hot_bytes(self.c)),
    cold_bytes = tonumber(C.lsa_pool_cold_bytes(self.c)), disk_bytes = tonumber(C.lsa_pool_disk_bytes(self.c)), fetched_chunks = tonumber(moved.fetched_chunks),
    fetched_bytes = tonumber(moved.fetched_bytes), evicted_chunks = tonumber(moved.evicted_chunks),
    transfer_ms = tonumber(moved.transfer_ns) / 1e6, stall_ms = tonumber(moved.stall_ns) / 1e6}, Stats)
end

function Pool:close()
  if not self.c then return end
  idle(self, "close")
  ownership.free(C.lsa_pool_free, self.c)
  self.c, self.tier = nil, nil
end

-- Each of these is done whole, or not at all.
for _, name in ipairs {"write", "fetch", "spill", "load", "start", "finish", "evict", "resize", "fork", "close"} do
  Pool[name] = interrupts.method(Pool[name])
end

function Pool:__tostring()
  return self.c and tostring(self:stats()) or "pool (closed)"
end

require("lsa.arity").methods(Pool, "pool:")

return M
