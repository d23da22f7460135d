-- What a policy selects; but where it fails, selects fewer than `least` chunks beside sink and tail, or the model is unsure (the
-- entropy of the last token's distribution is above `entropy`), everything, as far as the budget reaches: the best by the
-- Memory Indexer's score. With budget = 1 that is full attention.
--   opt.of        the policy; default lsa_threshold
--   opt.least     1
--   opt.entropy   nats; not looked at when nothing is said
local interrupts = require "lsa.interrupts"
local inner = require "lsa.cycle.nested_policy"

return function(cycle, opt)
  local ok, chosen = pcall(inner.ask, cycle, opt.of, "of", cycle.room)
  if not ok and interrupts.came() then error(chosen, 0) end -- the policy did not fail
  local unsure = opt.entropy and cycle.entropy > opt.entropy
  if ok and not unsure and chosen:count() >= opt.least then return chosen end
  return cycle.top(cycle.scores)
end, {of = "lsa_threshold", least = 1, entropy = false}
