-- Belady's MIN, the optimum: the victim is the id whose next use is furthest away; one that is never used again
-- comes first, among equals the one touched longest ago. It must know the future, so it is for replays.
--   opt.future   the accesses to come, in their order: a list of ids, an i32 tensor, or {ids = int32_t *, n = n};
--                each hit or insertion consumes the id's next occurrence. lsa.cache gives its own trace.
-- Source: L. A. Belady, IBM Systems Journal 5(2), 1966; optimality: Mattson et al., IBM Systems Journal 9(2), 1970.
local ffi = require "ffi"
local heap = require "lsa.cycle.slot_heap"
local lists = require "lsa.cycle.slot_lists"
local sequence = require "lsa.cycle.id_sequence"

local Belady = {}
Belady.__index = Belady

-- The key is minus the position that known.mark points at, the id's next use. ids.mark[slot] is the id's slot in `known`, 0 for
-- an id that the future does not have.
local function place(self, slot)
  self.tick = self.tick + 1
  local at = self.ids.mark[slot]
  local next_use = at ~= 0 and self.known.mark[at] or -1
  self.order:put(slot, next_use < 0 and -math.huge or -next_use, self.tick)
end

-- A touch uses up the occurrence that known.mark points at.
local function touch(self, slot)
  local at, mark = self.ids.mark[slot], self.known.mark
  if at ~= 0 and mark[at] >= 0 then mark[at] = self.after[mark[at]] end
  place(self, slot)
end

function Belady:hit(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then touch(self, slot) end
end

function Belady:insert(id)
  local slot = self.ids:add(id)
  self.ids.mark[slot] = self.known:find(id)
  touch(self, slot)
end

function Belady:victim(allowed)
  local ids, order = self.ids, self.order
  local slot = order:least(allowed, ids.id)
  if slot == 0 then return nil end
  order:remove(slot)
  return ids:drop(slot)
end

function Belady:remove(id)
  local slot = self.ids:find(id)
  if slot == 0 then return end
  self.order:remove(slot)
  self.ids:drop(slot)
end

-- known maps an id to the position of its next occurrence; after[i] is the occurrence that follows i, or -1.
local function index(future, n)
  local known, after = lists.new(0, 1024), ffi.new("int32_t[?]", n + 1)
  local most = 0
  for i = 0, n - 1 do
    if future[i] > most then most = future[i] end
  end
  -- Where ids are dense, an array spares the search of each but its last occurrence.
  local dense = most < 16 * n and ffi.new("int32_t[?]", most + 1)
  for i = n - 1, 0, -1 do
    local id = future[i]
    local slot = dense and dense[id] or known:find(id)
    if slot == 0 then
      slot = known:add(id)
      after[i] = -1
      if dense then dense[id] = slot end
    else
      after[i] = known.mark[slot]
    end
    known.mark[slot] = i
  end
  return known, after
end

-- Ids by when they were touched, and where in the future each id that it knows stands. Both objects are of one future.
function Belady:state()
  local known = self.known
  local ids, at = ffi.new("int32_t[?]", self.ids.n), ffi.new("int32_t[?]", known.n)
  for i, slot in ipairs(self.order:by_tie()) do ids[i - 1] = self.ids.id[slot] end
  for slot = 1, known.n do at[slot - 1] = known.mark[slot] end
  return {ids = ids, at = at, n = self.n}
end

function Belady:restore(data)
  local known = self.known
  if data.n ~= self.n or lists.length(data.at, "positions") ~= known.n then
    error(("belady: the state is of a future of %s accesses, opt.future has %d"):format(tostring(data.n), self.n))
  end
  for slot = 1, known.n do
    local at = data.at[slot - 1]
    if at < -1 or at >= self.n then error(("belady: the state stands at %d of %d accesses"):format(at, self.n)) end
    known.mark[slot] = at
  end
  for i = 0, lists.length(data.ids, "ids") - 1 do
    local slot = self.ids:add(data.ids[i])
    self.ids.mark[slot] = known:find(data.ids[i])
    place(self, slot)
  end
end

return function(capacity, opt)
  if not (opt and opt.future) then error("belady: opt.future is nil, and is the sequence of accesses to come") end
  local future, n = sequence.of(opt.future, "belady: opt.future")
  local known, after = index(future, n)
  return setmetatable({
    ids = lists.new(0, capacity), order = heap.new(capacity), known = known, after = after, n = n, tick = 0}, Belady)
end, {future = false}
