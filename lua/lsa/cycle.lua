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
--   tokens, entropy         token ids so far (i32 tensor); entropy in nats of the last token's distribution
--   csa_layers              how many layers there are to ask about
--   state, rng              the policy's own table; a seeded generator (lua/lsa/rng.lua)
--
-- layer is a CSA ordinal. cycle.native(0) and cycle:native(0) are the same.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local set = require "lsa.set"
local tensor = require "lsa.tensor"

local C = lib.C

local M = {}

local function floats(t) return ffi.cast("float *", t.c.data) end
local function ints(t) return ffi.cast("int32_t *", t.c.data) end

-- Fields computed once: name -> function(session, cycle).
local fields = {}

function fields.scores(s, cycle)
  local logits = {}
  for i, layer in ipairs(s.indexer.layers) do logits[i] = cycle.logits(layer) end
  return s.indexer:join(logits)
end

function fields.observed(s, cycle)
  local observed = set.new(cycle.n)
  if s.observed_all then return observed:invert() end
  return cycle.resident
end

function fields.csa_layers(s)
  return #s.model.csa_layers
end

function fields.room(_, cycle)
  return math.max(0, cycle.budget - cycle.keep:count())
end

-- The `room` best of [n] scores outside keep, as a set: what fills the budget exactly.
function fields.top(_, cycle)
  return function(scores)
    local masked = tensor.zeros({cycle.n}, "f32"):copy(scores)
    local values = floats(masked)
    for id in cycle.keep:each() do values[id] = -math.huge end
    return masked:topk(math.min(cycle.room, cycle.n))
  end
end

function fields.tokens(s, cycle)
  local out = tensor.zeros({cycle.t}, "i32")
  C.lsa_session_token_ids(s.c, 0, cycle.t, ints(out))
  return out
end

function fields.entropy(s)
  local logits, vocab = C.lsa_session_logits(s.c), tonumber(s.model.config.vocab)
  local most, sum, weighted = -math.huge, 0, 0
  for i = 0, vocab - 1 do most = math.max(most, logits[i]) end
  for i = 0, vocab - 1 do
    local e = math.exp(logits[i] - most)
    sum = sum + e
    weighted = weighted + e * (logits[i] - most)
  end
  return math.log(sum) - weighted / sum
end

-- Functions of a layer, remembered by layer: name -> function(session, cycle, layer, w).
local by_layer = {}

function by_layer.logits(s, cycle, layer)
  local hidden = ffi.new("float[?]", tonumber(s.model.config.hidden))
  lib.check(C.lsa_session_hidden(s.c, layer, hidden), 4)
  local q, w, heads = s.indexer:query(layer, hidden, cycle.t - 1, s.format)
  local out = tensor.zeros({cycle.n}, "f32")
  lib.check(C.lsa_session_index_scores(s.c, layer, q, w, 1, heads, floats(out)), 4)
  return out
end

function by_layer.native(s, cycle, layer)
  local q, w = cycle.queries(layer, 1)
  local out = tensor.zeros({cycle.n}, "f32")
  lib.check(C.lsa_session_index_scores(s.c, layer, floats(q), floats(w), 1, s.model.config.index_heads, floats(out)), 4)
  return out
end

function by_layer.keys(s, cycle, layer)
  local c = s.model.config
  local raw = s:keys(layer)
  local out = tensor.zeros({cycle.n, tonumber(c.index_dim)}, "f32")
  lib.check(C.lsa_index_decode_cpu(floats(out), raw.c.data, cycle.n, c.index_dim,
    C.lsa_index_key_bytes(s.format, c.index_dim), s.format, nil), 4)
  return out
end

function by_layer.queries(s, _, layer, w)
  local c = s.model.config
  local recent = tonumber(C.lsa_session_recent(s.c))
  w = math.min(w or recent, recent)
  local heads, dim = tonumber(c.index_heads), tonumber(c.index_dim)
  local q, weights = tensor.zeros({w, heads, dim}, "f32"), tensor.zeros({w, heads}, "f32")
  lib.check(C.lsa_session_queries(s.c, layer, w, floats(q), floats(weights)), 4)
  return q, weights
end

local function observed(s, cycle, layer)
  local used, mass = tensor.zeros({cycle.n}, "i32"), tensor.zeros({cycle.n}, "f32")
  lib.check(C.lsa_session_observed(s.c, layer, ints(used), floats(mass)), 4)
  return used, mass
end

function by_layer.used(s, cycle, layer) return (observed(s, cycle, layer)) end
function by_layer.mass(s, cycle, layer) return (select(2, observed(s, cycle, layer))) end

local meta = {}

function meta.__index(cycle, name)
  local session = rawget(cycle, "session")
  if fields[name] then
    local value = fields[name](session, cycle)
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
    known[key] = known[key] or {compute(session, cycle, layer, w)}
    return unpack(known[key])
  end
  rawset(cycle, name, ask)
  return ask
end

-- given: what is known already (t, n, number, resident, keep, budget, page, state, rng).
function M.new(session, given)
  given.session = session
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
