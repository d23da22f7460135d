-- Owns Memory Indexers (LSA paper, Eq. 1-5): which layers' hidden states predict the chunks that the next steps need.
--
--   ix = lsa.indexer{model = model, layers = {0, 2}, from = "native", ensemble = "max"}
--   ix:score(hidden, keys, p) -> [n] f32 in 0..1     ix:logits(layer, hidden, keys, p) -> [n] f32
--   ix:save "file.safetensors"
-- from is "native", a file, or a table of tensors by checkpoint name. ensemble is "max" or "mean" of the layers' sigmoids; where
-- it is not given, what the file was saved with, else "max". looks: a session asks from so many of its latest tokens (1 to 64;
-- what the file was saved with, else 1), and a chunk's score is the highest that one of them gives it: a need that the first words of a
-- question name is seen when the last one is read.
--
-- layers are CSA ordinals. hidden: the attention block's input at position p ([hidden]; for score, a table by ordinal, or
-- one tensor where there is one layer). keys: that layer's index keys as s:keys(layer) gives them (a table likewise).
local ffi = require "ffi"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local Indexer = {}
Indexer.__index = Indexer

local M = {}

M.formats = {f32 = C.LSA_KV_F32, bf16 = C.LSA_KV_BF16, fp8 = C.LSA_KV_FP8}

-- How index keys are scored (kernels/index_score.h).
M.scorings = {f32 = C.LSA_SCORE_F32, bf16 = C.LSA_SCORE_BF16, fp8 = C.LSA_SCORE_FP8}

local RECENT = 64                                -- LSA_RECENT of core/session/state.h

local parts = {a = "wq_a.weight", b = "wq_b.weight", norm = "q_norm_weight", w = "weights_proj.weight"}

local stored = {f32 = true, bf16 = true, f16 = true}

