-- Random: the victim is drawn evenly from the ids that may leave.
--   opt.seed   1; the same seed and the same calls give the same victims
-- Source: L. A. Belady, IBM Systems Journal 5(2), 1966 ("RAND"). Generator: G. Marsaglia, "Xorshift RNGs",
-- Journal of Statistical Software 8(14), 2003, 32 bits with shifts 13, 17, 5; libCacheSim's Random draws from another.
local bit = require "bit"
local ffi = require "ffi"
local lists = require "lsa.cycle.slot_lists"
local bxor, lshift, rshift = bit.bxor, bit.lshift, bit.rshift

local Random = {}
Random.__index = Random

-- 0 .. n - 1
local function draw(self, n)
  local x = self.word
  x = bxor(x, lshift(x, 13))
  x = bxor(x, rshift(x, 17))
  x = bxor(x, lshift(x, 5))
  self.word = x
  return math.floor((x + 2147483648) * (n / 4294967296))
end

-- The present slots are seats[0 .. ids.n - 1]; mark[slot] is the slot's seat. The last takes a leaver's seat.
local function leave(self, slot)
  local ids, seats = self.ids, self.seats
  local seat, last = ids.mark[slot], seats[ids.n - 1]
  seats[seat] = last
  ids.mark[last] = seat
  return ids:drop(slot)
end

function Random.hit() end

function Random:insert(id)
  local ids = self.ids
  if ids.n == self.room then
    local seats = ffi.new("int32_t[?]", 2 * self.room)
    ffi.copy(seats, self.seats, 4 * self.room)
    self.seats, self.room = seats, 2 * self.room
  end
  local slot = ids:add(id)
  ids.mark[slot] = ids.n - 1
  self.seats[ids.n - 1] = slot
end

function Random:victim(allowed)
  local ids, seats = self.ids, self.seats
  if ids.n == 0 then return nil end
  for _ = 1, 16 do
    local slot = seats[draw(self, ids.n)]
    if allowed == nil or allowed:has(ids.id[slot]) then return leave(self, slot) end
  end
  -- Few may leave: they are counted, and one of them is drawn.
  local few = {}
  for seat = 0, ids.n - 1 do
    if allowed:has(ids.id[seats[seat]]) then few[#few + 1] = seats[seat] end
  end
  if #few == 0 then return nil end
  return leave(self, few[draw(self, #few) + 1])
end

function Random:remove(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then leave(self, slot) end
end

function Random:state()
  local ids = ffi.new("int32_t[?]", self.ids.n)
  for seat = 0, self.ids.n - 1 do ids[seat] = self.ids.id[self.seats[seat]] end
  return {ids = ids, word = self.word}
end

function Random:restore(data)
  for seat = 0, lists.length(data.ids, "ids") - 1 do self:insert(data.ids[seat]) end
  self.word = data.word
end

return function(capacity, opt)
  local room = math.max(capacity, 16)
  local self = setmetatable({ids = lists.new(0, room), seats = ffi.new("int32_t[?]", room), room = room}, Random)
  -- Xorshift has no state 0, and near seeds start far apart.
  self.word = lists.hash(bit.tobit(opt.seed * 7919 + 12345))
  if self.word == 0 then self.word = 1 end
  return self
end, {seed = 1}
