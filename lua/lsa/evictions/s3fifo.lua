-- S3-FIFO: three FIFO queues. New ids enter the small queue (`small` of the capacity); its oldest goes to the
-- main queue when it was hit at least `threshold` times, else it is evicted and its id remembered in the ghost
-- queue (`ghost` of the capacity). An id that comes back while the ghost queue remembers it enters the main
-- queue. The main queue's oldest is reinserted, its count (3 at most) lowered by one, until one has count 0.
-- The small queue is asked first while the main queue is within its size. Until the first eviction, what the small
-- queue has no room for enters the main queue: the paper leaves open how the cache fills; its authors' libCacheSim
-- fills it so.
--   opt.small 0.1   opt.ghost 0.9   opt.threshold 2
-- An id that may not leave stays where it is in the small queue, and is reinserted with its count in the main
-- queue; a queue without a victim leaves the choice to the other.
-- Source: J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1.
local lists = require "lsa.cycle.slot_lists"

local SMALL, MAIN, GHOST = 1, 2, 3
local MOST = 3

local S3fifo = {}
S3fifo.__index = S3fifo

function S3fifo:hit(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot ~= 0 and ids.list[slot] ~= GHOST and ids.mark[slot] < MOST then
    ids.mark[slot] = ids.mark[slot] + 1
  end
end

-- Forgets a ghost and says whether there was one. `incoming` was asked about already when room was made for it.
local function recall(self, id)
  if id == self.incoming then return self.recalled end
  local ids = self.ids
  local slot = ids:find(id)
  if slot == 0 or ids.list[slot] ~= GHOST then return false end
  ids:drop(slot)
  return true
end

function S3fifo:insert(id)
  local ids = self.ids
  local known = recall(self, id)
  self.incoming = nil
  local filling = not self.evicted and ids.size[SMALL] >= self.most_small
  ids:push((known or filling) and MAIN or SMALL, ids:add(id))
end

local function remember(self, slot)
  local ids = self.ids
  if self.ghosts < 1 then return ids:drop(slot) end
  if ids.size[GHOST] >= self.ghosts then ids:drop(ids:back(GHOST)) end
  ids:move(GHOST, slot)
  return ids.id[slot]
end

local function from_small(self, allowed)
  local ids = self.ids
  local slot = ids:back(SMALL)
  while slot ~= 0 do
    local newer = ids:newer(slot)
    if allowed == nil or allowed:has(ids.id[slot]) then
      if ids.mark[slot] < self.threshold then return remember(self, slot) end
      ids:move(MAIN, slot)
      ids.mark[slot] = 0
    end
    slot = newer
  end
end

local function from_main(self, allowed)
  local ids = self.ids
  local mark = ids.mark
  for _ = 1, (MOST + 1) * ids.size[MAIN] do
    local slot = ids:back(MAIN)
    if allowed == nil or allowed:has(ids.id[slot]) then
      if mark[slot] == 0 then return ids:drop(slot) end
      mark[slot] = mark[slot] - 1
    end
    ids:move(MAIN, slot)
  end
end

function S3fifo:victim(allowed, incoming)
  self.evicted = true
  if incoming then
    self.recalled = recall(self, incoming)
    self.incoming = incoming
  end
  if self.ids.size[MAIN] > self.most_main then
    return from_main(self, allowed) or from_small(self, allowed) or from_main(self, allowed)
  end
  return from_small(self, allowed) or from_main(self, allowed)
end

function S3fifo:remove(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot ~= 0 and ids.list[slot] ~= GHOST then ids:drop(slot) end
end

function S3fifo:resize(capacity)
  self.most_small = math.max(1, math.floor(capacity * self.small))
  self.most_main = capacity - self.most_small
  self.ghosts = math.floor(capacity * self.ghost)
  while self.ids.size[GHOST] > self.ghosts do self.ids:drop(self.ids:back(GHOST)) end
end

function S3fifo:state()
  return {lists = self.ids:state(), evicted = self.evicted, incoming = self.incoming, recalled = self.recalled}
end

function S3fifo:restore(data)
  self.ids:restore(data.lists)
  self.evicted, self.incoming, self.recalled = data.evicted, data.incoming, data.recalled
end

return function(capacity, opt)
  local self = setmetatable({
    ids = lists.new(3, 2 * capacity), small = opt.small, ghost = opt.ghost,
    threshold = opt.threshold, recalled = false, evicted = false}, S3fifo)
  self:resize(capacity)
  return self
end, {small = 0.1, ghost = 0.9, threshold = 2}
