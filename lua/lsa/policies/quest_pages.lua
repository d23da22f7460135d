-- Pages by the best score that any key within their bounds could have: with the lowest and highest value of each dimension of
-- a page's index keys,
--   q . k <= [q+, q-] . [high, low],   q . k >= [q-, q+] . [high, low]      (q+ = max(q, 0), q- = min(q, 0))
--   bound(page) = sum_h max(w_h, 0) ReLU(upper_h) + min(w_h, 0) ReLU(lower_h) >= score(s) of every chunk s of the page
-- so that one index scoring of twice the heads and twice the dimensions bounds all pages. Layers are joined by rank; the
-- bounds of full pages are computed once.
-- Source: J. Tang et al., "Quest: query-aware sparsity for efficient long-context LLM inference", 2024.
local grow = require "lsa.grow"
local kernels = require "lsa.kernels"
local tensor = require "lsa.tensor"

-- Writes a page's bounds [high, low] into row p on; keys: [pages * size, dim].
local function write(bounds, p, keys, pages, size)
  local dim = keys:shape()[2]
  local parts = keys:reshape {pages, size, dim}
  bounds:narrow(0, p, pages):narrow(1, 0, dim):copy(parts:max(1))
  bounds:narrow(0, p, pages):narrow(1, dim, dim):copy(parts:min(1))
end

-- [pages, 2 dim]: the bounds of all pages of a layer, the last one short.
local function bounds_of(cycle, layer)
  local known, size = cycle.state[layer], cycle.page
  local done = known and #known or 0
  local keys = cycle.keys(layer, done * size)
  local count, dim = keys:shape()[1], keys:shape()[2]
  local full, rest = math.floor(count / size), count % size
  local bounds = grow(known, {done + full + (rest > 0 and 1 or 0), 2 * dim}, 0)
  if full > 0 then write(bounds, done, keys:narrow(0, 0, full * size), full, size) end
  if rest > 0 then write(bounds, done + full, keys:narrow(0, full * size, rest), 1, rest) end
  cycle.state[layer] = bounds:narrow(0, 0, done + full):copy()
  return bounds
end

-- Queries whose product with [high, low] is the bound: each head once for its upper and once for its lower bound.
local function bounding(q, w)
  local heads, dim = q:shape()[2], q:shape()[3]
  local both, weights = tensor.empty {1, 2 * heads, 2 * dim}, tensor.empty {1, 2 * heads}
  local plus, minus = q:maximum(0), q:minimum(0)
  for half, parts in ipairs {{plus, minus}, {minus, plus}} do
    local rows = both:narrow(1, (half - 1) * heads, heads)
    rows:narrow(2, 0, dim):copy(parts[1])
    rows:narrow(2, dim, dim):copy(parts[2])
  end
  weights:narrow(1, 0, heads):copy(w:maximum(0))
  weights:narrow(1, heads, heads):copy(w:minimum(0))
  return both, weights
end

return function(cycle)
  if cycle.n == 0 then return {} end
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do
    local q, w = bounding(cycle.queries(layer, 1))
    local records = kernels.index_encode(bounds_of(cycle, layer), "f32")
    layers[layer + 1] = kernels.index_score(q, w, records, "f32"):row(0)
  end
  return cycle.top_pages(layers)
end
