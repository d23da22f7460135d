-- Every k-th chunk, k the smallest that the budget allows: an even thinning of the context.
local set = require "lsa.tensor.set"

return function(cycle)
  if cycle.room == 0 then return {} end
  local step = math.max(1, math.ceil(cycle.n / cycle.room))
  return set.new(cycle.n):every(step)
end, {}
