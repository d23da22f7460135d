-- Sessions: the LSA cycle, its accounting and its invariants, on golden models and on the small real one.
local ffi = require "ffi"
local lsa = require "lsa"
local registry = require "lsa.registry"
local C = require("lsa.ffi").C

local golden = require("lsa.ffi").root .. "/tests/golden/"
local needle = require("lsa.ffi").root .. "/experiments/models/needle"

local rng = require("lsa.cycle.rng")

local function tokens_of(model, n, seed)
  local random, out = rng.new(seed or 3), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

-- The bits of a tensor, as text.
local function bits(t)
  return (ffi.string(t.c.data, t:count() * 4):gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

-- Lists of bits are long: only where they part is told.
local function assert_same(expected, got, what)
  assert.equal(#expected, #got)
  for i = 1, #expected do assert.is_true(expected[i] == got[i], (what or "") .. " step " .. i) end
end

-- Prefills n tokens, decodes m more; a list of the decoded logits' bits.
local function run(s, n, m, seed)
  local tokens = tokens_of(s.model, n + m, seed)
  local prefix, out = {}, {}
  for i = 1, n do prefix[i] = tokens[i] end
  s:prefill(prefix)
  for i = 1, m do out[i] = bits(s:decode(tokens[n + i])) end
  return out
end

-- Runs f with the registry's warnings collected.
local function quiet(f)
  local said, warn = {}, registry.warn
  registry.warn = function(text) said[#said + 1] = text end
  local ok, e = pcall(f, said)
  registry.warn = warn
  assert(ok, e)
end

describe("logits that are not finite", function()
  local root = require("lsa.ffi").root .. "/experiments/models/needle/"

  -- The small model with a tensor changed.
  local function broken(change, f)
    local files = require "file_support"
    files.with_folder(function(folder)
      local t = {}
      for name, x in pairs((lsa.load(root .. "model.safetensors"))) do t[name] = x:copy() end
      change(t)
      lsa.save(folder .. "/model.safetensors", t)
      files.write(folder .. "/config.json", files.read(root .. "config.json"))
      f(lsa.model(folder))
    end)
  end

  it("are an error that says in which layer and at which position they began", function()
    for _, case in ipairs {
      {40, 0, function(t) t["model.embed_tokens.weight"]:row(("Q"):byte()):fill(0 / 0) end},
      {0, 3, function(t) t["model.layers.3.input_layernorm.weight"]:fill(math.huge) end},
    } do
      broken(case[3], function(model)
        for _, temperature in ipairs {0, 1} do
          local s = model:session{select = "recency", budget = 0.5}
          s:prefill(("a"):rep(40) .. "Q" .. ("b"):rep(30))
          local words = ("the logits at position 70 have no finite largest, they began in layer %d at position %d"):format(case[2], case[1])
          local ok, e = pcall(s.generate, s, {n = 4, temperature = temperature})
          assert.is_false(ok)
          assert.matches(words, e, nil, true)
          assert.equal(71, s:tokens())
          local b = lsa.batch(model, {select = "recency", budget = 0.5})
          local id = b:submit{tokens = ("a"):rep(40) .. "Q" .. ("b"):rep(30), n = 4, temperature = temperature}
          b:run()
          assert.equal("failed", b:result(id).state)
          assert.matches(words, b:result(id).error, nil, true)
        end
      end)
    end
  end)
end)

describe("sessions that nobody closes", function()
  it("are collected before they take much memory", function()
    local model = require "lsa".model(require("lsa.ffi").root .. "/tests/golden/flash")
    local base = model:session{select = "lsa_topk", budget = 0.5, every = 4}
    local ids, most = {}, 0
    for i = 1, 600 do ids[i] = i % 60 end
    base:prefill(ids)
    collectgarbage()
    local before, first = tonumber(C.lsa_memory_in_use()), nil
    for i = 1, 1500 do
      base:fork():decode(1)
      local now = tonumber(C.lsa_memory_in_use()) - before
      first, most = first or now, math.max(most, now)
      if i == 1 then assert.is_true(first * 1500 > 2 * 2 ^ 28, "too small to tell: " .. first) end
    end
    assert.is_true(most < 2 ^ 28 + 2 ^ 26)
  end)
end)

describe("a session", function()
  local flash = lsa.model(golden .. "flash")
  local csa = lsa.model(golden .. "csa")

  for _, kv in ipairs {"f32", "bf16", "fp8"} do
    it("gives bit-identical logits to full attention when everything is resident, kv " .. kv, function()
      local full = run(flash:session{select = "full", kv = kv}, 150, 80)
      for _, options in ipairs {
        {select = "full", budget = 1}, {select = "recency", budget = 1, every = 7},
        {select = "recency", budget = 1, granularity = "page", page = 8, every = 16},
        {select = "lsa_topk", budget = 1, hot = 500, every = 5}, {select = "recency", budget = 1, async = true, every = 3},
      } do
        options.kv = kv
        assert_same(full, run(flash:session(options), 150, 80))
      end
    end)
  end

  it("gives bit-identical logits for equal resident sets, whatever the pool's size and eviction", function()
    local function go(options)
      options.select, options.budget, options.every = {"random"}, 0.3, 9
      return run(flash:session(options), 160, 70)
    end
    local plain = go {}
    assert_same(plain, go {hot = 60})
    assert_same(plain, go {hot = 45, evict = "fifo"})
    assert_same(plain, go {hot = 1000, evict = "random"})
  end)

  it("reads only residents: what is absent has no influence", function()
    -- Two contexts that differ in early tokens alone: with nothing but the newest chunks resident, a session cannot
    -- tell them apart beyond what HCA layers and the residual stream of the window carry. The csa case has one layer.
    local a, b = tokens_of(csa, 90, 1), tokens_of(csa, 90, 1)
    for i = 1, 20 do b[i] = (b[i] + 1) % 64 end
    local function last(tokens, options)
      local s = csa:session(options)
      local prefix = {}
      for i = 1, 80 do prefix[i] = tokens[i] end
      s:prefill(prefix)
      local out
      for i = 81, 90 do out = bits(s:decode(tokens[i])) end
      return out
    end
    local recent = {select = "recency", budget = 8, kv = "f32"}
    assert.is_true(last(a, recent) == last(b, recent))
    local all = {select = "full", kv = "f32"}
    assert.is_true(last(a, all) ~= last(b, all))
  end)

  it("runs a cycle at the first decode and then every tau steps, and again after a prefill", function()
    local s = csa:session{select = "recency", budget = 0.5, every = 8}
    run(s, 40, 17)
    assert.equal(3, #s:cycles())
    s:prefill {1, 2, 3}
    s:decode(1)
    local rows = s:cycles()
    assert.equal(4, #rows)
    assert.same({40, 48, 56, 60}, {rows[1].t, rows[2].t, rows[3].t, rows[4].t})
  end)

  it("counts fetched, kept and evicted chunks exactly", function()
    -- recency of 5 chunks, a cycle every 8 steps (2 chunks born between cycles): each cycle keeps what was there.
    local s = csa:session{select = "recency", budget = 5, every = 8}
    run(s, 40, 17)
    local rows, stats = s:cycles(), s:stats()
    assert.same({5, 0, 0}, {rows[1].fetched_chunks, rows[2].fetched_chunks, rows[3].fetched_chunks})
    assert.same({0, 2, 2}, {rows[1].evicted_chunks, rows[2].evicted_chunks, rows[3].evicted_chunks})
    local record = 1 * tonumber(C.lsa_kv_record_bytes(C.LSA_KV_FP8, csa.config.head_dim, csa.config.rope_dim))
    assert.equal(5 * record, stats.fetched_bytes)
    assert.equal(17, stats.steps)
  end)

  it("reports residents over all chunks as a mean over decode steps", function()
    local s = csa:session{select = "recency", budget = 5, every = 100}
    run(s, 40, 8) -- chunks: 10, then 11 from the 4th step, 12 from the 8th; residents 5, 6, 7
    local expected = 100 * (3 * 5 / 10 + 4 * 6 / 11 + 7 / 12) / 8
    assert.is_true(math.abs(s:stats().resident_pct - expected) <= 1e-9)
    local full = csa:session{select = "full"}
    run(full, 40, 8)
    assert.equal(100, full:stats().resident_pct)
  end)

  it("keeps sink and tail whatever the policy says", function()
    local seen
    local s = csa:session{budget = 0.5, sink = 2, tail = 3, select = function(cycle)
      seen = cycle.keep:ids():totable()
      return {}
    end}
    run(s, 80, 1)
    assert.same({0, 1, 17, 18, 19}, seen)
    assert.same({0, 1, 17, 18, 19}, s:resident():ids():totable())
  end)

  it("reads chunks born in decode from the step on that forms them", function()
    local s = csa:session{select = "none", tail = 0, every = 64, kv = "f32"}
    run(s, 40, 9)
    assert.same({10, 11}, s:resident():ids():totable())
    assert.equal(2, tonumber(C.lsa_pool_cells(s.pool) - C.lsa_pool_free_cells(s.pool)))
  end)

  it("is legal with no residents at all", function()
    local s = flash:session{select = "none", tail = 0, every = 5}
    run(s, 130, 0)
    for _, token in ipairs(tokens_of(flash, 20, 2)) do
      local logits = s:decode(token)
      for i = 0, logits:count() - 1 do assert.is_true(math.abs(logits:get(i)) < math.huge) end -- nor NaN
    end
  end)

  it("applies an asynchronous cycle's set one cycle later", function()
    local number = -1
    local s = csa:session{tail = 0, budget = 1, every = 4, async = true, select = function(cycle)
      number = cycle.number
      return {cycle.number}
    end}
    run(s, 40, 1)
    assert.same({0}, s:resident():ids():totable())
    for _ = 1, 4 do s:decode(1) end
    assert.equal(1, number)
    assert.same({0, 10}, s:resident():ids():totable()) -- chunk 10 was born since the set of cycle 0 was chosen
    for _ = 1, 4 do s:decode(1) end
    assert.same({1, 11}, s:resident():ids():totable())
  end)
end)

describe("a policy that fails", function()
  local csa = lsa.model(golden .. "csa")

  -- A session whose policy is good in cycle 0 and then does `wrong`.
  local function failing(wrong, options)
    options = options or {}
    options.every, options.tail, options.budget = 4, 0, options.budget or 5
    options.select = function(cycle)
      if cycle.number == 0 then return {1, 3, 5} end
      return wrong(cycle)
    end
    return csa:session(options)
  end

  local wrongs = {
    ["throws"] = {function() error "no idea" end, "session_spec.lua:%d+: no idea"},
    ["indexes nil"] = {function(cycle) return cycle.nothing.at_all end, "attempt to index field 'nothing'"},
    ["returns nothing"] = {function() end, "the policy returned a nil; a set, a list of ids"},
    ["returns a number"] = {function() return 7 end, "the policy returned a number"},
    ["returns text"] = {function() return "all" end, "the policy returned a string"},
    ["returns ids out of range"] = {function(cycle) return {cycle.n} end, "%d+"},
    ["returns fractions"] = {function() return {1.5} end, "1.5"},
    ["returns a set of another size"] = {function() return lsa.set(3) end, "over 3 ids, there are 11 candidates"},
    ["selects more than the budget"] = {function(cycle) return {{0, cycle.n}} end, "11 chunks with sink and tail, the budget is 5"},
    ["returns a float tensor"] = {function() return lsa.zeros({3}) end, "f32 tensor"},
  }
  for name, wrong in pairs(wrongs) do
    it(name .. ": the previous set stays, born chunks with it, and the message says why", function()
      quiet(function(said)
        local s = failing(wrong[1])
        run(s, 40, 5)
        assert.same({1, 3, 5, 10}, s:resident():ids():totable())
        assert.matches(wrong[2], said[1])
        assert.equal(1, s:stats().policy_errors)
        s:decode(2)
        assert.equal(46, s:tokens())
      end)
    end)
  end

  it("changes what it is given: the engine's rules are not among that", function()
    local function asked(select, said)
      local s = csa:session{select = select, sink = 1, tail = 2, budget = 5, every = 4}
      run(s, 40, 9)
      if said then assert.equal(said, s:stats().failed) end
      return s
    end
    quiet(function(said)
      asked(function(cycle)
        cycle.budget, cycle.room = 1e9, 1e9
        return cycle.top(cycle.scores)
      end, 3)
      assert.matches("10 chunks with sink and tail, the budget is 5", said[1])
    end)
    local plain = asked(function(cycle) return cycle.newest(1) end, 0)
    local kept, seen = nil, {}
    local other = asked(function(cycle)
      local newest = cycle.newest(1)
      if kept then -- what an earlier cycle gave is as it was
        assert(kept.resident:equals(seen.resident) and kept.keep:equals(seen.keep))
        assert(kept.used:totable()[1] == seen.used and kept.scores:totable()[1] == seen.score)
      end
      kept = {resident = cycle.resident, keep = cycle.keep, used = cycle.used(0), scores = cycle.scores}
      seen = {resident = cycle.resident:copy(), keep = cycle.keep:copy(), used = cycle.used(0):totable()[1],
        score = cycle.scores:totable()[1]}
      assert(rawequal(cycle.source, nil))
      return newest
    end, 0)
    local spoilt = asked(function(cycle)
      local newest = cycle.newest(1)
      cycle.keep:remove(cycle.keep)
      cycle.resident:remove(cycle.resident)
      cycle.scores:fill(-1)
      cycle.tokens:fill(0)
      cycle.n, cycle.t = 3, 0
      return newest
    end, 0)
    for i, row in ipairs(plain:cycles()) do
      for _, name in ipairs {"selected", "resident", "kept", "churn", "n", "t"} do
        assert.equal(row[name], other:cycles()[i][name])
        assert.equal(row[name], spoilt:cycles()[i][name])
      end
    end
    assert.same(plain:resident():ids():totable(), spoilt:resident():ids():totable())
  end)

  it("says the same thing once", function()
    quiet(function(said)
      run(failing(wrongs.throws[1]), 40, 30)
      assert.equal(1, #said)
    end)
  end)

  it("stops the run when the session is strict, and the session lives on", function()
    local s = failing(wrongs.throws[1], {strict = true})
    assert.has_error(function() run(s, 40, 5) end)
    assert.equal(44, s:tokens())
    assert.same({1, 3, 5, 10}, s:resident():ids():totable())
  end)

  it("in its first cycle leaves sink and tail", function()
    quiet(function()
      local s = csa:session{tail = 2, sink = 1, budget = 5, select = function() error "at once" end}
      run(s, 40, 1)
      assert.same({0, 8, 9}, s:resident():ids():totable())
    end)
  end)

  it("is an error that names both counts when the set is larger than the pool", function()
    quiet(function(said)
      local s = csa:session{hot = 20, tail = 0, every = 4, budget = 1, select = function(cycle) return {{0, cycle.n}} end}
      run(s, 200, 1)
      assert.matches("50 chunks with sink and tail, the budget is 18", said[1])
      assert.equal(0, s:resident():count())
    end)
  end)

  it("of eviction leaves the previous set and the pool intact", function()
    quiet(function(said)
      local bad = function()
        return {hit = function() end, insert = function() end, remove = function() end, victim = function() return 0 end}
      end
      local s = csa:session{hot = 12, evict = bad, tail = 0, every = 4, select = function(cycle)
        return cycle.number % 2 == 0 and {0, 1, 2, 3, 4, 5} or {0, 7, 8, 9, 10, 6, 5}
      end, budget = 8}
      run(s, 60, 8)
      assert.matches("victim 0 is not one of", said[1])
      assert.same({0, 1, 2, 3, 4, 5, 15, 16}, s:resident():ids():totable())
    end)
  end)
end)

describe("what a policy sees", function()
  local flash = lsa.model(golden .. "flash")

  it("agrees with what the session computes elsewhere", function()
    local seen = {}
    local s = flash:session{kv = "f32", budget = 0.5, select = function(cycle)
      seen = {t = cycle.t, n = cycle.n, native = cycle.native(1):totable(), logits = cycle:logits(1):totable(),
        keys = cycle.keys(2):shape(), tokens = cycle.tokens:totable(), entropy = cycle.entropy, resident = cycle.resident:count(),
        observed = cycle.observed:count(), used = cycle.used(0):totable(), mass = cycle.mass(0):totable(), room = cycle.room,
        keep = cycle.keep:count(), budget = cycle.budget, scores = cycle.scores:totable()}
      return {}
    end}
    local tokens = tokens_of(flash, 131)
    local prefix = {}
    for i = 1, 130 do prefix[i] = tokens[i] end
    local logits = s:prefill(prefix)
    s:decode(tokens[131])
    assert.same({130, 32, 16, 4, 12}, {seen.t, seen.n, seen.budget, seen.keep, seen.room})
    assert.same(prefix, seen.tokens)
    assert.same({32, 16}, seen.keys)
    -- With f32 keys the Memory Indexer from native weights is the Lightning Indexer.
    for i = 1, 32 do assert.is_true(math.abs(seen.native[i] - seen.logits[i]) <= 1e-5) end
    local p, z, entropy = logits:totable(), 0, 0
    for _, x in ipairs(p) do z = z + math.exp(x) end
    for _, x in ipairs(p) do entropy = entropy - math.exp(x) / z * math.log(math.exp(x) / z) end
    assert.is_true(math.abs(entropy - seen.entropy) <= 1e-5)
    -- Prefill observes every chunk: each of 130 queries picks min(8, visible) chunks in each layer.
    local picks, expected = 0, 0
    for _, n in ipairs(seen.used) do picks = picks + n end
    for t = 1, 130 do expected = expected + math.min(8, math.floor(t / 4)) end
    assert.equal(expected, picks)
    assert.equal(32, seen.observed)
    for i, m in ipairs(seen.mass) do assert.is_true(m >= 0 and (m > 0) == (seen.used[i] > 0)) end
    for _, x in ipairs(seen.scores) do assert.is_true(x >= 0 and x <= 1) end
  end)

  it("keeps what was not observed apart from zero", function()
    local rows = {}
    local s = flash:session{budget = 10, every = 8, tail = 0, select = function(cycle)
      rows[#rows + 1] = {observed = cycle.observed:ids():totable(), used = cycle.used(0)}
      return {0, 5, 9}
    end}
    run(s, 120, 9)
    assert.same({0, 5, 9, 30, 31}, rows[2].observed)
    assert.is_true(rows[2].used:sum() > 0)
  end)

  it("gives the same scores through lsa.indexer and the session's tensors", function()
    local inside
    local s = flash:session{budget = 0.5, select = function(cycle)
      inside = cycle.scores:totable()
      return {}
    end}
    s:prefill(tokens_of(flash, 100))
    local ix = lsa.indexer{model = flash}
    local hidden, keys = {}, {}
    for layer = 0, 2 do hidden[layer], keys[layer] = s:hidden(layer), s:keys(layer) end
    local outside = ix:score(hidden, keys, 99):totable()
    s:decode(1)
    assert.equal(25, #inside)
    for i = 1, 25 do assert.is_true(math.abs(inside[i] - outside[i]) <= 1e-6) end
  end)
end)

describe("a fork", function()
  local csa = lsa.model(golden .. "csa")

  it("continues as its origin would, and neither disturbs the other", function()
    for _, options in ipairs {{select = "full"}, {select = "random", budget = 0.3, every = 6, hot = 30, evict = "lru"}} do
      local alone = csa:session(options)
      local expected = run(alone, 60, 40)
      local s = csa:session(options)
      local first = run(s, 60, 20)
      local tokens = tokens_of(csa, 100)
      local fork = s:fork()
      local a, b = {}, {}
      for i = 81, 100 do
        a[#a + 1] = bits(fork:decode(tokens[i]))
        if i % 3 == 0 then collectgarbage() end
      end
      for i = 81, 100 do b[#b + 1] = bits(s:decode(tokens[i])) end
      for i = 1, 20 do
        assert.is_true(expected[i] == first[i])
        assert.is_true(expected[20 + i] == a[i])
        assert.is_true(expected[20 + i] == b[i])
      end
    end
  end)

  it("with another policy starts with a cycle, and with zeroed statistics", function()
    local s = csa:session{select = "recency", budget = 4}
    run(s, 60, 5)
    local fork = s:fork{select = "stride", budget = 6}
    assert.equal(0, fork:stats().steps)
    fork:decode(1)
    assert.equal(1, #fork:cycles())
    assert.equal("stride", fork:stats().policy)
    assert.equal(5, s:stats().steps)
  end)

  it("refuses to change what is shared", function()
    assert.has_error(function() csa:session{}:fork{kv = "f32"} end,
      "fork: 'kv' cannot change; these can: budget, coverage, every, evict, hot, on_demand, seed, select, strict")
  end)

  it("outlives its origin", function()
    local s = csa:session{select = "full"}
    s:prefill(tokens_of(csa, 50))
    local fork = s:fork()
    s:close()
    assert.has_error(function() s:decode(1) end, "the session is closed")
    fork:decode(1)
    assert.equal(51, fork:tokens())
  end)
end)

describe("bad input", function()
  local csa = lsa.model(golden .. "csa")
  local function says(pattern, f, ...)
    local ok, e = pcall(f, ...)
    assert.is_false(ok)
    assert.matches(pattern, e)
    assert.matches("session_spec.lua:%d+", e)
  end

  it("is named, and the session lives on", function()
    local s = csa:session{select = "recency"}
    s:prefill {1, 2, 3, 4, 5}
    says("token 1 is 64; the vocabulary has 64", function() s:prefill({1, 64}) end)
    says("a prompt of 0 tokens", function() s:prefill({}) end)
    says("token 0 is %-1", function() s:prefill({-1}) end)
    says("token 0 is 0.5", function() s:prefill({0.5}) end)
    says("tokens are a list", function() s:prefill(7) end)
    says("5000 tokens after 5; the model's max_position_embeddings is 4096", function() s:prefill(tokens_of(csa, 5000)) end)
    says("decode: token is 99; the vocabulary has 64", function() s:decode(99) end)
    says("no option 'al'; there are: all, trace", function() s:prefill({1}, {al = true}) end)
    says("CSA layer 1; the model has 1", function() s:keys(1) end)
    assert.equal(5, s:tokens())
    s:decode(1)
    assert.equal(6, s:tokens())
  end)

  it("in options lists the valid names", function()
    says("session: no option 'polcy'; there are: async, budget, ", function() csa:session({polcy = "x"}) end)
    says("no policy 'recncy'; there are: dilate, ", function() csa:session({select = "recncy"}) end)
    says("no eviction policy 'lrv'; there are: arc, ", function() csa:session({evict = "lrv"}) end)
    says('session: kv is "fp4"; it can be: f32, bf16, fp8', function() csa:session({kv = "fp4"}) end)
    says("session: budget is %-1", function() csa:session({budget = -1}) end)
    says("session: every is 0", function() csa:session({every = 0}) end)
    says('bytes are written as in "64 MiB"', function() csa:session({hot = "much"}) end)
    says("lsa.model: compute is", function() lsa.model(golden .. "csa", {compute = "int4"}) end)
  end)

  it("running out of memory anywhere in a run is an error that leaves the session whole", function()
    local tokens = tokens_of(csa, 48)
    local function state(s) return s:tokens(), s:resident():count() end
    local reference = run(csa:session{select = "recency", budget = 5, every = 4, kv = "f32"}, 40, 8)
    local failures = 0
    for n = 0, 400, 3 do
      local s = csa:session{select = "recency", budget = 5, every = 4, kv = "f32", strict = true}
      local prefix = {}
      for i = 1, 40 do prefix[i] = tokens[i] end
      s:prefill(prefix)
      local got = {}
      C.lsa_memory_fail_after(n)
      for i = 41, 48 do
        local ok, logits = pcall(s.decode, s, tokens[i])
        if not ok then
          failures = failures + 1
          C.lsa_memory_fail_after(-1)
          assert.matches("out of memory", logits)
          assert.equal(i - 1, s:tokens())
          logits = s:decode(tokens[i])
        end
        got[#got + 1] = bits(logits)
      end
      C.lsa_memory_fail_after(-1)
      assert_same(reference, got)
      state(s)
    end
    assert.is_true(failures > 20)
  end)
end)

describe("the small real model", function()
  it("gives transformers' logits", function()
    local model = lsa.model(needle)
    local file = lsa.load(needle .. "/golden.safetensors")
    local s = model:session{select = "full", kv = "f32"}
    local ids = file.input_ids:to "i32"
    s:prefill(ids:narrow(0, 0, ids:count() - 400))
    local ours = s:prefill(ids:narrow(0, ids:count() - 400, 400), {all = true})
    local a, b = ours:pointer(), file.logits_last:pointer()
    local worst = {}
    for t = 0, 399 do
      worst[t + 1] = 0
      for i = t * 256, t * 256 + 255 do
        local d = math.abs(a[i] - b[i])
        if not (d <= worst[t + 1]) then worst[t + 1] = d end
      end
      assert.equal(file.logits_last:row(t):argmax(), ours:row(t):argmax())
    end
    -- Where two chunks' scores or two experts' nearly tie, rounding decides: at few positions, and by little. Elsewhere the
    -- two agree closely.
    table.sort(worst)
    local far = 0
    for _, d in ipairs(worst) do far = far + (d <= 1e-3 and 0 or 1) end
    assert.is_true(worst[200] <= 5e-5 and far <= 40 and worst[400] <= 0.2,
      ("median off by %.2e, at most %.2e, %d of 400 by more than 1e-3"):format(worst[200], worst[400], far))
  end)

  it("computes nearly the same in bf16, and with bf16 and fp8 records", function()
    local text = ("The grass is green. The sky is blue. The sun is yellow. Here we go. "):rep(20)
    local function logits(compute, kv)
      return lsa.model(needle, {compute = compute}):session{select = "full", kv = kv}:prefill(text)
    end
    local exact = logits("f32", "f32")
    for _, case in ipairs {{"f32", "bf16", 3e-3}, {"f32", "fp8", 0.015}, {"bf16", "fp8", 0.015}} do -- of the largest logit
      local got, worst = logits(case[1], case[2]), 0
      for i = 0, 255 do
        local d = math.abs(got:get(i) - exact:get(i))
        if not (d <= worst) then worst = d end
      end
      assert.is_true(worst > 0 and worst <= case[3] * exact:max(), ("%s, kv %s: off by %.3g"):format(case[1], case[2], worst))
      assert.equal(exact:argmax(), got:argmax())
    end
  end)

  it("answers from what is resident", function()
    local model = lsa.model(needle)
    local haystack = ("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "):rep(40)
    local text = haystack:sub(1, 1500) .. " The magic number for river-stone is: 48213. " .. haystack
    local question = model:tokens " The magic number for river-stone is: "
    local last = table.remove(question)
    local base = model:session{select = "full"}
    base:prefill(text)
    base:prefill(question)
    local function answer(options)
      local s = base:fork(options)
      local logits, out = s:decode(last), {}
      for i = 1, 5 do
        out[i] = logits:argmax()
        logits = s:decode(out[i])
      end
      return model:text(out)
    end
    assert.equal("48213", answer {select = "full"})
    assert.equal("48213", answer {select = "native_topk", budget = 0.135})
    assert.not_equal("48213", answer {select = "none"})
  end)

  it("and its working memory outlive their model, as a collector ends what refers to each other in no order", function()
    collectgarbage()
    collectgarbage()
    local before = tonumber(C.lsa_memory_in_use())
    local model = lsa.model(golden .. "flash")
    local s = model:session{select = "recency", budget = 0.5}
    s:prefill {1, 2, 3, 4, 5, 6, 7, 8, 9}
    s:decode(1)
    local c, scratch = s.c, model.scratch
    C.lsa_model_free(ffi.gc(model.c, nil))
    C.lsa_activations_release(ffi.gc(scratch, nil))
    C.lsa_session_free(ffi.gc(c, nil))
    s.c, model.c, model.scratch, s.indexer, s.loop, s.tier = nil, nil, nil, nil, nil, nil
    collectgarbage()
    collectgarbage()
    assert.equal(before, tonumber(C.lsa_memory_in_use()))
  end)
end)
