-- Every k-th chunk, k the smallest that the budget allows: an even thinning of the context.
local tensor = require "lsa.tensor"

return function(cycle)
  if cycle.room == 0 then return {} end
  local step = math.max(1, math.ceil(cycle.n / cycle.room))
  local ids = tensor.empty({math.ceil(cycle.n / step)}, "i32")
  local id = ids:pointer()
  for i = 0, #ids - 1 do id[i] = i * step end
  return ids
end
