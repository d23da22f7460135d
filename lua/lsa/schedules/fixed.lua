-- A cycle every `every` steps.
--   opt.every   64
-- Reads nothing of the cycle. Source: arXiv 2606.09079, section 3 (tau = 64).
return function(_, opt)
  return opt.every
end, {every = 64}
