-- Owns the hot tier of a pool: which units (chunks, or pages of chunks) come in and which leave. The transfers are
-- core/pool/pool.c's; who leaves is the eviction policy's. Serves sessions and lsa.pool alike. A hot tier that several pools share
-- is lua/lsa/serve/shared_hot_tier.lua's.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local evictions = require "lsa.cycle.eviction_objects"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local set = require "lsa.tensor.set"

local C = lib.C

local Tier = {}
Tier.__index = Tier

local M = {}

-- What the C library says, without a line: whoever calls knows whose it is.
local check = raise.check

-- On a C pool (kept alive by `owner`). evict: an eviction policy. cells: the fixed number of cells, or nil: as many as
-- the largest set needs, and no reserve.
function M.new(c, owner, evict, cells)
  local self = setmetatable({c = c, owner = owner, evict = evict, fixed = cells}, Tier)
  if cells then raise.check(C.lsa_pool_set_cells(c, cells)) end
  self.policy, self.entry = evictions.new(evict, math.max(1, cells or 1))
  self.made_by = self.entry.fn
  return self
end

local function capacity_of(self) return math.max(1, self.fixed or self:cells()) end

-- The same tier on a fork of the pool. With `evict` or `cells` given, what is present is told to a new object.
function Tier:fork(c, owner, evict, cells)
  if evict or cells ~= self.fixed then return M.on_fork(c, owner, evict or self.evict, cells) end
  local fork = setmetatable({c = c, owner = owner, evict = self.evict, fixed = cells, entry = self.entry, policy = self.policy,
    made_by = self.made_by, known = self.known, arrived = self.arrived, stale = self.stale}, Tier)
  if self.made_by ~= self.entry.fn then
    fork:go_on(nil, "its code has changed")
  else
    local state, problem = self:state()
    if problem then raise("%s", problem) end
    fork:go_on(state)
  end
  return fork
end

-- For go_on() elsewhere: bytes of the eviction object's state. Nil where nothing asks the object, where it has no state() and
-- restore(), and, with why, where its state is no plain data.
function Tier:state()
  if not self.fixed or self.stale then return nil end
  return evictions.save(self.entry, self.policy)
end

-- Another eviction object that goes on as this one does; nil where there is none to be had.
function Tier:copy_of_object()
  if not self.fixed or self.stale or self.made_by ~= self.entry.fn then return nil end
  local ok, object = pcall(evictions.fork, self.entry, self.policy, capacity_of(self))
  return ok and object or nil
end

-- The eviction object goes on from the bytes of state(); without any, it is made anew from what is present. `why` says so in
-- statistics; nil: the object cannot tell its state.
function Tier:go_on(state, why)
  if self.stale or not self.fixed then -- stale: made anew when it is next asked
    self.policy = evictions.make(self.entry, capacity_of(self))
  elseif state then
    self.policy = evictions.load(self.entry, capacity_of(self), state)
  else
    self.rebuilt = ("eviction policy %s: %s, so its object was made anew from what was present"):format(self.entry.name,
      why or "it has no state() and restore()")
    self:rebuild()
  end
  self.made_by = self.entry.fn
end

-- A tier on a pool that has cells: they are told to a new object.
function M.on_fork(c, owner, evict, cells)
  local fork = M.new(c, owner, evict, nil)
  fork.fixed = cells
  if cells and cells > fork:cells() then raise.check(C.lsa_pool_set_cells(c, cells)) end
  fork:rebuild()
  return fork
end

function Tier:cells()
  return tonumber(C.lsa_pool_cells(self.c))
end

-- Units with a cell, as a set.
function Tier:present()
  local units = tonumber(C.lsa_pool_units(self.c))
  local ids = ffi.new("int32_t[?]", math.max(1, tonumber(C.lsa_pool_held_cells(self.c))))
  local n = C.lsa_pool_present(self.c, ids)
  local out = set.new(units)
  raise.check(C.lsa_set_add_ids(out.c, ids, n))
  return out
end

-- A new eviction object that knows what is present, the oldest, whose ids are the lowest, first.
function Tier:rebuild()
  self.stale = true
  local present = self:present()
  self.policy = evictions.rebuild(self.entry, capacity_of(self), present:ids():totable())
  self.known, self.stale, self.made_by = present, false, self.entry.fn
end

