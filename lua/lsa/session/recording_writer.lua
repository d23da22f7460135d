-- Owns recordings of a session: what each step had before it and what it used, as a trace that lsa.replay reads.
--
--   s:record "trace.safetensors"     from here on, to s:close(), s:record(false) or the program's end, however that comes
--
-- The file is there at once, and rows are appended to it as they come (lua/lsa/session/recording_journal.lua), which lsa.replay and
-- lsa.load read whatever happens; finished, it is one of safetensors. A session that nobody holds any more lives until then.
--
-- One row for every prefill's last token and every decoded token, S rows; L is a CSA ordinal, K = index_topk:
--   positions [S] i64              the token's position
--   decoded [S] i32                1 for a decoded token, 0 for a prefill's last
--   entropy [S] f32                of the distribution after it
--   token_ids [T] i32              all tokens
--   hidden_layer_{L} [S, D] f32    the attention block's input
--   compk_layer_{L} [N, bytes]     index keys, as records
--   query_layer_{L} [S, heads, dim], query_weight_layer_{L} [S, heads] f32     the Lightning Indexer's
--   memory_query_layer_{L}, memory_weight_layer_{L}                            the Memory Indexer's, of target layers
--   native_layer_{L} [S, K] i32    its top-k among all chunks, ascending, then -1
--   picked_layer_{L} [S, K] i32, mass_layer_{L} [S, K] f32     what the step attended to, and the mass each chunk got
--   observed_used_layer_{L}_{row}, observed_mass_layer_{L}_{row} [n]           what a prefill had observed
-- and of each cycle the scores that its policy asked for, n of the row before it, cycle behind cycle, so that replay need not
-- compute them:
--   memory_scores_layer_{L} [...] f32, memory_scores_layer_{L}_rows [C] i32    the Memory Indexer's logits
--   native_scores_layer_{L}, native_scores_layer_{L}_rows                      the Lightning Indexer's
--   ensemble_scores, ensemble_scores_rows                                      cycle.scores
-- Metadata: the session's options and dimensions.
local ffi = require "ffi"
local cjson = require "cjson"
local lib = require "lsa.ffi"
local journals = require "lsa.session.recording_journal"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local Recorder = {}
Recorder.__index = Recorder

local M = {}

-- Scores of a name that are kept at most; later cycles' are computed again by who needs them.
local SCORES = 2 ^ 26

-- Those that are not finished.
local open = {}

-- Steps of one call at most, after which their rows are in the file.
Recorder.STEPS = 16

-- A growing array of rows of `width` elements.
local Column = {}
Column.__index = Column

local function column(dtype, width, shape)
  local ctype = ({f32 = "float", i32 = "int32_t", i64 = "int64_t"})[dtype]
  return setmetatable({dtype = dtype, width = width, shape = shape, ctype = ctype .. "[?]", rows = 0, room = 0,
    sent = 0, row_bytes = width * ffi.sizeof(ctype)}, Column)
end

-- Where the next n rows go, which do not count yet.
function Column:reserve(n)
  if self.rows + n > self.room then
    local room = math.max(64, 2 * self.room, self.rows + n)
    local data = ffi.new(self.ctype, room * self.width)
    if self.rows > 0 then ffi.copy(data, self.data, self.rows * self.row_bytes) end
    self.data, self.room = data, room
  end
  return self.data + self.rows * self.width
end

-- The same, and they count.
function Column:push(n)
  local at = self:reserve(n)
  self.rows = self.rows + n
  return at
end

-- Bytes of the rows that came since the last ones were `sent`.
function Column:fresh()
  local n = self.rows - self.sent
  return n > 0 and ffi.string(self.data + self.sent * self.width, n * self.row_bytes) or ""
end

function Column:tensor()
  local shape = {self.rows, unpack(self.shape)}
  local out = tensor.zeros(shape, self.dtype)
  if self.rows > 0 then ffi.copy(out.c.data, self.data, self.rows * self.row_bytes) end
  return out
end

