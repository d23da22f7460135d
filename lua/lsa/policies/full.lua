-- Everything: plain DeepSeek-V4. A session with select = "full" runs no cycles and moves nothing.
return function(cycle)
  return {{0, cycle.n}}
end, {}
