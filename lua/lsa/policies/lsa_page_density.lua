-- Pages by density: a page's score is the number of its chunks with I(t, s) > theta; the K densest pages are resident whole,
-- pages with sink and tail first. K = budget / page is always filled.
--   opt.theta   0.5
-- Source: the reference deployment of arXiv 2606.09079 (K = 96, 192, 384 at 256K, 512K, 1M tokens).
return function(cycle, opt)
  return cycle.top_pages(cycle.scores:gt(opt.theta):density(cycle.page))
end, {theta = 0.5}
