-- The scripting API as tests/api_fuzz_spec.lua and tests/arity_spec.lua call it: every public function and method that there is, by its
-- name, with a right call of each and objects to call it on.
local lsa = require "lsa"
local lib = require "lsa.ffi"
local registry = require "lsa.registry"
local fuzz = require "api_fuzz_support"
local trainer_support = require "trainer_support"

local M = {}

local golden = lib.root .. "/tests/golden/"

local EXCLUDED = fuzz.EXCLUDED

---- what is called ----

local function inner(object, name)
  if EXCLUDED[name] then return true end
  return object == "replay" and not ({["replay.stats"] = true, ["replay.cycles"] = true})[name]
end

function M.tokens(n, seed)
  local random, out = fuzz.random(seed or 1), {}
  for i = 1, n do out[i] = random(64) end
  return out
end

local tokens = M.tokens

local function session_options(random, world)
  local policy = fuzz.callback(random, world, function(cycle) return cycle.top(cycle.native(0)) end)
  local schedule = fuzz.callback(random, world, function() return 3 end)
  local evict = fuzz.callback(random, world, function()
    local object = {}
    for _, method in ipairs {"hit", "insert", "remove", "victim", "state", "restore"} do
      object[method] = fuzz.callback(random, world, method == "victim" and function(_, allowed)
        for id = 0, 100 do if allowed:has(id) then return id end end
      end)
    end
    return object
  end)
  return {
    select = random:pick {"recency", "lsa_topk", policy, {policy, theta = 1}}, budget = random:pick {0.3, 5, 1}, every = random:pick {3, 8, schedule},
    evict = random:pick {"lru", "arc", evict}, hot = random:pick {16, 24}, kv = random:pick {"f32", "fp8"}, seed = 3,
    strict = random:chance(0.2), async = random:chance(0.2), granularity = "chunk", page = 4, sink = 1, tail = 1, cold = random:chance(0.2) and "disk:" .. world.folder or "ram",
  }
end

local function batch_options(random, world)
  local opt = session_options(random, world)
  opt.most, opt.piece, opt.memory, opt.stagger = 3, 16, "4 MiB", true
  return opt
end

-- Right calls, by name: functions of the world that return arguments. A function that is not here gets garbage alone.
local right = {}
right["lsa.zeros"] = function() return {{2, 3}, "f32"} end
right["lsa.tensor.tensor"] = function() return {{{1, 2}, {3, 4}}, "i32"} end
right["lsa.tensor.set"] = function() return {10} end
right["lsa.load"] = function(w) return {w.file} end
right["lsa.save"] = function(w) return {w.out, {a = w.tensor}, {key = "value"}} end
right["lsa.model"] = function() return {golden .. "short", {compute = "f32", device = "cpu", piece = 16}} end
right["lsa.indexer"] = function(w) return {{model = w.model, layers = {0}, from = w.indexer_file, ensemble = "max"}} end
right["lsa.trainer"] = function(w)
  return {{model = w.model, traces = {w.trace}, layers = {0, 1}, steps = 2, batch = 2, rank = 8, heads = 2, from = "random", window = 2,
    rate = 1e-3, warmup = 1, negatives = 1, positives = 8, sampler = fuzz.callback(w.random, w, function(s) return s:uniform(s.want) end),
    seed = 1, loss = "bce", pairwise = "hinge", weights = "votes", clip = 1, decay = 0.01, frequent = 0.8, factor = 1, margin = 1,
    checkpoint = w.out .. ".state", every = 1, ensemble = "max", first = 1, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, min_layers = 1}}
end
right["lsa.evaluate"] = function(w)
  return {{indexer = w.indexer, traces = {w.trace}, theta = 0.5, strict = false, k = 8, tail = 1, every = 8, window = 2, first = 1,
    also = {mine = fuzz.callback(w.random, w, function(_, _, n) return lsa.zeros({n}) end)}}}
