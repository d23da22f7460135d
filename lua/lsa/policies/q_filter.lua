-- Q-Filters: chunks whose index keys lie far along the direction that queries have in common, the first right singular vector of
-- the last w tokens' queries, each head's times its weight, with the sign that most queries have.
--   score(s) = k_s . v
-- Layers are joined by rank.
--   opt.w 32 (at most what the session keeps)
-- Source: N. Godey et al., "Q-Filters: leveraging QK geometry for efficient KV cache compression", 2025 (a direction of each head, from
-- text read once beforehand, there).
local tensor = require "lsa.tensor.tensor"

local ROUNDS = 32                                -- of power iteration

-- Index scores are ReLU'd: x = ReLU(x) - ReLU(-x).
local WEIGHTS = tensor.new {{1, -1}}

local function direction_of(q, weights)
  local rows, heads, dim = unpack(q:shape())
  q = q:mul(weights:reshape {rows, heads, 1}):reshape {rows * heads, dim}
  local all, sum = q:transpose(0, 1), q:sum(0)
  local v = sum
  for _ = 1, ROUNDS do
    local length = v:norm()
    if not (length > 0) then return sum end      -- queries without a direction, or with NaN
    v = all:matmul(q:matmul((v / length):reshape {dim, 1})):reshape {dim}
  end
  return v:dot(sum) < 0 and v:mul(-1) or v
end

return function(cycle, opt)
  if cycle.n == 0 then return {} end
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do
    local v = direction_of(cycle.queries(layer, opt.w))
    local products = cycle.score(layer, tensor.stack {v, v:mul(-1)}:reshape {1, 2, #v}, WEIGHTS)
    layers[layer + 1] = products:row(0):copy()
    tensor.release(products)
  end
  return cycle.top(layers)
end, {w = 32}
