-- Owns what eviction policies are made of: which slot an id has, and doubly linked lists of slots.
-- Everything is int32 arrays, so that LuaJIT compiles a replay to loads and stores. Ids are 0 .. 2^31 - 1 and may be sparse: small ones
-- find their slot in an array, the others in a compact map, whose memory follows the number of ids held.
--
--   l = lists.new(2, 1000)     lists 1 and 2, room for 1000 ids at first; grows
--   slot = l:add(id)           a slot for a new id, on no list; mark[slot] is 0
--   slot = l:find(id)          0 when absent
--   l:push(list, slot)         at the front (the newest end)
--   l:unlink(slot)             off its list
--   l:move(list, slot)         unlink, push
--   slot = l:back(list)        the oldest, 0 when empty; l:newer(slot) goes on, 0 after the newest
--   slot = l:oldest(list, allowed)     the oldest that allowed:has(id), 0 when none; nil allows all
--   id = l:drop(slot)          unlink and forget the id
--   data = l:state()           plain data (lua/lsa/files/plain_data.lua): ids and marks of every list, the oldest first
--   l:restore(data)            what state() gave, into lists that are new
--   l.id[slot] l.list[slot] l.mark[slot] l.size[list] l.n
--
-- Slots 1 .. count of lists are the lists' sentinels: next is older, prev is newer, both circular.
local bit = require "bit"
local ffi = require "ffi"
local raise = require "lsa.raise"
local band, bxor, rshift, tobit = bit.band, bit.bxor, bit.rshift, bit.tobit

local M = {}
local Lists = {}
Lists.__index = Lists

local int32s = ffi.typeof "int32_t[?]"

local SMALL_IDS = 2 ^ 20 -- of the array: 4 MiB at most

-- Spreads ids over the table: two multiplications that stay below 2^51, where tobit is exact.
local function hash(id)
  local x = tobit(id * 1003317)
  x = tobit(bxor(x, rshift(x, 15)) * 863749)
  return bxor(x, rshift(x, 13))
end
M.hash = hash

local function power_of_two(n)
  local p = 16
  while p < n do p = p * 2 end
  return p
end

local function grown(old, old_count, count)
  local new = int32s(count)
  if old then ffi.copy(new, old, old_count * 4) end
  return new
end

-- Makes arrays for `room` slots; the map has at least three times as many cells.
local function resize(self, room)
  local before = self.room or 0
  self.room = room
  for _, name in ipairs{"id", "prev", "next", "list", "mark"} do
    self[name] = grown(self[name], before + 1, room + 1)
  end
  local cells = power_of_two(3 * room)
  self.mask, self.map = cells - 1, int32s(cells)
  for slot = self.lists + 1, self.top do
    if self.list[slot] >= 0 and self.id[slot] >= SMALL_IDS then
      local i = band(hash(self.id[slot]), self.mask)
      while self.map[i] ~= 0 do i = band(i + 1, self.mask) end
      self.map[i] = slot
    end
  end
end

function M.new(count, room)
  local self = setmetatable({lists = count, top = count, free = 0, n = 0, size = int32s(count + 1)}, Lists)
  self.small = 0 -- ids below it have a place in self.slot_of
  resize(self, count + math.max(room or 0, 8))
  for list = 1, count do self.prev[list], self.next[list] = list, list end
  return self
end

-- Goes on from cell i, for as long as it takes.
local function probe(self, id, i)
  local map, ids, mask = self.map, self.id, self.mask
  local slot = map[i]
  while slot ~= 0 and ids[slot] ~= id do
    i = band(i + 1, mask)
    slot = map[i]
  end
  return slot, i
end

-- The slot of an id, or 0, and the cell of the map that has it, or where it would be. The first cells are looked at
-- without a loop: a trace through a caller ends where it meets a loop that is compiled already.
local function search(self, id)
  local map, ids, mask = self.map, self.id, self.mask
  local i = band(hash(id), mask)
  local slot = map[i]
  if slot == 0 or ids[slot] == id then return slot, i end
  i = band(i + 1, mask)
  slot = map[i]
  if slot == 0 or ids[slot] == id then return slot, i end
  i = band(i + 1, mask)
  slot = map[i]
  if slot == 0 or ids[slot] == id then return slot, i end
  return probe(self, id, band(i + 1, mask))
end

local function widen(self, id)
  local n = power_of_two(math.max(id + 1, 1024))
  self.slot_of, self.small = grown(self.slot_of, self.small, n), n
end

function Lists:find(id)
  if id < self.small and id >= 0 then
    local slot = self.slot_of[id]
    return slot ~= 0 and self.id[slot] == id and slot or 0 -- no slot for 1.5
  end
  return (search(self, id))
end

