-- Chunks whose index keys are unlike the others: those least similar to the mean of all unit keys.
--   anchor = 1/n sum_s k_s / |k_s|,   score(s) = -k_s . anchor / |k_s|
-- Layers are joined by rank; unit keys are summed, and norms computed, once a chunk.
-- Source: J. Park et al., "KeyDiff: key similarity-based KV cache eviction for long-context LLM inference in
-- resource-constrained environments", 2025.
local grow = require "lsa.tensor.grown"
local kernels = require "lsa.tensor.kernels"
local tensor = require "lsa.tensor.tensor"

local TINY = 1e-20

-- Index scores are ReLU'd: -x = ReLU(-x) - ReLU(x) is what weights of -1 and 1 make of the anchor and what is opposite to it.
local WEIGHTS = tensor.new {{-1, 1}}

local function queries_of(sum, n)
  local q, anchor = tensor.empty {1, 2, #sum}, sum:mul(1 / n)
  q:row(0):row(0):copy(anchor)
  q:row(0):row(1):copy(anchor:mul(-1))
  return q
end

-- Inverse norms [n], the sum of unit keys [dim], and the queries that it makes.
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
    state.q = queries_of(state.sum, cycle.n)
  end
  return state
end

return function(cycle)
  if cycle.n == 0 then return {} end
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do
    local state = update(cycle, layer)
    local products = cycle.score(layer, state.q, WEIGHTS)
    layers[layer + 1] = products:row(0):mul(state.inverse)
    tensor.release(products)
  end
  local chosen = cycle.top(layers)
  for _, layer in ipairs(layers) do tensor.release(layer) end
  return chosen
end, {}
