-- A cycle every `every` steps, each session at another of them, so that sessions which decode side by side do not all
-- fetch at once: session `index` of `of` has its cycles floor(every * index / of) steps after a multiple of `every`,
-- counted from the session's first cycle. A cycle that comes in between, after an appended prefill, does not move them.
--   opt.every 64   opt.index 0   opt.of 1
-- Reads cycle.t; owns cycle.state.stagger.
return function(cycle, opt)
  local every = opt.every
  local phase = math.floor(every * (opt.index / opt.of))
  local state = cycle.state.stagger or {start = cycle.t}
  cycle.state.stagger = state
  return every - (cycle.t - state.start - phase) % every
end, {every = 64, index = 0, of = 1}
