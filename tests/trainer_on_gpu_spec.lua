-- Training on a GPU: the CPU's losses but for rounding, the same bits again, checkpoints that go on on either. Without a GPU, on a
-- stub (tests/stub_support.lua), whose kernels are the CPU's.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local stub = require "stub_support"
local support = require "trainer_support"
local C = lib.C

local model, documents

local function new(opt)
  local all = {model = model, traces = documents, from = "random", steps = 40, batch = 16, rate = 3e-3, window = 2, device = "cuda"}
  for key, value in pairs(opt or {}) do all[key] = value end
  return lsa.trainer(all)
end

local function losses_of(trainer, steps)
  local losses = {}
  trainer:run{steps = steps, on_step = function(row) losses[#losses + 1] = row.loss end}
  return losses
end

local function bits(trainer)
  return ffi.string(C.lsa_trainer_all(trainer.c, C.LSA_TRAIN_VALUE), C.lsa_trainer_count(trainer.c) * 4)
end

local function alike(got, want)
  assert.equal(#want, #got)
  for i = 1, #want do
    if not (math.abs(got[i] - want[i]) <= 1e-5 * math.abs(want[i])) then
      error(("step %d: loss %.9g, on the CPU %.9g"):format(i - 1, got[i], want[i]))
    end
  end
end

setup(function()
  model = lsa.model "experiments/models/needle"
  documents = {}
  for seed = 1, 2 do
    documents[seed] = support.trace(model, {0, 1, 2}, {steps = 400, topics = 8, stay = 20, seed = seed, noise = 0.3})
  end
end)

describe("lsa.trainer's device", function()
  it("is one of those that there can be", function()
    for _, name in ipairs{"cudda", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1.5", "cuda:1234", "CUDA", "", 1, {}} do
      local ok, message = pcall(new, {device = name})
      assert.is_false(ok)
      assert.truthy(message:find("lsa.trainer: device is ", 1, true), message)
      assert.truthy(message:find("it can be: cpu, cuda, cuda:NUMBER", 1, true), message)
    end
    assert.truthy(select(2, pcall(new, {device = "cudda"})):find("did you mean cuda?", 1, true))
  end)

  if C.lsa_device_count() == 0 then
    it("is refused by name where there is no GPU", function()
      local ok, message = pcall(new)
      assert.is_false(ok)
      assert.truthy(message:find("no device: ", 1, true), message)
    end)

    it("is right on a stub", function() assert.is_nil(stub.failure_of "trainer_on_gpu_spec.lua") end)
    return
  end

  it("is a GPU that is there", function()
    local ok, message = pcall(new, {device = "cuda:99"})
    assert.is_false(ok)
    assert.truthy(message:find("there is no GPU 99; there are", 1, true), message)
  end)

  it("gives the CPU's losses, under every loss and sampler", function()
    for _, opt in ipairs{{}, {loss = "focal"}, {loss = "none", pairwise = "bpr"}, {loss = "none", pairwise = "hinge"},
      {loss = "bce", pairwise = "bpr", factor = 0.5, negatives = 4}, {sampler = "hard"}, {heads = 3, rank = 5}, {batch = 1},
      {batch = 150, steps = 6}} do
      local steps = math.min(opt.steps or 20, 20)
      local trainer = new(opt)
      assert.truthy(tostring(trainer):find("on GPU 0", 1, true))
      local got = losses_of(trainer, steps)
      opt.device = "cpu"
      alike(got, losses_of(new(opt), steps))
    end
  end)

  it("starts from the native indexer", function()
    alike(losses_of(new{from = "native"}, 10), losses_of(new{from = "native", device = "cpu"}, 10))
  end)

  it("gives the same bits again", function()
    local one, two = new(), new()
    assert.same(losses_of(one, 12), losses_of(two, 12))
    assert.is_true(bits(one) == bits(two))
  end)

  it("goes on from a checkpoint to the same bits, and on the CPU from a GPU's", function()
    local path = os.tmpname()
    os.remove(path)
    local whole = new()
    whole:run{steps = 20}
    new{checkpoint = path, every = 10}:run{steps = 13}
    local rest, cpu = new{checkpoint = path, every = 100}, new{checkpoint = path, every = 100, device = "cpu"}
    os.remove(path)
    assert.equal(10, rest.steps_done)
    alike(losses_of(cpu, 10), losses_of(rest, 10))
    assert.is_true(bits(whole) == bits(rest))
  end)

  it("gives an indexer, wherever the model is", function()
    local there = lsa.model("experiments/models/needle", {device = "cuda"})
    local trainer = new{model = there, steps = 3}
    trainer:run()
    local path = os.tmpname()
    trainer:indexer():save(path)
    local ix, want = lsa.indexer{model = model, from = path}:tensors(), trainer:tensors()
    os.remove(path)
    local count = 0
    for name, t in pairs(want) do
      count = count + 1
      assert.same(t:totable(), ix[name]:totable())
    end
    assert.equal(12, count)
  end)

  it("loses nothing where a call fails: the next step is the one that failed", function()
    local twin, trainer = new(), new()
    twin:run{steps = 2}
    trainer:run{steps = 2}
    local failed, n = 0, 0
    while true do
      C.lsa_device_fail_after(n)
      local ok, row = pcall(trainer.step, trainer)
      local counted = C.lsa_device_fail_after(-1)
      if ok then
        assert.is_true(counted >= 0)            -- nothing was refused any more
        assert.equal(twin:step().loss, row.loss)
        break
      end
      assert.truthy(tostring(row):find("refused, as a test asked for", 1, true), tostring(row))
      failed, n = failed + 1, n + 1
    end
    assert.is_true(failed >= 3)
    twin:run{steps = 3}
    trainer:run{steps = 3}
    assert.is_true(bits(twin) == bits(trainer))
  end)
end)
