-- Owns a heap of slots 1 .. room in Lua's memory (core/base/heap.h has the order): the slot with the least key first, among
-- equal keys the one with the least tie. For eviction policies that order ids by a number.
--
--   h = heap.new(room)   h:put(slot, key, tie)   adds the slot or moves it; grows
--   h:first() -> slot or 0   h:remove(slot)   h:has(slot)   h:tie_of(slot)   h.n
--   h:by_tie()   a list of the slots, the least tie first
--   h:least(allowed, id)   the first slot for which allowed:has(id[slot]), or 0; nil allows all
local ffi = require "ffi"
local C = require("lsa.ffi").C

local M = {}
local Heap = {}
Heap.__index = Heap

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

function Heap:put(slot, key, tie)
  if slot > self.room then grow(self, math.max(slot, 2 * self.room)) end
  self.n = C.lsa_heap_put(self.slots, self.at, self.key, self.tie, self.n, slot, key, tie)
end

function Heap:remove(slot)
  if self:has(slot) then self.n = C.lsa_heap_remove(self.slots, self.at, self.key, self.tie, self.n, slot) end
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

function Heap:by_tie()
  local list = {}
  for i = 1, self.n do list[i] = self.slots[i] end
  table.sort(list, function(a, b) return self:tie_of(a) < self:tie_of(b) end)
  return list
end

-- Takes those off that may not leave until one may, and puts them back.
local function search(self, allowed, id)
  local aside, n, found = {}, 0, 0
  while self.n > 0 do
    local slot = self.slots[1]
    if allowed:has(id[slot]) then
      found = slot
      break
    end
    n = n + 1
    aside[n] = {slot, self.key[1], self.tie[1]}
    self:remove(slot)
  end
  for i = 1, n do self:put(aside[i][1], aside[i][2], aside[i][3]) end
  return found
end

function Heap:least(allowed, id)
  local slot = self:first()
  if slot == 0 or allowed == nil or allowed:has(id[slot]) then return slot end
  return search(self, allowed, id)
end

return M
