-- Selection policies on the scores of a V4-Flash context of 1M tokens, and on 256 chunks. Index scores, keys and observations are given,
-- not computed.
-- Of a cycle at 1M tokens, what it costs beyond its kernels is told too: Lua, and the making and freeing of tensors and sets. Rounds of
-- cycles in which every C function but those is clocked take turns with rounds in which none is.
local lsa = require "lsa.ffi"
local registry = require "lsa.registry"
local C = lsa.C

local N, ROUNDS, RUNS, WARM = 2 ^ 18, 7, 21, 80
local LAYERS, DIM, HEADS, WINDOW = 3, 32, 4, 16

-- Random tensors that a cycle's fields are taken from.
local function fields_of(n)
  local uniform = require("lsa.tensor.kernels").uniform
  local f = {scores = uniform(n, 1), window = uniform(WINDOW * n, 2):reshape {WINDOW, n}, native = {}, mass = {}, keys = {}}
  f.tokens = uniform(4 * n, 43):mul(256):floor():to "i32"
  for layer = 0, LAYERS - 1 do
    f.native[layer], f.mass[layer] = uniform(n, 3 + layer), uniform(n, 13 + layer)
    f.keys[layer] = uniform(n * DIM, 23 + layer):reshape {n, DIM}
  end
  f.q, f.w = uniform(HEADS * DIM, 33):reshape {1, HEADS, DIM}, uniform(HEADS, 34):reshape {1, HEADS}
  return f
end

local function cycle_of(n, f, number, state)
  local cycles, set, rng = require "lsa.cycle.cycle", require "lsa.tensor.set", require "lsa.cycle.rng"
  local tail = math.floor(n / 128)
  return cycles.new({csa_layers = LAYERS}, {
    t = 4 * n, tokens = f.tokens, n = n, number = number, budget = math.floor(0.135 * n), page = 64, state = state, rng = rng.new(1),
    keep = set.new(n):range(n - tail, n), resident = set.new(n), observed = set.new(n):range(0, tail), entropy = 1,
    scores = f.scores, csa_layers = LAYERS, future = {native = set.new(n), counts = f.scores, golden = set.new(n)},
    native = function(layer) return f.native[layer] end, mass = function(layer) return f.mass[layer] end,
    keys = function(layer, from) return f.keys[layer]:narrow(0, from or 0, n - (from or 0)) end,
    queries = function() return f.q, f.w end, window = function() return f.window end,
    score = function(layer) return f.native[layer]:reshape {1, n} end,
  })
end

local function now() return tonumber(C.lsa_clock_ns()) end

-- Counts and times calls of the C library while f runs: whatever Lua code looks up in it, by the namespace's metatable.
local meter = {ns = 0, calls = 0, wrappers = {}}

local function is_kernel(name)
  return name:find "^lsa_" and not name:find "^lsa_tensor_" and name ~= "lsa_set_new" and name ~= "lsa_set_make" and name ~= "lsa_set_free"
    and name ~= "lsa_clock_ns" and name ~= "lsa_error"
end

local function metered(index)
  local clock = C.lsa_clock_ns
  return function(library, name)
    local wrapper = meter.wrappers[name]
    if wrapper then return wrapper end
    local f = index(library, name)
    if type(f) ~= "cdata" or not is_kernel(name) then return f end
    wrapper = function(...)
      local start = clock()
      local result = f(...)
      meter.ns, meter.calls = meter.ns + tonumber(clock() - start), meter.calls + 1
      return result
    end
    meter.wrappers[name] = wrapper
    return wrapper
  end
end

-- Calls f with all calls metered; nothing that was compiled before knows about it.
local function with_meter(f)
  local meta = debug.getmetatable(C)
  local index = meta.__index
  meta.__index = metered(index)
  jit.flush()
  local ok, message = pcall(f)
  meta.__index, meter.wrappers = index, {}
  jit.flush()
  if not ok then error(message, 0) end
end

-- The median of what read() says of RUNS cycles, after some that warm up: what is going to be compiled is by then.
local function round(prepare, read)
  local list = {}
  for i = 1 - WARM, RUNS do
    local run = prepare()
    meter.ns, meter.calls = 0, 0
    local start = now()
    run()
    local ns = now() - start
    if i > 0 then list[i] = read(ns) end
  end
  table.sort(list)
  return list[math.ceil(RUNS / 2)]
end

local function seen_by_meter() return meter.ns end

-- What the meter sees of a call that does nothing.
local function seen_of_nothing()
  return round(function() return function() return C.lsa_cpu_best() end end, seen_by_meter)
end

-- Sorted times by round: of a cycle, of its kernels, and what is between the two; and how many kernels there are. prepare() gives what
-- is timed.
local function shares(prepare)
  local whole, kernels, rest, calls = {}, {}, {}, nil
  for i = 1, ROUNDS do
    whole[i] = round(prepare, function(ns) return ns end)
    with_meter(function()
      local nothing = seen_of_nothing()
      kernels[i] = round(prepare, seen_by_meter)
      calls = meter.calls
      kernels[i] = kernels[i] - calls * nothing
    end)
    rest[i] = whole[i] - kernels[i]
  end
  for _, list in ipairs {whole, kernels, rest} do table.sort(list) end
  return whole, kernels, rest, calls
end

-- A policy on n chunks, as a function that makes the next cycle and returns what asks the policy.
local function preparer(name, n)
  local fields, entry, state, number = fields_of(n), registry.open("policies", name), {}, 0
  return function()
    number = number + 1
    local cycle = cycle_of(n, fields, number, state)
    return function() return entry.fn(cycle, entry.opt) end
  end
end

return function(bench)
  local names = registry.names "policies"
  for _, n in ipairs {256, N} do
    for _, name in ipairs(names) do
      bench:case {
        op = "policy", shape = ("%s of %d"):format(name, n),
        setup = function() return preparer(name, n) end,
        run = function(prepare) return prepare()() end,
      }
    end
  end
  for _, name in ipairs(names) do
    local shape = ("%s of %d, beyond its kernels"):format(name, N)
    if bench:wants("policy", shape) then
      local whole, kernels, rest, calls = shares(preparer(name, N))
      bench:row {
        op = "policy", shape = shape, ns = bench.median(rest), best = rest[1],
        note = ("of %.0f us, %d kernels take %.0f"):format(bench.median(whole) / 1e3, calls, bench.median(kernels) / 1e3),
      }
    end
  end
end
