-- What the native Lightning Indexer would pick at the last token: the union of every CSA layer's top k, for the largest
-- k whose union fits the budget beside sink and tail. Layers are compared by rank, since their logits differ in scale.
return function(cycle)
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do layers[layer + 1] = cycle.native(layer) end
  local function union(k)
    local all = layers[1]:topk(k)
    for i = 2, #layers do all = all:union(layers[i]:topk(k)) end
    return all
  end
  local low, high = 0, cycle.room       -- the union of low fits, of high + 1 need not be tried
  while low < high do
    local k = math.ceil((low + high) / 2)
    if union(k):count() <= cycle.room then low = k else high = k - 1 end
  end
  return union(low)
end
