-- SnapKV: the last w queries vote, each with the softmax of its index scores; votes are summed over queries and layers, and
-- a chunk gets the highest vote within `radius` of it, so that what surrounds a hit comes along.
--   votes(s) = sum over layers and the last w queries t of softmax_s(score(t, s))
--   score'(s) = max of votes(s - radius .. s + radius)
--   opt.w 32 (at most what the session keeps)   opt.radius 3
-- Source: Y. Li et al., "SnapKV: LLM knows what you are looking for before generation", 2024 (attention's votes there).
local kernels = require "lsa.tensor.kernels"
local tensor = require "lsa.tensor.tensor"

local MOST = 512                                 -- of what kernels.spread takes at once

-- The maximum within `radius` of each place; x is gone.
local function spread(x, radius)
  radius = math.min(radius, #x)
  repeat
    local wider = kernels.spread(x, math.min(radius, MOST))
    tensor.release(x)
    x, radius = wider, radius - MOST
  until radius <= 0
  return x
end

return function(cycle, opt)
  if cycle.n == 0 then return {} end
  local votes
  for layer = 0, cycle.csa_layers - 1 do
    local vote = kernels.softmax_sum(cycle.window(layer, opt.w))
    local before = votes
    votes = before and before:add(vote) or vote
    if before then
      tensor.release(before)
      tensor.release(vote)
    end
  end
  local scores = spread(votes, opt.radius)
  local chosen = cycle.top(scores)
  tensor.release(scores)
  return chosen
end, {w = 32, radius = 3}
