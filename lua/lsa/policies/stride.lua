-- Every k-th chunk, k the smallest that the budget allows: an even thinning of the context.
return function(cycle)
  if cycle.room == 0 then return {} end
  local ids, step = {}, math.max(1, math.ceil(cycle.n / cycle.room))
  for id = 0, cycle.n - 1, step do ids[#ids + 1] = id end
  return ids
end
