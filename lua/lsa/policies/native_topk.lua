-- What the native Lightning Indexer would pick at the last token: the union of every CSA layer's top k, for the largest k
-- whose union fits the budget. Layers are compared by rank, since their logits differ in scale.
-- Source: DeepSeek-V4's CSA, with one k for all layers.
return function(cycle)
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do layers[layer + 1] = cycle.native(layer) end
  return cycle.top(layers)
end
