-- Owns a hot tier that several requests share: one arena of cells, one eviction object, one reserve.
--
--   commons = commons.new(pool, "lru", cells)   pool: a C pool whose dimensions the requests' pools have
--                                               cells: their fixed number, or nil: as many as are promised
--   share = commons:join(pool, owner, need)     a request's part of it, which serves its loop as a tier of its own does
--                                               need: {units =, cells =, longest =}, units it can have, cells promised, steps
--                                               between cycles that these are for
--   share:leave()                               its ids are forgotten; its cells are free once its pool is (s:close does both)
--
-- The eviction object knows a unit by an id that no unit of another request has: each share has a range of ids. Who may leave
-- are the idle units: present, and not in their request's resident set. At every moment the cells that are not idle and those
-- that requests were promised for chunks to be born are no more than the quotas, whose sum the arena has; so room for a
-- request's set is found without touching what another request uses. A request on demand has all its cells promised at once, and
-- evicts among its own (core/pool/on_demand.c): the eviction object does not know them.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local evictions = require "lsa.cycle.eviction_objects"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local ranges = require "lsa.serve.id_ranges"
local registry = require "lsa.registry"
local set = require "lsa.tensor.set"
local tier = require "lsa.cycle.hot_tier"

local C = lib.C

local Commons = {}
Commons.__index = Commons

local Share = setmetatable({}, {__index = tier.class})
Share.__index = Share

local M = {}

local check = raise.check

function M.new(like, evict, cells)
  local self = setmetatable({host = ownership.take(C.lsa_pool_free, "lsa_pool", C.lsa_pool_new_host, like), evict = evict, fixed = cells, promised = 0,
    members = {}, ranges = ranges.new(), idle = set.new(0)}, Commons)
  if cells then raise.check(C.lsa_pool_set_cells(self.host, cells)) end
  self.policy, self.entry = evictions.new(evict, math.max(1, cells or 1))
  return self
end

function Commons:cells() return tonumber(C.lsa_pool_cells(self.host)) end
function Commons:free() return tonumber(C.lsa_pool_free_cells(self.host)) end

-- Units that may leave: the reserve.
function Commons:reserve() return self.idle:count() end

-- Cells that a promise of `more` would make of the arena, where their number is not fixed.
function Commons:cells_with(more)
  return self.fixed or math.max(self:cells(), self.promised + more)
end

-- Where the number of cells is not fixed, as many as are promised, and no fewer than those up to the last one in use.
local function fit_cells(self)
  if self.fixed then return end
  local used = self:cells() - self:free()
  check(C.lsa_pool_set_cells(self.host, math.max(used, self.promised)))
  evictions.resize(self.policy, math.max(1, self:cells()))
end

-- A new eviction object that knows what is present. `stale` until that is done: memory can run out.
function Commons:rebuild()
  self.stale = true
  self.policy = evictions.make(self.entry, math.max(1, self:cells()))
  for _, member in ipairs(self.members) do
    if not member.on_demand then -- whose units leave by their own order
      member.known = member:present()
      for unit in member.known:each() do
        if unit < member.size then self.policy:insert(member.base + unit) end
      end
    end
  end
  self.stale = false
end

-- The share that an id belongs to.
local function owner_of(self, id)
  for _, member in ipairs(self.members) do
    if id >= member.base and id < member.base + member.size then return member end
  end
end

-- Writes a share's part of a set over all ids.
local function put_range(all, share, units)
  local to = all.c.bits + share.base / 64
  ffi.fill(to, share.size / 8)
  if units then ffi.copy(to, units.c.bits, math.ceil(units:size() / 64) * 8) end
end

-- Cells that must stay free for chunks that other requests than `share` were promised.
local function outstanding(self, share)
  local total = 0
  for _, member in ipairs(self.members) do
    if member ~= share then total = total + member:outstanding() end
  end
  return total
end