end
right["lsa.batch"] = function(w) return {w.model, batch_options(w.random, w)} end
right["lsa.pool"] = function() return {{layers = 2, record = 8, chunks = 20, hot = 6, cold = "ram", evict = "lru"}} end
right["lsa.cache"] = function() return {{pages = {1, 2, 3, 1, 2, 9}, capacity = 2, evict = "lru"}} end
right["lsa.sweep"] = function(w)
  return {{policies = {"recency"}, budgets = {0.1, 0.2}, taus = {8}, run = fuzz.callback(w.random, w, function() return {accuracy = 1} end),
    results = w.out .. ".jsonl", about = "x", columns = {"accuracy"}, grid = {other = {1}}, label = "x", seeds = {1}, hots = {4}, evictions = {"lru"}}}
end
right["lsa.replay"] = function(w)
  local opt = session_options(w.random, w)
  opt.kv, opt.cold = nil, nil
  return {w.recording, opt}
end
right["lsa.dump"] = function(w) return {w.model, tokens(40), w.out .. ".dump", {layers = {0}, from = 0, every = 1, top_p = 0.6, k = 8, logits = 1}} end
right["accounting.bytes"] = function(w) return {w.model.config, {tokens = 1000, resident = 100}} end
right["accounting.flops"] = right["accounting.bytes"]
right["accounting.requests"] = function(w) return {w.model.config, {tokens = 1000, resident = 100, memory = 1e9, weights = 1e8, reserve = 10}} end

local function one_of_sizes(w) return w.random:pick {1, 2, 64} end
right["tensor.get"] = function() return {0, 1} end
right["tensor.set"] = function() return {0, 1, 3.5} end
right["tensor.row"] = function() return {1} end
right["tensor.narrow"] = function() return {0, 0, 1} end
right["tensor.reshape"] = function() return {{3, 2}} end
right["tensor.to"] = function() return {"bf16"} end
right["tensor.copy"] = function(w) return {w.tensor} end
right["tensor.pages"] = function(w) return {one_of_sizes(w), "max"} end
right["tensor.where"] = function(w) return {w.set, w.tensor} end
for _, name in ipairs {"add", "sub", "mul", "div", "minimum", "maximum"} do
  right["tensor." .. name] = function(w) return {w.tensor} end
end
for _, name in ipairs {"ge", "gt", "topk", "topp", "fill", "sum", "max", "min", "mean"} do right["tensor." .. name] = function() return {1} end end
for _, name in ipairs {"add", "remove"} do right["set." .. name] = function(w) return {w.random:pick {3, {1, 2}, w.set}} end end
for _, name in ipairs {"union", "intersect", "minus", "equals", "intersect_count"} do right["set." .. name] = function(w) return {w.set} end end
for _, name in ipairs {"has", "dilate", "pages", "resize"} do right["set." .. name] = function() return {3} end end
right["set.range"] = function() return {1, 4} end
right["set.chunks"] = function() return {4, 20} end

right["model.session"] = function(w) return {session_options(w.random, w)} end
right["model.restore"] = function(w) return {w.saved, {select = "recency", budget = 0.3, every = 8, hot = 20, seed = 1, cold = "ram"}} end
right["model.tokens"] = function() return {"ab"} end
right["model.text"] = function() return {{1, 2}} end
right["session.prefill"] = function(w) return {w.random:pick {tokens(5), tokens(40), lsa.tensor({1, 2}, "i32")}, {all = true, trace = {"attn_input"}}} end
right["session.fill"] = function(w) return {w.random(300), {seed = w.random(5)}} end
right["session.decode"] = function() return {3} end
right["session.generate"] = function() return {{n = 4, temperature = 1, stop = 7}} end
right["session.fork"] = function(w)
  local opt = session_options(w.random, w)
  for _, name in ipairs {"kv", "async", "granularity", "page", "sink", "tail", "cold"} do opt[name] = nil end
  return {w.random:chance(0.3) and {} or opt}
