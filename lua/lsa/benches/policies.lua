-- Selection policies on the scores of a V4-Flash context of 1M tokens, and on 256 chunks, where what is left is Lua's share. Index
-- scores, keys and observations are given, not computed.
local registry = require "lsa.registry"

local LAYERS, DIM, HEADS, WINDOW = 3, 32, 4, 16

-- Random tensors that a cycle's fields are taken from.
local function fields_of(n)
  local uniform = require("lsa.kernels").uniform
  local f = {scores = uniform(n, 1), window = uniform(WINDOW * n, 2):reshape {WINDOW, n}, native = {}, mass = {}, keys = {}}
  for layer = 0, LAYERS - 1 do
    f.native[layer], f.mass[layer] = uniform(n, 3 + layer), uniform(n, 13 + layer)
    f.keys[layer] = uniform(n * DIM, 23 + layer):reshape {n, DIM}
  end
  f.q, f.w = uniform(HEADS * DIM, 33):reshape {1, HEADS, DIM}, uniform(HEADS, 34):reshape {1, HEADS}
  return f
end

local function cycle_of(n, f, number, state)
  local cycles, set, rng = require "lsa.cycle", require "lsa.set", require "lsa.rng"
  local tail = math.floor(n / 128)
  return cycles.new({csa_layers = LAYERS}, {
    t = 4 * n, n = n, number = number, budget = math.floor(0.135 * n), page = 64, state = state, rng = rng.new(1),
    keep = set.new(n):range(n - tail, n), resident = set.new(n), observed = set.new(n):range(0, tail), entropy = 1,
    scores = f.scores, csa_layers = LAYERS, future = {native = set.new(n), counts = f.scores, golden = set.new(n)},
    native = function(layer) return f.native[layer] end, mass = function(layer) return f.mass[layer] end,
    keys = function(layer, from) return f.keys[layer]:narrow(0, from or 0, n - (from or 0)) end,
    queries = function() return f.q, f.w end, window = function() return f.window end,
    score = function(layer) return f.native[layer]:reshape {1, n} end,
  })
end

return function(bench)
  for _, n in ipairs {256, 2 ^ 18} do
    for _, name in ipairs(registry.names "policies") do
      bench:case {
        op = "policy", shape = ("%s of %d"):format(name, n),
        setup = function()
          return {fields = fields_of(n), number = 0, state = {}, entry = registry.open("policies", name)}
        end,
        run = function(s)
          s.number = s.number + 1
          return s.entry.fn(cycle_of(n, s.fields, s.number, s.state), s.entry.opt)
        end,
      }
    end
  end
end