-- A tensor as an lsa_weight (rank 2).
local function weight_of(t, name)
  local shape = t:shape()
  if #shape ~= 2 or not stored[t:dtype()] then
    raise("%s is %s of %d dimensions; f32, bf16 or f16 of 2 is wanted", name, t:dtype(), #shape)
  end
  return ffi.new("lsa_weight", {data = t.c.data, rows = shape[1], cols = shape[2], block_rows = 1, block_cols = 1,
    dtype = t.c.dtype})
end

local function layer_from_tensors(file, path, ordinal, config)
  local t = {}
  for part, suffix in pairs(parts) do
    local name = ("retrievers.l%d.%s"):format(ordinal, suffix)
    if not file[name] then raise("%s: no tensor %s", path, name) end
    t[part] = file[name]:contiguous()
  end
  t.norm = t.norm:to "f32"
  local l = ffi.new "lsa_indexer_layer"
  local function weight(part) return weight_of(t[part], ("%s: %s of layer %d"):format(path, parts[part], ordinal)) end
  l.a, l.b, l.w = weight "a", weight "b", weight "w"
  l.norm = ffi.cast("const float *", t.norm.c.data)
  l.heads, l.dim = l.w.rows, config.index_dim
  if C.lsa_indexer_check(l, config.hidden, config.rope_dim) < 0 then
    raise("%s: layer %d: %s", path, ordinal, ffi.string(C.lsa_error()))
  end
  if t.norm:count() ~= tonumber(l.a.rows) then
    raise("%s: %s of layer %d has %d values, %s has %d rows", path, parts.norm, ordinal, t.norm:count(), parts.a,
      tonumber(l.a.rows))
  end
  return l, t
end

local function layer_from_model(model, ordinal)
  local l, from = ffi.new "lsa_indexer_layer", model.c.layers[model.csa_layers[ordinal + 1]]
  l.a, l.norm, l.b, l.w = from.q_a, from.q_a_norm, from.index_q_b, from.index_weights
  l.heads, l.dim = model.config.index_heads, model.config.index_dim
  return l
end

local function ordinals_in(file)
  local found = {}
  for name in pairs(file) do
    local l = type(name) == "string" and name:match "^retrievers%.l(%d+)%.wq_a%.weight$"
    if l then found[#found + 1] = tonumber(l) end
  end
  table.sort(found)
  return found
end

local defaults = {model = false, layers = false, from = "native", ensemble = false, looks = false}

M.defaults = defaults

function M.new(opt)
  opt = options.check(opt, defaults, "lsa.indexer")
  local model = opt.model
  require("lsa.model").check(model, "lsa.indexer: model, whose rope and key dimension are needed,")
  if type(opt.from) ~= "table" then options.path(opt.from, "lsa.indexer: from") end
  local name = type(opt.from) == "table" and "tensors" or opt.from
  local file, metadata = type(opt.from) == "table" and opt.from or nil, {}
  if not file and name ~= "native" then file, metadata = require("lsa.files.files").load(opt.from) end
  local ensemble = opt.ensemble or metadata.ensemble or "max"
  options.one_of(ensemble, {"max", "mean"}, "lsa.indexer: ensemble")
  local looks = opt.looks or tonumber(metadata.looks or 1)
  options.whole(looks, 1, "lsa.indexer: looks")
  if looks > RECENT then raise("lsa.indexer: looks is %d; sessions keep hidden states of %d tokens", looks, RECENT) end
  local self = setmetatable({model = model, ensemble = ensemble, looks = looks, from = name, weights = {}, keep = {}}, Indexer)
  self.layers = opt.layers or (file and ordinals_in(file)) or {}
  if not opt.layers and not file then
    for i = 0, #model.csa_layers - 1 do self.layers[#self.layers + 1] = i end
  end
  if not opt.layers and #self.layers == 0 then raise("lsa.indexer: %s has no target layer", name) end
  options.list(self.layers, "lsa.indexer: layers")
  if looks > 1 and ensemble == "mean" and #self.layers > 1 then
    raise("lsa.indexer: looks is %d, and ensemble the mean of %d layers; the highest score of several tokens goes with \"max\", or with one layer",
      looks, #self.layers)
  end
  for _, ordinal in ipairs(self.layers) do
    options.whole(ordinal, 0, "lsa.indexer: layer")
    if ordinal >= #model.csa_layers then
      raise("lsa.indexer: layer %d; the model has %d CSA layers", ordinal, #model.csa_layers)
    end
    if file then
      self.weights[ordinal], self.keep[ordinal] = layer_from_tensors(file, name, ordinal, model.config)
    else
      self.weights[ordinal] = layer_from_model(model, ordinal)
    end
  end
  return self
end

-- Queries and head weights of hidden states (an f32 array of `rows`, 1 when nil) from position p on, against keys of a format.
function Indexer:query(layer, hidden, p, format, rows)
  local l = self.weights[layer]
  if not l then
    raise("indexer: layer %s is no target; these are: %s", options.shown(layer), table.concat(self.layers, ", "))
  end
  rows = rows or 1
  local q = ffi.new("float[?]", rows * tonumber(l.heads * l.dim))
  local w = ffi.new("float[?]", rows * tonumber(l.heads))
  local c, positions = self.model.config, ffi.new("int32_t[?]", rows)
  for i = 0, rows - 1 do positions[i] = p + i end
  raise.check(C.lsa_indexer_queries(q, w, l, hidden, positions, rows, c.hidden, self.model.c.compress_freq,
    c.rope_dim, c.norm_eps, format == C.LSA_KV_FP8 and 1 or 0, 0))
  return q, w, tonumber(l.heads)
end

local formats_by_dtype = {f32 = C.LSA_KV_F32, bf16 = C.LSA_KV_BF16, u8 = C.LSA_KV_FP8}

function Indexer:logits(layer, hidden, keys, p)
  for name, value in pairs {hidden = hidden or false, keys = keys or false} do
    if not tensor.is(value) then raise("indexer: %s is %s, a tensor is wanted", name, raise.kind(value)) end
  end
  if type(p) ~= "number" or p ~= math.floor(p) or p < 0 or p >= 2 ^ 31 then
    raise("indexer: position is %s, a whole number from 0 to 2147483647 is wanted", options.shown(p))
  end
  local format = formats_by_dtype[keys:dtype()]
  local dim = self.model.config.index_dim
  local shape = keys:shape()
  local bytes = format and tonumber(C.lsa_index_key_bytes(format, dim))
  local expected = format and bytes / (format == C.LSA_KV_FP8 and 1 or format == C.LSA_KV_BF16 and 2 or 4)
  if not format or #shape ~= 2 or shape[2] ~= expected then
    raise("indexer: keys are a %s tensor %s; [n, %d] f32 or bf16, or [n, %d] u8 records are wanted", keys:dtype(),
      table.concat(shape, " x "), tonumber(dim), tonumber(dim) + 4)
  end
  hidden = hidden:to "f32":contiguous()
  if hidden:count() ~= tonumber(self.model.config.hidden) then
    raise("indexer: hidden has %d values, the model's hidden size is %d", hidden:count(), tonumber(self.model.config.hidden))
  end
  keys = keys:contiguous()
  local q, w, heads = self:query(layer, ffi.cast("const float *", hidden.c.data), p, format)
  local n = shape[1]
  local out = tensor.zeros({n}, "f32")
  local workspace = tensor.zeros({tonumber(C.lsa_index_score_workspace(1, n, heads, dim, format, 0))}, "u8")
  raise.check(C.lsa_index_score_cpu(ffi.cast("float *", out.c.data), q, w, keys.c.data, 1, n, heads, dim, bytes, n, format,
    0, workspace.c.data, nil))
  return out
end

-- FLOPs of one layer's queries.
function Indexer:flops(layer)
  local l = self.weights[layer]
  return l and require("lsa.accounting").indexer_queries(tonumber(l.a.cols), tonumber(l.a.rows), tonumber(l.heads),
    tonumber(l.dim)) or 0
end

-- The ensemble, "max" or "mean", of [layers, n] floats of logits.
function M.ensemble(out, logits, layers, n, how)
  raise.check(C.lsa_ensemble_cpu(out, logits, layers, n, how == "max" and C.LSA_ENSEMBLE_MAX or C.LSA_ENSEMBLE_MEAN, nil))
end

-- The ensemble of a list of logit tensors: of an indexer, or of what has its `ensemble` and `looks`.
function M.join(self, logits)
  local n = logits[1]:count()
  local all, out = tensor.empty({#logits, n}, "f32"), tensor.empty({n}, "f32")
  for i, l in ipairs(logits) do all:row(i - 1):copy(l) end
  M.ensemble(ffi.cast("float *", out.c.data), ffi.cast("const float *", all.c.data), #logits, n, self.looks > 1 and "max" or self.ensemble)
  return out
end

Indexer.join = M.join

function Indexer:score(hidden, keys, p)
  local logits = {}
  for i, layer in ipairs(self.layers) do
    local h = type(hidden) == "table" and hidden[layer] or hidden
    local k = type(keys) == "table" and keys[layer] or keys
    if not tensor.is(h) or not tensor.is(k) then
      raise("indexer: no hidden state or keys of layer %d are given", layer)
    end
    logits[i] = self:logits(layer, h, k, p)
  end
  return self:join(logits)
end

-- Tensors by checkpoint name, in f32 for weights that are stored in blocks.
function Indexer:tensors()
  local out = {}
  for _, ordinal in ipairs(self.layers) do
    local l = self.weights[ordinal]
    local function copy(suffix, weight)
      out[("retrievers.l%d.%s"):format(ordinal, suffix)] = require("lsa.files.weights").tensor(weight)
    end
    copy(parts.a, l.a)
    copy(parts.b, l.b)
    copy(parts.w, l.w)
    local norm = tensor.zeros({tonumber(l.a.rows)}, "f32")
    ffi.copy(norm.c.data, l.norm, tonumber(l.a.rows) * 4)
    out[("retrievers.l%d.%s"):format(ordinal, parts.norm)] = norm
  end
  return out
end

-- A .pt file is a plain state dict, as the released checkpoint is, and does not say ensemble and looks.
function Indexer:save(path)
  options.path(path, "indexer save: path")
  require("lsa.files.files").save(path, self:tensors(), not path:find "%.pt$" and {ensemble = self.ensemble, looks = tostring(self.looks)} or nil)
end

function Indexer:__tostring()
  return ("indexer from %s: CSA layers %s, ensemble %s%s"):format(self.from, table.concat(self.layers, ", "), self.ensemble,
    self.looks > 1 and (", from %d tokens"):format(self.looks) or "")
end

require("lsa.arity").methods(Indexer, "indexer:")

return M
