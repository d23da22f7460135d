-- Chunks whose index keys are short: keys with a low L2 norm draw attention in trained models.
--   score(s) = -|k_s|, layers joined by rank; norms are computed once a chunk.
-- Source: A. Devoto et al., "A simple and effective L2 norm-based strategy for KV cache compression", 2024.
local grow = require "lsa.tensor.grown"

-- [n] negative norms of a layer's keys.
local function norms_of(cycle, layer)
  local known = cycle.state[layer]
  local from = known and #known or 0
  if from >= cycle.n then return known end
  local keys, all = cycle.keys(layer, from), grow(known, {cycle.n}, 0)
  all:narrow(0, from, cycle.n - from):copy(keys:mul(keys):sum(1):mul(-1))
  cycle.state[layer] = all
  return all
end

return function(cycle)
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do layers[layer + 1] = norms_of(cycle, layer) end
  return cycle.n == 0 and {} or cycle.top(layers)
end, {}
