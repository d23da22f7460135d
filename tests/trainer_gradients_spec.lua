local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local trainer_support = require "trainer_support"
local C, check = lsa.C, require("lsa.raise").check

local stub = require "stub_support"
local LAYERS = 2

-- On a GPU, or its stub, trainers are there; what they train is host memory as ever.
local DEVICE = (support.device == "cuda" or stub.here) and C.LSA_CUDA or C.LSA_CPU

local function new_trainer(shape, freq, seed)
  local box = ffi.new "lsa_trainer *[1]"
  check(C.lsa_trainer_new(box, ffi.new("lsa_trainer_shape", shape), freq, DEVICE, 0))
  local trainer = ffi.gc(box[0], C.lsa_trainer_free)
  local n = tonumber(C.lsa_trainer_count(trainer))
  for layer = 0, LAYERS - 1 do
    for name, part in pairs(trainer_support.parts) do
      local rows, cols = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
      check(C.lsa_trainer_part_shape(trainer, part, rows, cols))
      local count = tonumber(rows[0] * cols[0])
      local values = support.normals(count, seed + layer * 7 + part, 0.6)
      local to = C.lsa_trainer_part(trainer, C.LSA_TRAIN_VALUE, layer, part)
      for i = 0, count - 1 do to[i] = values[i] + (name == "norm" and 1 or 0) end
    end
  end
  return trainer, n
end

