-- Tokens for models whose text does not matter.
local rng = require "lsa.cycle.rng"

local M = {}

-- n tokens of the model's vocabulary, the same for the same seed.
function M.random(model, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

return M
