-- Owns recorded sessions as files (lua/lsa/session/recording_writer.lua writes them): opens one, and checks all that replay relies on, so that
-- no file can lead it out of its memory.
--
--   recording = require("lsa.session.recording_reader").open(path)
--   recording.tensors, recording.about, recording.rows
local ffi = require "ffi"
local cjson = require "cjson"
local C = require("lsa.ffi").C
local indexers = require "lsa.indexer"
local raise = require "lsa.raise"

local formats, scorings = indexers.formats, indexers.scorings

local M = {}

local Recording = {}
Recording.__index = Recording

local function refuse(self, format, ...)
  raise("lsa.replay: %s: " .. format, self.path, ...)
end

-- A tensor of that dtype and shape (false: any size).
local function want(self, name, dtype, shape)
  local t = self.tensors[name]
  if not t then refuse(self, "no tensor %s", name) end
  local have = t:shape()
  local fits = t:dtype() == dtype and #have == #shape
  for i, n in ipairs(fits and shape or {}) do fits = fits and (not n or have[i] == n) end
  if not fits then
    local wanted = {}
    for i, n in ipairs(shape) do wanted[i] = n and tostring(n) or "any" end
    refuse(self, "%s is %s [%s]; %s [%s] is wanted", name, t:dtype(), table.concat(have, ", "), dtype, table.concat(wanted, ", "))
  end
  return t
end

local function whole(self, name, least, most)
  local n = self.about[name]
  if type(n) ~= "number" or n ~= math.floor(n) or n < least or n > most then
    refuse(self, "%s is %s; a whole number of %g to %g is wanted", name, tostring(n), least, most)
  end
  return n
end

local function check_about(self)
  local about = self.about
  whole(self, "csa_rate", 1, 2 ^ 20)
  whole(self, "index_topk", 1, 2 ^ 20)
  whole(self, "index_dim", 1, 2 ^ 20)
  whole(self, "record", 0, 2 ^ 31)
  whole(self, "csa_layers", 1, 2 ^ 16)
  if not formats[about.kv] then refuse(self, "kv is %s; f32, bf16 or fp8 is wanted", tostring(about.kv)) end
  if about.compute ~= "f32" and about.compute ~= "bf16" then refuse(self, "compute is %s", tostring(about.compute)) end
  if about.scoring ~= nil and not scorings[about.scoring] then refuse(self, "scoring is %s", tostring(about.scoring)) end
  if about.looks ~= nil then whole(self, "looks", 1, 64) end
  if about.ensemble ~= "max" and about.ensemble ~= "mean" then refuse(self, "ensemble is %s", tostring(about.ensemble)) end
  if type(about.options) ~= "table" or type(about.layers) ~= "table" then refuse(self, "no options, or no target layers") end
  for _, layer in ipairs(about.layers) do
    if type(layer) ~= "number" or layer % 1 ~= 0 or layer < 0 or layer >= about.csa_layers then
      refuse(self, "target layer %s; the recorded model has %d CSA layers", tostring(layer), about.csa_layers)
    end
  end
end

-- Positions that ascend, each with its token; the chunks that are whole by then.
local function check_rows(self)
  local positions = want(self, "positions", "i64", {false})
  self.rows = positions:count()
  local tokens = want(self, "token_ids", "i32", {false}):count()
  want(self, "decoded", "i32", {self.rows})
  want(self, "entropy", "f32", {self.rows})
  local at, before = positions:pointer(), -1
  for row = 0, self.rows - 1 do
    if at[row] <= before or at[row] >= tokens then
      refuse(self, "position %d of row %d; ascending ones below %d are wanted", tonumber(at[row]), row, tokens)
    end
    before = at[row]
  end
  self.chunks = math.floor(tokens / self.about.csa_rate)
end

local function check_ids(self, name)
  local ids = want(self, name, "i32", {self.rows, self.about.index_topk})
  if C.lsa_recall_check(ids:pointer(), self.rows, self.about.index_topk, self.tensors.positions:pointer(), self.about.csa_rate) < 0 then
    refuse(self, "%s: %s", name, ffi.string(C.lsa_error()))
  end
