-- The chunks with the highest Memory Indexer score, as many as the budget leaves beside sink and tail. Needs no
-- calibrated scores: only their order counts.
return function(cycle)
  return cycle.top(cycle.scores)
end, {}
