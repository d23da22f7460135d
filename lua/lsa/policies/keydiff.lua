-- Chunks whose index keys are unlike the others: those least similar to the mean of all unit keys.
--   anchor = 1/n sum_s k_s / |k_s|,   score(s) = -k_s . anchor / |k_s|
-- Layers are joined by rank; unit keys are summed, and norms computed, once a chunk.
-- Source: J. Park et al., "KeyDiff: key similarity-based KV cache eviction for long-context LLM inference in
-- resource-constrained environments", 2025.
local grow = require "lsa.grow"
local kernels = require "lsa.kernels"
local tensor = require "lsa.tensor"

local TINY = 1e-20

-- Inverse norms [n] and the sum of unit keys [dim].
local function update(cycle, layer)
  local state = cycle.state[layer] or {}
  cycle.state[layer] = state
  local from = state.inverse and #state.inverse or 0
  if from < cycle.n then
    local keys = cycle.keys(layer, from)
    local count, dim = keys:shape()[1], keys:shape()[2]
    state.inverse = grow(state.inverse, {cycle.n}, 0)
    state.inverse:narrow(0, from, count):copy(keys:mul(keys):sum(1):add(TINY):log():mul(-0.5):exp())
    -- rmsnorm makes rows of length sqrt(dim).
    local unit = kernels.rmsnorm{x = keys, eps = TINY}:sum(0):mul(dim ^ -0.5)
    state.sum = state.sum and state.sum:add(unit) or unit
  end
  return state
end

-- k_s . v of every key. Index scores are ReLU'd: x = ReLU(x) - ReLU(-x).
local function products(cycle, layer, v)
  local dim = #v
  local q = tensor.empty {1, 2, dim}
  q:row(0):row(0):copy(v)
  q:row(0):row(1):copy(v:mul(-1))
  return cycle.score(layer, q, tensor.new {{1, -1}}):row(0)
end

return function(cycle)
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do
    local state = update(cycle, layer)
    if cycle.n > 0 then
      layers[layer + 1] = products(cycle, layer, state.sum:mul(1 / cycle.n)):mul(state.inverse):mul(-1)
    end
  end
  return cycle.n == 0 and {} or cycle.top(layers)
end
