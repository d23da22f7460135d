-- Heavy hitters: the chunks with the most attention mass so far, and the newest ones.
--   total(s) += sum over layers of mass(s) since the last cycle
-- A chunk that was not observed keeps the total that it had: nothing says that it would have got none.
--   opt.recent 0.5   share of the budget that the newest chunks get
-- Source: Z. Zhang et al., "H2O: heavy-hitter oracle for efficient generative inference of large language models", 2023.
local grow = require "lsa.tensor.grown"
local tensor = require "lsa.tensor.tensor"

-- The totals; each cycle's mass joins them once, however often the policy is asked.
local function totals(cycle)
  local state = cycle.state
  if state.number == cycle.number then return state.total end
  local total = grow(state.total, {cycle.n}, 0)
  for layer = 0, cycle.csa_layers - 1 do
    local before = total
    total = total:add(cycle.mass(layer))
    tensor.release(before)
  end
  state.number, state.total = cycle.number, total
  return total
end

return function(cycle, opt)
  local total = totals(cycle)
  local recent = cycle.newest(math.floor(cycle.room * opt.recent))
  return cycle.top(total, nil, recent):add(recent)
end, {recent = 0.5}
