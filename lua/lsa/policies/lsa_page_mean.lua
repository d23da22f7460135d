-- Pages by their mean: a page's score is the mean of I(t, s) over its chunks; the best pages fill the budget.
return function(cycle)
  return cycle.top_pages(cycle.scores:pages(cycle.page, "mean"))
end, {}
