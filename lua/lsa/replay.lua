-- Owns replay: any policy, eviction and schedule on a recorded session, without the model.
--
--   r = lsa.replay("trace.safetensors", {select = "lsa_page_max", budget = 0.1, every = 32, evict = "arc", hot = 4096})
--   r:stats() r:cycles()      as a session's; step_coverage is exact, over every step
--
-- Options are a session's that concern the loop (lua/lsa/cycle/loop.lua); those not given are the recorded session's. indexer: a
-- Memory Indexer to score with (lsa.indexer{...}); without it, the recorded one's queries are used. One that looks from several tokens looks from
-- those that the recording has.
-- The same loop runs on the same numbers, so the recorded options give the recorded counts. Under other options replay is open-loop:
-- what the steps computed is what they computed under the recorded residents. r.open_loop says which it is. Of a recording that was never finished, r.unfinished says how much there is.
--
-- An eviction policy with an option `future`, belady, gets the accesses to come: where it is not given, the loop runs twice, first to
-- learn them. What a cycle selects does not depend on who leaves the hot pool, so the second run has the same accesses.
--
-- watch = function(row, n, resident): called at each cycle, whose row it is among the recorded ones, with the chunks there are and the set that is
-- resident from then on, beside what is born until the next cycle; the set is replay's own, to be copied.
--
-- A policy sees cycle.future here: native, a set of what the native top-k of the next tau steps picks in any layer; counts, [n] f32, how
-- often; golden, the trace's labels of these steps where it has any (else nil).
local ffi = require "ffi"
local lib = require "lsa.ffi"
local evictions = require "lsa.cycle.eviction_objects"
local indexers = require "lsa.indexer"
local loops = require "lsa.cycle.loop"
local named_files = require "lsa.session.named_files"
local options = require "lsa.options"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local real = require "lsa.tensor.real"
local recordings = require "lsa.session.recording_reader"
local registry = require "lsa.registry"
local set = require "lsa.tensor.set"
local stats = require "lsa.session.stats"
local tensor = require "lsa.tensor.tensor"
local tier = require "lsa.cycle.hot_tier"

local C = lib.C

local Replay = {}
Replay.__index = Replay

local M = {}

local total = ffi.new "int64_t[1]"

-- Cycles, and scores of a layer (4 MiB), that are computed ahead at most.
local AHEAD, SCORES_AHEAD = 64, 2 ^ 20

local weight_names = {[""] = "query_weight_layer_", memory_ = "memory_weight_layer_"}

local function floats(t) return ffi.cast("float *", t.c.data) end
local function ints(t) return ffi.cast("int32_t *", t.c.data) end

---- the source that the loop runs on ----

function Replay:position()
  return self.t, self.n
end

-- self.residents has room for every chunk of the recording, so that a step can add to it.
function Replay:resident()
  return self.residents:resize(self.n)
end

function Replay:set_resident(chunks)
  self.residents, self.resident_count = chunks:resize(self.most), chunks:count()
  self.since = self.row + 1
  if self.watch then self.watch(self.row, self.n, self.residents) end
end

function Replay:drop_absent()
  local present = self.tier:present()
  local unit = loops.unit(self.loop.opt)
  self:set_resident(self:resident():intersect(unit == 1 and present or present:chunks(unit, self.n)))
end

-- How many of the native picks of n rows from `row` on are resident, over layers, and how many picks there are. What is born
-- in between is resident before it can be picked.
local function covered_in_rows(self, row, n)
  local covered, all = 0, 0
  for layer = 0, self.csa_layers - 1 do
    local found = C.lsa_recall_covered(self.residents.c.bits, self.native[layer] + row * self.topk, n, self.topk, total)
    covered, all = covered + tonumber(found), all + tonumber(total[0])
  end
  return self.full and all or covered, all
end

function Replay:coverage() return covered_in_rows(self, self.row, 1) end

-- The rows that an indexer looks from, as far as they are recorded: the first of them, and how many.
local function looked_from(self)
  local rows = math.min(self.indexer.looks, self.row + 1)
  return self.row + 1 - rows, rows
end

function Replay:hidden_states(layer)
  local column, first, rows = self.columns["hidden_layer_" .. layer], looked_from(self)
  return column.data + first * column.width, rows
end

function Replay:score_into(out, layer, q, w, heads, n, rows)
  local bytes = lib.C.lsa_index_score_workspace(rows, n, heads, self.dim, self.format, self.scoring)
  if not self.workspace or self.workspace_bytes < bytes then
    self.workspace, self.workspace_bytes = tensor.zeros({tonumber(bytes)}, "u8"), bytes
  end
  raise.check(C.lsa_index_score_cpu(out, q, w, self.trace["compk_layer_" .. layer].c.data, rows, n, heads, self.dim,
    self.key_bytes, n, self.format, self.scoring, self.workspace.c.data, nil))