function Commons:join(pool, owner, need)
  local known = set.new(0)
  local base, size = self.ranges:take(need.units)
  local quota = need.cells
  self.promised = self.promised + quota
  local ok, problem = pcall(function()
    check(C.lsa_pool_attach(pool, self.host))
    fit_cells(self)
    if self.ranges:span() > self.idle:size() then self.idle = self.idle:resize(self.ranges:span()) end
  end)
  if not ok then
    self.promised, self.stale = self.promised - quota, true
    self.ranges:give(base)
    error(problem, 0)
  end
  local share = setmetatable({c = pool, owner = owner, commons = self, evict = self.evict, fixed = quota, idle = 0, promise = 0,
    known = known, base = base, size = size, longest = need.longest}, Share)
  self.members[#self.members + 1] = share
  return share
end

-- After the pools of those who left are free: fewer cells where their number is not fixed. Cells too many harm nobody.
function Commons:settle()
  self.stale = not pcall(fit_cells, self) or self.stale
end

function Commons:close()
  ownership.free(C.lsa_pool_free, self.host)
  self.host = nil
end

---- a request's share ----

-- As many as it was promised.
function Share:cells() return self.fixed end

-- Cells promised for what is to be born, or is missed on demand, that are not taken yet.
function Share:outstanding()
  return math.max(0, self.promise - (tonumber(C.lsa_pool_held_cells(self.c)) - self.idle))
end

-- The page that the next chunk goes to, where it is begun: it holds a cell whether it is resident or not.
local function begun_page(self, present)
  local unit, chunks = tonumber(C.lsa_pool_unit(self.c)), tonumber(C.lsa_pool_chunks(self.c))
  local page = math.floor(chunks / unit)
  return chunks % unit ~= 0 and present:has(page) and page or nil
end

local function tell_new(self, present)
  local policy, base = self.commons.policy, self.base
  for unit in present:minus(self.known:resize(present:size())):each() do policy:insert(base + unit) end
  self.known = present
end

-- Decides, without moving anything: what to load, who leaves (ids), who is idle then, and what its request has then. No set is
-- made from here on, so that memory can run out in the transfer alone.
local function plan(self, wanted, spare, present)
  local commons, base = self.commons, self.base
  local policy, allowed, own = commons.policy, commons.idle:copy(), present:minus(wanted)
  local begun = begun_page(self, present)
  if begun and own:has(begun) then
    own:remove(begun)
    spare = spare - 1 -- which has a cell for it
  end
  put_range(allowed, self, own)
  local free = commons:free() - spare - outstanding(commons, self)
  local out = {loads = ffi.new("int32_t[?]", math.max(1, wanted:count())), n = 0, leavers = {}, hits = 0, idle = allowed,
    own = own:count(), known = present:union(wanted)}
  local function make_room(incoming)
    out.leavers[#out.leavers + 1] = tier.choose_victim(commons, allowed, incoming)
    free = free + 1
  end
  for unit in wanted:each() do
    if present:has(unit) then
      out.hits = out.hits + 1
      policy:hit(base + unit)
    else
      while free < 1 do make_room(base + unit) end
      free = free - 1
      out.loads[out.n] = unit
      out.n = out.n + 1
      policy:insert(base + unit)
    end
  end
  while free < 0 do make_room() end
  return out
end

-- Takes the cells of the units that leave from their pools.
local function evict(self, share, planned)
  share.known, share.idle = planned.known, planned.own
  local lists = {}
  for _, id in ipairs(planned.leavers) do
    local member = owner_of(self, id)
    lists[member] = lists[member] or {}
    table.insert(lists[member], id - member.base)
  end
  for member, list in pairs(lists) do
    check(C.lsa_pool_evict(member.c, ffi.new("int32_t[?]", #list, list), #list))
    for _, unit in ipairs(list) do member.known:remove(unit) end
    member.idle = member.idle - #list
  end
  self.idle = planned.idle
end

local function apply(self, wanted, spare)
  local commons, present = self.commons, self:present()
  if present:size() > self.size then
    raise("the request was announced with %d units at most, and has %d", self.size, present:size())
  end
  if commons.stale then commons:rebuild() end
  local ok, planned = registry.protected(commons.entry.source, function()
    tell_new(self, present)
    self:check_fit(wanted, spare, "the request's share of the hot pool is")
    return plan(self, wanted, spare, present)
  end)
  if not ok then
    commons:rebuild()
    error(planned, 0)
  end
  local last = tonumber(C.lsa_pool_units(self.c)) - 1
  local has_last = last >= 0 and wanted:has(last) and present:has(last)
  evict(commons, self, planned)
  local rc = C.lsa_pool_fetch(self.c, planned.loads, planned.n)
  if rc < 0 then
    local message = ffi.string(C.lsa_error())
    put_range(commons.idle, self) -- the set in force has lost chunks, and is to be fetched again
    self.idle = 0
    commons:rebuild()
    raise(message)
  end
  self.promise = wanted:count() + spare
  return tier.chunks(self.c, planned.hits, has_last)
end

-- f(...), in which the eviction policy is asked; meanwhile no session that shares it may change (Session's idle()).
local function asking(commons, f, ...)
  local outer = commons.under_way
  commons.under_way = "the eviction policy's turn"
  local ok, answer = pcall(f, ...)
  commons.under_way = outer
  return ok, answer
end

-- As Tier:apply: makes `wanted` present, or errors before anything moves and the eviction object is made anew.
function Share:apply(wanted, spare)
  local ok, hits = asking(self.commons, apply, self, wanted, spare)
  if not ok then error(hits, 0) end
  return hits
end

-- Gives the promise and the ids back; the reserve has nothing of it from here on.
function Share:leave()
  local commons = self.commons
  if not self.base then return end
  for i, member in ipairs(commons.members) do
    if member == self then table.remove(commons.members, i) end
  end
  put_range(commons.idle, self)
  commons.ranges:give(self.base)
  local ok = asking(commons, function()
    for unit in self.known:each() do commons.policy:remove(self.base + unit) end
  end)
  commons.promised, self.base = commons.promised - self.fixed, nil
  if not ok then commons.stale = true end
end

-- Nothing is fetched ahead: what is on its way would be neither idle nor within the quota.
function Share.start() end
function Share.finish() end

function Share:refresh()
  if self.commons.entry:refresh() then self.commons.stale = true end
end

-- A fork's tier is its own, with cells for what is to be born until its next cycle.
function Share:fork(c, owner, other, cells)
  raise.check(C.lsa_pool_set_cells(c, C.lsa_pool_cells(c) + self:outstanding()))
  local fork = tier.on_fork(c, owner, other or self.evict, cells)
  if not other then fork.rebuilt = "the batch's eviction object stays with it, so the fork's was made anew from what was present" end
  return fork
end

return M