end

local function check_queries(self, kind, weight, layer)
  local heads = want(self, weight .. layer, "f32", {self.rows, false}):shape()[2]
  want(self, kind .. layer, "f32", {self.rows, heads, self.about.index_dim})
end

local key_dtypes = {f32 = "f32", bf16 = "bf16", fp8 = "u8"}

local function check_layer(self, layer)
  local about = self.about
  want(self, "hidden_layer_" .. layer, "f32", {self.rows, false})
  check_queries(self, "query_layer_", "query_weight_layer_", layer)
  check_ids(self, "native_layer_" .. layer)
  check_ids(self, "picked_layer_" .. layer)
  want(self, "mass_layer_" .. layer, "f32", {self.rows, about.index_topk})
  local width = about.kv == "fp8" and about.index_dim + 4 or about.index_dim
  want(self, "compk_layer_" .. layer, key_dtypes[about.kv], {self.chunks, width})
end

-- What a prefill had observed is of the chunks there were.
local function check_observed(self)
  for name in pairs(self.tensors) do
    local kind, row = name:match "^observed_(%a+)_layer_%d+_(%d+)$"
    if kind then
      local n = tonumber(row) < self.rows and self:chunks_at(tonumber(row)) or -1
      want(self, name, kind == "used" and "i32" or "f32", {n})
    end
  end
end

local function check_labels(self)
  if not self.tensors.label_pointers then return end
  local pointers = want(self, "label_pointers", "i32", {self.rows + 1}):pointer()
  local count = want(self, "label_indices", "i32", {false}):count()
  for row = 0, self.rows do
    if pointers[row] < (row > 0 and pointers[row - 1] or 0) or pointers[row] > count then
      refuse(self, "label_pointers: %d of row %d; %d labels", pointers[row], row, count)
    end
  end
  local ids = self.tensors.label_indices:pointer()
  for i = 0, count - 1 do
    if ids[i] < 0 or ids[i] >= self.chunks then refuse(self, "label_indices: chunk %d of %d", ids[i], self.chunks) end
  end
end

-- Scores that cycles had, in one piece behind each other: where those of a row begin, by name and row.
local function find_scores(self)
  self.scores = {}
  for name, t in pairs(self.tensors) do
    local base = name:match "^(.*scores.*)_rows$"
    if base then
      local rows, at, places = want(self, name, "i32", {false}):pointer(), 0, {}
      for i = 0, t:count() - 1 do
        if rows[i] < 0 or rows[i] >= self.rows then refuse(self, "%s: row %d of %d", name, rows[i], self.rows) end
        places[rows[i]] = at
        at = at + self:chunks_at(rows[i])
      end
      self.scores[base] = {places = places, data = want(self, base, "f32", {at}):pointer()}
    end
  end
end

-- Chunks that are whole at a row.
function Recording:chunks_at(row)
  return math.floor((tonumber(self.tensors.positions:pointer()[row]) + 1) / self.about.csa_rate)
end

function M.open(path)
  local tensors, metadata = require("lsa.files.files").load(path)
  local self = setmetatable({path = path, tensors = tensors}, Recording)
  local ok, about = pcall(cjson.decode, metadata.about or "")
  if metadata.format ~= "lsa trace 1" or not ok or type(about) ~= "table" then
    raise("lsa.replay: %s is no recording of a session (s:record makes one)", tostring(path))
  end
  self.about, self.unfinished = about, metadata.unfinished
  check_about(self)
  check_rows(self)
  for layer = 0, about.csa_layers - 1 do check_layer(self, layer) end
  for _, layer in ipairs(about.layers) do check_queries(self, "memory_query_layer_", "memory_weight_layer_", layer) end
  check_observed(self)
  check_labels(self)
  find_scores(self)
  return self
end

return M
