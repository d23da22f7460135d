-- Cycles for specs of policies, without a model: what is given are tensors, and index scores are computed by the kernel.
local lsa = require "lsa"
local cycles = require "lsa.cycle.cycle"
local rng = require "lsa.cycle.rng"

local M = {}

function M.set(n, ids)
  return lsa.set(n):add(ids)
end

-- given: what a spec wants to see; n follows from scores or keys. keys: [n, dim] tensors by layer, from 1;
-- queries: {[rows, heads, dim], [rows, heads]} by layer.
function M.cycle(given)
  local g = {}
  for name, value in pairs(given) do g[name] = value end
  g.n = g.n or (g.scores and #g.scores) or #g.keys[1]
  g.t, g.number, g.budget, g.page = g.t or 4 * g.n, g.number or 0, g.budget or g.n, g.page or 64
  g.keep = lsa.set(g.n):add(g.keep or {})
  g.resident = lsa.set(g.n):add(g.resident or {})
  g.state, g.rng = g.state or {}, g.rng or rng.new(1)
  local source = {csa_layers = g.layers or (g.keys and #g.keys) or 1}
  local keys, queries = g.keys, g.queries
  g.keys, g.queries = nil, nil
  function source.decoded_keys(_, layer, n, from) return keys[layer + 1]:narrow(0, from, n - from):copy() end
  function source.recent_queries(_, layer, w)
    local q, weights = queries[layer + 1][1], queries[layer + 1][2]
    w = math.min(w, #q)
    return q:narrow(0, #q - w, w):copy(), weights:narrow(0, #q - w, w):copy()
  end
  local function score(layer, q, w)
    return lsa.kernels.index_score(q, w, lsa.kernels.index_encode(keys[layer + 1], "f32"), "f32")
  end
  g.score = score
  function g.native(layer) return score(layer, source:recent_queries(layer, 1)):row(0) end
  local cycle = cycles.new(source, g)
  for _, name in ipairs {"native", "scores", "mass", "observed", "entropy", "future"} do
    if given[name] then rawset(cycle, name, given[name]) end
  end
  return cycle
end

return M
