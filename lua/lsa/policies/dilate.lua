-- What a policy selects, and its neighbours within `radius`: text around a hit is often needed with it. The policy gets as much
-- of the room as is sure to suffice with all neighbours; what overlaps leave is shared out again the same way.
--   opt.of       the policy; default lsa_topk
--   opt.radius   1
local inner = require "lsa.cycle.nested_policy"
local set = require "lsa.tensor.set"

local ROUNDS = 4

return function(cycle, opt)
  local radius = opt.radius
  local keep = cycle.keep
  for _ = 1, ROUNDS do
    local room = math.floor((cycle.budget - keep:count()) / (2 * radius + 1))
    if room < 1 then break end
    local chosen = inner.ask(cycle, opt.of, "of", room, keep)
    if chosen:count() == 0 then break end
    local wider = chosen:dilate(radius)
    keep = keep:union(wider)
    set.release(wider)
    set.release(chosen)
  end
  return keep
end, {of = "lsa_topk", radius = 1}
