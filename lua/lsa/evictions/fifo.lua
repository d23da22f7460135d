-- First in, first out: the victim is the id that was inserted longest ago; hits change nothing.
-- Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems
-- Journal 5(2), 1966.
local lists = require "lsa.cycle.slot_lists"

local Fifo = {}
Fifo.__index = Fifo

function Fifo.hit() end

function Fifo:insert(id)
  self.ids:push(1, self.ids:add(id))
end

function Fifo:victim(allowed)
  local slot = self.ids:oldest(1, allowed)
  return slot ~= 0 and self.ids:drop(slot) or nil
end

function Fifo:remove(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids:drop(slot) end
end

function Fifo:state() return self.ids:state() end
function Fifo:restore(data) self.ids:restore(data) end

return function(capacity)
  return setmetatable({ids = lists.new(1, capacity)}, Fifo)
end, {}
