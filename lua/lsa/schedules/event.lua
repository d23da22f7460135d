-- A cycle soon after an event, else every `every` steps. Events are a spike of the entropy of the last token's
-- distribution, more than `sigmas` standard deviations above its mean over the cycles so far (eight at least, the mean
-- forgetting by `memory`), and one of `tokens` since the last cycle: text that turns to something else needs other
-- chunks. Events are looked for where a cycle is: `soon` says how closely one may be followed.
--   opt.every 64   opt.soon 16   opt.sigmas 2   opt.memory 0.05   opt.tokens {10} (newline in the byte vocabulary;
--   {} for none)   opt.entropy true (false: not looked at)
-- Reads cycle.t, tokens, entropy; owns cycle.state.event.
-- Source: entropy as the signal to look again: Z. Jiang et al., "Active retrieval augmented generation", EMNLP 2023.
local NEWLINE = {10}
local ENOUGH = 8

-- Whether one of `wanted` is among the tokens from .. to - 1.
local function occurs(tokens, wanted, from, to)
  for i = from, to - 1 do
    local token = tokens:get(i)
    for _, one in ipairs(wanted) do
      if token == one then return true end
    end
  end
  return false
end

-- Whether the entropy stands out from what was seen; then it is added to that.
local function spikes(state, entropy, sigmas, memory)
  local spike = state.seen >= ENOUGH and entropy > state.mean + sigmas * math.sqrt(state.variance)
  local share = math.max(memory, 1 / (state.seen + 1))
  local off = entropy - state.mean
  state.mean = state.mean + share * off
  state.variance = (1 - share) * (state.variance + share * off * off)
  state.seen = state.seen + 1
  return spike
end

return function(cycle, opt)
  local state = cycle.state.event or {seen = 0, mean = 0, variance = 0, t = cycle.t}
  cycle.state.event = state
  local event = opt.entropy ~= false and spikes(state, cycle.entropy, opt.sigmas, opt.memory)
  local wanted = opt.tokens
  if #wanted > 0 and state.t < cycle.t then
    event = occurs(cycle.tokens, wanted, state.t, cycle.t) or event
  end
  state.t = cycle.t
  return event and opt.soon or opt.every
end, {every = 64, soon = 16, sigmas = 2, memory = 0.05, tokens = NEWLINE, entropy = true}
