-- Owns where values that are not finite began: the tokens are run again, a few at a time and under full attention, until a layer's
-- streams have one.
--
--   M.began(session) -> ", they began in layer 3 at position 17", or why that is not known
local ffi = require "ffi"
local lib = require "lsa.ffi"
local intermediates = require "lsa.session.intermediates"

local C = lib.C

local M = {}

local PIECE = 32 -- tokens whose streams are looked at together

-- The first row with a NaN or an infinity, or nil.
local function first_bad(data, rows, cols)
  for i = 0, rows * cols - 1 do
    local x = data[i]
    if x - x ~= 0 then return math.floor(i / cols) end
  end
end

-- Layers of a trace come in their order; a layer is where it began when no layer before has it at that token or earlier.
local function look(trace)
  local rows, cols = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  local layer, row
  for i = 0, tonumber(C.lsa_trace_count(trace)) - 1 do
    local name = ffi.string(C.lsa_trace_name(trace, i))
    local data = C.lsa_trace_data(trace, i, rows, cols)
    local at = first_bad(data, tonumber(rows[0]), tonumber(cols[0]))
    if at and (not row or at < row) then layer, row = name:match "^layer%.(%d+)%.", at end
  end
  return layer, row
end

local function search(s)
  local again = s.model:session{select = "full", kv = s.opt.kv}
  local n = tonumber(C.lsa_session_tokens(s.c))
  local ids = s:token_tensor(n)
  local found
  for from = 0, n - 1, PIECE do
    local trace = intermediates.new {"streams"}
    local rc = C.lsa_session_prefill(again.c, ffi.cast("int32_t *", ids.c.data) + from, math.min(PIECE, n - from), 0, nil, trace, nil)
    if rc < 0 then error(ffi.string(C.lsa_error()), 0) end
    local layer, row = look(trace)
    if row then
      found = (", they began in layer %s at position %d"):format(layer, from + row)
      break
    end
  end
  again:close()
  return found or "; every layer's streams are finite under full attention"
end

function M.began(s)
  local ok, words = pcall(search, s)
  return ok and words or ("; where they began is not known: %s"):format(tostring(words))
end

return M
