-- CLOCK (second chance): ids stand on a circle with a reference counter of `bits` bits that a hit raises. The
-- hand passes over an id whose counter is above 0 and lowers it; the victim is the first at 0. An id that may
-- not leave is passed over with its counter as it is.
--   opt.bits   1
-- Source: F. J. Corbató, "A paging experiment with the Multics system", 1968; counters: R. W. Carr, J. L.
-- Hennessy, "WSClock", SOSP 1981. Equal to FIFO with reinsertion: passed over is moved to the front.
local lists = require "lsa.cycle.slot_lists"

local Clock = {}
Clock.__index = Clock

function Clock:hit(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot ~= 0 and ids.mark[slot] < self.most then ids.mark[slot] = ids.mark[slot] + 1 end
end

function Clock:insert(id)
  self.ids:push(1, self.ids:add(id))
end

-- Every round lowers all counters of the ids that may leave, so most + 1 rounds find one, if there is one.
function Clock:victim(allowed)
  local ids = self.ids
  local mark = ids.mark
  for _ = 1, (self.most + 1) * ids.size[1] do
    local slot = ids:back(1)
    if allowed == nil or allowed:has(ids.id[slot]) then
      if mark[slot] == 0 then return ids:drop(slot) end
      mark[slot] = mark[slot] - 1
    end
    ids:move(1, slot)
  end
end

function Clock:remove(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.ids:drop(slot) end
end

function Clock:state() return self.ids:state() end
function Clock:restore(data) self.ids:restore(data) end

return function(capacity, opt)
  local bits = opt.bits
  if bits < 1 or bits > 16 or bits ~= math.floor(bits) then
    error(("clock: bits is %s, and is a count from 1 to 16"):format(tostring(bits)))
  end
  return setmetatable({ids = lists.new(1, capacity), most = 2 ^ bits - 1}, Clock)
end, {bits = 1}
