-- The fewest best chunks whose scores sum to `mass` of the sum of all scores, at most what the budget allows: few where
-- the scores are peaked, many where they are flat.
--   opt.mass   0.9
-- Source: the rule of C. Lin et al., "Twilight: adaptive attention sparsity with hierarchical top-p pruning", 2025, on the
-- Memory Indexer's scores.
return function(cycle, opt)
  return cycle.top(cycle.scores):intersect(cycle.scores:topp(opt.mass))
end, {mass = 0.9}