end
right["session.save"] = function(w) return {w.out .. ".session"} end
right["session.plot"] = function(w) return {w.random:pick {"traffic", "residency"}} end
right["session.record"] = function(w) return {w.random:pick {w.out .. ".trace", false}} end
for _, name in ipairs {"keys", "hidden", "entries"} do right["session." .. name] = function() return {0} end end
right["pool.write"] = function(w) return {0, {1, 2}, w.bytes} end
right["pool.read"] = function() return {1, {1, 2}} end
right["pool.start"] = function() return {{4, 5}, {1}} end
for _, name in ipairs {"fetch", "evict"} do right["pool." .. name] = function() return {{1, 2, 3}} end end
right["pool.resize"] = function() return {25} end
right["indexer.score"] = function(w) return {w.hidden, w.keys, 20} end
right["indexer.logits"] = function(w) return {0, w.hidden, w.keys, 20} end
right["indexer.save"] = function(w) return {w.out .. ".indexer"} end
right["trainer.run"] = function() return {{progress = false}} end
right["trainer.save"] = function(w) return {w.out .. ".trainer"} end
right["batch.submit"] = function(w)
  local opt = {tokens = tokens(9), n = 4, stop = 5, temperature = 1, select = "recency", budget = 0.3, every = 4, seed = 2, decoded = 1, sink = 1, tail = 1}
  if w.random:chance(0.3) then opt.session, opt.sink, opt.tail = w.session, nil, nil end
  return {opt}
end
for _, name in ipairs {"result", "session", "cancel"} do right["batch." .. name] = function() return {0} end end
right["batch.run"] = function() return {{progress = false}} end
right["sweep.write"] = function(w) return {w.out .. ".csv"} end

-- What a policy can ask of its cycle, whose names no table has.
local CYCLE = {"native", "logits", "keys", "queries", "score", "window", "used", "mass", "top", "top_pages", "newest", "within"}
for _, name in ipairs {"native", "logits", "used", "mass"} do right["cycle." .. name] = function() return {0} end end
for _, name in ipairs {"keys", "queries", "window"} do right["cycle." .. name] = function() return {0, 3} end end
right["cycle.score"] = function(w) return {0, w.query, w.query_weights} end
right["cycle.top"] = function(w) return {w.random:pick {w.chunk_scores, {w.chunk_scores, w.chunk_scores}}, 3, w.chunk_set} end
right["cycle.top_pages"] = function(w) return {w.page_scores} end
right["cycle.newest"] = function(w) return {3, w.chunk_set} end
right["cycle.within"] = function() return {{budget = 3}} end

-- A call from within a policy, strict, so that what it raises comes out.
local function in_a_cycle(w, name)
  return function(...)
    local args, n, answer = {...}, select("#", ...), nil
    local s = w.control:fork {strict = true, select = function(cycle)
      answer = cycle[name](unpack(args, 1, n))
      return {}
    end}
    local ok, problem = pcall(s.decode, s, 1)
    s:close()
    if not ok then error(problem, 0) end
    return answer
  end
end

-- Options of the policies that there are, all at once.
local function policy_call(w, kind, name)
  return function(...)
    local spec = {name}
    for i, key in ipairs {"theta", "layer", "window", "recent", "radius", "of", "decay", "k", "min", "max", "share", "page"} do
      if w.random:chance(0.3) then spec[key] = (select(i % 3 + 1, ...)) end
    end
    local field = ({policies = "select", evictions = "evict", schedules = "every"})[kind]
    local s = w.control:fork {strict = true, [field] = spec, hot = 30}
    local ok, problem
    for i = 1, 5 do
      ok, problem = pcall(s.decode, s, i)
      if not ok then break end
    end
    s:close()
    if not ok then error(problem, 0) end
  end
end

