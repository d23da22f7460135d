-- What a policy selected one cycle before: the staleness of an asynchronous engine, as a policy. The first cycle has no
-- predecessor and uses its own. Where sink and tail have grown past what is left of the budget, the newest chunks stay.
--   opt.of   the policy; default lsa_topk
local inner = require "lsa.cycle.nested_policy"

return function(cycle, opt)
  local chosen, state = inner.ask(cycle, opt.of, "of", cycle.room), cycle.state
  if state.number ~= cycle.number then
    state.number, state.before, state.latest = cycle.number, state.latest, chosen
  end
  local before = (state.before or chosen):resize(cycle.n):remove(cycle.keep)
  local over = before:count() - cycle.room
  return over > 0 and before:minus(before:ids():narrow(0, 0, over)) or before
end, {of = "lsa_topk"}
