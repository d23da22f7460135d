-- W-TinyLFU: new ids enter a small LRU window (`window` of the capacity); the rest is a segmented LRU, `protected`
-- of it protected. When room is needed and the window is full, the window's oldest and the main part's oldest
-- (of probation, else of the protected) are compared by how often each was touched of late: the one touched
-- less leaves, among equals the window's; the window's, if it stays, moves to probation. Frequencies are kept
-- for all ids, present or not, in a count-min sketch of four rows of 4-bit counters, conservative in its update,
-- halved after every `sample` x capacity touches.
--   opt.window 0.01   opt.protected 0.8   opt.sample 10
-- Source: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache admission policy", ACM
-- Transactions on Storage 13(4), 2017.
-- libCacheSim's WTinyLFU has a different sketch (10 hashes, counters without a limit, halved after 32 x
-- capacity), which sees no hits of the window, and is raised for the window's oldest at every comparison; its window
-- has no room below a capacity of 100, and then nothing enters. So hits differ, by a few percent from there on
-- (experiments/peers/libcachesim_counts.py).
local bit = require "bit"
local ffi = require "ffi"
local lists = require "lsa.cycle.slot_lists"
local band, bor, bxor, rshift = bit.band, bit.bor, bit.bxor, bit.rshift

local WINDOW, PROBATION, PROTECTED = 1, 2, 3
local ROWS, MOST = 4, 15

local Wtinylfu = {}
Wtinylfu.__index = Wtinylfu

-- Where the four rows count an id: steps of a second hash, odd so that they reach every counter.
local function counters(self, id)
  local h = lists.hash(bxor(id, 0x2545f491))
  local step, width = bor(rshift(h, 16), 1), self.width
  local mask = width - 1
  return band(h, mask), width + band(h + step, mask), 2 * width + band(h + 2 * step, mask),
    3 * width + band(h + 3 * step, mask)
end

local function frequency(self, id)
  local sketch = self.sketch
  local a, b, c, d = counters(self, id)
  return math.min(sketch[a], sketch[b], sketch[c], sketch[d])
end

local function count(self, id)
  local sketch = self.sketch
  local a, b, c, d = counters(self, id)
  local least = math.min(sketch[a], sketch[b], sketch[c], sketch[d])
  if least < MOST then
    local more = least + 1
    sketch[a], sketch[b] = math.max(sketch[a], more), math.max(sketch[b], more)
    sketch[c], sketch[d] = math.max(sketch[c], more), math.max(sketch[d], more)
  end
  self.touches = self.touches + 1
  if self.touches >= self.period then
    for i = 0, ROWS * self.width - 1 do sketch[i] = rshift(sketch[i], 1) end
    self.touches = 0
  end
end

function Wtinylfu:hit(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot == 0 then return end
  count(self, id)
  local list = ids.list[slot]
  if list == WINDOW then return ids:move(WINDOW, slot) end
  ids:move(PROTECTED, slot)
  if ids.size[PROTECTED] > self.most_protected then ids:move(PROBATION, ids:back(PROTECTED)) end
end

function Wtinylfu:insert(id)
  local ids = self.ids
  count(self, id)
  ids:push(WINDOW, ids:add(id))
  while ids.size[WINDOW] > self.most_window and ids.size[PROBATION] + ids.size[PROTECTED] < self.most_main do
    ids:move(PROBATION, ids:back(WINDOW))
  end
end

function Wtinylfu:victim(allowed)
  local ids = self.ids
  local new = ids.size[WINDOW] >= self.most_window and ids:oldest(WINDOW, allowed) or 0
  local old = ids:oldest(PROBATION, allowed)
  if old == 0 then old = ids:oldest(PROTECTED, allowed) end
  if new == 0 and old == 0 then new = ids:oldest(WINDOW, allowed) end
  if new == 0 and old == 0 then return nil end
  if old == 0 then return ids:drop(new) end
  if new == 0 then return ids:drop(old) end
  if frequency(self, ids.id[new]) <= frequency(self, ids.id[old]) then return ids:drop(new) end
  ids:move(PROBATION, new)
  return ids:drop(old)
end

function Wtinylfu:remove(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids:drop(slot) end
end

function Wtinylfu:resize(capacity)
  self.most_window = math.max(1, math.floor(capacity * self.window))
  self.most_main = capacity - self.most_window
  self.most_protected = math.floor(self.most_main * self.protected)
  self.period = self.sample * math.max(capacity, 1)
  local width = 64
  while width < 4 * capacity do width = 2 * width end
  if width ~= self.width then
    self.width, self.sketch, self.touches = width, ffi.new("uint8_t[?]", ROWS * width), 0
  end
end

function Wtinylfu:state()
  local bytes = ROWS * self.width
  local sketch = ffi.new("uint8_t[?]", bytes)
  ffi.copy(sketch, self.sketch, bytes)
  return {lists = self.ids:state(), sketch = sketch, touches = self.touches}
end

-- A sketch of another width, of another capacity, counts in other places.
function Wtinylfu:restore(data)
  local bytes = ROWS * self.width
  self.ids:restore(data.lists)
  if ffi.istype("uint8_t[?]", data.sketch) and ffi.sizeof(data.sketch) == bytes then
    ffi.copy(self.sketch, data.sketch, bytes)
    self.touches = data.touches
  end
end

return function(capacity, opt)
  local self = setmetatable({
    ids = lists.new(3, capacity), window = opt.window, protected = opt.protected,
    sample = opt.sample}, Wtinylfu)
  self:resize(capacity)
  return self
end, {window = 0.01, protected = 0.8, sample = 10}
