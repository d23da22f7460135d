-- The golden chunks of the next tau steps: what training labels call needed (lsa.golden).
-- All of them, whatever their number: more than the budget is the error that it is for any policy.
-- Knows the future, so it is for replays.
return function(cycle)
  local future = cycle.future
  if not (future and future.golden) then
    error "oracle_golden: cycle.future.golden is not there: it is known in a replay only, of a trace that has labels (lsa.golden)"
  end
  return future.golden
end, {}
