-- Owns a trainer's weights in C: where they start, and the checkpoints that bring all of it back to the same bits.
local ffi = require "ffi"
local files = require "lsa.files.files"
local lib = require "lsa.ffi"
local plain = require "lsa.files.plain_data"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local C = lib.C
local check = raise.check

local M = {}

local parts = {
  {code = C.LSA_TRAIN_A, name = "wq_a.weight", weight = "a"},
  {code = C.LSA_TRAIN_NORM, name = "q_norm_weight"},
  {code = C.LSA_TRAIN_B, name = "wq_b.weight", weight = "b"},
  {code = C.LSA_TRAIN_W, name = "weights_proj.weight", weight = "w"},
}

-- Prefixes of what a checkpoint holds beside the weights.
local kinds = {[""] = C.LSA_TRAIN_VALUE, ["adamw.first."] = C.LSA_TRAIN_FIRST, ["adamw.second."] = C.LSA_TRAIN_SECOND}

local function part_shape(c, part)
  local rows, cols = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  check(C.lsa_trainer_part_shape(c, part.code, rows, cols))
  if part.code == C.LSA_TRAIN_NORM then return {tonumber(cols[0])} end
  return {tonumber(rows[0]), tonumber(cols[0])}
end

-- device: as lsa.devices has it.
function M.new(opt, device)
  local config = opt.model.config
  local shape = ffi.new("lsa_trainer_shape", {layers = #opt.layers, hidden = config.hidden, rank = opt.rank,
    heads = opt.heads, dim = config.index_dim, rope_dim = config.rope_dim, norm_eps = config.norm_eps,
    key_format = C.LSA_KV_FP8})
  return ownership.take(C.lsa_trainer_free, "lsa_trainer", C.lsa_trainer_new, shape, opt.model.c.compress_freq, device.code, device.gpu)
end

-- ---- where weights start ----

local function random(self, i)
  local state = ffi.new("uint64_t[1]", C.lsa_sample_seed(self.opt.seed, 2 ^ 40, self.layers[i]))
  for _, part in ipairs(parts) do
    local shape, to = part_shape(self.c, part), C.lsa_trainer_part(self.c, C.LSA_TRAIN_VALUE, i - 1, part.code)
    if part.weight then
      C.lsa_sample_normals(to, shape[1] * shape[2], 1 / math.sqrt(shape[2]), state)
    else
      for k = 0, shape[1] - 1 do to[k] = 1 end
    end
  end
end

local function from_indexer(self, i, indexer)
  local tensors = indexer:tensors()
  for _, part in ipairs(parts) do
    local name = ("retrievers.l%d.%s"):format(self.layers[i], part.name)
    local t, shape = tensors[name]:to "f32":contiguous(), part_shape(self.c, part)
    if table.concat(t:shape(), " x ") ~= table.concat(shape, " x ") then
      raise("lsa.trainer: %s starts as %s, of rank %d and %d heads it is %s", name, table.concat(t:shape(), " x "),
        self.opt.rank, self.opt.heads, table.concat(shape, " x "))
    end
    ffi.copy(C.lsa_trainer_part(self.c, C.LSA_TRAIN_VALUE, i - 1, part.code), t:pointer(), t:bytes())
  end
end

function M.start(self)
  local opt = self.opt
  local config = opt.model.config
  local fits = opt.rank == tonumber(config.q_rank) and opt.heads == tonumber(config.index_heads)
  local from = opt.from or (fits and "native" or "random")
  local indexer
  if from ~= "random" then
    indexer = require("lsa.indexer").new({model = opt.model, layers = opt.layers, from = from})
  end
  for i in ipairs(self.layers) do
    if indexer then from_indexer(self, i, indexer) else random(self, i) end
  end
end

-- ---- checkpoints ----

-- Every part of every layer of one kind: fn(name, pointer, shape).
local function each(self, kind, fn)
  for i, layer in ipairs(self.layers) do
    for _, part in ipairs(parts) do
      fn(("retrievers.l%d.%s"):format(layer, part.name), C.lsa_trainer_part(self.c, kind, i - 1, part.code),
        part_shape(self.c, part))
    end
  end
end

-- A tensor on the trainer's own memory, which must outlive it.
local function on(from, shape)
  local count = shape[1] * (shape[2] or 1)
  local storage, out = ownership.take(C.lsa_storage_release, "lsa_storage", C.lsa_storage_wrap, from, count * 4, nil, nil), tensor.unmade()
  check(C.lsa_tensor_on(out.box, storage, 0, C.LSA_F32, #shape, ffi.new("int64_t[6]", shape)))
  return out
end

function M.weights(self)
  local out = {}
  each(self, C.LSA_TRAIN_VALUE, function(name, from, shape) out[name] = on(from, shape):copy() end)
  return out
end

-- What must be equal for the rest of a run to be the same.
local function settings(self)
  local opt, out = self.opt, {}
  for _, name in ipairs{"rank", "heads", "loss", "pairwise", "factor", "margin", "weights", "min_layers", "frequent",
    "window", "first", "positives", "negatives", "steps", "batch", "rate", "warmup", "decay", "beta1", "beta2", "eps",
    "clip", "seed"} do
    out[name] = type(opt[name]) == "number" and ("%.17g"):format(opt[name]) or tostring(opt[name])
  end
  out.layers, out.sampler = table.concat(self.layers, " "), self.batches.sampler.name
  out.eligible = ("%d in %d documents"):format(self.batches.total, #self.documents)
  return out
end

-- What the sampler remembers, as bytes, and back: whether these are some.
function M.memory(self) return plain.encode(self.batches.state) end

function M.remember(self, memory)
  local ok, value = pcall(plain.decode, memory)
  if not ok or type(value) ~= "table" then return false end
  self.batches.state = value
  return true
end

function M.save(self, path)
  local tensors, metadata = {}, {format = "lsa trainer 1", step = self.steps_done, skipped = self.skipped}
  for prefix, kind in pairs(kinds) do
    each(self, kind, function(name, from, shape) tensors[prefix .. name] = on(from, shape) end)
  end
  local memory = M.memory(self)
  local bytes = tensor.zeros({#memory}, "u8")
  ffi.copy(bytes:pointer(), memory, #memory)
  tensors["sampler.state"] = bytes
  for name, value in pairs(settings(self)) do metadata["option." .. name] = value end
  files.save(path, tensors, metadata)
end

function M.load(self, path)
  local tensors, metadata = files.load(path)
  if metadata.format ~= "lsa trainer 1" then raise("lsa.trainer: checkpoint %s is not one", path) end
  for name, value in pairs(settings(self)) do
    if metadata["option." .. name] ~= value then
      raise("lsa.trainer: checkpoint %s is of a run with %s = %s, here it is %s", path, name,
        tostring(metadata["option." .. name]), value)
    end
  end
  for prefix, kind in pairs(kinds) do
    each(self, kind, function(name, to, shape)
      local t = tensors[prefix .. name]
      if not t or t:dtype() ~= "f32" or table.concat(t:shape(), " ") ~= table.concat(shape, " ") then
        raise("lsa.trainer: checkpoint %s: %s is missing or of another shape", path, prefix .. name)
      end
      ffi.copy(to, t:contiguous():pointer(), t:bytes())
    end)
  end
  local memory = tensors["sampler.state"]
  if not M.remember(self, memory and ffi.string(memory:pointer(), memory:count()) or "") then
    raise("lsa.trainer: checkpoint %s: sampler.state is damaged", path)
  end
  self.steps_done, self.skipped = tonumber(metadata.step), tonumber(metadata.skipped)
end

return M
