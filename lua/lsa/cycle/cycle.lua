-- Owns what a policy is given: one object a cycle, whose costly fields are computed when they are first asked for.
--
--   t, n, number            tokens known; candidate chunks (0 .. n-1); which cycle, from 0
--   scores, logits(layer)   [n] f32: the Memory Indexer's ensemble; one target layer's logits
--   reached(theta)          the set of chunks whose score is at least theta
--   native(layer)           [n] f32: the Lightning Indexer's logits at the last token
--   keys(layer, from)       [n - from, dim] f32 index keys of the chunks from .. n-1 (from 0 when nil)
--   queries(layer, w)       index queries [w, heads, dim] and head weights [w, heads] of the last w tokens
--   score(layer, q, w)      [rows, n] f32 index scores of any queries [rows, heads, dim], head weights [rows, heads]
--   window(layer, w)        the same for the last w tokens: the Lightning Indexer's logits [w, n]
--   used(layer) mass(layer) [n]: Level 2's picks (i32) and attention mass (f32) since the last set took over;
--   observed                the set of chunks for which that was measured
--   resident, keep          sets: resident now; kept whatever the policy says (sink and tail)
--   budget, room, page      chunks that may be selected; what is left of that beside keep; chunks a page
--   top(scores), top_pages(scores), newest(k), clip(set, scores)      sets that fill what is left of the budget: see lua/lsa/cycle/choose.lua
--   tokens, entropy         token ids so far (i32 tensor); entropy in nats of the last token's distribution
--   csa_layers              how many layers there are to ask about
--   future                  in replay: what the next tau steps use (lua/lsa/replay.lua)
--   state, rng              the policy's own table; a seeded generator (lua/lsa/cycle/rng.lua)
--   within(given)           the same cycle with other fields, for a policy inside a policy
--
-- Tensors and sets are copies of the moment, the policy's own: they stay as they are when kept in `state`, and what a policy does to
-- them or to the cycle's fields changes nothing that the engine goes by.
--
-- layer is a CSA ordinal. cycle.native(0) and cycle:native(0) are the same.
--
-- The numbers come from a source, a live session or a recorded one. Beside what lua/lsa/cycle/loop.lua wants, it has
--   indexer, csa_layers     a Memory Indexer; a number
--   hidden_states(layer)    float *: the layer's hidden states at the tokens that the indexer looks from; how many
--   recent_queries(layer, w)            tensors [w, heads, dim], [w, heads]
--   index_scores(layer, q, w, heads, n, rows)   [n] f32 of one query, [rows, n] of several
--   decoded_keys(layer, n, from)  observations(layer, n)  token_tensor(t)  last_entropy()
-- and, where it is recorded, future(tau, n), and
--   recorded_scores(kind, layer, n)     [n] f32 of the last token's recorded queries: "" the Lightning Indexer's, "memory_" the
--                                       Memory Indexer's; nil where it has none that serve
--   recorded_ensemble(n)                the ensemble of the latter
local ffi = require "ffi"
local arity = require "lsa.arity"
local choose = require "lsa.cycle.choose"
local options = require "lsa.options"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"

local M = {}

local meta, inner_meta = {}, {}

-- Of each cycle, for as long as both live; a policy has no way to them.
local sources = setmetatable({}, {__mode = "kv"})

local function is_cycle(x)
  local m = type(x) == "table" and getmetatable(x)
  return m == meta or m == inner_meta
end

local function floats(t) return ffi.cast("float *", t.c.data) end

-- Scores that a session records.
local function told(source, name, scores)
  if source.recorder then source.recorder:scored(name, scores) end
  return scores
end

-- Fields computed once: name -> function(source, cycle).
local fields = {}

function fields.scores(source, cycle)
  local known = source.recorded_ensemble and source:recorded_ensemble(cycle.n)
  if known then return known end
  if source.ensemble_scores and not source.recorder then return source:ensemble_scores(cycle.t, cycle.n) end
  local logits = {} -- a recorder is told each layer's
  for i, layer in ipairs(source.indexer.layers) do logits[i] = cycle.logits(layer) end
  return told(source, "ensemble_scores", source.indexer:join(logits))
