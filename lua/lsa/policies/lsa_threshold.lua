-- Chunks with I(t, s) >= theta, 0.5 when nothing is said. Source: arXiv 2606.09079, section 3.
return function(cycle, opt)
  return cycle.scores:ge(opt.theta)
end, {theta = 0.5}
