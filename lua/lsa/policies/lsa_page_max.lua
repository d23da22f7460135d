-- Pages by their best chunk: a page's score is max I(t, s) over its chunks; the best pages fill the budget.
return function(cycle)
  return cycle.top_pages(cycle.scores:pages(cycle.page, "max"))
end, {}