function M.new(session, path)
  local c = session.model.config
  local self = setmetatable({session = session, path = path, extra = {}}, Recorder)
  local heads, dim, k = tonumber(c.index_heads), tonumber(c.index_dim), tonumber(c.index_topk)
  self.columns = {positions = column("i64", 1, {}), decoded = column("i32", 1, {}), entropy = column("f32", 1, {})}
  for layer = 0, session.csa_layers - 1 do
    local function add(name, ...) self.columns[("%s_layer_%d"):format(name, layer)] = column(...) end
    add("hidden", "f32", tonumber(c.hidden), {tonumber(c.hidden)})
    add("query", "f32", heads * dim, {heads, dim})
    add("query_weight", "f32", heads, {heads})
    add("native", "i32", k, {k})
    add("picked", "i32", k, {k})
    add("mass", "f32", k, {k})
  end
  for _, layer in ipairs(session.indexer.layers) do
    local l = session.indexer.weights[layer]
    local own = tonumber(l.heads)
    self.columns[("memory_query_layer_%d"):format(layer)] = column("f32", own * dim, {own, dim})
    self.columns[("memory_weight_layer_%d"):format(layer)] = column("f32", own, {own})
  end
  self.logged, self.names = {}, {}
  for name in pairs(self.columns) do
    self.logged[name] = true
    self.names[#self.names + 1] = name
  end
  table.sort(self.names)
  self.tokens, self.chunks = 0, 0 -- that the file has
  self:begin()
  if session:position() > 0 then self:prefilled() end
  open[self] = true
  return self
end

-- The file's form until it is finished.
function Recorder:begin()
  local s, columns, keys = self.session, {}, {}
  for i, name in ipairs(self.names) do columns[i] = {name, self.columns[name].dtype, self.columns[name].shape} end
  local dim = tonumber(s.model.config.index_dim)
  local bytes = tonumber(C.lsa_index_key_bytes(s.format, dim))
  for layer = 0, s.csa_layers - 1 do
    local name = ("compk_layer_%d"):format(layer)
    keys[layer + 1] = s.opt.kv == "fp8" and {name, "u8", bytes} or {name, s.opt.kv, dim}
  end
  self.key_bytes = bytes
  self.journal = journals.create(self.path, {metadata = self:metadata(), columns = columns, keys = keys})
end

local function send(self, observed)
  local s, columns, lists, keys = self.session, {}, {}, {}
  local t, n = s:position()
  for i, name in ipairs(self.names) do columns[i] = self.columns[name]:fresh() end
  for name, col in pairs(self.columns) do
    if not self.logged[name] and col.rows > col.sent then lists[name] = {col.dtype, col:fresh()} end
  end
  for layer = 0, s.csa_layers - 1 do
    local bytes = (n - self.chunks) * self.key_bytes
    local new = ffi.new("uint8_t[?]", bytes)
    raise.check(C.lsa_session_keys(s.c, layer, self.chunks, n - self.chunks, new))
    keys[layer + 1] = ffi.string(new, bytes)
  end
  local tokens = ffi.new("int32_t[?]", t - self.tokens)
  C.lsa_session_token_ids(s.c, self.tokens, t - self.tokens, tokens)
  local positions = self.columns.positions
  self.journal:append {rows = positions.rows - positions.sent, columns = table.concat(columns), keys = keys,
    tokens = ffi.string(tokens, 4 * (t - self.tokens)), lists = lists, tensors = observed or {}}
  self.tokens, self.chunks = t, n
  for _, col in pairs(self.columns) do col.sent = col.rows end
end

-- What is new goes into the file. Where it cannot be written now, it may be at the end: that costs the session nothing.
function Recorder:append(observed)
  if not self.journal then return end
  local ok, problem = pcall(send, self, observed)
  if ok then return end
  self:close_journal()
  registry.warn(("lsa: record: %s; the recording goes on in memory"):format(raise.words(problem)))
end

function Recorder:close_journal()
  if self.journal then self.journal:close() end
  self.journal = nil
end

-- What a session's steps leave per CSA layer, by the log's name and the columns'.
local BY_LAYER = {hidden = "hidden", queries = "query", weights = "query_weight", native = "native", picked = "picked", mass = "mass"}
local TYPES = {hidden = "float *[?]", queries = "float *[?]", weights = "float *[?]", native = "int32_t *[?]",
  picked = "int32_t *[?]", mass = "float *[?]", memory_queries = "float *[?]", memory_weights = "float *[?]"}

-- A log with room for n steps, which C fills (core/session/run.h); keep: what it points to.
function Recorder:open_log(n)
  local s = self.session
  local log, keep = ffi.new "lsa_step_log", {}
  local layers, targets = s.csa_layers, s.indexer.layers
  log.room = n
  log.positions, log.entropy = self.columns.positions:reserve(n), self.columns.entropy:reserve(n)
  for field, name in pairs(BY_LAYER) do
    local list = ffi.new(TYPES[field], layers)
    for layer = 0, layers - 1 do list[layer] = self.columns[("%s_layer_%d"):format(name, layer)]:reserve(n) end
    log[field], keep[#keep + 1] = list, list
  end
  log.targets = #targets
  local ordinals, weights = ffi.new("int32_t[?]", #targets, targets), ffi.new("const lsa_indexer_layer *[?]", #targets)
  local queries, head_weights = ffi.new(TYPES.memory_queries, #targets), ffi.new(TYPES.memory_weights, #targets)
  for i, layer in ipairs(targets) do
    weights[i - 1] = s.indexer.weights[layer]
    queries[i - 1] = self.columns[("memory_query_layer_%d"):format(layer)]:reserve(n)
    head_weights[i - 1] = self.columns[("memory_weight_layer_%d"):format(layer)]:reserve(n)
  end
  log.target, log.indexer, log.memory_queries, log.memory_weights = ordinals, weights, queries, head_weights
  keep.ordinals, keep.weights, keep.queries, keep.head_weights = ordinals, weights, queries, head_weights
  return log, keep
end

-- The log's rows count; decoded: whether they are of decoded tokens.
function Recorder:close_log(log, decoded)
  local n = tonumber(log.rows)
  local flags = self.columns.decoded:push(n)
  for i = 0, n - 1 do flags[i] = decoded and 1 or 0 end
  for name, col in pairs(self.columns) do
    if name ~= "decoded" and self.logged[name] then col:push(n) end
  end
end

-- After a prefill: a row of its last token, and what it observed.
function Recorder:prefilled()
  local s = self.session
  local log, keep = self:open_log(1)
  raise.check(C.lsa_session_log(s.c, log))
  self:close_log(log, false, keep)
  local _, n = s:position()
  local row, observed = self.columns.positions.rows - 1, {}
  for layer = 0, s.csa_layers - 1 do
    local used, mass = s:observations(layer, n)
    observed[("observed_used_layer_%d_%d"):format(layer, row)] = used
    observed[("observed_mass_layer_%d_%d"):format(layer, row)] = mass
  end
  for name, t in pairs(observed) do self.extra[name] = t end
  self:append(observed)
end

-- Scores that a cycle's policy asked for, under the name of a trace's tensor.
function Recorder:scored(name, scores)
  local kept, n = self.columns[name], scores:count()
  if not kept then
    kept = column("f32", 1, {})
    self.columns[name], self.columns[name .. "_rows"] = kept, column("i32", 1, {})
  end
  if n == 0 or kept.rows + n > SCORES then return end
  ffi.copy(kept:push(n), scores:contiguous().c.data, 4 * n)
  self.columns[name .. "_rows"]:push(1)[0] = self.columns.positions.rows - 1
end

-- What a file can hold of a policy's option; the rest, and what is nested beyond sense, as text.
local function plain_value(value, depth)
  local kind = type(value)
  if kind == "string" or kind == "boolean" then return value end
  if kind == "number" and value - value == 0 then return value end
  if kind ~= "table" or getmetatable(value) or depth > 8 then return tostring(value) end
  local out, n = {}, #value
  for key, item in pairs(value) do out[n > 0 and key or tostring(key)] = plain_value(item, depth + 1) end
  for key in pairs(value) do
    if n > 0 and (type(key) ~= "number" or key < 1 or key > n or key % 1 ~= 0) then return tostring(value) end
  end
  return out
end

-- Options of a session that a file can hold: a function or an object is told by its name alone.
local function plain(options)
  local out = {}
  for name, value in pairs(options) do
    local kind = type(value)
    if kind == "number" or kind == "string" or kind == "boolean" then out[name] = value
    elseif name == "indexer" then out[name] = tostring(value)
    elseif kind == "table" and type(value[1]) == "string" then
      local options_of = {}
      for key, option in pairs(value) do
        if key ~= 1 and type(option) ~= "function" then options_of[tostring(key)] = plain_value(option, 1) end
      end
      out[name] = {name = value[1], options = options_of}
    else
      out[name] = "a " .. kind
    end
  end
  return out
end

function Recorder:metadata()
  local s = self.session
  local c = s.model.config
  local about = {csa_rate = tonumber(c.csa_rate), csa_layers = s.csa_layers, layers = s.indexer.layers,
    ensemble = s.indexer.ensemble, looks = s.indexer.looks, kv = s.opt.kv, index_dim = tonumber(c.index_dim), index_topk = tonumber(c.index_topk),
    compute = s.model.compute,
    scoring = s.opt.scoring or s.model.compute,
    record = s.pool ~= nil and tonumber(C.lsa_pool_record_bytes(s.pool)) or 0, options = plain(s.opt)}
  return {format = "lsa trace 1", about = cjson.encode(about)}
end

-- The whole of it, as it is read without lsa, too.
function Recorder:finish()
  local s, tensors = self.session, {}
  for name, col in pairs(self.columns) do tensors[name] = col:tensor() end
  for name, t in pairs(self.extra) do tensors[name] = t end
  tensors.token_ids = s:token_tensor((s:position()))
  for layer = 0, s.csa_layers - 1 do tensors[("compk_layer_%d"):format(layer)] = s:keys(layer) end
  require("lsa.files.files").save(self.path, tensors, self:metadata())
  self:close_journal()
end

-- Nothing more comes.
function Recorder:forget() open[self] = nil end

-- At the program's end: writes what is not finished; the first problem, or nil.
function M.finish_all()
  local first
  for recorder in pairs(open) do
    local ok, problem = true, nil
    if recorder.session.c then ok, problem = pcall(recorder.finish, recorder) end
    if not ok then first = first or raise.words(problem) end
    recorder:forget()
  end
  return first
end

return M