end

function fields.observed(source, cycle)
  return source.observed_all and set.new(cycle.n):invert() or cycle.resident
end

function fields.csa_layers(source)
  return source.csa_layers
end

function fields.room(_, cycle)
  return math.max(0, cycle.budget - cycle.keep:count())
end

-- A field that is a function of the cycle: cycle.top(…) and cycle:top(…) are the same.
local function method(name, f)
  f = arity.methods({[name] = f}, "cycle.")[name]
  return function(_, cycle)
    return function(first, ...)
      if is_cycle(first) then return f(cycle, ...) end
      return f(cycle, first, ...)
    end
  end
end

for _, name in ipairs {"top", "top_pages", "newest", "clip"} do fields[name] = method(name, choose[name]) end

-- The set alone comes from a GPU, unless its scores are known.
fields.reached = method("reached", function(cycle, theta)
  if type(theta) ~= "number" then raise("cycle.reached: theta is %s; a number is wanted", options.shown(theta)) end
  local outer = cycle
  while not rawget(outer, "scores") and rawget(outer, "outer") do outer = rawget(outer, "outer") end
  local source = sources[outer]
  if not rawget(outer, "scores") and source.ensemble_reached and not source.recorder then
    local chosen = source:ensemble_reached(outer.t, outer.n, theta)
    if chosen then return chosen end
  end
  return cycle.scores:ge(theta)
end)

local function check_layer(source, name, layer)
  if type(layer) == "number" and layer == math.floor(layer) and layer >= 0 and layer < source.csa_layers then return end
  raise("cycle.%s: layer is %s; there are %d CSA layers, from 0 on", name, options.shown(layer), source.csa_layers)
end

-- Queries or head weights as the kernels take them: f32 [rows, heads, dim] or [rows, heads]; false for a size that is free.
local function rows_of(t, what, ...)
  local wanted, shape = {...}, tensor.is(t) and t:shape() or {}
  local good = #shape == #wanted
  for i, n in ipairs(wanted) do good = good and (not n or shape[i] == n) end
  if good then return t:to "cpu":to "f32":contiguous() end
  for i, n in ipairs(wanted) do wanted[i] = n or "any" end
  raise("cycle.score: %s is %s; [%s] is wanted", what, tensor.is(t) and "[" .. table.concat(shape, ", ") .. "]" or
    options.shown(t), table.concat(wanted, ", "))
end

fields.score = method("score", function(cycle, layer, q, w)
  local source = sources[cycle]
  check_layer(source, "score", layer)
  q = rows_of(q, "q", false, false, source.dim or tonumber(source.model.config.index_dim))
  local shape = q:shape()
  w = rows_of(w, "w", shape[1], shape[2])
  return source:index_scores(layer, floats(q), floats(w), shape[2], cycle.n, shape[1])
end)

function fields.tokens(source, cycle)
  return source:token_tensor(cycle.t)
end

function fields.entropy(source)
  return source:last_entropy()
end

function fields.future(source, cycle)
  return source.future and source:future(cycle.tau, cycle.n) or nil
end

-- Functions of a layer, remembered by layer: name -> function(source, cycle, layer, w).
local by_layer = {}

function by_layer.logits(source, cycle, layer)
  local known = source.recorded_scores and source:recorded_scores("memory_", layer, cycle.n)
  if known then return known end
  local hidden, rows = source:hidden_states(layer)
  local q, w, heads = source.indexer:query(layer, hidden, cycle.t - rows, source.format, rows)
  local scores = source:index_scores(layer, q, w, heads, cycle.n, rows > 1 and rows or nil)
  return told(source, "memory_scores_layer_" .. layer, rows > 1 and scores:max(0) or scores)
end

function by_layer.native(source, cycle, layer)
  if source.recorded_scores then return source:recorded_scores("", layer, cycle.n) end
  local q, w = cycle.queries(layer, 1)
  return told(source, "native_scores_layer_" .. layer, source:index_scores(layer, floats(q), floats(w), w:count(), cycle.n))
