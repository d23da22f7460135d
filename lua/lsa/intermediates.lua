-- Owns how a prefill's intermediates become tensors by name: the pieces of a prefill joined.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local tensor = require "lsa.tensor"

local M = {}

-- Where a later piece has more columns, earlier rows get these: scores nobody computed, picks that are none.
local function filler(name)
  return name:find "index_scores$" and -math.huge or -1
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
