-- SnapKV: the last w queries vote, each with the softmax of its index scores; votes are summed over queries and layers, and
-- a chunk gets the highest vote within `radius` of it, so that what surrounds a hit comes along.
--   votes(s) = sum over layers and the last w queries t of softmax_s(score(t, s))
--   score'(s) = max of votes(s - radius .. s + radius)
--   opt.w 32 (at most what the session keeps)   opt.radius 3
-- Source: Y. Li et al., "SnapKV: LLM knows what you are looking for before generation", 2024 (attention's votes there).
local kernels = require "lsa.kernels"

-- The maximum within `radius` of each place.
local function spread(x, radius)
  local n, out = #x, x
  for d = 1, math.min(radius, n - 1) do
    local wider = out:copy()
    wider:narrow(0, d, n - d):copy(wider:narrow(0, d, n - d):maximum(x:narrow(0, 0, n - d)))
    wider:narrow(0, 0, n - d):copy(wider:narrow(0, 0, n - d):maximum(x:narrow(0, d, n - d)))
    out = wider
  end
  return out
end

return function(cycle, opt)
  if cycle.n == 0 then return {} end
  local votes
  for layer = 0, cycle.csa_layers - 1 do
    local vote = kernels.softmax_sum(cycle.window(layer, opt.w or 32))
    votes = votes and votes:add(vote) or vote
  end
  return cycle.top(spread(votes, opt.radius or 3))
end
