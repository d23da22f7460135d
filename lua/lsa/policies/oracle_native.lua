-- What the native top-k of the next tau steps use, in any layer: no policy covers more.
-- All of them, whatever their number: more than the budget is the error that it is for any policy.
-- Knows the future, so it is for replays.
return function(cycle)
  local future = cycle.future
  if not (future and future.native) then
    error "oracle_native: cycle.future.native is not there: what the next steps use is known in a replay only"
  end
  return future.native
end, {}
