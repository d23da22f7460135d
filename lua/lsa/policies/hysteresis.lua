-- What a policy selects, and what it selected shortly before: a chunk leaves only after `wait` cycles without being selected,
-- as long as there is room. The latest selected stay first; ties go to the lower id.
--   opt.of        the policy; default lsa_topk
--   opt.margin    0.2   share of the room that the policy does not get, so that others can stay
--   opt.wait      4     cycles
-- Source: the Schmitt trigger.
local grow = require "lsa.tensor.grown"
local inner = require "lsa.cycle.nested_policy"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"

return function(cycle, opt)
  local chosen = inner.ask(cycle, opt.of, "of", math.floor(cycle.room * (1 - opt.margin)))
  local state = cycle.state
  local before, others = grow(state.last, {cycle.n}, -math.huge), chosen:invert()
  local last = before:where(others, cycle.number)            -- the cycle that last selected each chunk
  state.last = last
  local late = last:ge(cycle.number - opt.wait)
  local candidates = last:where(late, -math.huge)
  local staying = cycle.top(candidates, nil, chosen)
  set.release(others)
  set.release(late)
  tensor.release(candidates)
  tensor.release(before)
  staying:add(chosen)
  set.release(chosen)
  return staying
end, {of = "lsa_topk", margin = 0.2, wait = 4}
