-- NAME: one sentence about which chunks this policy keeps.
--   score(s) = the formula, as you would write it down
--   opt.recent 0.25   share of the budget that the newest chunks get
-- Source: who had the idea.
--
-- A policy is called once a cycle and says which chunks the next steps may use. What it returns is a set, a list of ids, or runs
-- {{from, to}, …}; at most cycle.budget chunks, with cycle.keep (sink and tail), which are added by themselves. Try it:
--
--   model:session{select = "NAME.lua", budget = 0.1}                      ./lsa test NAME_spec.lua
--   ./lsa experiments/policies.lua --policies recency,lsa_topk,NAME.lua --tokens 4096
--
-- Of cycle there are (lua/lsa/cycle/cycle.lua has all of it; layer is a CSA ordinal, from 0; scores are [cycle.n] f32):
--   cycle.n, cycle.t, cycle.budget, cycle.room     candidates; tokens; chunks that may be selected, and what keep leaves of them
--   cycle.scores                                   the Memory Indexer's
--   cycle.native(layer), cycle.window(layer, w)    the Lightning Indexer's, of the last token and of the last w
--   cycle.mass(layer), cycle.used(layer)           attention that residents got since the last cycle, and how often they were picked
--   cycle.keys(layer), cycle.resident, cycle.tokens, cycle.rng, cycle.state (lives as long as the session)
return function(cycle, opt)
  local recent = cycle.newest(math.floor(cycle.room * opt.recent))
  local score = cycle.native(0)
  for layer = 1, cycle.csa_layers - 1 do score = score:maximum(cycle.native(layer)) end
  return cycle.top(score, nil, recent):add(recent)     -- the best of the others that fill the budget
end, {recent = 0.25}                                   -- the options with their defaults
