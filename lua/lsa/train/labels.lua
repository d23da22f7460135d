-- Owns golden labels as scripts make them: the chunks that several layers' native indexers agree on, in CSR.
--
--   pointers, indices, scores = labels.mine(ids, logits, {n = chunks, top_p = 0.6, min_layers = 3, k = 512, extra = false})
--
-- ids, logits: [steps, layers, width], each row a layer's native top-k of one step, ids ascending (-1 where there is none).
-- Step t's golden chunks are indices[pointers[t]] .. indices[pointers[t + 1] - 1]; scores has the number of layers that
-- kept each. All are i32. k: only the best k of a row count; false: all. min_layers: ceil(layers / 7) where it is not given.
--   ids, logits = labels.best(ids, logits, k)      the best k of each row of [rows, width], in the order they were
-- kernels/golden_labels.h says how a row is cut.
local kernels = require "lsa.tensor.kernels"
local options = require "lsa.options"
local tensor = require "lsa.tensor.tensor"

local M = {}

local defaults = {n = false, top_p = 0.6, min_layers = false, k = false, extra = false}

-- The best k of each row of [rows, width] ids and logits, in the order they were; -1 and -inf where there are fewer.
function M.best(ids, logits, k)
  local rows, width = unpack(logits:shape())
  local places, counts, values = kernels.topk{scores = logits, k = k, values = true}
  local out, from = tensor.empty({rows, k}, "i32"), ids:contiguous():pointer()
  local to, place, count, value = out:pointer(), places:pointer(), counts:pointer(), values:pointer()
  for row = 0, rows - 1 do
    for j = 0, k - 1 do
      local there = j < count[row]
      to[row * k + j] = there and from[row * width + place[row * k + j]] or -1
      if not there then value[row * k + j] = -math.huge end
    end
  end
  return out, values
end

-- The default of min_layers: three of Flash's 21 layers.
function M.min_layers(layers)
  return math.max(1, math.ceil(layers / 7))
end

function M.mine(ids, logits, opt)
  opt = options.check(opt, defaults, "labels.mine")
  options.whole(opt.n, 0, "labels.mine: n")
  local shape = logits:shape()
  if opt.k and shape[3] and opt.k < shape[3] then
    local steps, layers, width = unpack(shape)
    ids, logits = M.best(ids:reshape {steps * layers, width}, logits:reshape {steps * layers, width}, opt.k)
    ids, logits = ids:reshape {steps, layers, opt.k}, logits:reshape {steps, layers, opt.k}
  end
  local pointers, indices, scores = kernels.golden_labels{ids = ids, logits = logits, n = opt.n, top_p = opt.top_p,
    min_layers = opt.min_layers or M.min_layers(shape[2] or 0), extra = opt.extra}
  local count = pointers:get(shape[1])
  return pointers, indices:narrow(0, 0, count), scores:narrow(0, 0, count)
end

return M
