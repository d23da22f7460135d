-- SIEVE: ids in the order of their insertion, each with a visited bit that a hit sets. A hand walks from the
-- oldest to the newest, clears visited bits and evicts the first id without one; it stays where it was for the
-- next eviction, and starts again at the oldest after the newest. New ids enter at the front, behind the hand's
-- back: what is not hit soon leaves soon. An id that may not leave is passed over with its bit as it is.
-- Source: Y. Zhang et al., "SIEVE is simpler than LRU", NSDI 2024, algorithm 1.
local lists = require "lsa.cycle.slot_lists"

local Sieve = {}
Sieve.__index = Sieve

function Sieve:hit(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids.mark[slot] = 1 end
end

function Sieve:insert(id)
  self.ids:push(1, self.ids:add(id))
end

function Sieve:victim(allowed)
  local ids = self.ids
  local mark = ids.mark
  local slot = self.hand
  for _ = 1, 2 * ids.size[1] do
    if slot == 0 then slot = ids:back(1) end
    if allowed == nil or allowed:has(ids.id[slot]) then
      if mark[slot] == 0 then
        self.hand = ids:newer(slot)
        return ids:drop(slot)
      end
      mark[slot] = 0
    end
    slot = ids:newer(slot)
  end
end

function Sieve:remove(id)
  local slot = self.ids:find(id)
  if slot == 0 then return end
  if slot == self.hand then self.hand = self.ids:newer(slot) end
  self.ids:drop(slot)
end

function Sieve:state()
  return {lists = self.ids:state(), hand = self.hand ~= 0 and self.ids.id[self.hand] or nil}
end

function Sieve:restore(data)
  self.ids:restore(data.lists)
  self.hand = data.hand and self.ids:find(data.hand) or 0
end

return function(capacity)
  return setmetatable({ids = lists.new(1, capacity), hand = 0}, Sieve)
end, {}
