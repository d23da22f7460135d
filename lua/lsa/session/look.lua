-- Owns Level 1 where a GPU does it in one launch (core/session/look.c): what sessions ask with their Memory Indexer, alone, or several whose
-- cycles are due together.
--
--   look.at(sessions, theta)   their scores, or, with theta, their sets; nil where that takes more than one launch. The sessions are alike
--   look.ahead(sessions)       the scores that these are about to ask for, each in its s.ahead = {t =, scores =}: made together where they are
--                              alike; the others ask for themselves
local ffi = require "ffi"
local accounting = require "lsa.accounting"
local devices = require "lsa.devices"
local lib = require "lsa.ffi"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local M = {}

-- How many of the latest tokens a session's indexer looks from.
function M.rows(s)
  return math.min(s.indexer.looks, math.max(1, tonumber(C.lsa_session_recent(s.c))))
end

-- FLOPs of a look at n chunks.
function M.flops(s, n)
  local rows, flops, dim = M.rows(s), 0, tonumber(s.model.config.index_dim)
  for _, layer in ipairs(s.indexer.layers) do
    flops = flops + rows * (s.indexer:flops(layer) + accounting.scoring(n, tonumber(s.indexer.weights[layer].heads), dim))
  end
  return flops
end

local on_gpu = setmetatable({}, {__mode = "k"}) -- of indexers

-- An indexer's layers, their weights where the model's kernels read them, and their CSA ordinals.
local function layers_of(indexer)
  local there = on_gpu[indexer]
  if there then return there end
  local layers, csa, keep = ffi.new("lsa_indexer_layer[?]", #indexer.layers), ffi.new("int32_t[?]", #indexer.layers), {}
  for i, ordinal in ipairs(indexer.layers) do
    layers[i - 1], csa[i - 1] = indexer.weights[ordinal], ordinal
    for part, t in pairs(indexer.keep[ordinal] or {}) do -- a native one's are the model's
      keep[#keep + 1] = t:to "cuda"
      local data = keep[#keep].c.data
      if part == "norm" then layers[i - 1].norm = ffi.cast("const float *", data) else layers[i - 1][part].data = data end
    end
  end
  there = {layers = layers, csa = csa, keep = keep}
  on_gpu[indexer] = there
  return there
end

-- What an indexer looks with, from so many of the latest tokens: an lsa_look.
function M.with(indexer, rows)
  local there = layers_of(indexer)
  local how = (indexer.looks > 1 or indexer.ensemble == "max") and C.LSA_ENSEMBLE_MAX or C.LSA_ENSEMBLE_MEAN
  return ffi.new("lsa_look", {layers = there.layers, csa = there.csa, count = #indexer.layers, rows = rows, how = how})
end

function M.at(sessions, theta)
  local first, answered = sessions[1], ffi.new "int32_t[1]"
  if first.model.device == "cpu" then return nil end
  local list, out, results = ffi.new("lsa_session *[?]", #sessions), ffi.new("void *[?]", #sessions), {}
  for i, s in ipairs(sessions) do
    local n = tonumber(C.lsa_session_chunks(s.c))
    results[i] = theta and set.new(n) or tensor.zeros({n}, "f32")
    list[i - 1], out[i - 1] = s.c, theta and results[i].c.bits or results[i].c.data
  end
  local how = M.with(first.indexer, M.rows(first))
  how.theta = theta or 0
  local scores, bits
  if theta then bits = ffi.cast("uint64_t *const *", out) else scores = ffi.cast("float *const *", out) end
  raise.check(C.lsa_sessions_look(list, #sessions, how, scores, bits, answered))
  return answered[0] == 1 and results or nil
end

local function alike(a, b)
  return a.indexer == b.indexer and a.model == b.model and a.format == b.format and a.opt.scoring == b.opt.scoring and
    M.rows(a) == M.rows(b)
end

function M.ahead(sessions)
  while #sessions > 1 do
    local some, others = {}, {}
    for _, s in ipairs(sessions) do table.insert(alike(s, sessions[1]) and some or others, s) end
    local ok, results = pcall(devices.on, some[1].model.gpu, M.at, some)
    for i, s in ipairs(ok and results and some or {}) do s.ahead = {t = s:tokens(), scores = results[i]} end
    sessions = others
  end
end

return M