-- A kernel's arguments by its own declaration: small sizes, the same letter the same size.
local function kernel_arguments(op)
  return function(w)
    local sizes, args = {}, {}
    local function size(token)
      if type(token) == "number" then return token end
      sizes[token] = sizes[token] or w.random:pick {0, 1, 2, 3, 4, 8, 64}
      return sizes[token]
    end
    for _, arg in ipairs(op.args) do
      if arg.kind == "integer" or arg.kind == "number" then args[arg.name] = w.random:pick {0, 1, 2, 4}
      elseif arg.kind == "dtype" then args[arg.name] = "bf16"
      elseif arg.kind == "set" and not arg.result then args[arg.name] = lsa.set(size(arg.shape[1]))
      elseif arg.kind == "tensor" and not arg.result and not (arg.optional and w.random:chance(0.5)) then
        local shape = arg.leading and w.lead or {}
        local own = {unpack(shape)}
        for _, token in ipairs(arg.shape) do own[#own + 1] = size(token) end
        args[arg.name] = lsa.zeros(own, arg.dtypes == "any" and "f32" or arg.dtypes:match "^[%w_]+")
      end
    end
    return {args}
  end
end

---- the world ----

local shared                                                 -- what prepare made

-- Calls back into a session, from wherever a callback runs.
local function reenter(world)
  return function(random)
    local s = world.session
    local what = random(8)
    if what == 0 then s:decode(1)
    elseif what == 1 then s:close()
    elseif what == 2 then world.objects[#world.objects + 1] = s:fork {}
    elseif what == 3 then s:prefill {1, 2, 3}
    elseif what == 4 then s:save(world.out .. ".inside")
    elseif what == 5 then return s:stats()
    elseif what == 6 and world.batch then world.batch:step()
    else collectgarbage() end
  end
end

-- What calls are made of; prepare comes first.
function M.new(random, folder)
  local w = {random = random, objects = {}, folder = folder, out = folder .. "/out", lead = random:pick {{}, {0}, {2}, {3, 2}}}
  for name, value in pairs(shared) do w[name] = value end
  w.reenter = reenter(w)
  w.tensor = lsa.tensor({{1, 2, 3}, {4, 5, 6}}, random:pick {"f32", "bf16", "i32"})
  w.scores = lsa.tensor {3, 1, 2, 5, 4, 9, 8, 7, 6, 0}
  w.bytes = lsa.zeros({2, 8}, "u8")
  w.query, w.query_weights = shared.query, shared.query_weights
  w.chunk_scores = lsa.zeros({shared.chunks}):fill(0.5)
  w.chunk_set, w.page_scores = lsa.set(shared.chunks):add(2), lsa.zeros {math.ceil(shared.chunks / 64)}
  w.set = lsa.set(10):add {1, 3, 5}
  local opt = session_options(random, w)
  local made, s = pcall(w.model.session, w.model, opt)
  w.session = made and s or w.model:session {select = "recency", budget = 0.3, every = 3}
  pcall(w.session.prefill, w.session, tokens(40))
  w.on_demand = w.model:session {on_demand = true, budget = 0.3}
  w.on_demand:prefill(tokens(30))
  w.pool = lsa.pool {layers = 2, record = 8, chunks = 20, hot = 6}
  local ok, b = pcall(lsa.batch, w.model, batch_options(random, w))
  w.batch = ok and b or lsa.batch(w.model, {most = 2, budget = 0.3, select = "recency"})
  pcall(w.batch.submit, w.batch, {tokens = tokens(9), n = 4})
  local closed = w.model:session {select = "recency"}
  closed:close()
  w.objects = {w.session, w.on_demand, closed, w.pool, w.batch, w.model, w.indexer, w.tensor, w.set, w.scores, w.recorded, w.trace}
  return w
end

-- Every call there is: {name, fn, right, self name}.
function M.discover(w)
  local list = {}
  local function add(name, fn, self, arguments)
    if not EXCLUDED[name] then list[#list + 1] = {name = name, fn = fn, self = self, right = arguments or right[name]} end
  end
  for name in pairs(getmetatable(lsa).__names) do
    local value = lsa[name]
    if type(value) == "function" then add("lsa." .. name, value) end
  end
  for name, value in pairs(lsa.accounting) do
    if type(value) == "function" then add("accounting." .. name, value) end
  end
  for name, op in pairs(lsa.kernels) do
    if type(op) == "table" and op.args then add("kernels." .. name, op, nil, kernel_arguments(op)) end
  end
  for object, self in pairs {tensor = w.tensor, set = w.set, model = w.model, session = w.session, pool = w.pool, batch = w.batch,
    indexer = w.indexer, trainer = w.trainer_example, replay = w.replay_example, sweep = w.sweep_example} do
    for method, fn in pairs(fuzz.methods(self)) do
      local name = object .. "." .. method
      if not inner(object, name) then add(name, fn, object) end
    end
  end
  for _, name in ipairs(CYCLE) do add("cycle." .. name, in_a_cycle(w, name)) end
  for _, kind in ipairs {"policies", "evictions", "schedules"} do
    for _, name in ipairs(registry.names(kind)) do add(kind .. "." .. name, policy_call(w, kind, name)) end
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  local kinds = {kinds = {}} -- each kind as often, however many it has
  for _, call in ipairs(list) do
    local kind = call.name:match "^[^.]*"
    if not kinds[kind] then kinds[kind], kinds.kinds[#kinds.kinds + 1] = {}, kind end
    table.insert(kinds[kind], call)
  end
  return kinds
end

-- The object that a method is called on: one of its kind, fresh or used, sometimes closed.
function M.receiver(w, kind)
  local r = w.random
  if kind == "tensor" then return r:pick {w.tensor, w.scores, lsa.zeros({0}), lsa.zeros({2, 3, 4}, "f16"), lsa.tensor(3)} end
  if kind == "set" then return r:pick {w.set, lsa.set(0), lsa.set(500):range(3, 400)} end
  if kind == "session" then return r:pick {w.session, w.session, w.session, w.on_demand, w.objects[3]} end
  if kind == "trainer" then
    local ok, t = pcall(lsa.trainer, right["lsa.trainer"](w)[1])
    return ok and t or w.trainer_example
  end
  return w[kind] or w[kind .. "_example"]
end

-- What is shared by the worlds, which it returns; its files are in the folder.
function M.prepare(folder)
  shared = {}
  shared.model = lsa.model(golden .. "flash")
  local m = shared.model
  shared.control = m:session {select = "lsa_topk", budget = 0.3, every = 4, seed = 9}
  shared.control:prefill(tokens(60))
  for i = 1, 5 do shared.control:decode(i) end
  shared.chunks = select(2, shared.control:position())
  shared.query, shared.query_weights = shared.control:recent_queries(0, 1)
  shared.file = folder .. "/in.safetensors"
  lsa.save(shared.file, {x = lsa.tensor {1, 2, 3}})
  shared.saved = folder .. "/saved.safetensors"
  shared.control:save(shared.saved)
  shared.recording = folder .. "/recording.safetensors"
  local s = m:session {select = "lsa_topk", budget = 0.4, every = 8}
  s:prefill(tokens(40))
  s:record(shared.recording)
  for i = 1, 20 do s:decode(i) end
  s:record(false)
  shared.recorded = lsa.load(shared.recording)
  shared.keys, shared.hidden = s:keys(0), s:hidden(0)
  s:close()
  shared.replay_example = lsa.replay(shared.recording)
  shared.sweep_example = lsa.sweep {budgets = {1, 2}, run = function() return {a = 1} end}
  shared.trace = trainer_support.trace(m, {0, 1}, {steps = 60, topics = 4, stay = 10, seed = 1, noise = 0.3})
  shared.indexer = lsa.indexer {model = m, layers = {0}}
  shared.indexer_file = folder .. "/indexer.safetensors"
  shared.indexer:save(shared.indexer_file)
  shared.trainer_example = lsa.trainer {model = m, traces = {shared.trace}, steps = 2, batch = 2, from = "random", window = 2}
  return shared
end

function M.forget() shared = nil end

return M
