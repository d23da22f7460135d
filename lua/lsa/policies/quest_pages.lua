-- Pages by the best score that any key within their bounds could have: with the lowest and highest value of each dimension of
-- a page's index keys,
--   q . k <= [q+, q-] . [high, low],   q . k >= [q-, q+] . [high, low]      (q+ = max(q, 0), q- = min(q, 0))
--   bound(page) = sum_h max(w_h, 0) ReLU(upper_h) + min(w_h, 0) ReLU(lower_h) >= score(s) of every chunk s of the page
-- so that one index scoring of twice the heads and twice the dimensions bounds all pages. Layers are joined by rank; the
-- bounds of full pages are computed once.
-- Source: J. Tang et al., "Quest: query-aware sparsity for efficient long-context LLM inference", 2024.
local kernels = require "lsa.tensor.kernels"
local tensor = require "lsa.tensor.tensor"

-- Writes a page's bounds [high, low] into row p on; keys: [pages * size, dim].
local function write(bounds, p, keys, pages, size)
  local dim = keys:shape()[2]
  local parts = keys:reshape {pages, size, dim}
  bounds:narrow(0, p, pages):narrow(1, 0, dim):copy(parts:max(1))
  bounds:narrow(0, p, pages):narrow(1, dim, dim):copy(parts:min(1))
end

-- Records of the bounds of all pages of a layer, the last one short; made anew where there are new keys.
local function records_of(cycle, layer)
  local known, size = cycle.state[layer] or {pages = 0, n = 0}, cycle.page
  if known.n == cycle.n then return known.records end
  local done = known.pages                       -- full ones
  local keys = cycle.keys(layer, done * size)
  local count, dim = keys:shape()[1], keys:shape()[2]
  local full, rest = math.floor(count / size), count % size
  local bounds = tensor.empty {done + full + (rest > 0 and 1 or 0), 2 * dim}
  if done > 0 then bounds:narrow(0, 0, done):copy(known.bounds:narrow(0, 0, done)) end
  if full > 0 then write(bounds, done, keys:narrow(0, 0, full * size), full, size) end
  if rest > 0 then write(bounds, done + full, keys:narrow(0, full * size, rest), 1, rest) end
  local records = kernels.index_encode(bounds, "f32")
  cycle.state[layer] = {pages = done + full, n = cycle.n, bounds = bounds, records = records}
  return records
end


return function(cycle)
  if cycle.n == 0 then return {} end
  local layers = {}
  for layer = 0, cycle.csa_layers - 1 do
    local q, w = kernels.bound_query(cycle.queries(layer, 1))
    layers[layer + 1] = kernels.index_score(q, w, records_of(cycle, layer), "f32"):row(0)
  end
  return cycle.top_pages(layers)
end, {}
