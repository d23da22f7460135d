-- What the native Lightning Indexer would pick at the last token, in any CSA layer: the union of every layer's top k, with k as
-- large as the budget allows. Layers are compared by rank, since their logits differ in scale.
-- Source: DeepSeek-V4's CSA, with one k for all layers.
return function(cycle)
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do layers[layer + 1] = cycle.native(layer) end
  return cycle.top(layers)
end, {}
