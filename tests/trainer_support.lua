-- What the trainer's specs share: the indexer's forward pass and losses in double precision, and made-up samples.
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local M = {}

M.parts = {a = C.LSA_TRAIN_A, norm = C.LSA_TRAIN_NORM, b = C.LSA_TRAIN_B, w = C.LSA_TRAIN_W}

local function softplus(x) return math.max(x, 0) + math.log(1 + math.exp(-math.abs(x))) end
local function sigmoid(x) return 1 / (1 + math.exp(-x)) end

-- The loss of one step's logits, from its definition. z, weights: lists, positives first.
function M.loss(z, weights, positives, how)
  local n, sum, pairs_sum = #z, 0, 0
  if how.pointwise ~= C.LSA_POINTWISE_NONE and n > 0 then
    for i = 1, n do
      local u = i <= positives and z[i] or -z[i]
      local cost = softplus(-u)
      if how.pointwise == C.LSA_POINTWISE_FOCAL then cost = cost * sigmoid(-u) ^ 2 end
      sum = sum + weights[i] * cost
    end
    sum = sum / n
  end
  if how.pairwise ~= C.LSA_PAIRWISE_NONE and positives > 0 and n > positives then
    for i = 1, positives do
      for j = positives + 1, n do
        local d = z[i] - z[j]
        local cost = how.pairwise == C.LSA_PAIRWISE_BPR and softplus(-d) or math.max(0, how.margin - d)
        pairs_sum = pairs_sum + weights[i] * cost
      end
    end
    pairs_sum = pairs_sum / (positives * (n - positives))
  end
  return sum + how.pairwise_factor * pairs_sum
end

local function times(weight, rows, cols, x)
  local y = {}
  for r = 0, rows - 1 do
    local sum = 0
    for c = 0, cols - 1 do sum = sum + weight[r * cols + c] * x[c + 1] end
    y[r + 1] = sum
  end
  return y
end

local function rope(q, shape, position, freq)
  for h = 0, shape.heads - 1 do
    local at = h * shape.dim + shape.dim - shape.rope_dim
    for i = 0, shape.rope_dim / 2 - 1 do
      local angle = position * freq[i]
      local a, b = q[at + 2 * i + 1], q[at + 2 * i + 2]
      q[at + 2 * i + 1] = a * math.cos(angle) - b * math.sin(angle)
      q[at + 2 * i + 2] = b * math.cos(angle) + a * math.sin(angle)
    end
  end
end

local function hadamard(q, shape)
  for h = 0, shape.heads - 1 do
    local step = 1
    while step < shape.dim do
      for i = 0, shape.dim - 1 do
        if math.floor(i / step) % 2 == 0 then
          local x, y = h * shape.dim + i + 1, h * shape.dim + i + step + 1
          q[x], q[y] = q[x] + q[y], q[x] - q[y]
        end
      end
      step = step * 2
    end
  end
  for i = 1, #q do q[i] = q[i] / math.sqrt(shape.dim) end
end

-- Logits of a sample {hidden = list, position, keys = list of lists} under weights {a, norm, b, w} (arrays or 0-based lists).
function M.logits(weights, sample, shape, freq)
  local low = times(weights.a, shape.rank, shape.hidden, sample.hidden)
  local mean = 0
  for i = 1, shape.rank do mean = mean + low[i] ^ 2 / shape.rank end
  for i = 1, shape.rank do low[i] = low[i] / math.sqrt(mean + shape.norm_eps) * weights.norm[i - 1] end
  local q = times(weights.b, shape.heads * shape.dim, shape.rank, low)
  rope(q, shape, sample.position, freq)
  if shape.key_format == C.LSA_KV_FP8 then hadamard(q, shape) end
  local w = times(weights.w, shape.heads, shape.hidden, sample.hidden)
  local logits = {}
  for i, key in ipairs(sample.keys) do
    logits[i] = 0
    for h = 0, shape.heads - 1 do
      local dot = 0
      for d = 1, shape.dim do dot = dot + q[h * shape.dim + d] * key[d] end
      logits[i] = logits[i] + w[h + 1] / math.sqrt(shape.dim * shape.heads) * math.max(0, dot)
    end
  end
  return logits
