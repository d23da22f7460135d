-- A share of the negatives are those that the indexer, as it is now, scores highest; the rest is uniform. The hard ones of
-- a decode step are found anew once they are `refresh` training steps old.
return function(sample, opt)
  local want = math.floor(sample.want * opt.share + 0.5)
  local key = sample.document .. ":" .. sample.step
  local known = sample.state[key]
  if not known or #known.ids < want or sample.number - known.number >= opt.refresh then
    known = {number = sample.number, ids = sample:scores():topk(want):ids():totable()}
    sample.state[key] = known
  end
  local ids = {unpack(known.ids, 1, want)}
  for _, id in ipairs(sample:uniform(sample.want - #ids, ids):totable()) do ids[#ids + 1] = id end
  return ids
end, {share = 0.5, refresh = 500}
