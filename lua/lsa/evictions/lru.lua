-- Least recently used: the victim is the id whose last hit or insertion is longest ago.
-- Source: P. J. Denning, "The working set model for program behavior", Communications of the ACM 11(5), 1968;
-- R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970.
local lists = require "lsa.cycle.slot_lists"

local Lru = {}
Lru.__index = Lru

function Lru:hit(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids:move(1, slot) end
end

function Lru:insert(id)
  self.ids:push(1, self.ids:add(id))
end

function Lru:victim(allowed)
  local slot = self.ids:oldest(1, allowed)
  return slot ~= 0 and self.ids:drop(slot) or nil
end

function Lru:remove(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids:drop(slot) end
end

function Lru:state() return self.ids:state() end
function Lru:restore(data) self.ids:restore(data) end

return function(capacity)
  return setmetatable({ids = lists.new(1, capacity)}, Lru)
end, {}