-- f(self, ...), which asks the eviction policy; what it raises names the policy's file. The object is stale until the caller
-- has seen to what it was told.
local function ask(self, f, ...)
  self.stale = self.fixed ~= nil
  local ok, answer = registry.protected(self.entry.source, f, self, ...)
  if not ok then error(answer, 0) end
  return answer
end

-- What is present, which the eviction object knows then. While self.stale is set, it may have been told what did not come
-- about, and is made anew by whoever is next.
local function begin(self)
  if self.fixed and self.stale then self:rebuild() end
  local present = self:present()
  if self.fixed then
    ask(self, self.tell_new, present)
    self.stale = false
  end
  return present
end

-- Has the eviction policy of `self`, a tier or commons, name one of the units of `allowed`, which leaves it.
local function choose_victim(self, allowed, incoming)
  local victim = self.policy:victim(allowed, incoming)
  if type(victim) ~= "number" or not allowed:has(victim) then
    raise("eviction policy %s: victim %s is not one of the %d units that may leave", self.entry.name,
      tostring(victim), allowed:count())
  end
  allowed:remove(victim)
  return victim
end
M.choose_victim = choose_victim

-- Cells that are free of the fixed number; fewer than none after a fork that made it smaller.
local function room_of(self)
  return self.fixed - self:cells() + tonumber(C.lsa_pool_free_cells(self.c))
end

-- Of so many units, among them the pool's last one or not, the chunks: what is born may fill a page in part.
function M.chunks(c, units, has_last)
  local unit, chunks = tonumber(C.lsa_pool_unit(c)), tonumber(C.lsa_pool_chunks(c))
  return units * unit - (has_last and unit * tonumber(C.lsa_pool_units(c)) - chunks or 0)
end

-- The ids of `set_of` that are not in `other`, and how many.
local function ids_without(set_of, other)
  local rest = set_of:minus(other)
  local n = rest:count()
  local ids = ffi.new("int32_t[?]", math.max(1, n))
  C.lsa_set_ids(rest.c, ids)
  set.release(rest)
  return ids, n
end

-- Decides, without moving anything: loads (ascending ids, n) and leavers to make `wanted` present with `spare`
-- cells left free. The eviction policy sees the accesses in ascending order.
function Tier:plan(wanted, spare, present)
  if not self.fixed then
    local loads, n = ids_without(wanted, present)
    local leavers, left = ids_without(present, wanted)
    local count = wanted:count()
    local hits = count - n - (self.arrived and self.arrived:intersect_count(wanted) or 0)
    return {loads = loads, n = n, leavers = leavers, left = left, hits = hits, cells = count + spare}
  end
  local policy = self.policy
  local loads, n = ffi.new("int32_t[?]", math.max(1, wanted:count())), 0
  local leavers, left = {}, 0
  local hits = 0
  local free = room_of(self) - spare
  local allowed = present:minus(wanted)
  local function make_room(incoming)
    left = left + 1
    leavers[left] = choose_victim(self, allowed, incoming)
    free = free + 1
  end
  for id in wanted:each() do
    if present:has(id) then
      if not (self.arrived and self.arrived:has(id)) then -- what has arrived is a load, which the policy was told of
        hits = hits + 1
        policy:hit(id)
      end
    else
      while free < 1 do make_room(id) end
      free = free - 1
      loads[n] = id
      n = n + 1
      policy:insert(id)
    end
  end
  while free < 0 do make_room() end
  return {loads = loads, n = n, leavers = ffi.new("int32_t[?]", math.max(1, left), leavers), left = left, hits = hits,
    cells = self.fixed}
end

-- The cold tier goes to its file, where it has one; what the file has already is not written again.
function Tier:spill()
  check(C.lsa_pool_spill(self.c))
end

function Tier:spilled()
  return C.lsa_pool_spilled(self.c) == 1
end

function Tier:check_fit(wanted, spare, whose)
  local n = wanted:count()
  if n + spare <= self.fixed then return end
  raise("the set has %d %s and %d cells must stay free for what is born; %s %d", n,
    tonumber(C.lsa_pool_unit(self.c)) == 1 and "chunks" or "pages", spare, whose, self.fixed)
end