end

-- `count` keys in their stored format and as lists of the stored values.
function M.keys(count, shape, seed)
  local bytes = tonumber(C.lsa_index_key_bytes(shape.key_format, shape.dim))
  local records = support.buffer("uint8_t", count * bytes)
  check(C.lsa_index_encode_cpu(records, support.normals(count * shape.dim, seed), count, shape.dim, bytes,
    shape.key_format, nil))
  local values = support.buffer("float", count * shape.dim)
  check(C.lsa_index_decode_cpu(values, records, count, shape.dim, bytes, shape.key_format, nil))
  local lists = {}
  for i = 0, count - 1 do
    lists[i] = {}
    for d = 0, shape.dim - 1 do lists[i][d + 1] = values[i * shape.dim + d] end
  end
  return records, lists
end

-- A made-up document that an indexer can learn: chunk s is golden for the steps whose hidden state has its direction.
-- There are `topics` directions; chunk s is about topic s % topics, and a step's topic changes every `stay` steps. Keys of a
-- topic are alike. Tensors of a trace, by name. opt: steps, topics, stay, seed, noise; model gives the sizes.
function M.trace(model, layers, opt)
  local tensor = require "lsa.tensor.tensor"
  local hidden, dim = tonumber(model.config.hidden), tonumber(model.config.index_dim)
  local rate, uniform = tonumber(model.config.csa_rate), support.uniform(opt.seed)
  local steps, chunks = opt.steps, math.floor(opt.steps / rate)
  local function normals(n, scale, seed) return support.normals(n, seed + opt.seed * 1000, scale) end
  local out = {}
  local topic = {}
  for step = 0, steps - 1 do
    topic[step] = step % opt.stay == 0 and math.floor(uniform(0, opt.topics)) or topic[step - 1]
  end
  for _, layer in ipairs(layers) do
    -- The directions are the layer's own, whatever the document.
    local states = support.normals(opt.topics * hidden, 17 + layer)
    local centres = support.normals(opt.topics * dim, 29 + layer)
    local h, k = tensor.zeros({steps, hidden}, "f32"), tensor.zeros({chunks, dim}, "f32")
    local noise = normals(steps * hidden, opt.noise, 3 + layer)
    for i = 0, steps * hidden - 1 do
      h:pointer()[i] = states[topic[math.floor(i / hidden)] * hidden + i % hidden] + noise[i]
    end
    noise = normals(chunks * dim, opt.noise, 7 + layer)
    for i = 0, chunks * dim - 1 do
      k:pointer()[i] = centres[math.floor(i / dim) % opt.topics * dim + i % dim] + noise[i]
    end
    local bytes = tonumber(C.lsa_index_key_bytes(C.LSA_KV_FP8, dim))
    local records = tensor.zeros({chunks, bytes}, "u8")
    check(C.lsa_index_encode_cpu(records.c.data, k:pointer(), chunks, dim, bytes, C.LSA_KV_FP8, nil))
    local positions = tensor.zeros({steps}, "i64")
    for step = 0, steps - 1 do positions:pointer()[step] = step end
    out["hidden_layer_" .. layer], out["compk_layer_" .. layer] = h:to "bf16", records
    out["positions_layer_" .. layer] = positions
  end
  local pointers, ids, votes = {0}, {}, {}
  for step = 0, steps - 1 do
    for s = topic[step], math.floor((step + 1) / rate) - 1, opt.topics do
      ids[#ids + 1], votes[#votes + 1] = s, 1 + (s + step) % #model.csa_layers
    end
    pointers[step + 2] = #ids
  end
  out.label_pointers, out.label_indices = tensor.new(pointers, "i32"), tensor.new(ids, "i32")
  out.label_scores = tensor.new(votes, "i32")
  return out
end

return M
