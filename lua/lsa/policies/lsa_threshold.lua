return function(cycle, opt)
  return cycle.scores:ge(opt.theta or 0.5)
end
