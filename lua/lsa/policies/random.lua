-- Chunks drawn without preference, as many as the budget leaves beside sink and tail: the paper's "random 10 %".
-- Selection sampling (D. E. Knuth, TAOCP vol. 2, 3.4.2, algorithm S): one draw a candidate, ids in order.
return function(cycle)
  local ids, wanted, left = {}, cycle.room, cycle.n - cycle.keep:count()
  for id = 0, cycle.n - 1 do
    if not cycle.keep:has(id) then
      if cycle.rng() * left < wanted then
        ids[#ids + 1] = id
        wanted = wanted - 1
      end
      left = left - 1
    end
  end
  return ids
end