-- Samples as C wants them, and as the oracle does. counts: {positives, negatives} of each.
local function new_samples(counts, shape, dtype, seed)
  local KEYS = 23
  local records, lists = trainer_support.keys(KEYS, shape, seed)
  local uniform = support.uniform(seed)
  local c, plain, keep = ffi.new("lsa_training_sample[?]", math.max(#counts, 1)), {}, {records}
  for i, count in ipairs(counts) do
    local n = count[1] + count[2]
    local ids, weights = support.buffer("int32_t", n), support.buffer("float", n)
    local sample = {keys = {}, weights = {}, positives = count[1], hidden = {}, position = math.floor(uniform(0, 5000))}
    for j = 0, n - 1 do
      ids[j] = math.floor(uniform(0, KEYS))
      weights[j] = j < count[1] and 0.5 + 0.25 * math.floor(uniform(0, 6)) or 1
      sample.keys[j + 1], sample.weights[j + 1] = lists[ids[j]], weights[j]
    end
    local hidden = support.normals(shape.hidden, seed + 100 + i)
    local stored = hidden
    if dtype == C.LSA_BF16 then
      stored = support.buffer("uint16_t", shape.hidden)
      check(C.lsa_convert_cpu(stored, hidden, shape.hidden, C.LSA_BF16, C.LSA_F32, nil))
      check(C.lsa_convert_cpu(hidden, stored, shape.hidden, C.LSA_F32, C.LSA_BF16, nil))
    end
    for d = 0, shape.hidden - 1 do sample.hidden[d + 1] = hidden[d] end
    local s = c[i - 1]
    s.hidden, s.keys, s.ids, s.weights, s.hidden_dtype = stored, records, ids, weights, dtype
    s.positives, s.negatives, s.key_count, s.position = count[1], count[2], KEYS, sample.position
    plain[i], keep[#keep + 1] = sample, {ids, weights, stored}
  end
  return c, plain, keep
end

local function weights_of(trainer, layer)
  local out = {}
  for name, part in pairs(trainer_support.parts) do
    local rows, cols = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
    check(C.lsa_trainer_part_shape(trainer, part, rows, cols))
    local from = C.lsa_trainer_part(trainer, C.LSA_TRAIN_VALUE, layer, part)
    out[name] = {n = tonumber(rows[0] * cols[0])}
    for i = 0, out[name].n - 1 do out[name][i] = from[i] end
  end
  return out
end

local function oracle(weights, samples, shape, freq, how, share)
  local sum = 0
  for _, sample in ipairs(samples) do
    local z = trainer_support.logits(weights, sample, shape, freq)
    sum = sum + trainer_support.loss(z, sample.weights, sample.positives, how)
  end
  return sum * share
end

-- The loss and every gradient of one layer against central differences in double precision.
local function compare(shape, counts, how, dtype, seed)
  local half = math.max(shape.rope_dim / 2, 1)
  local freq = support.buffer("float", half)
  for i = 0, half - 1 do freq[i] = 100 ^ (-i / half) * 0.01 end
  local trainer = new_trainer(shape, freq, seed)
  local samples, plain, keep = new_samples(counts, shape, dtype or C.LSA_F32, seed)
  how = ffi.new("lsa_index_loss", how)
  local share, layer = 1 / 7, 1
  local loss = ffi.new("double[1]", 0.25)
  check(C.lsa_trainer_gradients(trainer, layer, samples, #counts, how, share, loss))
  local weights = weights_of(trainer, layer)
  local expected = oracle(weights, plain, shape, freq, how, share)
  assert.is_true(math.abs(loss[0] - 0.25 - expected) <= 1e-5 * math.max(1, math.abs(expected)))
  local step, worst, largest = 1e-5, 0, 0
  for name, part in pairs(trainer_support.parts) do
    local gradient = C.lsa_trainer_part(trainer, C.LSA_TRAIN_GRADIENT, layer, part)
    local list = weights[name]
    for i = 0, list.n - 1 do
      local value = list[i]
      list[i] = value + step
      local above = oracle(weights, plain, shape, freq, how, share)
      list[i] = value - step
      local below = oracle(weights, plain, shape, freq, how, share)
      list[i] = value
      local want = (above - below) / (2 * step)
      local difference = math.abs(gradient[i] - want)
      if not (difference <= worst) then worst = difference end
      largest = math.max(largest, math.abs(want))
    end
  end
  assert.is_not_nil(keep)
  return worst, largest
end

local function shape_of(t)
  return {layers = LAYERS, hidden = t[1], rank = t[2], heads = t[3], dim = t[4], rope_dim = t[5], norm_eps = 1e-6,
    key_format = t[6]}
end

describe("lsa_trainer_gradients", function()
  local bce = {pointwise = C.LSA_POINTWISE_BCE, pairwise = C.LSA_PAIRWISE_NONE, pairwise_factor = 0, margin = 0}

  it("agrees with finite differences for every loss", function()
    for pointwise = C.LSA_POINTWISE_NONE, C.LSA_POINTWISE_FOCAL do
      for pairwise = C.LSA_PAIRWISE_NONE, C.LSA_PAIRWISE_BPR do
        local worst, largest = compare(shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8}, {{3, 5}, {1, 2}, {4, 17}},
          {pointwise = pointwise, pairwise = pairwise, pairwise_factor = 0.7, margin = 0.3}, C.LSA_F32, 3)
        if pointwise + pairwise > 0 then assert.is_true(largest > 0.01) else assert.equal(0, largest) end
        assert.is_true(worst <= 2e-5 * math.max(largest, 1))
      end
    end
  end)

  it("agrees with finite differences for every key format, ragged shape and code path", function()
    support.for_each_cpu_level(function()
      for _, shape in ipairs{{3, 1, 1, 2, 0, C.LSA_KV_F32}, {7, 3, 5, 16, 6, C.LSA_KV_BF16}, {2, 5, 4, 32, 32, C.LSA_KV_FP8},
        {6, 2, 2, 19, 4, C.LSA_KV_F32}} do
        local worst, largest = compare(shape_of(shape), {{2, 33}, {1, 0}, {0, 4}}, bce, C.LSA_F32, 5)
        assert.is_true(largest > 0.001)
        assert.is_true(worst <= 2e-5 * math.max(largest, 1))
      end
    end)
  end)

  it("reads hidden states in bf16", function()
    local worst, largest = compare(shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8}, {{3, 5}}, bce, C.LSA_BF16, 9)
    assert.is_true(worst <= 2e-5 * math.max(largest, 1))
  end)

  it("gives zeros where there is nothing to learn from", function()
    for _, counts in ipairs{{}, {{0, 0}}, {{0, 0}, {0, 0}}} do
      local worst, largest = compare(shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8}, counts, bce, C.LSA_F32, 2)
      assert.equal(0, worst)
      assert.equal(0, largest)
    end
  end)

  it("gives the same bits whatever the other samples and the threads", function()
    local shape = shape_of{64, 32, 4, 32, 16, C.LSA_KV_FP8}
    local freq = support.buffer("float", 8)
    for i = 0, 7 do freq[i] = 0.1 / (i + 1) end
    local trainer = new_trainer(shape, freq, 4)
    local counts = {}
    for i = 1, 40 do counts[i] = {3 * i, 200 - i} end
    local samples, _, keep = new_samples(counts, shape, C.LSA_F32, 4)
    local how, n = ffi.new("lsa_index_loss", bce), tonumber(C.lsa_trainer_count(trainer))
    local bytes, first = n * 4, nil
    for threads = 1, 2 do
      C.lsa_threads_set(threads)
      for _ = 1, 2 do
        local loss = ffi.new "double[1]"
        check(C.lsa_trainer_gradients(trainer, 0, samples, #counts, how, 1 / 40, loss))
        local got = {loss[0], ffi.string(C.lsa_trainer_all(trainer, C.LSA_TRAIN_GRADIENT), bytes)}
        first = first or got
        assert.equal(first[1], got[1])
        if threads == 1 then assert.is_true(first[2] == got[2]) end
      end
    end
    C.lsa_threads_set(0)
    assert.is_not_nil(keep)
  end)

  it("passes NaN on to loss and gradient, and the update then leaves everything as it was", function()
    local shape = shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8}
    local freq = support.array("float", {0.1, 0.01})
    local trainer, n = new_trainer(shape, freq, 4)
    local samples, _, keep = new_samples({{2, 2}, {1, 3}}, shape, C.LSA_F32, 4)
    ffi.cast("float *", samples[1].hidden)[2] = 0 / 0
    local loss, norm = ffi.new "double[1]", ffi.new "double[1]"
    check(C.lsa_trainer_gradients(trainer, 0, samples, 2, ffi.new("lsa_index_loss", bce), 1, loss))
    assert.is_true(loss[0] ~= loss[0])
    local before = ffi.string(C.lsa_trainer_all(trainer, C.LSA_TRAIN_VALUE), n * 4)
    local adamw = ffi.new("lsa_adamw", {rate = 0.1, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.01, step = 1})
    check(C.lsa_trainer_update(trainer, adamw, 1, norm))
    assert.is_true(norm[0] ~= norm[0])
    assert.is_true(before == ffi.string(C.lsa_trainer_all(trainer, C.LSA_TRAIN_VALUE), n * 4))
    assert.is_not_nil(keep)
  end)

  it("refuses ids that are no key, unknown losses and layers", function()
    local shape = shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8}
    local trainer = new_trainer(shape, support.array("float", {0.1, 0.01}), 4)
    local samples, _, keep = new_samples({{2, 2}}, shape, C.LSA_F32, 4)
    local ids, loss = ffi.cast("int32_t *", samples[0].ids), ffi.new "double[1]"
    local how = ffi.new("lsa_index_loss", bce)
    for _, id in ipairs{-1, 23} do
      local kept = ids[3]
      ids[3] = id
      assert.equal(C.LSA_EARG, C.lsa_trainer_gradients(trainer, 0, samples, 1, how, 1, loss))
      assert.equal(("trainer: sample 0 has chunk %d, of 23"):format(id), ffi.string(C.lsa_error()))
      ids[3] = kept
    end
    assert.equal(C.LSA_EARG, C.lsa_trainer_gradients(trainer, 2, samples, 1, how, 1, loss))
    how.pointwise = 3
    assert.equal(C.LSA_EARG, C.lsa_trainer_gradients(trainer, 0, samples, 1, how, 1, loss))
    assert.equal("index_loss: pointwise loss 3 is not none, BCE or focal", ffi.string(C.lsa_error()))
    assert.is_not_nil(keep)
  end)
end)

describe("lsa_trainer_logits", function()
  it("are the oracle's, over all keys", function()
    local shape = shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8}
    local freq = support.array("float", {0.1, 0.01})
    local trainer = new_trainer(shape, freq, 4)
    local samples, plain, keep = new_samples({{1, 1}}, shape, C.LSA_F32, 4)
    local _, lists = trainer_support.keys(23, shape, 4)
    plain[1].keys = {}
    for i = 0, 22 do plain[1].keys[i + 1] = lists[i] end
    local want = trainer_support.logits(weights_of(trainer, 1), plain[1], shape, freq)
    local got = support.buffer("float", 23)
    check(C.lsa_trainer_logits(trainer, 1, samples, got))
    for i = 0, 22 do assert.is_true(math.abs(got[i] - want[i + 1]) <= 1e-5) end
    assert.is_not_nil(keep)
  end)
end)

describe("lsa_trainer_new", function()
  it("refuses shapes that no indexer has", function()
    local box = ffi.new "lsa_trainer *[1]"
    local freq = support.array("float", {0.1, 0.01, 1, 1, 1, 1, 1, 1})
    for _, shape in ipairs{{0, 4, 3, 8, 4, C.LSA_KV_FP8}, {5, 0, 3, 8, 4, C.LSA_KV_FP8}, {5, 4, 0, 8, 4, C.LSA_KV_FP8},
      {5, 4, 3, 12, 4, C.LSA_KV_FP8}, {5, 4, 3, 8, 3, C.LSA_KV_F32}, {5, 4, 3, 8, 10, C.LSA_KV_F32}} do
      assert.equal(C.LSA_ESHAPE, C.lsa_trainer_new(box, ffi.new("lsa_trainer_shape", shape_of(shape)), freq, DEVICE, 0))
    end
    assert.equal(C.LSA_EARG, C.lsa_trainer_new(box, ffi.new("lsa_trainer_shape", shape_of{5, 4, 3, 8, 4, 9}), freq, DEVICE, 0))
  end)

  -- Host memory, and a GPU's: each of its calls fails once, more than there are; some of that is made good, by a smaller piece of
  -- memory say. Returns how many were refused.
  local MOST = 30
  local function refusals(failing, in_use)
    collectgarbage()
    local box = ffi.new "lsa_trainer *[1]"
    local shape = ffi.new("lsa_trainer_shape", shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8})
    local freq = support.array("float", {0.1, 0.01})
    local before, refused = in_use(), 0
    for n = 0, MOST do
      failing(n)
      local rc = C.lsa_trainer_new(box, shape, freq, DEVICE, 0)
      failing(-1)
      if rc == 0 then
        C.lsa_trainer_free(box[0])
      else
        refused = refused + 1
        assert.is_true(rc == C.LSA_ENOMEM or rc == C.LSA_EDEVICE)
      end
      assert.equal(before, in_use())
      if n == MOST then assert.equal(0, rc) end
    end
    return refused
  end

  it("leaves nothing behind when memory runs out", function()
    assert.is_true(refusals(C.lsa_memory_fail_after, function() return tonumber(C.lsa_memory_in_use()) end) > 1)
  end)

  if DEVICE == C.LSA_CPU then
    it("and the same of a GPU's, on a stub", function() assert.is_nil(stub.failure_of "trainer_gradients_spec.lua") end)
    return
  end

  it("leaves nothing behind when the GPU's memory runs out", function()
    local blocks = function() return tonumber(C.lsa_memory_in_use()) end
    if stub.here then
      ffi.cdef "extern int64_t stub_blocks;"
      local S = ffi.load(lsa.root .. "/" .. lsa.build .. "/liblsa_cuda.so")
      blocks = function() return tonumber(S.stub_blocks) end
    end
    assert.is_true(refusals(C.lsa_device_fail_after, blocks) > 0)
  end)

  it("refuses a GPU that is not there, and leaves the one in use as it was", function()
    local box = ffi.new "lsa_trainer *[1]"
    local freq, shape = support.array("float", {0.1, 0.01}), ffi.new("lsa_trainer_shape", shape_of{5, 4, 3, 8, 4, C.LSA_KV_FP8})
    local there = C.lsa_device_count()
    assert.equal(C.LSA_EARG, C.lsa_trainer_new(box, shape, freq, C.LSA_CUDA, there))
    assert.equal(("no device: there is no GPU %d; there are %d, from 0 on"):format(there, there), ffi.string(C.lsa_error()))
    assert.equal(0, C.lsa_device_current())
    if there == 1 then return end
    check(C.lsa_trainer_new(box, shape, freq, C.LSA_CUDA, there - 1))
    C.lsa_trainer_free(box[0])
    assert.equal(0, C.lsa_device_current())
  end)
end)