end

function Replay:index_scores(layer, q, w, heads, n, rows)
  local out = tensor.empty(rows and {rows, n} or {n}, "f32")
  self:score_into(floats(out), layer, q, w, heads, n, rows or 1)
  return out
end

-- The rows whose scores the cycles from here on will ask for, as far as they can be foreseen: under a fixed schedule, every tau
-- rows until the next prefill.
local function rows_ahead(self)
  local rows, decoded = {self.row}, self.columns.decoded.data
  if type(self.loop.opt.every) ~= "number" then return rows end
  local most = math.max(1, math.min(AHEAD, math.floor(SCORES_AHEAD / math.max(1, self.n))))
  local tau = self.loop.tau
  for row = self.row + 1, self.row + (most - 1) * tau do
    if row >= self.rows or decoded[row] == 0 then break end
    if (row - self.row) % tau == 0 then rows[#rows + 1] = row end
  end
  return rows
end

local function chunks_at(self, row)
  return math.floor((tonumber(self.columns.positions.data[row]) + 1) / self.about.csa_rate)
end

-- Scores of several cycles at once: a tile of keys, once unpacked, serves all their queries, and a score depends on its query
-- and its key alone. into: [#rows * n] floats.
local function score_rows(self, into, kind, layer, rows, n)
  local q, w = self.columns[kind .. "query_layer_" .. layer], self.columns[weight_names[kind] .. layer]
  local queries, weights = ffi.new("float[?]", #rows * q.width), ffi.new("float[?]", #rows * w.width)
  for i, row in ipairs(rows) do
    ffi.copy(queries + (i - 1) * q.width, q.data + row * q.width, 4 * q.width)
    ffi.copy(weights + (i - 1) * w.width, w.data + row * w.width, 4 * w.width)
  end
  self:score_into(into, layer, queries, weights, w.width, n, #rows)
end

-- Memory that block after block goes into.
local function room(block, name, count)
  local t = block[name]
  if not t or t:count() < count then
    t = tensor.empty({count}, "f32")
    block[name] = t
  end
  return floats(t)
end

-- Scores of a kind ahead: [#layers, #rows, n] from `scores` on, and the ensemble of it, [#rows, n], from `ensemble` on; at[row] is
-- the place among its rows.
local function block_of(self, name, kind, layers)
  local block = self.ahead[name] or {}
  if block.at and block.at[self.row] then return block end
  local rows = rows_ahead(self)
  local n = chunks_at(self, rows[#rows])
  local scores, each = room(block, "score_memory", #layers * #rows * n), #rows * n
  for i, layer in ipairs(layers) do score_rows(self, scores + (i - 1) * each, kind, layer, rows, n) end
  block.scores, block.n, block.each, block.at = scores, n, each, {}
  for i, row in ipairs(rows) do block.at[row] = i - 1 end
  if kind == "memory_" then
    block.ensemble = room(block, "ensemble_memory", each)
    indexers.ensemble(block.ensemble, scores, #layers, each, self.indexer.ensemble)
  end
  self.ahead[name] = block
  return block
end

-- The policy's own: n floats of the current row out of those from `data` on.
local function copy_of_row(self, block, data, n)
  local out = tensor.empty({n}, "f32")
  ffi.copy(out.c.data, data + block.at[self.row] * block.n, 4 * n)
  return out
end

local function memory_block(self) return block_of(self, "memory", "memory_", self.indexer.layers) end

-- What a cycle at this row had when it was recorded, or nil.
local function kept_scores(self, name, n)
  local kept = self.kept[name]
  local at = kept and kept.places[self.row]
  if not at then return nil end
  local out = tensor.empty({n}, "f32")
  ffi.copy(out.c.data, kept.data + at, 4 * n)
  return out
end

-- The recorded Memory Indexer's logits from several rows.
local function scores_looked_back(self, layer, n)
  local q, w = self.columns["memory_query_layer_" .. layer], self.columns[weight_names.memory_ .. layer]
  local first, rows = looked_from(self)
  return self:index_scores(layer, q.data + first * q.width, w.data + first * w.width, w.width, n, rows):max(0)
end

function Replay:recorded_scores(kind, layer, n)
  local native = kind == ""
  local kept = (native or self.indexer.recorded) and kept_scores(self, (native and "native" or "memory") .. "_scores_layer_" .. layer, n)
  if kept then return kept end
  if native then
    local block = block_of(self, layer, kind, {layer})
    return copy_of_row(self, block, block.scores, n)
  end
  for i, target in ipairs(self.indexer.recorded and self.indexer.layers or {}) do
    if target == layer then
      if self.indexer.looks > 1 then return scores_looked_back(self, layer, n) end
      local block = memory_block(self)
      return copy_of_row(self, block, block.scores + (i - 1) * block.each, n)
    end
  end
end

function Replay:recorded_ensemble(n)
  if not self.indexer.recorded then return nil end
  local kept = kept_scores(self, "ensemble_scores", n)
  if kept then return kept end
  if self.indexer.looks > 1 then return nil end   -- the cycle joins its layers' logits
  local block = memory_block(self)
  return copy_of_row(self, block, block.ensemble, n)
end

function Replay:recent_queries(layer, w)
  local heads = self.columns["query_weight_layer_" .. layer].width
  w = math.min(w or 64, self.row + 1, 64)
  local from = self.row + 1 - w
  local q, weights = tensor.zeros({w, heads, self.dim}, "f32"), tensor.zeros({w, heads}, "f32")
  local column = self.columns["query_layer_" .. layer]
  ffi.copy(q.c.data, column.data + from * column.width, w * column.width * 4)
  column = self.columns["query_weight_layer_" .. layer]
  ffi.copy(weights.c.data, column.data + from * heads, w * heads * 4)
  return q, weights
end

function Replay:decoded_keys(layer, n, from)
  local out = tensor.zeros({n - from, self.dim}, "f32")
  local keys = self.trace["compk_layer_" .. layer]:narrow(0, from, n - from)
  raise.check(C.lsa_index_decode_cpu(floats(out), keys.c.data, n - from, self.dim, self.key_bytes, self.format, nil))
  return out
end

-- What was observed since the last set took over: a prefill's own sums, or the steps' recorded picks.
function Replay:observations(layer, n)
  local used, mass = tensor.zeros({n}, "i32"), tensor.zeros({n}, "f32")
  local u, m = ints(used), floats(mass)
  local prefilled = self.trace[("observed_used_layer_%d_%d"):format(layer, self.prefill_row or -1)]
  if self.observed_all and prefilled then
    ffi.copy(u, prefilled.c.data, 4 * math.min(n, prefilled:count()))
    ffi.copy(m, self.trace[("observed_mass_layer_%d_%d"):format(layer, self.prefill_row)].c.data,
      4 * math.min(n, prefilled:count()))
    return used, mass
  end
  local ids, masses = self.columns["picked_layer_" .. layer], self.columns["mass_layer_" .. layer]
  for row = self.since, self.row do
    for j = row * self.topk, (row + 1) * self.topk - 1 do
      local id = ids.data[j]
      if id < 0 then break end
      u[id] = u[id] + 1
      m[id] = real.f32(m, id) + real.f32(masses.data, j)
    end
  end
  return used, mass
end

function Replay:token_tensor(t) return self.trace.token_ids:narrow(0, 0, t):contiguous() end

-- Only the entropy of a distribution is recorded.
function Replay:last_entropy() return real.f32(self.columns.entropy.data, self.row) end

-- What the next tau rows use.
function Replay:future(tau, n)
  local counts = tensor.zeros({n}, "f32")
  local values = floats(counts)
  for layer = 0, self.csa_layers - 1 do
    local ids = self.columns["native_layer_" .. layer].data
    for row = self.row + 1, math.min(self.row + tau, self.rows - 1) do
      for j = row * self.topk, (row + 1) * self.topk - 1 do
        if ids[j] < 0 then break end
        if ids[j] < n then values[ids[j]] = values[ids[j]] + 1 end
      end
    end
  end
  return {counts = counts, native = counts:gt(0), golden = self:golden(tau, n)}
end

-- The labels of the next tau positions (lua/lsa/train/labels.lua), where the trace has them.
function Replay:golden(tau, n)
  local pointers, indices = self.trace.label_pointers, self.trace.label_indices
  if not pointers then return nil end
  local out, at, ids = set.new(n), ints(pointers), ints(indices)
  for row = self.row + 1, math.min(self.row + tau, self.rows - 1) do
    for j = at[row], at[row + 1] - 1 do
      if ids[j] < n then out:add(ids[j]) end
    end
  end
  return out
end

-- The recorded Memory Indexer: its queries instead of its weights.
local function recorded_indexer(self)
  local about = self.about
  return {layers = about.layers, ensemble = about.ensemble, looks = about.looks or 1, join = indexers.join, recorded = true}
end

---- running ----

-- Rows as pointers: every step looks into several of them.
local function open_columns(self)
  self.columns, self.native = {}, {}
  for name, t in pairs(self.trace) do
    local ctype = ({f32 = "const float *", i32 = "const int32_t *", i64 = "const int64_t *"})[t:dtype()]
    if ctype then
      local shape = t:shape()
      local native = name:match "^native_layer_(%d+)$"
      if native then self.native[tonumber(native)] = ffi.cast(ctype, t.c.data) end
      self.columns[name] = {data = ffi.cast(ctype, t.c.data), width = shape[1] and shape[1] > 0 and t:count() / shape[1] or 1}
    end
  end
end

local function grow(self)
  local n = math.floor(self.t / self.about.csa_rate)
  if n == self.n then return end
  self.n = n
  raise.check(C.lsa_pool_resize(self.pool, n))
end

-- Shares of chunks that are resident, summed over the n steps from the next row on.
local function sum_residents(self, n)
  local positions, rate, born = self.columns.positions.data, self.about.csa_rate, self.n
  for row = self.row + 1, self.row + n do
    local chunks = math.floor((tonumber(positions[row]) + 1) / rate)
    local residents = self.full and chunks or self.resident_count + chunks - born
    self.resident_sum = self.resident_sum + residents
    self.resident_share = self.resident_share + (chunks > 0 and residents / chunks or 1)
  end
end

-- The steps that the next n rows are, with no cycle between them: chunks they form become resident, and their picks are looked for.
local function advance(self, n)
  local before, from = self.n, self.row + 1
  sum_residents(self, n)
  self.row = self.row + n
  self.t = tonumber(self.columns.positions.data[self.row]) + 1
  grow(self)
  if not self.full then
    for id = before, self.n - 1 do raise.check(C.lsa_pool_adopt(self.pool, id)) end
    self.residents:range(before, self.n)
    self.resident_count = self.resident_count + self.n - before
  end
  local covered, all = covered_in_rows(self, from, n)
  self.covered, self.coverable, self.steps = self.covered + covered, self.coverable + all, self.steps + n
end

-- Decoded rows from `row` on, `most` at most.
local function decoded_from(self, row, most)
  local decoded, n = self.columns.decoded.data, 0
  most = math.min(most, self.rows - row)
  while n < most and decoded[row + n] == 1 do n = n + 1 end
  return n
end

local function run(self)
  local decoded, row = self.columns.decoded.data, 0
  while row < self.rows do
    if decoded[row] == 0 then
      self.row, self.t, self.prefill_row, self.observed_all = row, tonumber(self.columns.positions.data[row]) + 1, row, true
      grow(self)
      self.loop:appended_tokens()
    end
    local n = decoded_from(self, row + 1, self.rows)
    while n > 0 do
      self.loop:before_step(self)
      local count = self.full and n or math.min(n, math.max(1, self.loop.due))
      advance(self, count)
      self.loop:after_step(count)
      n = n - count
    end
    row = math.max(row, self.row) + 1
  end
end

-- The recorded session's options that a file can hold, as options again.
local function recorded_options(about)
  local out = {}
  for name, value in pairs(about.options) do
    if loops.options[name] ~= nil then
      if type(value) == "table" then
        local spec = {value.name}
        for key, option in pairs(value.options) do spec[key] = option end
        value = spec
      end
      out[name] = value
    end
  end
  return out
end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for key, value in pairs(a) do
    if not same(value, b[key]) then return false end
  end
  for key in pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

-- The recording under options, run to its end.
local function replayed(recording, path, opt)
  local trace, about = recording.tensors, recording.about
  local self = setmetatable({trace = trace, about = about, path = path, row = 0, t = 0, n = 0, since = 0, observed_all = true,
    covered = 0, coverable = 0, steps = 0, resident_sum = 0, resident_share = 0, ahead = {}}, Replay)
  self.kept, self.rows, self.csa_layers, self.topk, self.dim = recording.scores, recording.rows, about.csa_layers,
    about.index_topk, about.index_dim
  self.format, self.scoring = indexers.formats[about.kv], indexers.scorings[about.scoring or about.compute]
  self.key_bytes = tonumber(C.lsa_index_key_bytes(self.format, self.dim))
  open_columns(self)
  self.indexer, self.watch = opt.indexer or recorded_indexer(self), opt.watch
  self.most = math.floor(trace.token_ids:count() / about.csa_rate)
  self.residents, self.resident_count = set.new(self.most), 0
  self.pool = ownership.take(C.lsa_pool_free, "lsa_pool", C.lsa_pool_new, 1, 0, loops.unit(opt)) -- residency is all that counts
  self.chunk_bytes = about.csa_layers * about.record
  self.tier = tier.new(self.pool, self, opt.evict, loops.cells(opt, self.chunk_bytes))
  self.loop = loops.new(opt, about.csa_rate, self.tier)
  self.loop:settle()
  self.full = self.loop.full
  run(self)
  return self
end

-- Whether a rule of evictions wants to know the accesses to come, and was not told them.
local function wants_future(evict)
  local name, given = evict, nil
  if type(evict) == "table" then name, given = evict[1], evict.future end
  local known = given == nil and type(name) == "string" and registry.options("evictions", name)
  return known and known.future ~= nil
end

-- The same rule, told of the accesses that a run under `lru` makes.
local function with_future(recording, path, opt)
  local ids, spec = {}, type(opt.evict) == "table" and options.copy(opt.evict) or {opt.evict}
  local first = options.copy(opt)
  first.watch = nil
  function first.evict(capacity)
    local object = evictions.new("lru", capacity)
    local log = {}
    for _, name in ipairs {"hit", "insert"} do
      log[name] = function(_, id)
        ids[#ids + 1] = id
        return object[name](object, id)
      end
    end
    function log.victim(_, set_of, incoming) return object:victim(set_of, incoming) end
    function log.remove(_, id) return object:remove(id) end
    return log
  end
  replayed(recording, path, first)
  spec.future = ids
  local out = options.copy(opt)
  out.evict = spec
  return out
end

local allowed = {indexer = false, trust = false, watch = false}
for name, value in pairs(loops.options) do allowed[name] = value end
M.options = allowed

function M.new(path, given)
  local recording = recordings.open(path)
  local about = recording.about
  local own = options.check(given, allowed, "lsa.replay")
  if own.trust ~= nil then options.boolean(own.trust, "lsa.replay: trust") end
  if own.watch ~= nil and type(own.watch) ~= "function" then
    raise("lsa.replay: watch is %s; a function is wanted", options.shown(own.watch))
  end
  local recorded, opt = recorded_options(about), {}
  local named, problem = pcall(named_files.check, recorded, given or {}, nil, "lsa.replay(path")
  if not named then raise("lsa.replay: %s: %s", path, raise.words(problem)) end
  for name, value in pairs(own) do opt[name] = value end
  for name, value in pairs(recorded) do
    if not given or given[name] == nil then opt[name] = value end
  end
  loops.check_options(opt)
  local self = replayed(recording, path, wants_future(opt.evict) and with_future(recording, path, opt) or opt)
  self.unfinished = recording.unfinished
  self.open_loop = opt.indexer ~= nil
  for name in pairs(loops.options) do
    if name ~= "strict" and name ~= "coverage" and not same(opt[name], recorded[name]) then self.open_loop = true end
  end
  return self
end

function Replay:cycles()
  for _, row in ipairs(self.loop.rows) do row.fetched_bytes = row.fetched_chunks * self.chunk_bytes end
  return self.loop.rows
end

-- The same names as a session's, as far as a recording tells.
function Replay:stats()
  local out, moved, steps = self.loop:stats(), self.tier:counters(), math.max(1, self.steps)
  local values = {open_loop = self.open_loop, unfinished = self.unfinished, tokens = self.t, chunks = self.n, steps = self.steps,
    resident_bytes = math.floor(self.resident_sum * self.chunk_bytes / steps + 0.5),
    resident_pct = 100 * self.resident_share / steps, kv_bytes = self.n * self.chunk_bytes,
    fetched_chunks = tonumber(moved.fetched_chunks), fetched_bytes = tonumber(moved.fetched_chunks) * self.chunk_bytes,
    evicted_chunks = tonumber(moved.evicted_chunks), step_coverage = self.covered / math.max(1, self.coverable)}
  for name, value in pairs(values) do out[name] = value end
  return setmetatable(out, {__tostring = function(s)
    local troubles = stats.troubles(s)
    return (("replay of %s (%s): %s, %d steps in %d cycles; resident %s (%.2f %%), fetched %d chunks, %s; hits %d, evicted %d; of all steps' native top-k %.1f %% resident")
      :format(self.path, (s.open_loop and "open loop" or "as recorded") .. (s.unfinished and "; unfinished: " .. s.unfinished or ""), s.policy, s.steps, s.cycles, stats.bytes(s.resident_bytes),
      s.resident_pct, s.fetched_chunks, stats.bytes(s.fetched_bytes), s.hits, s.evicted_chunks, 100 * s.step_coverage)) ..
      (troubles ~= "" and "; " .. troubles or "")
  end})
end

function Replay:__tostring()
  return tostring(self:stats())
end

require("lsa.arity").methods(Replay, "replay:")

return M
