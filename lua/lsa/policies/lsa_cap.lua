-- The threshold rule with a ceiling: of the chunks with I(t, s) >= theta the best ones, as many as the budget allows.
--   opt.theta   0.5
return function(cycle, opt)
  return cycle.top(cycle.scores):intersect(cycle.scores:ge(opt.theta))
end, {theta = 0.5}
