-- NAME: one sentence about when the next cycle is due.
--   opt.every 64    steps until the next cycle, as long as nothing speaks for another number
--   opt.soon 16     steps where the model is unsure
--   opt.nats 2      entropy of the last token's distribution from which on it is
-- Source: who had the idea.
--
-- A schedule is called at the end of each cycle with what the policy was given (lua/lsa/cycle/cycle.lua) and cycle.selected, the set that
-- was selected. It returns the steps until the next cycle, a whole number of at least 1. Try it:
--
--   model:session{every = "NAME.lua"}                                     ./lsa test NAME_spec.lua
return function(cycle, opt)
  return cycle.entropy >= opt.nats and opt.soon or opt.every
end, {every = 64, soon = 16, nats = 2}
