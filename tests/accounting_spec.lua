-- Bytes and FLOPs of a model against sums by hand and against the counts of running sessions.
local lsa = require "lsa"
local accounting = require "lsa.accounting"
local rng = require "lsa.cycle.rng"

local flash = accounting.flash

describe("accounting of bytes", function()
  it("has V4-Flash's bytes a token and those of K pages", function()
    local b = accounting.bytes(flash, {tokens = 2 ^ 20})
    assert.equal(3850.25, (b.attention + b.keys + b.hca) / 2 ^ 20)
    assert.equal(21 * 584 * 2 ^ 18, b.attention)
    assert.equal(b.attention, b.resident)
    assert.equal(384 * 64 * 584 * 21, accounting.bytes(flash, {tokens = 2 ^ 20, resident = 384 * 64}).resident)
    assert.equal(43 * 100 * 2048, accounting.bytes(flash, {tokens = 100}).window)
  end)

  it("is of Lua's numbers, as a model's config is", function()
    local config = lsa.model(lsa.root .. "/tests/golden/flash").config
    assert.equal("number", type(config.layers))
    assert.equal(config.layers + config.layers / 2, config.layers * 1.5)
    assert.equal(0.5, (2 * config.heads + 1) / 2 % 1)
    assert.equal("number", type(config.layer_type[0]))
    assert.is_false((pcall(function() return config.no_such_number end)))
  end)

  it("agrees with what a session holds", function()
    for _, name in ipairs {"tests/golden/flash", "experiments/models/needle"} do
      local model = lsa.model(lsa.root .. "/" .. name)
      local s = model:session{select = "recency", budget = 20, tail = 0}
      local tokens, random = {}, rng.new(3)
      for i = 1, 300 do tokens[i] = random(64) end
      s:prefill(tokens)
      s:decode(1)
      local got, want = s:stats(), accounting.bytes(model.config, {tokens = 301, resident = 20})
      assert.equal(want.attention, got.kv_bytes)
      assert.equal(want.keys, got.index_key_bytes)
      assert.equal(want.hca, got.hca_bytes)
      assert.equal(want.window, got.window_bytes)
      assert.equal(want.resident, got.resident_bytes)
    end
  end)
end)

describe("accounting of requests", function()
  -- A chunk's record and key in one CSA layer, an HCA entry of 6 tokens, a window of 2 tokens in two layers.
  local tiny = {csa_layers = 1, hca_layers = 1, layers = 2, head_dim = 8, rope_dim = 4, window = 2, csa_rate = 3, hca_rate = 6,
    index_dim = 4}
  local sizes = {record = 10, key = 2, window = 5}

  local function requests(more)
    local opt = {tokens = 61}
    for name, value in pairs(sizes) do opt[name] = value end
    for name, value in pairs(more) do opt[name] = value end
    return accounting.requests(tiny, opt)
  end

  it("divides what is left of the memory by what each request has there", function()
    -- 20 chunks of 12 bytes, 10 HCA entries of 10, 2 tokens of 5 in 2 layers.
    local r = requests {memory = 10000, weights = 1000, resident = 4, reserve = 5}
    assert.same({240 + 100 + 20, 48 + 100 + 20, 60}, {r.full_bytes, r.lsa_bytes, r.reserve_bytes})
    assert.same({math.floor(9000 / 360), math.floor(8940 / 168)}, {r.full, r.lsa})
    assert.same({25, 24}, {requests {memory = 9000}.full, requests {memory = 8999}.full})
    assert.same({0, 0}, {requests {memory = 359, resident = 20}.full, requests {memory = 10, weights = 20}.lsa})
    assert.equal(requests {memory = 9000}.full_bytes, requests {memory = 9000, resident = 999}.lsa_bytes)
  end)

  it("counts as admission does", function()
    local model = lsa.model(lsa.root .. "/tests/golden/flash")
    local b = lsa.batch(model, {select = "recency", budget = 10, every = 4, stagger = false})
    local tokens = {}
    for i = 1, 200 do tokens[i] = i % 64 end
    local lsa_id, full_id = b:submit{tokens = tokens, n = 8}, b:submit{tokens = tokens, n = 8, select = "full"}
    local r = accounting.requests(model.config, {memory = 0, tokens = 208, resident = b:result(lsa_id).cells})
    assert.equal(r.lsa_bytes, b:result(lsa_id).bytes + b:result(lsa_id).cells * b.replicas[1].chunk_bytes)
    assert.equal(r.full_bytes, b:result(full_id).bytes)
    local first = b:step() and b:stats()
    assert.equal(r.lsa_bytes + r.full_bytes, first.memory.used)
  end)
end)

