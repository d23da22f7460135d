-- Chunks with I(t, s) >= theta; where the budget holds fewer, the best of them (cycle.clip).
--   opt.theta   0.5
-- Source: arXiv 2606.09079, section 3.
return function(cycle, opt)
  return cycle.clip(cycle.reached(opt.theta))
end, {theta = 0.5}
