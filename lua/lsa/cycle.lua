-- Owns what a policy is given: one object a cycle, whose costly fields are computed when they are first asked for.
--
--   t, n, number            tokens known; candidate chunks (0 .. n-1); which cycle, from 0
--   scores, logits(layer)   [n] f32: the Memory Indexer's ensemble; one target layer's logits
--   native(layer)           [n] f32: the Lightning Indexer's logits at the last token
--   keys(layer)             [n, dim] f32 index keys;  queries(layer, w): [w, heads, dim] and [w, heads] of the last w tokens
--   used(layer) mass(layer) [n]: Level 2's picks (i32) and attention mass (f32) since the last set took over;
--   observed                the set of chunks for which that was measured
--   resident, keep          sets: resident now; kept whatever the policy says (sink and tail)
--   budget, room, page      chunks that may be selected; what is left of that beside keep; chunks a page
--   top(scores)             set of the best [n] scores outside keep that fill the budget
--   top_pages(scores)       the same by pages: [ceil(n / page)] scores
--   tokens, entropy         token ids so far (i32 tensor); entropy in nats of the last token's distribution
--   csa_layers              how many layers there are to ask about
--   future                  in replay: what the next tau steps use (lua/lsa/replay.lua)
--   state, rng              the policy's own table; a seeded generator (lua/lsa/rng.lua)
--
-- layer is a CSA ordinal. cycle.native(0) and cycle:native(0) are the same.
--
-- The numbers come from a source, a live session or a recorded one. Beside what lua/lsa/loop.lua wants, it has
--   indexer, csa_layers     a Memory Indexer; a number
--   hidden_state(layer)     float *: the layer's hidden state at the last token
--   recent_queries(layer, w)            tensors [w, heads, dim], [w, heads]
--   index_scores(layer, q, w, heads, n) [n] f32 of one query
--   decoded_keys(layer, n)  observations(layer, n)  token_tensor(t)  last_logits() -> float *, count
-- and, where it is recorded, last_entropy() in place of last_logits(), and future(tau, n).
local ffi = require "ffi"
local set = require "lsa.set"
local tensor = require "lsa.tensor"

local M = {}

local function floats(t) return ffi.cast("float *", t.c.data) end

-- Fields computed once: name -> function(source, cycle).
local fields = {}

function fields.scores(source, cycle)
  local logits = {}
  for i, layer in ipairs(source.indexer.layers) do logits[i] = cycle.logits(layer) end
  return source.indexer:join(logits)
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

-- A copy of [n] scores in which the ids of `out` cannot win.
local function masked(scores, out)
  local copy = tensor.zeros({scores:count()}, "f32"):copy(scores)
  local values = floats(copy)
  for id in out:each() do values[id] = -math.huge end
  return copy
end

function fields.top(_, cycle)
  return function(scores)
    return masked(scores, cycle.keep):topk(math.min(cycle.room, cycle.n))
  end
end

-- Pages that hold kept chunks come first, as the reference deployment forces them; then the best fill the budget.
function fields.top_pages(_, cycle)
  return function(scores)
    local kept = cycle.keep:pages(cycle.page)
    local most = math.max(0, math.floor(cycle.budget / cycle.page) - kept:count())
    local pages = masked(scores, kept):topk(math.min(most, scores:count()))
    return pages:chunks(cycle.page, cycle.n)
  end
end

function fields.tokens(source, cycle)
  return source:token_tensor(cycle.t)
end

-- In nats, of the distribution that logits (a float array) give.
function M.entropy(logits, vocab)
  local most, sum, weighted = -math.huge, 0, 0
  for i = 0, vocab - 1 do most = math.max(most, logits[i]) end
  for i = 0, vocab - 1 do
    local e = math.exp(logits[i] - most)
    sum = sum + e
    weighted = weighted + e * (logits[i] - most)
  end
  return math.log(sum) - weighted / sum
end

function fields.entropy(source)
  if source.last_entropy then return source:last_entropy() end
  return M.entropy(source:last_logits())
end

function fields.future(source, cycle)
  return source.future and source:future(cycle.tau, cycle.n) or nil
end

-- Functions of a layer, remembered by layer: name -> function(source, cycle, layer, w).
local by_layer = {}

function by_layer.logits(source, cycle, layer)
  local q, w, heads = source.indexer:query(layer, source:hidden_state(layer), cycle.t - 1, source.format)
  return source:index_scores(layer, q, w, heads, cycle.n)
end

function by_layer.native(source, cycle, layer)
  local q, w = cycle.queries(layer, 1)
  return source:index_scores(layer, floats(q), floats(w), w:count(), cycle.n)
end

function by_layer.keys(source, cycle, layer) return source:decoded_keys(layer, cycle.n) end
function by_layer.queries(source, _, layer, w) return source:recent_queries(layer, w) end
function by_layer.used(source, cycle, layer) return (source:observations(layer, cycle.n)) end
function by_layer.mass(source, cycle, layer) return (select(2, source:observations(layer, cycle.n))) end

local meta = {}

function meta.__index(cycle, name)
  local source = rawget(cycle, "source")
  if fields[name] then
    local value = fields[name](source, cycle)
    rawset(cycle, name, value)
    return value
  end
  local compute = by_layer[name]
  if not compute then return nil end
  local known = {}
  local function ask(first, ...)
    local layer, w = first, ...
    if first == cycle then layer, w = ... end
    local key = tostring(layer) .. ":" .. tostring(w)
    known[key] = known[key] or {compute(source, cycle, layer, w)}
    return unpack(known[key])
  end
  rawset(cycle, name, ask)
  return ask
end

-- given: what is known already (t, n, number, resident, keep, budget, page, state, rng).
function M.new(source, given)
  given.source = source
  return setmetatable(given, meta)
end

-- A policy's answer as a set over n ids: a set, ids (list or i32 tensor), or runs {{a, b}, …} of a .. b-1.
function M.as_set(answer, n)
  if set.is(answer) then
    if answer:size() ~= n then
      error(("the policy's set is over %d ids, there are %d candidates"):format(answer:size(), n), 0)
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
    for _, run in ipairs(answer) do out:range(run[1], run[2]) end
    return out
  end
  error(("the policy returned a %s; a set, a list of ids, or runs {{a, b}, …} is wanted"):format(kind), 0)
end

return M
