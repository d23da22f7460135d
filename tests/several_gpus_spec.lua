-- Models on GPUs by number: each has all of its memory there, and decodes as one on the first does. With fewer than two GPUs, on a stub of
-- two (tests/stub_support.lua).
local ffi = require "ffi"
local lib = require "lsa.ffi"
local lsa = require "lsa"
local stub = require "stub_support"
local C = lib.C

if C.lsa_device_count() < 2 then
  describe("a model on a second GPU", function()
    it("is right on a stub", function() assert.is_nil(stub.failure_of("several_gpus_spec.lua", "LSA_STUB_GPUS=2")) end)
  end)
  return
end

local TEXT = ("The quick brown fox jumps over the lazy dog, and number %d is %d. "):rep(12)
local text = TEXT:format(unpack((function() local t = {} for i = 1, 24 do t[i] = i * 7 % 31 end return t end)()))

-- Blocks of the stub's GPUs; how many only grows on a real one's, where nobody counts.
local blocks_on
if stub.here then
  ffi.cdef "extern int64_t stub_blocks_on[16];"
  local S = ffi.load(lib.root .. "/" .. lib.build .. "/liblsa_cuda.so")
  blocks_on = function(gpu) return tonumber(S.stub_blocks_on[gpu]) end
end

local function decoded(model)
  local out = {}
  for _, opt in ipairs{{select = "full"}, {select = "recency", budget = 0.2, every = 8}, {select = "h2o", budget = 0.2, every = 8},
    {select = "lsa_topk", budget = 0.2, every = 8, async = true}, {on_demand = true, hot = 96}} do
    local s = model:session(opt)
    s:prefill(text)
    local fork = s:fork()
    out[#out + 1] = s:generate{n = 24}
    out[#out + 1] = fork:generate{n = 24}
    assert.same(out[#out - 1], out[#out])
    fork:close()
    s:close()
  end
  return out
end

describe("a model on a second GPU", function()
  it("is all there, and says so", function()
    local first = lsa.model("needle", {device = "cuda"})
    local want = decoded(first)
    collectgarbage()
    collectgarbage()
    local before = blocks_on and blocks_on(0)
    local second = lsa.model("needle", {device = "cuda:1"})
    assert.equal("cuda", second.device)
    assert.equal(1, second.gpu)
    assert.equal(0, first.gpu)
    assert.equal(0, C.lsa_device_current())
    assert.same(want, decoded(second))
    assert.equal(0, C.lsa_device_current())
    if not blocks_on then return end
    assert.is_true(blocks_on(1) > 0)
    collectgarbage()
    collectgarbage()
    assert.is_true(blocks_on(0) <= before)
  end)

  it("leaves the GPU in use as it was where a call fails", function()
    local model = lsa.model("needle", {device = "cuda:1"})
    local s = model:session{select = function() error "no set" end, strict = true}
    s:prefill(text)
    assert.has_error(function() s:generate{n = 4} end)
    assert.has_error(function() s:decode(-1) end)
    assert.equal(0, C.lsa_device_current())
  end)

  it("has saved sessions again, of either", function()
    local path = os.tmpname()
    local one, two = lsa.model("needle", {device = "cuda"}), lsa.model("needle", {device = "cuda:1"})
    local s = one:session{select = "recency", budget = 0.2, every = 8}
    s:prefill(text)
    s:save(path)
    local want = s:generate{n = 16}
    local there = two:restore(path)
    os.remove(path)
    assert.equal(two, there.model)
    assert.same(want, there:generate{n = 16})
  end)

  it("refuses numbers that no GPU has", function()
    for name, said in pairs{["cuda:7"] = "there is no GPU 7; there are ", ["cuda:-1"] = "it can be: cpu, cuda, cuda:NUMBER", gpu = "it can be: cpu"} do
      local ok, why = pcall(lsa.model, "needle", {device = name})
      assert.is_false(ok)
      assert.truthy(why:find(said, 1, true), why)
    end
  end)

  it("decodes at the same time as the first", function()
    local session = require "lsa.session"
    local models, asks, want = {lsa.model("needle", {device = "cuda"}), lsa.model("needle", {device = "cuda:1"})}, {}, nil
    for i = 1, 4 do
      local s = models[i <= 2 and 1 or 2]:session{select = "recency", budget = 0.2, every = 16}
      s:prefill(text)
      asks[i] = {session = s}
      want = want or s:fork():generate{n = 16}
    end
    local results = session.run_together(asks, 16)
    for i = 1, 4 do
      assert.is_nil(results[i].problem)
      assert.same(want, results[i].out)
    end
  end)

  it("shares the requests of a batch with the first, which answers as one on each alone", function()
    local first, second = lsa.model("needle", {device = "cuda"}), lsa.model("needle", {device = "cuda:1"})
    local opt = {select = "recency", budget = 0.2, every = 8, hot = 400, most = 2, devices = {0, 1}}
    local function prompt(i) return text:sub(1, 200 + 40 * i) end
    local b, want = lsa.batch(first, opt), {}
    for i, model in ipairs{first, second} do -- the same two requests side by side
      local alone = lsa.batch(model, {select = "recency", budget = 0.2, every = 8, hot = 400, most = 2})
      for j = 0, 1 do alone:submit{tokens = prompt(2 * j + i), n = 12} end
      alone:run()
      for j = 0, 1 do want[2 * j + i] = alone:result(j).tokens end
    end
    for i = 1, 4 do assert.equal(i - 1, b:submit{tokens = prompt(i), n = 12}) end
    b:run()
    for i = 1, 4 do
      assert.equal("done", b:result(i - 1).state)
      assert.equal((i - 1) % 2, b:result(i - 1).gpu)
      assert.same(want[i], b:result(i - 1).tokens)
    end
    assert.equal(4, b:stats().at_once)
    assert.equal(800, b:stats().cells.total)
    assert.equal(0, C.lsa_device_current())
    b:close()
  end)

  it("has a fork of a batch where its session is", function()
    local model = lsa.model("needle", {device = "cuda"})
    local b = lsa.batch(model, {select = "recency", budget = 0.2, devices = {1, 0}})
    local there = b.replicas[1].model
    assert.equal(1, there.gpu)
    assert.equal(model, b.replicas[2].model)
    for _, m in ipairs{model, model, there} do
      local s = m:session{select = "full"}
      s:prefill(text)
      b:submit{session = s, tokens = "go on", n = 4}
    end
    b:run()
    assert.same({0, 0, 1}, {b:result(0).gpu, b:result(1).gpu, b:result(2).gpu})
    assert.same(b:result(0).tokens, b:result(2).tokens)
    local other = lsa.model("needle", {device = "cuda:1"}):session{select = "full"}
    other:prefill(text)
    local ok, why = pcall(b.submit, b, {session = other, tokens = "go on"})
    assert.is_false(ok)
    assert.truthy(why:find("another model", 1, true), why)
    assert.is_true(b:cancel(b:submit{tokens = text, n = 4}))
  end)

  it("refuses devices that no batch can have", function()
    local model = lsa.model("needle", {device = "cuda"})
    for said, devices in pairs{["there is no GPU 7"] = {0, 7}, ["GPU 0 is there twice"] = {0, 0}, ["devices is -1"] = {-1}, ["devices is empty"] = {},
      ["devices is 2"] = 2} do
      local ok, why = pcall(lsa.batch, model, {devices = devices})
      assert.is_false(ok)
      assert.truthy(why:find(said, 1, true), why)
    end
    local ok, why = pcall(lsa.batch, lsa.model("needle", {device = "cpu"}), {devices = {0}})
    assert.is_false(ok)
    assert.truthy(why:find("the model is on the CPU", 1, true), why)
  end)
end)