function Lists:add(id)
  if id < 0 or tobit(id) ~= id then
    raise("eviction: id is %s, ids are integers from 0 to 2147483647", tostring(id))
  end
  if self.free == 0 and self.top == self.room then resize(self, 2 * self.room) end
  local slot, i
  if id < SMALL_IDS then
    if id >= self.small then widen(self, id) end
    slot = self.slot_of[id]
  else
    slot, i = search(self, id)
  end
  if slot ~= 0 then raise("eviction: id %d is inserted, and is there already", id) end
  slot = self.free
  if slot ~= 0 then
    self.free = self.next[slot]
  else
    slot = self.top + 1
    self.top = slot
  end
  if i then self.map[i] = slot else self.slot_of[id] = slot end
  self.id[slot], self.list[slot], self.mark[slot] = id, 0, 0
  self.n = self.n + 1
  return slot
end

function Lists:push(list, slot)
  local prev, next = self.prev, self.next
  local first = next[list]
  prev[slot], next[slot] = list, first
  next[list], prev[first] = slot, slot
  self.list[slot] = list
  self.size[list] = self.size[list] + 1
end

function Lists:unlink(slot)
  local list = self.list[slot]
  if list <= 0 then return end
  local prev, next = self.prev, self.next
  local p, n = prev[slot], next[slot]
  next[p], prev[n] = n, p
  self.list[slot] = 0
  self.size[list] = self.size[list] - 1
end

function Lists:move(list, slot)
  if self.list[slot] ~= list then
    self:unlink(slot)
    self:push(list, slot)
    return
  end
  local prev, next = self.prev, self.next
  local p, n = prev[slot], next[slot]
  next[p], prev[n] = n, p
  local first = next[list]
  prev[slot], next[slot] = list, first
  next[list], prev[first] = slot, slot
end

-- A sentinel is a slot that no id has: it is 0 to the callers.
function Lists:back(list)
  local slot = self.prev[list]
  return slot > self.lists and slot or 0
end

function Lists:newer(slot)
  local other = self.prev[slot]
  return other > self.lists and other or 0
end

local function oldest_from(self, slot, allowed)
  local prev, ids, lists = self.prev, self.id, self.lists
  while slot > lists do
    if allowed:has(ids[slot]) then return slot end
    slot = prev[slot]
  end
  return 0
end

function Lists:oldest(list, allowed)
  local slot = self.prev[list]
  if slot <= self.lists then return 0 end
  if allowed == nil or allowed:has(self.id[slot]) then return slot end
  return oldest_from(self, self.prev[slot], allowed)
end

-- Closes the gap that a forgotten id leaves in the map, so that no search stops short of what it looks for.
local function close_gap(self, i, j)
  local map, ids, mask = self.map, self.id, self.mask
  local slot = map[j]
  while slot ~= 0 do
    if band(j - hash(ids[slot]), mask) >= band(j - i, mask) then
      map[i] = slot
      i = j
    end
    j = band(j + 1, mask)
    slot = map[j]
  end
  map[i] = 0
end

function Lists:drop(slot)
  self:unlink(slot)
  local id = self.id[slot]
  if id < SMALL_IDS then
    self.slot_of[id] = 0
  else
    local _, i = search(self, id)
    local after = band(i + 1, self.mask)
    if self.map[after] == 0 then
      self.map[i] = 0
    else
      close_gap(self, i, after)
    end
  end
  self.list[slot], self.next[slot] = -1, self.free
  self.free, self.n = slot, self.n - 1
  return id
end

-- Slots get other numbers in the copy; nothing depends on them.
function Lists:state()
  local ids, marks, sizes, n = int32s(self.n), int32s(self.n), {}, 0
  for list = 1, self.lists do
    sizes[list] = self.size[list]
    local slot = self:back(list)
    while slot ~= 0 do
      ids[n], marks[n] = self.id[slot], self.mark[slot]
      n, slot = n + 1, self:newer(slot)
    end
  end
  return {ids = ids, marks = marks, sizes = sizes}
end

-- How many numbers an array of state() has.
local function length(array, what)
  if not ffi.istype(int32s, array) then raise("eviction: the state's %s are no int32 array", what) end
  return ffi.sizeof(array) / 4
end
M.length = length

function Lists:restore(data)
  local n, at = length(data.ids, "ids"), 0
  if length(data.marks, "marks") ~= n then raise "eviction: the state has not as many marks as ids" end
  for list = 1, self.lists do
    local size = data.sizes[list]
    if type(size) ~= "number" or not (size >= 0 and at + size <= n) then raise "eviction: the state's sizes do not fit" end
    for _ = 1, size do
      local slot = self:add(data.ids[at])
      self.mark[slot] = data.marks[at]
      self:push(list, slot)
      at = at + 1
    end
  end
end

return M
