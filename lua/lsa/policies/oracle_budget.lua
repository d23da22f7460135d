-- The best use of a budget: the chunks that the native top-k of the next tau steps use most often, as many as fit.
--   score(s) = how often s is used, by steps and layers; s is never chosen when that is 0
-- Knows the future, so it is for replays.
return function(cycle)
  local future = cycle.future
  if not (future and future.counts) then
    error "oracle_budget: cycle.future.counts is not there: what the next steps use is known in a replay only"
  end
  return cycle.top(future.counts):intersect(future.counts:gt(0))
end, {}
