-- TOVA: the last query votes with the softmax of its index scores, summed over layers; what it passes over is left out.
-- Source: M. Oren et al., "Transformers are multi-state RNNs", 2024 (attention's weights, heads averaged, there).
local snap_window = require "lsa.policies.snap_window"

return function(cycle)
  return snap_window(cycle, {w = 1, radius = 0})
end, {}
