-- Training of the Memory Indexer: its optimiser's pass, products and losses, and whole steps at two sizes, on the GPU, too, where there
-- is one.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local ownership = require "lsa.ownership"
local C, check = lsa.C, require("lsa.raise").check

local small = {layers = 3, hidden = 128, rank = 64, heads = 4, dim = 32, rope_dim = 16, batch = 64, chunks = 8192}
local released = {layers = 1, hidden = 4096, rank = 2048, heads = 128, dim = 128, rope_dim = 64, batch = 16, chunks = 16384}
local IDS = 350                          -- chunks of a sample

local function new_trainer(size, device)
  local trainer = ownership.take(C.lsa_trainer_free, "lsa_trainer", C.lsa_trainer_new,
    ffi.new("lsa_trainer_shape", {layers = size.layers, hidden = size.hidden, rank = size.rank,
    heads = size.heads, dim = size.dim, rope_dim = size.rope_dim, norm_eps = 1e-6, key_format = C.LSA_KV_FP8}),
    ffi.new("float[?]", size.rope_dim / 2, 0.01), device, 0)
  C.lsa_sample_normals(C.lsa_trainer_all(trainer, C.LSA_TRAIN_VALUE), C.lsa_trainer_count(trainer),
    1 / math.sqrt(size.rank), ffi.new("uint64_t[1]", 1))
  return trainer
end

-- Everything that one step over random samples needs.
local function new_batch(bench, size, device)
  local s = {trainer = new_trainer(size, device), samples = ffi.new("lsa_training_sample[?]", size.batch), steps = 0, keep = {}}
  local hidden, keep_hidden = bench:random("float", size.batch * size.hidden, 1)
  local values = bench:random("float", size.chunks * size.dim, 2)
  local bytes = tonumber(C.lsa_index_key_bytes(C.LSA_KV_FP8, size.dim))
  local keys, keep_keys = bench:alloc("uint8_t", size.chunks * bytes)
  check(C.lsa_index_encode_cpu(keys, values, size.chunks, size.dim, bytes, C.LSA_KV_FP8, nil))
  local ids, weights = ffi.new("int32_t[?]", size.batch * IDS), ffi.new("float[?]", size.batch * IDS)
  for i = 0, size.batch * IDS - 1 do ids[i], weights[i] = i * 7919 % size.chunks, 1 end
  for i = 0, size.batch - 1 do
    s.samples[i] = {hidden + i * size.hidden, keys, ids + i * IDS, weights + i * IDS, IDS / 2, IDS / 2, size.chunks, i * 31,
      C.LSA_F32}
  end
  s.keep = {keep_hidden, keep_keys, ids, weights}
  return s
end

local function step(s, size)
  local how, loss, norm = ffi.new("lsa_index_loss", {C.LSA_POINTWISE_BCE}), ffi.new "double[1]", ffi.new "double[1]"
  for layer = 0, size.layers - 1 do
    check(C.lsa_trainer_gradients(s.trainer, layer, s.samples, size.batch, how, 1 / (size.batch * size.layers), loss))
  end
  s.steps = s.steps + 1
  check(C.lsa_trainer_update(s.trainer, ffi.new("lsa_adamw", {1e-4, 0.9, 0.999, 1e-8, 0.01, 1, s.steps}), 1, norm))
end

return function(bench)
  for _, size in ipairs{small, released} do
    local weights = size.rank * size.hidden + size.heads * (size.dim * size.rank + size.hidden)
    local scores = size.heads * size.dim * IDS
    for device = C.LSA_CPU, C.lsa_device_count() > 0 and C.LSA_CUDA or C.LSA_CPU do
      local there = device == C.LSA_CUDA
      bench:case{
        op = "training_step", flops = size.layers * size.batch * 6 * (weights + scores), limit = not there and "f32" or nil,
        shape = ("%d samples of %d, %d x rank %d, %d heads of %d%s"):format(size.batch, IDS, size.layers, size.rank, size.heads,
          size.dim, there and ", GPU" or ""),
        setup = function() return new_batch(bench, size, device) end,
        run = function(s) step(s, size) end,
      }
    end
  end

  local n = 2 ^ 24
  bench:case{
    op = "adamw", shape = n .. " weights", bytes = 28 * n, limit = "copy",
    setup = function()
      local s = {}
      for i = 1, 4 do s[i], s[i + 4] = bench:random("float", n, i) end
      for i = 0, n - 1 do s[3][i] = math.abs(s[3][i]) end
      return s
    end,
    run = function(s)
      check(C.lsa_adamw_cpu(s[1], s[2], s[3], s[4], n, ffi.new("lsa_adamw", {1e-4, 0.9, 0.999, 1e-8, 0.01, 1, 5}), nil))
    end,
  }

  for _, shape in ipairs{{16, 2048, 16384, 0}, {16384, 2048, 16, 1}, {64, 64, 128, 0}, {512, 2048, 2048, 0}} do
    local m, columns, k, transposed = unpack(shape)
    bench:case{
      op = "gemm", shape = ("[%d, %d]%s x [%d, %d]"):format(m, k, transposed == 1 and "^T" or "", k, columns),
      flops = 2 * m * columns * k, bytes = 4 * (m * k + k * columns + m * columns), limit = {"read", "f32"},
      setup = function()
        local s = {}
        s.a, s.keep_a = bench:random("float", m * k, 1)
        s.b, s.keep_b = bench:random("float", k * columns, 2)
        s.c, s.keep_c = bench:alloc("float", m * columns)
        return s
      end,
      run = function(s)
        check(C.lsa_gemm_cpu(s.c, s.a, s.b, m, columns, k, columns, transposed == 1 and m or k, columns, transposed, 0, nil))
      end,
    }
  end

  for name, how in pairs{bce = {C.LSA_POINTWISE_BCE}, bpr = {0, C.LSA_PAIRWISE_BPR, 1}} do
    bench:case{
      op = "index_loss", shape = name .. ", 512 golden, 512 others", bytes = 2 * 4 * 1024, limit = "copy",
      setup = function()
        local s = {loss = ffi.new "double[1]", how = ffi.new("lsa_index_loss", how)}
        s.logits, s.keep_logits = bench:random("float", 1024, 1)
        s.slope, s.keep_slope = bench:alloc("float", 1024)
        return s
      end,
      run = function(s) check(C.lsa_index_loss_cpu(s.loss, s.slope, s.logits, s.logits, 512, 512, s.how, nil)) end,
    }
  end
end
