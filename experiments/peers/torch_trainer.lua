-- Half of torch_trainer.py: makes one batch and weights, writes them to DIR/batch.safetensors with our loss and gradients,
-- then answers the lines "time N" on standard input with the median ms of N training steps.
--     ./lsa experiments/peers/torch_trainer.lua DIR small|released THREADS
local ffi = require "ffi"
local lib = require "lsa.ffi"
local lsa = require "lsa"
local rng = require "lsa.cycle.rng"
local C, check = lib.C, require("lsa.raise").check

local sizes = {
  small = {layers = 3, hidden = 128, rank = 64, heads = 4, dim = 32, rope_dim = 16, batch = 64, chunks = 8192},
  released = {layers = 3, hidden = 4096, rank = 2048, heads = 128, dim = 128, rope_dim = 64, batch = 16, chunks = 16384},
}
local LEAST, MOST = 100, 600                     -- chunks of a sample, half of them golden

local directory, size = arg[1], sizes[arg[2]]
C.lsa_threads_set(tonumber(arg[3]))
local state = ffi.new("uint64_t[1]", 12345)
local out = {}

local function normals(name, shape, scale)
  local t = lsa.zeros(shape, "f32")
  C.lsa_sample_normals(t:pointer(), t:count(), scale, state)
  out[name] = t
  return t
end

-- ---- the trainer ----

local shape = ffi.new("lsa_trainer_shape", {layers = size.layers, hidden = size.hidden, rank = size.rank, heads = size.heads,
  dim = size.dim, rope_dim = size.rope_dim, norm_eps = 1e-6, key_format = C.LSA_KV_FP8})
local frequencies = lsa.zeros({size.rope_dim / 2})
for i = 0, size.rope_dim / 2 - 1 do frequencies:set(i, 160000 ^ (-2 * i / size.rope_dim)) end
out.frequencies = frequencies
local box = ffi.new "lsa_trainer *[1]"
check(C.lsa_trainer_new(box, shape, frequencies:pointer(), C.LSA_CPU, 0))
local trainer = ffi.gc(box[0], C.lsa_trainer_free)

local parts = {"wq_a", "norm", "wq_b", "weights"}

local function each_part(kind, fn)
  for layer = 0, size.layers - 1 do
    for part, name in ipairs(parts) do
      local rows, cols = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
      check(C.lsa_trainer_part_shape(trainer, part - 1, rows, cols))
      fn(("%s.%d"):format(name, layer), C.lsa_trainer_part(trainer, kind, layer, part - 1), {tonumber(rows[0]),
        tonumber(cols[0])})
    end
  end
end

each_part(C.LSA_TRAIN_VALUE, function(name, to, dims)
  local t = normals(name, dims, 1 / math.sqrt(dims[2]))
  if name:find "^norm" then t:copy(t:add(1)) end
  ffi.copy(to, t:pointer(), t:bytes())
end)

-- ---- the batch ----

local random = rng.new(7)
local counts, offsets, total = {}, {}, 0
for i = 1, size.batch do
  local n = math.floor(LEAST + random() * (MOST - LEAST))
  counts[i], offsets[i], total = n, total, total + n
end
local ids, weights = lsa.zeros({total}, "i32"), lsa.zeros({total}, "f32")
for i = 0, total - 1 do
  ids:pointer()[i] = random(size.chunks)
  weights:pointer()[i] = 0.5 + 0.25 * random(7)
end
local positions = lsa.zeros({size.batch}, "i64")
for i = 0, size.batch - 1 do positions:pointer()[i] = random(4 * size.chunks) end
out.ids, out.item_weights, out.positions, out.counts = ids, weights, positions, lsa.tensor(counts, "i32")
local hidden, keys = {}, {}
for layer = 0, size.layers - 1 do
  hidden[layer] = normals("hidden." .. layer, {size.batch, size.hidden}, 1):to "bf16"
  out["hidden." .. layer] = hidden[layer]
  keys[layer] = lsa.kernels.index_encode(normals("keys." .. layer, {size.chunks, size.dim}, 1), "fp8")
  out["keys." .. layer] = keys[layer]
end

local samples = ffi.new("lsa_training_sample[?]", size.batch)
local how = ffi.new("lsa_index_loss", {C.LSA_POINTWISE_BCE, C.LSA_PAIRWISE_NONE, 0, 0})

local function gradients()
  local loss = ffi.new "double[1]"
  for layer = 0, size.layers - 1 do
    for i = 0, size.batch - 1 do
      local s = samples[i]
      s.hidden = ffi.cast("const uint8_t *", hidden[layer].c.data) + i * size.hidden * 2
      s.hidden_dtype, s.keys, s.key_count = C.LSA_BF16, keys[layer].c.data, size.chunks
      s.ids, s.weights = ids:pointer() + offsets[i + 1], weights:pointer() + offsets[i + 1]
      s.positives = math.floor(counts[i + 1] / 2)
      s.negatives, s.position = counts[i + 1] - s.positives, positions:pointer()[i]
    end
    check(C.lsa_trainer_gradients(trainer, layer, samples, size.batch, how, 1 / (size.batch * size.layers), loss))
  end
  return loss[0]
end

local steps = 0

local function step()
  steps = steps + 1
  local loss, norm = gradients(), ffi.new "double[1]"
  local adamw = ffi.new("lsa_adamw", {rate = 1e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.01, step = steps})
  check(C.lsa_trainer_update(trainer, adamw, 1, norm))
  return loss
end

-- ---- what is compared ----

local loss = gradients()
each_part(C.LSA_TRAIN_GRADIENT, function(name, from, dims)
  local t = lsa.zeros(dims, "f32")
  ffi.copy(t:pointer(), from, t:bytes())
  out["gradient." .. name] = t
end)
out.loss = lsa.tensor{loss}
lsa.save(directory .. "/batch.safetensors", out)
for name in pairs(out) do out[name] = nil end   -- timing needs none of it
collectgarbage()
print(("ready %d chunks, %d weights"):format(total, tonumber(C.lsa_trainer_count(trainer))))
io.stdout:flush()

for line in io.lines() do
  local n, times = tonumber(line:match "^time (%d+)$"), {}
  for i = 1, n do
    local began = C.lsa_clock_ns()
    step()
    times[i] = tonumber(C.lsa_clock_ns() - began) / 1e6
  end
  table.sort(times)
  print(times[math.floor((n + 1) / 2)])
  io.stdout:flush()
end
