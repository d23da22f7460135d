local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local trainer_support = require "trainer_support"
local C, check = lsa.C, require("lsa.raise").check

local KEYS = 19
local BCE = {C.LSA_POINTWISE_BCE, C.LSA_PAIRWISE_NONE, 0, 0}

-- n numbers where the device reads them.
local function shared(ctype, n, from)
  local out = support.shared(ctype, n)
  for i = 0, n - 1 do out[i] = from[i] end
  return out
end

-- A batch of samples of {positives, negatives}, of random keys, queries and weights.
local function batch(counts, heads, dim, format, seed)
  local bytes = tonumber(C.lsa_index_key_bytes(format, dim))
  local b = {n = #counts, most = 0, counts = counts, heads = heads, dim = dim, format = format, keep = {}, keys = {}}
  local uniform = support.uniform(seed)
  b.q = shared("float", b.n * heads * dim, support.normals(b.n * heads * dim, seed))
  b.w = shared("float", b.n * heads, support.normals(b.n * heads, seed + 1))
  b.samples = support.shared("lsa_index_sample", b.n)
  for i, count in ipairs(counts) do
    local n = count[1] + count[2]
    local keys, ids, weights = shared("uint8_t", KEYS * bytes, ffi.cast("uint8_t *", (trainer_support.keys(KEYS,
      {key_format = format, dim = dim}, seed + i)))), support.shared("int32_t", n), support.shared("float", n)
    for j = 0, n - 1 do ids[j], weights[j] = math.floor(uniform(0, KEYS)), j < count[1] and 0.5 + uniform() or 1 end
    b.samples[i - 1] = {keys, ids, weights, count[1], count[2]}
    b.most, b.keep[i], b.keys[i] = math.max(b.most, n), {ids, weights}, keys
  end
  return b
end

local function outputs(b)
  local losses, dq, dw = support.shared("double", b.n), support.shared("float", b.n * b.heads * b.dim),
    support.shared("float", b.n * b.heads)
  for i = 0, b.n - 1 do losses[i] = 0 / 0 end
  support.poison(dq, b.n * b.heads * b.dim)
  support.poison(dw, b.n * b.heads)
  return losses, dq, dw
end

local function run_on(device, b, how, share, most)
  local losses, dq, dw = outputs(b)
  most = most or b.most
  local learn = device == "cuda" and support.device_kernel("lsa_index_learn_cuda", "lsa_index_learn_fn") or C.lsa_index_learn_cpu
  local size = device == "cuda" and support.device_kernel("lsa_index_learn_workspace_cuda", "lsa_index_learn_workspace_fn") or
    C.lsa_index_learn_workspace
  local bytes = size(b.n, most, b.heads, b.dim)
  local workspace = device == "cuda" and support.shared("uint8_t", tonumber(bytes)) or support.workspace(bytes)
  check(learn(losses, dq, dw, b.q, b.w, b.samples, b.n, most, b.heads, b.dim, b.format, ffi.new("lsa_index_loss", how), share,
    workspace, nil))
  if device == "cuda" then check(C.lsa_device_synchronize()) end
  return losses, dq, dw
end

-- The same of one sample after the other, by the kernels that it is made of.
local function by_parts(b, how, share)
  local losses, dq, dw = outputs(b)
  local loss = ffi.new("lsa_index_loss", how)
  local width = b.heads * b.dim
  for i = 0, b.n - 1 do
    local s, n = b.samples[i], b.counts[i + 1][1] + b.counts[i + 1][2]
    local workspace = support.workspace(C.lsa_index_gradient_workspace(n, b.heads, b.dim))
    local logits, slope = support.buffer("float", n), support.buffer("float", n)
    check(C.lsa_index_gather_cpu(logits, b.q + i * width, b.w + i * b.heads, s.keys, s.ids, n, b.heads, b.dim,
      C.lsa_index_key_bytes(b.format, b.dim), b.format, workspace, nil))
    check(C.lsa_index_loss_cpu(losses + i, slope, logits, s.weights, s.positives, s.negatives, loss, nil))
    for j = 0, n - 1 do slope[j] = slope[j] * share end
    check(C.lsa_index_gradient_cpu(dq + i * width, dw + i * b.heads, slope, b.w + i * b.heads, n, b.heads, b.dim, workspace, nil))
  end
  return losses, dq, dw
end

local function close(b, got, want, bound)
  local width = b.heads * b.dim
  for i = 0, b.n - 1 do
    assert.is_true(math.abs(got[1][i] - want[1][i]) <= bound * math.max(1, math.abs(want[1][i])))
  end
  for at, n in pairs {[2] = b.n * width, [3] = b.n * b.heads} do
    local largest = 1e-30
    for i = 0, n - 1 do largest = math.max(largest, math.abs(want[at][i])) end
    for i = 0, n - 1 do assert.is_true(math.abs(got[at][i] - want[at][i]) <= bound * largest) end
  end
end

describe("lsa_index_learn", function()
  local shapes = {{1, 1}, {4, 8}, {3, 23}, {9, 64}, {33, 16}}
  local counts = {{2, 5}, {0, 0}, {1, 0}, {0, 7}, {13, 40}, {1, 1}}

  it("is index_gather, index_loss and index_gradient of each sample", function()
    support.for_each_cpu_level(function()
      for i, shape in ipairs(shapes) do
        local how = {(i + 1) % 3, i % 3, 0.7, 0.3}
        local b = batch(counts, shape[1], shape[2], math.log(shape[2]) / math.log(2) % 1 == 0 and i % 3 or i % 2, i)
        local got, want = {run_on("cpu", b, how, 0.125)}, {by_parts(b, how, 0.125)}
        close(b, got, want, 0)
      end
    end)
  end)

  it("has nothing to do for no samples, and for samples without ids", function()
    run_on("cpu", batch({}, 3, 8, C.LSA_KV_F32, 1), BCE, 1)
    local losses, dq, dw = run_on("cpu", batch({{0, 0}}, 3, 8, C.LSA_KV_F32, 1), BCE, 1)
    assert.same({0, 0, 0}, {losses[0], dq[7], dw[2]})
  end)

  it("refuses what cannot be", function()
    local how, b = ffi.new("lsa_index_loss", BCE), batch({{2, 3}}, 2, 8, C.LSA_KV_F32, 1)
    local function code(n, most, heads, format, loss)
      return C.lsa_index_learn_cpu(nil, nil, nil, b.q, b.w, b.samples, n, most, heads, 8, format, loss or how, 1, nil, nil)
    end
    assert.equal(C.LSA_ESHAPE, code(-1, 5, 2, C.LSA_KV_F32))
    assert.equal(C.LSA_ESHAPE, code(1, 5, 0, C.LSA_KV_F32))
    assert.equal(C.LSA_EARG, code(1, 5, 2, 3))
    assert.equal(C.LSA_EARG, code(1, 5, 2, C.LSA_KV_F32, ffi.new("lsa_index_loss", {7, 0, 0, 0})))
    assert.equal(C.LSA_ESHAPE, code(1, 4, 2, C.LSA_KV_F32))
    assert.equal("index_learn: sample 0 has 2 positives and 3 negatives, 4 are the most", ffi.string(C.lsa_error()))
  end)

  if support.device ~= "cuda" then return end

  it("is the same on a GPU, twice", function()
    for i, shape in ipairs(shapes) do
      for loss = 0, 8 do
        local how = {math.floor(loss / 3), loss % 3, 0.7, 0.3}
        local b = batch(counts, shape[1], shape[2], math.log(shape[2]) / math.log(2) % 1 == 0 and i % 3 or i % 2, i)
        local want = {by_parts(b, how, 0.125)}
        local first = {run_on("cuda", b, how, 0.125)}
        close(b, first, want, 2e-5)
        close(b, {run_on("cuda", b, how, 0.125)}, first, 0)
        close(b, {run_on("cuda", b, how, 0.125, b.most + 20)}, want, 2e-5)
      end
    end
  end)

  it("takes more samples than its workspace holds at a time", function()
    local many = {}
    for i = 1, 300 do many[i] = {i % 7, 4200 - i % 5} end
    local b = batch(many, 16, 64, C.LSA_KV_FP8, 5)
    close(b, {run_on("cuda", b, BCE, 0.125)}, {by_parts(b, BCE, 0.125)}, 2e-5)
  end)

  it("passes NaN on to its own sample alone", function()
    local b = batch({{1, 1}, {1, 2}}, 2, 4, C.LSA_KV_F32, 3)
    ffi.cast("float *", b.keys[1])[b.keep[1][1][0] * 4] = 0 / 0
    local losses, dq = run_on("cuda", b, BCE, 1)
    assert.is_true(losses[0] ~= losses[0] and dq[0] ~= dq[0])
    assert.is_true(losses[1] == losses[1] and dq[8] == dq[8] and dq[15] == dq[15])
  end)
end)