end

function by_layer.window(_, cycle, layer, w) return cycle.score(layer, cycle.queries(layer, w)) end
function by_layer.keys(source, cycle, layer, from) return source:decoded_keys(layer, cycle.n, from or 0) end
function by_layer.queries(source, _, layer, w) return source:recent_queries(layer, w) end
function by_layer.used(source, cycle, layer) return (source:observations(layer, cycle.n)) end
function by_layer.mass(source, cycle, layer) return (select(2, source:observations(layer, cycle.n))) end

-- Chunks or tokens, where they are given.
local function check_count(name, what, n)
  if type(n) == "nil" or type(n) == "number" and n == math.floor(n) and n >= 0 and n < 2 ^ 53 then return end
  raise("cycle.%s: %s is %s; a whole number of at least 0 is wanted", name, what, options.shown(n))
end

local count_names = {keys = "from", queries = "w", window = "w"}

function meta.__index(cycle, name)
  local source = sources[cycle]
  if fields[name] then
    local value = fields[name](source, cycle)
    rawset(cycle, name, value)
    return value
  end
  local compute = by_layer[name]
  if not compute then return nil end
  local known = {}
  local ask
  function ask(first, ...)
    if is_cycle(first) then return ask(...) end
    local layer, w = first, ...
    if not count_names[name] then
      arity.refuse("cycle." .. name, {"layer"}, 1 + select("#", ...), ...)
    else
      arity.refuse("cycle." .. name, {"layer", count_names[name]}, 1 + select("#", ...), select(2, ...))
    end
    check_layer(source, name, layer)
    if count_names[name] then check_count(name, count_names[name], w) end
    local key = tostring(layer) .. ":" .. tostring(w)
    known[key] = known[key] or {compute(source, cycle, layer, w)}
    return unpack(known[key])
  end
  rawset(cycle, name, ask)
  return ask
end

-- What a cycle within a cycle has of its own, however the outer one has it.
local own = {room = true, top = true, top_pages = true, newest = true, clip = true, reached = true, within = true}

function inner_meta.__index(cycle, name)
  local outer = rawget(cycle, "outer")
  if not own[name] then return outer[name] end
  local value = fields[name](sources[outer], cycle)
  rawset(cycle, name, value)
  return value
end

fields.within = method("within", function(cycle, given)
  if type(given) ~= "table" then raise("cycle.within: given is %s; a table of fields is wanted", options.shown(given)) end
  local fields_given = options.copy(given)
  fields_given.outer, fields_given.keep = cycle, given.keep or cycle.keep
  return setmetatable(fields_given, inner_meta)
end)

-- given: what is known already (t, n, number, resident, keep, budget, page, state, rng).
function M.new(source, given)
  local cycle = setmetatable(given, meta)
  sources[cycle] = source
  return cycle
end

-- A policy's answer as a set over n ids: a set, ids (list or i32 tensor), or runs {{a, b}, …} of a .. b-1.
function M.as_set(answer, n)
  if set.is(answer) then
    if answer:size() ~= n then
      raise("the policy's set is over %d ids, there are %d candidates", answer:size(), n)
    end
    return answer
  end
  local kind = type(answer)
  if tensor.is(answer) then
    kind = answer:dtype() .. " tensor"
    if answer:dtype() == "i32" then return set.new(n):add(answer) end
  end
  if type(answer) == "table" and not tensor.is(answer) then
    local out = set.new(n)
    if type(answer[1]) ~= "table" then return out:add(answer) end
    for i, run in ipairs(answer) do
      local a, b = type(run) == "table" and run[1], type(run) == "table" and run[2]
      if type(a) ~= "number" or type(b) ~= "number" then
        raise("the policy's run %d is %s; {a, b} is wanted", i, options.shown(run))
      end
      out:range(a, b)
    end
    return out
  end
  raise("the policy returned a %s; a set, a list of ids, or runs {{a, b}, …} is wanted", kind)
end

return M
