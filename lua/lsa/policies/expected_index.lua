-- The index score that a chunk can expect if the queries to come are like the last w:
--   E(s) = 1/w sum over the last w tokens t of score_layer(t, s)
-- Layers are joined by rank.
--   opt.w 16 (at most what the session keeps)
-- Source: A. Devoto et al., "Expected attention: KV cache compression by estimating attention from future queries", 2025,
-- with the empirical distribution of queries in the place of a Gaussian.
local tensor = require "lsa.tensor.tensor"

return function(cycle, opt)
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do layers[layer + 1] = cycle.window(layer, opt.w):mean(0) end
  local chosen = cycle.top(layers)
  for _, layer in ipairs(layers) do tensor.release(layer) end
  return chosen
end, {w = 16}
