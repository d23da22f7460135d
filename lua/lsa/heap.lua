-- Owns an indexed binary heap over slots 1 .. room: the slot with the least key first, among equal keys the one
-- with the least tie. For eviction policies that order ids by a number.
--
--   h = heap.new(room)   h:put(slot, key, tie)   adds the slot or moves it; grows
--   h:first() -> slot or 0   h:remove(slot)   h:has(slot)   h:tie_of(slot)   h.n
--   h:least(allowed, id)   the first slot for which allowed:has(id[slot]), or 0; nil allows all
local bit = require "bit"
local ffi = require "ffi"
local lshift, rshift = bit.lshift, bit.rshift

local M = {}
local Heap = {}
Heap.__index = Heap

-- At heap position i >= 1: slots[i], its key[i] and tie[i]. at[slot] is its position, 0 when it is not in the heap.
local function grow(self, room)
  local before = self.room
  for name, bytes in pairs{slots = 4, at = 4, key = 8, tie = 8} do
    local new = ffi.new(bytes == 4 and "int32_t[?]" or "double[?]", room + 1)
    if before then ffi.copy(new, self[name], bytes * (before + 1)) end
    self[name] = new
  end
  self.room = room
end

function M.new(room)
  local self = setmetatable({n = 0}, Heap)
  grow(self, math.max(room or 0, 16))
  return self
end

-- Moves what was at position `from` to position `to`.
local function shift(self, from, to)
  local slot = self.slots[from]
  self.slots[to], self.key[to], self.tie[to], self.at[slot] = slot, self.key[from], self.tie[from], to
end

local function seat(self, i, slot, key, tie)
  self.slots[i], self.key[i], self.tie[i], self.at[slot] = slot, key, tie, i
end

-- Seats a slot at the free position i or above it.
local function up(self, i, slot, key, tie)
  while i > 1 do
    local parent = rshift(i, 1)
    local above = self.key[parent]
    if above < key or above == key and self.tie[parent] <= tie then break end
    shift(self, parent, i)
    i = parent
  end
  seat(self, i, slot, key, tie)
end

-- Seats a slot at the free position i or below it.
local function down(self, i, slot, key, tie)
  local n = self.n
  while true do
    local child = lshift(i, 1)
    if child > n then break end
    local below = self.key[child]
    if child < n then
      local other = self.key[child + 1]
      if other < below or other == below and self.tie[child + 1] < self.tie[child] then
        child, below = child + 1, other
      end
    end
    if key < below or key == below and tie <= self.tie[child] then break end
    shift(self, child, i)
    i = child
  end
  seat(self, i, slot, key, tie)
end

-- Seats a slot at the free position i, above or below it.
local function place(self, i, slot, key, tie)
  if i > 1 then
    local parent = rshift(i, 1)
    local above = self.key[parent]
    if key < above or key == above and tie < self.tie[parent] then return up(self, i, slot, key, tie) end
  end
  return down(self, i, slot, key, tie)
end

function Heap:put(slot, key, tie)
  if slot > self.room then grow(self, math.max(slot, 2 * self.room)) end
  local i = self.at[slot]
  if i ~= 0 then return place(self, i, slot, key, tie) end
  self.n = self.n + 1
  up(self, self.n, slot, key, tie)
end

function Heap:has(slot)
  return slot <= self.room and self.at[slot] ~= 0
end

function Heap:tie_of(slot)
  return self.tie[self.at[slot]]
end

function Heap:first()
  return self.n > 0 and self.slots[1] or 0
end

function Heap:remove(slot)
  if not self:has(slot) then return end
  local i, n = self.at[slot], self.n
  self.at[slot], self.n = 0, n - 1
  if i < n then place(self, i, self.slots[n], self.key[n], self.tie[n]) end
end

function Heap:least(allowed, id)
  if allowed == nil then return self:first() end
  local aside, n, found = nil, 0, 0
  while self.n > 0 do
    local slot = self.slots[1]
    if allowed:has(id[slot]) then
      found = slot
      break
    end
    aside = aside or {}
    n = n + 1
    aside[n] = {slot, self.key[1], self.tie[1]}
    self:remove(slot)
  end
  for i = 1, n do self:put(aside[i][1], aside[i][2], aside[i][3]) end
  return found
end

return M
