-- Cycles as far apart as selections stay alike: the interval doubles when a selection agrees with the one before it,
-- J >= agree, and halves when it does not, J < disagree, within least .. most. J = |A and B| / |A or B|, of the
-- chunks that a policy chose itself (what is kept anyway says nothing) and that were candidates both times; two
-- empty choices agree.
--   opt.every 64 (the first interval)   opt.agree 0.8   opt.disagree 0.5   opt.least 8   opt.most 512
-- Reads cycle.selected, keep, n; owns cycle.state.jaccard.
-- Source of J: P. Jaccard, "The distribution of the flora in the alpine zone", New Phytologist 11(2), 1912.
return function(cycle, opt)
  local state = cycle.state.jaccard
  local chosen = cycle.selected:minus(cycle.keep)
  if not state then
    state = {every = opt.every}
  else
    local n = state.chosen:size()
    local before = state.chosen:minus(cycle.keep:resize(n))
    local now = chosen:resize(n)
    local both = now:intersect_count(before)
    local either = now:count() + before:count() - both
    local j = either == 0 and 1 or both / either
    local every = state.every
    if j >= opt.agree then
      every = every * 2
    elseif j < opt.disagree then
      every = math.floor(every / 2)
    end
    state = {every = math.max(opt.least, math.min(opt.most, every))}
  end
  state.chosen = chosen
  cycle.state.jaccard = state
  return state.every
end, {every = 64, agree = 0.8, disagree = 0.5, least = 8, most = 512}
