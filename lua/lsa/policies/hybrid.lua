-- Several policies, each with a share of the budget that is left beside sink and tail. They choose in their order, and what one
-- has chosen is kept for the next, so nothing is paid for twice; what a policy leaves of its share goes to those after it.
--   opt.of       policies: {"hybrid", of = {"recency", {"lsa_threshold", theta = 0.3}}, shares = {1, 3}}
--   opt.shares   numbers, one a policy, of any sum; equal when nothing is said
-- Default: half recency, half lsa_topk.
local inner = require "lsa.cycle.nested_policy"
local set = require "lsa.tensor.set"

local DEFAULT = {"recency", "lsa_topk"}

return function(cycle, opt)
  local of = opt.of
  local shares, sum = opt.shares or {}, 0
  for i = 1, #of do sum = sum + (shares[i] or 1) end
  local keep, upto, kept = cycle.keep, 0, cycle.keep:count()
  for i, spec in ipairs(of) do
    upto = upto + (shares[i] or 1)
    local room = math.floor(cycle.room * upto / sum) - (keep:count() - kept)
    local chosen = inner.ask(cycle, spec, "of " .. i, math.max(0, room), keep)
    keep = keep:union(chosen)
    set.release(chosen)
  end
  return keep
end, {of = DEFAULT, shares = false}
