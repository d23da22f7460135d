-- Models and contexts that are drawn, not loaded or run: random weights of a given shape, and s:fill.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local lsa = require "lsa"
local support = require "file_support"

local C = lib.C
local golden = lib.root .. "/tests/golden/"

-- Every kind of layer and of router, small.
local small = {config = "flash", layers = 5, hidden = 64, heads = 4, head_dim = 64, rope_dim = 16, q_rank = 32, o_groups = 2, o_rank = 16,
  index_heads = 2, index_dim = 32, index_topk = 16, window = 8, experts = 4, experts_per_token = 2, moe_hidden = 64, vocab = 97, hc_mult = 2,
  hc_iters = 2, max_positions = 16384}

local function made(changes)
  local opt = {}
  for name, value in pairs(small) do opt[name] = value end
  for name, value in pairs(changes or {}) do opt[name] = value end
  return lsa.model(opt)
end

local function ids(n)
  local out = {}
  for i = 1, n do out[i] = i * 31 % 97 end
  return out
end

local function bits(t) return ffi.string(t.c.data, t:bytes()) end

local function is_finite(t)
  for i = 0, t:count() - 1 do
    local x = t:get(i)
    if not (x > -math.huge and x < math.huge) then return false end
  end
  return true
end

describe("a model of random weights", function()
  it("has the shape that is asked for", function()
    local m = made()
    for name, value in pairs(small) do
      if name ~= "config" then assert.equal(value, m.config[name], name) end
    end
    assert.same({2, 4}, m.csa_layers)
    assert.equal(1, m.config.hca_layers)
    assert.equal(128, m.config.hca_rate)
    assert.is_truthy(tostring(m):find "random flash: 5 layers")
    assert.is_nil(m.directory)
    assert.is_nil(m:indexer_file())
  end)

  it("has a model's configuration by its name, folder, or fields of config.json", function()
    local flash = lsa.model(golden .. "flash")
    local m = lsa.model {config = golden .. "flash", random = 4, experts = 8}
    for _, name in ipairs {"vocab", "hidden", "layers", "heads", "head_dim", "csa_rate", "hca_rate", "index_topk"} do
      assert.equal(flash.config[name], m.config[name], name)
    end
    assert.equal(8, m.config.experts)
    m = lsa.model {config = {layer_types = {"compressed_sparse_attention"}, mlp_layer_types = {"moe"}, hidden_size = 32, vocab_size = 50},
      layers = 1, heads = 2, head_dim = 16, q_rank = 8, o_groups = 1, o_rank = 8, experts = 2, experts_per_token = 1, moe_hidden = 16, index_heads = 1, index_dim = 8,
      weights = "f32"}
    assert.equal(32, m.config.hidden)
    assert.equal(50, m.config.vocab)
    assert.equal(1, #m.csa_layers)
  end)

  it("computes finite numbers that are not all alike, in each dtype of weights", function()
    for _, weights in ipairs {"released", "bf16", "f32"} do
      local s = made({weights = weights}):session {select = "full"}
      local logits = s:prefill(ids(300))
      assert.is_true(is_finite(logits), weights)
      local spread = logits:std()
      assert.is_true(spread > 0.1 and spread < 10, weights .. ": " .. spread)
      s:generate {n = 8}
      assert.is_true(is_finite(s:logits()), weights)
    end
  end)

  it("has weights of the size that their dtype takes", function()
    local f32, bf16, released = made {weights = "f32"}, made {weights = "bf16"}, made()
    assert.is_true(f32.c.weight_bytes > 1.8 * tonumber(bf16.c.weight_bytes))
    assert.is_true(bf16.c.weight_bytes > 1.4 * tonumber(released.c.weight_bytes))
  end)

  it("follows from its seed", function()
    local function logits(seed) return bits(made({random = seed}):session {select = "full"}:prefill(ids(40))) end
    assert.is_true(logits(1) == logits(1))
    assert.is_false(logits(1) == logits(2))
    support.with_folder(function(folder)
      local s = made({random = 1}):session {}
      s:prefill(ids(40))
      s:save(folder .. "/s")
      assert.has_error(function() made({random = 2}):restore(folder .. "/s") end)
      assert.equal(40, made({random = 1}):restore(folder .. "/s"):tokens())
    end)
  end)

  it("refuses what it cannot be", function()
    local function message(opt) return select(2, pcall(lsa.model, opt)) end
    assert.is_truthy(message({config = "flash", expert = 2}):find("did you mean experts?", 1, true))
    assert.is_truthy(message({config = "flash", layers = 2, experts = 2}):find("num_experts_per_tok is 6, n_routed_experts only 2", 1, true))
    assert.is_truthy(message({config = "flsh"}):find("no folder", 1, true))
    assert.is_truthy(message({config = 3}):find("config is 3", 1, true))
    assert.is_truthy(message({random = 3}):find('config is nil; "flash", a model', 1, true))
    assert.is_truthy(message({config = {hidden_size = print}}):find("lsa.model: config", 1, true))
    assert.is_truthy(message({config = "flash", layers = 1.5}):find("lsa.model: layers is 1.5", 1, true))
    assert.is_truthy(message({config = "flash", weights = "fp8"}):find('weights is "fp8"; it can be: released, bf16, f32', 1, true))
    assert.is_truthy(message({config = "flash", random = -1}):find("random is -1", 1, true))
    assert.is_truthy(message({config = "flash", layers = 600}):find("num_hidden_layers is 600", 1, true))
    assert.is_truthy(message({config = "flash", layers = 512, experts = 65536}):find("512 layers of 65536 experts take 422212.5 GB", 1, true))
    assert.is_truthy(select(2, pcall(lsa.model, {config = "flash"}, {device = "cpu"})):find("options beside a table", 1, true))
    assert.is_truthy(select(2, pcall(function() made():tokens "text" end)):find("random flash has no tokenizer", 1, true))
  end)

  it("loses nothing where memory ends", function()
    local text = '{"model_type": "deepseek_v4", "compress_ratios": [0, 4, 128], "num_hash_layers": 1, "num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 20,' ..
      '"num_attention_heads": 2, "head_dim": 16, "q_lora_rank": 8, "o_groups": 1, "o_lora_rank": 8, "n_routed_experts": 2, "num_experts_per_tok": 1,' ..
      '"moe_intermediate_size": 16, "index_n_heads": 1, "index_head_dim": 8}'
    local random = ffi.new("lsa_random", {1, C.LSA_RANDOM_RELEASED})
    support.fail_everything(function()
      local out = ffi.new "lsa_model *[1]"
      local rc = C.lsa_model_random(out, text, "small", random)
      if rc == 0 then C.lsa_model_free(out[0]) end
      return rc
    end)
  end)
end)

describe("a context that is filled", function()
  local model = made()

  it("is what a prefill of as many tokens would be", function()
    local opt = {select = "lsa_topk", budget = 30, kv = "f32"}
    local filled, run = model:session(opt), model:session(opt)
    local list = {}
    for i = 1, 1003 do list[i] = i % 97 end
    run:prefill(list)
    local logits = filled:fill(1003, {seed = 7})
    assert.is_true(is_finite(logits))
    assert.equal(1003, filled:tokens())
    for _, s in ipairs {filled, run} do s:generate {n = 70} end
    local a, b = filled:stats(), run:stats()
    for _, name in ipairs {"tokens", "chunks", "steps", "cycles", "failed", "index_bytes", "hca_bytes", "window_bytes", "total_bytes"} do
      assert.equal(b[name], a[name], name)
    end
    for layer = 0, 1 do
      local keys = filled:keys(layer)
      assert.same(run:keys(layer):shape(), keys:shape())
      assert.is_near(1, keys:std(), 0.1)
      assert.is_near(0, keys:mean(), 0.1)
      assert.is_near(1, filled:entries(layer):std(), 0.1)
    end
  end)

  it("follows from its seed, in every record format", function()
    for _, kv in ipairs {"f32", "bf16", "fp8"} do
      local function logits(seed) return bits((model:session {select = "full", kv = kv}:fill(600, {seed = seed}))) end
      assert.is_true(logits(1) == logits(1), kv)
      assert.is_false(logits(1) == logits(2), kv)
    end
  end)

  it("goes on as a fork, and as a file", function()
    support.with_folder(function(folder)
      local s = model:session {select = "recency", budget = 0.2}
      s:fill(513)
      s:save(folder .. "/s")
      local fork, restored = s:fork {}, model:restore(folder .. "/s")
      local a, b, c = s:generate {n = 12}, fork:generate {n = 12}, restored:generate {n = 12}
      assert.same(a, b)
      assert.same(a, c)
      assert.is_true(bits(s:logits()) == bits(restored:logits()))
    end)
  end)

  it("lies on the disk where the session's cold tier does, with the same numbers", function()
    support.with_folder(function(folder)
      local disk = model:session {select = "lsa_topk", budget = 20, cold = "disk:" .. folder}
      local ram = model:session {select = "lsa_topk", budget = 20}
      disk:fill(10000)
      ram:fill(10000)
      assert.same(ram:generate {n = 9}, disk:generate {n = 9})
      assert.is_true(bits(ram:logits()) == bits(disk:logits()))
      assert.equal(0, ram:stats().disk_bytes)
      assert.is_true(disk:stats().disk_bytes > 0)
      disk:close()
    end)
  end)

  it("takes one token, and as many as the model has positions", function()
    local s = model:session {select = "full"}
    s:fill(1)
    assert.equal(1, s:tokens())
    s = model:session {select = "full"}
    s:fill(16384)
    assert.equal(16384, s:tokens())
  end)

  it("refuses what it cannot do", function()
    local function message(s, ...) return select(2, pcall(s.fill, s, ...)) end
    local s = model:session {}
    assert.is_truthy(message(s, 16385):find("fill: tokens is 16385", 1, true))
    assert.is_truthy(message(s, 0):find("fill: tokens is 0", 1, true))
    assert.is_truthy(message(s, 10, {sead = 1}):find("did you mean seed?", 1, true))
    assert.is_truthy(message(s, 10, {seed = -1}):find("fill: seed is -1", 1, true))
    s:fill(10)
    assert.is_truthy(message(s, 10):find("the session has 10 tokens; a new one is wanted", 1, true))
    assert.equal(10, s:tokens())
  end)

  it("closes the session that memory did not suffice for, and nothing else", function()
    local failures = 0
    for n = 0, 400, 7 do
      local s = model:session {select = "full"}
      C.lsa_memory_fail_after(n)
      local ok, problem = pcall(s.fill, s, 200)
      C.lsa_memory_fail_after(-1)
      if ok then break end
      failures = failures + 1
      assert.is_truthy(tostring(problem):find("memory", 1, true), tostring(problem))
    end
    assert.is_true(failures > 3)
    local s = model:session {select = "full"}
    s:fill(200)
    assert.equal(200, s:tokens())
  end)
end)
