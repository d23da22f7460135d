-- Owns a prefill's intermediates: which are wanted, and how they become tensors by name, the pieces of a prefill joined.
-- Names are "layer.{model layer}.{name}": attn_input, attn_output, moe_output, streams [T, .] of every layer; entries of CSA and HCA
-- layers; index_keys, index_query, index_scores, index_topk, index_topk_logits and index_topk_mass (its picks, their logits, and the attention that they got, a mean over heads) of CSA
-- layers.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local M = {}

-- wanted: true for all, or a list of names; without "layer.N." they are wanted of every layer.
function M.new(wanted)
  if wanted ~= true and (type(wanted) ~= "table" or #wanted == 0) then
    raise("trace is %s; true or a list of names is wanted", tostring(wanted))
  end
  local trace = ownership.take(C.lsa_trace_free, "lsa_trace", C.lsa_trace_new)
  for _, name in ipairs(wanted == true and {} or wanted) do
    local layer, part = tostring(name):match "^layer%.(%d+)%.(.+)$"
    raise.check(C.lsa_trace_want(trace, tonumber(layer or -1), part or tostring(name)))
  end
  return trace
end

-- Where a later piece has more columns, earlier rows get these: scores nobody computed, picks that are none.
local function filler(name)
  return name:find "index_topk$" and -1 or -math.huge
end

-- A table name -> [rows, cols] f32 tensor of all pieces.
function M.tables(trace)
  local found, order = {}, {}
  local rows, cols = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  for i = 0, tonumber(C.lsa_trace_count(trace)) - 1 do
    local name = ffi.string(C.lsa_trace_name(trace, i))
    local data = C.lsa_trace_data(trace, i, rows, cols)
    local entry = found[name]
    if not entry then
      entry = {rows = 0, cols = 0}
      found[name], order[#order + 1] = entry, name
    end
    entry[#entry + 1] = {data = data, rows = tonumber(rows[0]), cols = tonumber(cols[0])}
    entry.rows, entry.cols = entry.rows + tonumber(rows[0]), math.max(entry.cols, tonumber(cols[0]))
  end
  local out = {}
  for _, name in ipairs(order) do
    local entry = found[name]
    local t = tensor.zeros({entry.rows, entry.cols}, "f32")
    local to, at = ffi.cast("float *", t.c.data), 0
    for i = 0, entry.rows * entry.cols - 1 do to[i] = filler(name) end
    for _, piece in ipairs(entry) do
      for r = 0, piece.rows - 1 do
        ffi.copy(to + (at + r) * entry.cols, piece.data + r * piece.cols, piece.cols * 4)
      end
      at = at + piece.rows
    end
    out[name] = t
  end
  return out
end

return M
