-- The newest chunks, as many as the budget allows: a sliding window. The paper's "recency only".
return function(cycle)
  return cycle.newest()
end, {}