-- Makes `wanted` (a set of units) present. Errors, before anything moves, when it does not fit; when the eviction policy
-- fails, or what it planned does, its object is made anew from what is present. Returns the number of hits, in chunks: what was
-- present, and did not come by a transfer that has just been finished.
function Tier:apply(wanted, spare)
  self:finish()
  local present = begin(self)
  if self.fixed then self:check_fit(wanted, spare, "the hot pool has") end
  local last = tonumber(C.lsa_pool_units(self.c)) - 1
  local has_last = last >= 0 and wanted:has(last) and present:has(last) and not (self.arrived and self.arrived:has(last))
  local plan = ask(self, self.plan, wanted, spare, present)
  if not self.fixed then set.release(present) end -- else it is what the eviction policy knows
  check(C.lsa_pool_evict(self.c, plan.leavers, plan.left))
  if plan.cells > self:cells() or self.fixed then check(C.lsa_pool_set_cells(self.c, plan.cells)) end
  check(C.lsa_pool_fetch(self.c, plan.loads, plan.n))
  self.known, self.arrived = self.fixed and self:present(), nil
  self.stale = false
  return M.chunks(self.c, plan.hits, has_last)
end

-- Decides what a transfer in the background can bring of `wanted`, with `spare` cells left free and nobody of `kept`
-- leaving: loads (ascending ids, n) and leavers.
local function plan_ahead(self, wanted, spare, kept, present)
  local free = self.fixed and room_of(self) - spare or tonumber(C.lsa_pool_free_cells(self.c)) - spare
  local missing = wanted:minus(present)
  local loads, n, leavers, left = ffi.new("int32_t[?]", math.max(1, missing:count())), 0, {}, 0
  local allowed = self.fixed and present:minus(wanted):minus(kept)
  local may_leave = allowed and allowed:count() or 0
  for id in missing:each() do
    if self.fixed and n >= free then
      if left == may_leave then break end
      left = left + 1
      leavers[left] = choose_victim(self, allowed, id)
      free = free + 1
    end
    loads[n] = id
    n = n + 1
  end
  return {loads = loads, n = n, leavers = leavers, left = left, cells = self:cells() + math.max(0, n - free)}
end

-- Starts to bring what of `wanted` fits beside `kept`; Tier:finish has it. Where the number of cells is not fixed, all fits.
function Tier:start(wanted, spare, kept)
  self:finish()
  local plan = ask(self, plan_ahead, wanted, spare, kept, begin(self))
  check(C.lsa_pool_evict(self.c, ffi.new("int32_t[?]", math.max(1, plan.left), plan.leavers), plan.left))
  self.known = self:present()
  self.stale = false
  if plan.cells > self:cells() then check(C.lsa_pool_set_cells(self.c, plan.cells)) end
  check(C.lsa_pool_start(self.c, plan.loads, plan.n))
end

-- Waits for the transfer under way; what it brought is present from here on. Raises what went wrong with it, once.
function Tier:finish()
  if C.lsa_pool_under_way(self.c) == 0 then return end
  local before = self:present()
  local rc = C.lsa_pool_finish(self.c)
  self.arrived = self:present():minus(before)
  check(rc)
end

-- Units that got a cell by being born, or through lsa.pool's own calls, are told to the eviction policy.
function Tier:tell_new(present)
  local new = self.known and present:minus(self.known:resize(present:size())) or present
  self.known = present
  for id in new:each() do self.policy:insert(id) end
end

-- So many cells; where that is fewer than are in use, all become free first.
function Tier:resize(cells)
  local used = tonumber(C.lsa_pool_held_cells(self.c))
  if cells < self:cells() and used > 0 then
    local present = self:present():ids()
    check(C.lsa_pool_evict(self.c, ffi.cast("const int32_t *", present.c.data), used))
  end
  check(C.lsa_pool_set_cells(self.c, cells))
end

-- Takes the cells of a set of units.
function Tier:drop(units)
  begin(self)
  ask(self, function()
    for id in units:each() do
      if C.lsa_pool_has(self.c, id) == 1 then self.policy:remove(id) end
    end
  end)
  local ids = units:ids()
  check(C.lsa_pool_evict(self.c, ffi.cast("const int32_t *", ids.c.data), units:count()))
  self.known, self.stale = self:present(), false
end

-- A file of the eviction policy that changed takes over, knowing what is present. A fork may have seen that before.
function Tier:refresh()
  self.entry:refresh()
  if self.made_by ~= self.entry.fn then self:rebuild() end
end

function Tier:counters()
  local out = ffi.new "lsa_pool_counters"
  C.lsa_pool_count(self.c, out)
  return out
end

M.class = Tier

return M
