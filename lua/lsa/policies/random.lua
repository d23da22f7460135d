-- Chunks drawn without preference, as many as the budget allows: the best of as many random numbers. The paper's
-- "random 10 %".
local uniform = require("lsa.tensor.kernels").uniform

return function(cycle)
  return cycle.top(uniform(cycle.n, cycle.rng(2 ^ 52)))
end, {}
