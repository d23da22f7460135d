-- Owns documents to train on and to evaluate with: a trace's hidden states, index keys and golden labels, mapped from
-- its file and checked.
--
--   doc = documents.open(trace, layers, model, horizon)      trace: a file, or a table of its tensors
--   doc.name, doc.steps, doc.chunks                          rows of hidden states; index keys
--   doc.hidden[layer] [steps, hidden], doc.keys[layer] [chunks, bytes]      tensors, by CSA ordinal
--   doc.golden                                               the labels as core/train/sampling.h has them
--   doc:candidates(step), doc:positives(step)                a number; i32 tensors of ids and of votes
--   doc:eligible()                                           an i32 array of steps that have a positive, and how many
--   documents.horizon(model, window, first)
local ffi = require "ffi"
local lib = require "lsa.ffi"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local M = {}
local Document = {}
Document.__index = Document

local function shape_text(t) return t:dtype() .. " [" .. table.concat(t:shape(), ", ") .. "]" end

-- The tensor, checked: dtypes is a list of those that it may have, shape has false where any size will do.
local function want(doc, name, dtypes, shape)
  local t = doc.tensors[name]
  if not tensor.is(t) then raise("trace %s: no tensor %s", doc.name, name) end
  local ok = #t:shape() == #shape
  for i, n in ipairs(shape) do ok = ok and (not n or t:shape()[i] == n) end
  local known = false
  for _, dtype in ipairs(dtypes) do known = known or t:dtype() == dtype end
  if not ok or not known then
    local sizes = {}
    for i, n in ipairs(shape) do sizes[i] = n or "any" end
    raise("trace %s: %s is %s; %s [%s] is wanted", doc.name, name, shape_text(t), table.concat(dtypes, " or "),
      table.concat(sizes, ", "))
  end
  return t:contiguous()
end

local function same_positions(doc, a, b, layer)
  if ffi.string(a:pointer(), a:bytes()) == ffi.string(b:pointer(), b:bytes()) then return end
  raise("trace %s: positions of layer %d are not those of the first layer", doc.name, layer)
end

local function read_layer(doc, layer, model)
  local hidden = tonumber(model.config.hidden)
  local bytes = tonumber(C.lsa_index_key_bytes(C.LSA_KV_FP8, model.config.index_dim))
  local h = want(doc, "hidden_layer_" .. layer, {"bf16", "f32"}, {doc.steps or false, hidden})
  doc.steps = h:shape()[1]
  local k = want(doc, "compk_layer_" .. layer, {"u8"}, {doc.chunks or false, bytes})
  doc.chunks = k:shape()[1]
  local p = want(doc, "positions_layer_" .. layer, {"i64"}, {doc.steps})
  if doc.positions then same_positions(doc, doc.positions, p, layer) end
  doc.hidden[layer], doc.keys[layer], doc.positions = h, k, doc.positions or p
end

local function read_labels(doc)
  local pointers = want(doc, "label_pointers", {"i32"}, {doc.steps + 1})
  local indices = want(doc, "label_indices", {"i32"}, {false})
  local votes = want(doc, "label_scores", {"i32"}, {indices:count()})
  doc.labels = {pointers, indices, votes}
  doc.golden = ffi.new("lsa_golden", {pointers:pointer(), indices:pointer(), votes:pointer(), doc.positions:pointer(),
    doc.steps, indices:count(), doc.chunks})
  local rc = C.lsa_golden_check(doc.golden)
  if rc < 0 then raise("trace %s: %s", doc.name, ffi.string(C.lsa_error())) end
end

-- Layers that a trace has, ascending.
function M.layers(tensors)
  local found = {}
  for name in pairs(tensors) do
    local layer = type(name) == "string" and name:match "^hidden_layer_(%d+)$"
    if layer then found[#found + 1] = tonumber(layer) end
  end
  table.sort(found)
  return found
end

function M.horizon(model, window, first)
  return ffi.new("lsa_horizon", {first, window, model.config.csa_rate})
end

function M.load(trace)
  if type(trace) == "table" then return trace, "(tensors)" end
  if type(trace) ~= "string" then raise("trace is %s; a file or a table of its tensors is wanted", raise.kind(trace)) end
  return require("lsa.files.files").load(trace), trace
end

function M.open(trace, layers, model, horizon)
  local tensors, name = M.load(trace)
  local doc = setmetatable({name = name, tensors = tensors, hidden = {}, keys = {}, horizon = horizon}, Document)
  for _, layer in ipairs(layers) do read_layer(doc, layer, model) end
  read_labels(doc)
  doc.seen = ffi.new("int32_t[?]", doc.chunks)
  doc.ids, doc.votes = ffi.new("int32_t[?]", doc.chunks), ffi.new("int32_t[?]", doc.chunks)
  return doc
end

function Document:candidates(step)
  return tonumber(C.lsa_golden_candidates(self.golden, self.horizon, step))
end

-- Positives in doc.ids and doc.votes, until the next call; how many.
function Document:find_positives(step)
  return tonumber(C.lsa_golden_positives(self.ids, self.votes, self.golden, self.horizon, step, self.seen))
end

function Document:positives(step)
  local n = self:find_positives(step)
  local ids, votes = tensor.zeros({n}, "i32"), tensor.zeros({n}, "i32")
  ffi.copy(ids:pointer(), self.ids, n * 4)
  ffi.copy(votes:pointer(), self.votes, n * 4)
  return ids, votes
end

function Document:eligible()
  local steps = ffi.new("int32_t[?]", self.steps)
  return steps, tonumber(C.lsa_golden_eligible(steps, self.golden, self.horizon))
end

-- Bits of the chunks that are golden in more than `share` of all steps.
function Document:frequent(share)
  local bits = ffi.new("uint64_t[?]", math.ceil(self.chunks / 64))
  C.lsa_golden_frequent(bits, self.golden, share, self.seen)
  return bits
end

function Document:__tostring()
  return ("document %s: %d steps, %d chunks, %d labels"):format(self.name, self.steps, self.chunks,
    tonumber(self.golden.entries))
end

return M
