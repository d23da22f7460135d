-- LagKV: chunks whose index keys stand out from what came next. Keys are measured in parts of `lag` chunks, each by the least and
-- the greatest value that the next part has in each channel; the newest two parts, which have no whole one after them, come first.
--   x_s = (k_s - min) / (max - min),   score(s) = softmax over the part of std over channels of x_s
-- Layers are joined by rank.
--   opt.lag 32
-- Source: M. Liang et al., "LagKV: lag-relative information of the KV cache tells which tokens are important", 2025 (values, too, there).
local tensor = require "lsa.tensor.tensor"

local TINY = 1e-6
local NEWEST = 2                                 -- above every softmax

local function scores_of(keys, lag)
  local n, dim = #keys, keys:shape()[2]
  local scores, parts = tensor.full({n}, NEWEST), math.floor(n / lag)
  if parts < 2 then return scores end
  local all = keys:narrow(0, 0, parts * lag):reshape {parts, lag, dim}
  local measured, after = all:narrow(0, 0, parts - 1), all:narrow(0, 1, parts - 1)
  local low = after:min(1)
  local span = after:max(1):sub(low):add(TINY)
  local x = measured:sub(low:reshape {parts - 1, 1, dim}):div(span:reshape {parts - 1, 1, dim})
  scores:narrow(0, 0, (parts - 1) * lag):copy(x:std(2):softmax(1):reshape {(parts - 1) * lag})
  return scores
end

return function(cycle, opt)
  if cycle.n == 0 then return {} end
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do layers[layer + 1] = scores_of(cycle.keys(layer), opt.lag) end
  return cycle.top(layers)
end, {lag = 32}
