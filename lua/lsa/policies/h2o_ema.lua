-- Heavy hitters of late: an exponential mean of each chunk's share of the attention mass, and the newest chunks.
--   share(s) = mass(s) / sum of mass,   mean(s) = decay mean(s) + (1 - decay) share(s)   where s was observed
-- A chunk that was not observed keeps its mean: it neither fades nor gains.
--   opt.decay 0.7   opt.recent 0.5   share of the budget that the newest chunks get
-- Source: H2O (see h2o.lua) with the mean of a window in the place of the sum of all time, as in
-- Z. Liu et al., "Scissorhands: exploiting the persistence of importance hypothesis for LLM KV cache compression", 2023.
local grow = require "lsa.tensor.grown"
local tensor = require "lsa.tensor.tensor"

local function means(cycle, decay)
  local state = cycle.state
  if state.number == cycle.number then return state.mean end
  local mean, mass = grow(state.mean, {cycle.n}, 0), nil
  for layer = 0, cycle.csa_layers - 1 do
    local before = mass
    mass = before and before:add(cycle.mass(layer)) or cycle.mass(layer)
    if layer > 1 then tensor.release(before) end         -- the first one is the cycle's
  end
  local sum = mass:sum()
  if sum > 0 then
    local older, share = mean:mul(decay), mass:mul((1 - decay) / sum)
    local all, before = older:add(share), mean
    mean = all:where(cycle.observed, before)
    for _, done in ipairs {older, share, all, before} do tensor.release(done) end
  end
  if cycle.csa_layers > 1 then tensor.release(mass) end
  state.number, state.mean = cycle.number, mean
  return mean
end

return function(cycle, opt)
  local mean = means(cycle, opt.decay)
  local recent = cycle.newest(math.floor(cycle.room * opt.recent))
  return cycle.top(mean, nil, recent):add(recent)
end, {decay = 0.7, recent = 0.5}
