-- Segmented LRU: `segments` LRU lists, floor(capacity / segments) ids each, the lowest with what is left over.
-- A hit moves an id to the front of the next segment up (of the same one when it is the highest); a segment
-- over its size passes its oldest to the front of the one below. An insertion goes to the lowest segment with
-- room. The victim is the oldest id of the lowest segment that has one.
--   opt.segments   4; 2 is the paper's probation and protection
-- Source: R. Karedla, J. S. Love, B. G. Wherry, "Caching strategies to improve disk system performance", IEEE
-- Computer 27(3), 1994 (two segments); four: Q. Huang et al., "An analysis of Facebook photo caching", SOSP 2013.
-- libCacheSim gives no segment the remainder of capacity / segments, so its lowest segment may evict on a hit;
-- counts are equal where the number of segments divides the capacity.
local lists = require "lsa.cycle.slot_lists"

local Slru = {}
Slru.__index = Slru

function Slru:hit(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot == 0 then return end
  local segment = math.min(ids.list[slot] + 1, self.segments)
  ids:move(segment, slot)
  while segment > 1 and ids.size[segment] > self.limit do
    ids:move(segment - 1, ids:back(segment))
    segment = segment - 1
  end
end

function Slru:insert(id)
  local ids = self.ids
  local segment = 1
  if ids.size[1] >= self.lowest then
    for i = 2, self.segments do
      if ids.size[i] < self.limit then
        segment = i
        break
      end
    end
  end
  ids:push(segment, ids:add(id))
end

function Slru:victim(allowed)
  local ids = self.ids
  for segment = 1, self.segments do
    local slot = ids:oldest(segment, allowed)
    if slot ~= 0 then return ids:drop(slot) end
  end
end

function Slru:remove(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids:drop(slot) end
end

function Slru:resize(capacity)
  self.limit = math.floor(capacity / self.segments)
  self.lowest = capacity - (self.segments - 1) * self.limit
end

function Slru:state() return self.ids:state() end
function Slru:restore(data) self.ids:restore(data) end

return function(capacity, opt)
  local segments = opt.segments
  if segments < 1 or segments ~= math.floor(segments) then
    error(("slru: segments is %s, and is a count from 1"):format(tostring(segments)))
  end
  local self = setmetatable({ids = lists.new(segments, capacity), segments = segments}, Slru)
  self:resize(capacity)
  return self
end, {segments = 4}
