-- The newest chunks, as many as the budget allows: a sliding window. The paper's "recency only".
return function(cycle)
  return {{math.max(0, cycle.n - cycle.budget), cycle.n}}
end