describe("accounting of FLOPs", function()
  -- One layer of each kind, numbers small enough to add up by hand.
  local tiny = {vocab = 10, hidden = 8, layers = 3, csa_layers = 1, hca_layers = 1, heads = 2, head_dim = 4, rope_dim = 2, q_rank = 3,
    window = 5, csa_rate = 4, hca_rate = 16, index_heads = 2, index_dim = 4, index_topk = 6, o_groups = 2, o_rank = 2, hc_mult = 2,
    experts = 4, experts_per_token = 2, shared_experts = 1, moe_hidden = 6}

  it("adds up", function()
    local f = accounting.flops(tiny, {tokens = 64, resident = 9})
    -- q_a 8*3, q_b 3*2*4, kv 8*4, o_a 2*8 (each head's group), o_b 4*8
    assert.equal(2 * 3 * (24 + 24 + 32 + 16 + 32), f.projections)
    assert.equal(2 * 3 * (3 * 3 * 8 * 6 + 8 * 4), f.experts)
    assert.equal(2 * (2 * 8 * 8 + 2 * 8 * 4), f.compressors)
    assert.equal(2 * (2 * 8 * 8 + 3 * 8 + 8 * 2), f.indexer)
    -- two a layer: [8, 16] projection, 4 * 16 of mixing; head: [2, 16] and 16
    assert.equal(2 * (6 * (8 * 16 + 4 * 16) + 2 * 16 + 16), f.hyper_connections)
    assert.equal(2 * 10 * 8, f.head)
    assert.equal(9 * 2 * (2 * 4 + 2), f.scoring)
    -- windows of 5 in three layers, 6 of 9 residents, 4 HCA entries; 2 heads, q.k and the value of 4
    assert.equal((15 + 6 + 4) * 2 * 4 * 4, f.attention)
    assert.equal(f.projections + f.experts + f.compressors + f.indexer + f.hyper_connections + f.head + f.scoring + f.attention, f.total)
    assert.equal(f.total - f.scoring - f.attention, accounting.constant(tiny))
    local full = accounting.flops(tiny, {tokens = 64})
    assert.equal(16 * 2 * 10, full.scoring)
    assert.equal(full.attention, f.attention)
    assert.equal(3 * 2 * (2 * 4 + 2), accounting.flops(tiny, {tokens = 64, resident = 3}).scoring)
  end)

  it("has 13 thousand million active parameters for V4-Flash", function()
    assert.is_true(math.abs(accounting.constant(flash) / 2 - 13.3e9) <= 0.05e9)
  end)

  it("is in a session's statistics, at the mean of its steps", function()
    local model = lsa.model(lsa.root .. "/tests/golden/flash")
    local s = model:session{select = "none", budget = 9, tail = 0, every = 100}
    assert.is_nil(s:stats().flops)
    local tokens, random = {}, rng.new(3)
    for i = 1, 120 do tokens[i] = random(64) end
    s:prefill(tokens)
    -- No residents but the chunks born: none in three steps, one in four, two in the last.
    for i = 1, 8 do s:decode(i) end
    local f, c = s:stats().flops, model.config
    local layers, heads, dim = tonumber(c.csa_layers), tonumber(c.index_heads), tonumber(c.index_dim)
    assert.equal(layers * accounting.scoring(6 / 8, heads, dim), f.scoring)
    assert.equal(0, f.policy)
    local fork = s:fork{select = "native_topk"}
    fork:decode(1)
    assert.equal(layers * accounting.scoring(32, heads, dim), fork:stats().flops.policy)
    fork = s:fork{select = "lsa_topk"}
    fork:decode(1)
    local rank, hidden = tonumber(c.q_rank), tonumber(c.hidden)
    assert.equal(layers * (accounting.scoring(32, heads, dim) + accounting.indexer_queries(hidden, rank, heads, dim)),
      fork:stats().flops.policy)
    assert.matches("compute +[%d.]+ %a+/token", tostring(fork:stats()))
  end)
end)

describe("experiments/paper_accounting.lua", function()
  it("has the paper's digits, under assumptions that it names", function()
    local equal, differs = {}, 0
    local text, report = "", require "lsa.report"
    local written = report.write
    function report.write(...) text = text .. table.concat {...} end
    local chunk = assert(loadfile(lsa.root .. "/experiments/paper_accounting.lua"))
    local saved = _G.arg
    _G.arg = {[0] = "x", "--csv"}
    local ok, why = pcall(chunk)
    _G.arg, report.write = saved, written
    assert(ok, why)
    for kind, column, context, same in text:gmatch "\n(%a+),(%a+),(%w+),[^,]+,[^,]+,[^,]+,(%a+)," do
      if same == "true" then equal[kind .. column .. context] = true else differs = differs + 1 end
    end
    for _, kind in ipairs {"bytes", "flops"} do
      for _, column in ipairs {"full", "lsa"} do
        for _, context in ipairs {"256K", "512K", "1M"} do assert.is_true(equal[kind .. column .. context], kind .. column .. context) end
      end
    end
    assert.equal(9, differs)
  end)
end)
