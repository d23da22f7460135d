-- On demand: the logits of full attention, whatever the hot pool holds, and the counts of a least-recently-used pool.
local ffi = require "ffi"
local long = require "long_support"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local tokens = require("token_support").random
local support = require "file_support"

local C = lib.C
local golden = lib.root .. "/tests/golden/"
local flash = lsa.model(golden .. "flash")
local TOPK, LAYERS = tonumber(flash.config.index_topk), #flash.csa_layers
local NEED = TOPK * LAYERS

local function bits(t) return ffi.string(t.c.data, t:bytes()) end

local function assert_as_full(model, s, full, n, seed)
  for i, token in ipairs(tokens(model, n, seed)) do
    assert.is_true(bits(full:decode(token)) == bits(s:decode(token)), "step " .. i)
  end
end

-- A least-recently-used pool of chunks in Lua.
local function shadow(cells)
  local order, self = {}, {fetched = 0, hits = 0, evicted = 0}
  function self.use(chunks)
    local absent = {}
    for _, chunk in ipairs(chunks) do
      local at
      for i, other in ipairs(order) do
        if other == chunk then at = i end
      end
      if at then
        self.hits = self.hits + 1
        table.remove(order, at)
        order[#order + 1] = chunk
      else
        absent[#absent + 1] = chunk
      end
    end
    while #order + #absent > cells do
      table.remove(order, 1)
      self.evicted = self.evicted + 1
    end
    for _, chunk in ipairs(absent) do
      order[#order + 1] = chunk
      self.fetched = self.fetched + 1
    end
  end
  self.order = order
  return self
end

local function picks(s, layer)
  local ids, mass = ffi.new("int32_t[?]", TOPK), ffi.new("float[?]", TOPK)
  local n, out = tonumber(C.lsa_session_picks(s.c, layer, ids, mass)), {}
  for i = 1, n do out[i] = ids[i - 1] end
  return out
end

describe("a session on demand", function()
  for _, kv in ipairs {"f32", "bf16", "fp8"} do
    it("has the logits of full attention, kv " .. kv, function()
      for _, hot in ipairs {NEED, NEED + 5, 400} do
        local full = flash:session{select = "full", kv = kv}
        local s = flash:session{on_demand = true, kv = kv, hot = hot}
        for round = 1, 2 do
          local prompt = tokens(flash, 150, round)
          assert.is_true(bits(full:prefill(prompt)) == bits(s:prefill(prompt)))
          assert_as_full(flash, s, full, 40, round + 5)
        end
      end
    end)
  end

  it("counts hits, fetches and evictions as a least-recently-used pool does", function()
    local s = flash:session{on_demand = true, hot = NEED + 3}
    local model = shadow(NEED + 3)
    s:prefill(tokens(flash, 230, 1))
    for _, token in ipairs(tokens(flash, 60, 2)) do
      s:decode(token)
      for layer = 0, LAYERS - 1 do model.use(picks(s, layer)) end
      local resident = s:resident()
      assert.equal(#model.order, resident:count())
      for _, chunk in ipairs(model.order) do assert.is_true(resident:has(chunk)) end
    end
    local stats = s:stats()
    local bytes = tonumber(C.lsa_pool_record_bytes(s.pool)) * LAYERS
    assert.same({model.fetched, model.fetched * bytes, model.hits, model.evicted, 0, "on demand"},
      {stats.fetched_chunks, stats.fetched_bytes, stats.hits, stats.evicted_chunks, stats.cycles, stats.policy})
    assert.is_true(model.evicted > 20 and stats.transfer_stall_ms > 0 and stats.resident_pct < 100)
  end)

  it("is an error that names both numbers when the pool is too small for a step, and none when nothing is said", function()
    local base = flash:session{select = "full"}
    for _, make in ipairs {function() return flash:session{on_demand = true, hot = NEED - 1} end,
      function() return base:fork{on_demand = true, hot = NEED - 1} end} do
      local ok, message = pcall(make)
      assert.is_false(ok)
      assert.matches(("hot is %d chunks; on_demand needs %d, which a step can pick"):format(NEED - 1, NEED), message)
    end
    local default, full = flash:session{on_demand = true, budget = 0.5}, flash:session{select = "full"}
    for _, n in ipairs {3, 90, 300} do
      default:prefill(tokens(flash, n, n))
      full:prefill(tokens(flash, n, n))
      assert_as_full(flash, default, full, 9, n)
    end
    assert.equal(math.max(NEED, math.floor(0.5 * math.floor((3 + 9 + 90 + 9 + 300) / 4))), tonumber(C.lsa_pool_cells(default.pool)))
  end)

  it("works with the cold tier on disk, whose index keys stay in memory", function()
    long.with_model("flash", function(model, folder)
      local s, full = model:session{on_demand = true, hot = NEED + 20, cold = "disk:" .. folder}, model:session{select = "full"}
      local prompt = long.tokens(model, 6000, rng.new(1))
      assert.is_true(bits(s:prefill(prompt)) == bits(full:prefill(prompt)))
      assert_as_full(model, s, full, 20, 1)
      local a, b = s:stats(), full:stats()
      assert.is_true(C.lsa_pool_spilled(s.pool) == 1 and a.cold_bytes < b.cold_bytes / 2 and a.disk_bytes > 0)
      assert.is_true(bits(s:prefill {1, 2, 3}) == bits(full:prefill {1, 2, 3}))
      assert_as_full(model, s, full, 5, 2)
      local fork = s:fork()
      assert_as_full(model, fork, full, 5, 3)
      local path = folder .. "/saved"
      fork:save(path)
      assert_as_full(model, model:restore(path, {trust = true}), fork, 9, 4)
      local policy = model:session{select = "recency", cold = "disk:" .. folder,
        indexer = lsa.indexer{model = model, layers = {0}}}
      policy:prefill(prompt)
      local ok, message = pcall(policy.fork, policy, {on_demand = true})
      assert.is_false(ok)
      assert.matches("the index keys of CSA layer %d+ go to the disk", message)
      policy:save(path)
      full = model:session{select = "full"}
      full:prefill(prompt)
      assert_as_full(model, model:restore(path, {on_demand = true, trust = true}), full, 9, 4)
    end)
  end)

  it("forks into and out of a policy, and counts go on after it was saved", function()
    support.with_folder(function(folder)
      local base = flash:session{select = "full"}
      base:prefill(tokens(flash, 200, 3))
      local full, s = base:fork(), base:fork{on_demand = true, hot = NEED + 2}
      assert_as_full(flash, s, full, 15, 1)
      s:save(folder .. "/s")
      local t, fork = flash:restore(folder .. "/s"), s:fork()
      for _, token in ipairs(tokens(flash, 20, 2)) do
        local expected = bits(s:decode(token))
        assert.is_true(expected == bits(t:decode(token)) and expected == bits(fork:decode(token)))
      end
      for _, name in ipairs {"hits", "fetched_chunks", "evicted_chunks", "resident_pct"} do assert.equal(s:stats()[name], t:stats()[name]) end
      local policy, same = s:fork{select = "recency", budget = 12, every = 4}, flash:session{select = "recency", budget = 12, every = 4}
      same:prefill(tokens(flash, 200, 3))
      for _, token in ipairs(tokens(flash, 15, 1)) do same:prefill {token} end
      for _, token in ipairs(tokens(flash, 20, 2)) do same:prefill {token} end
      for _, token in ipairs(tokens(flash, 9, 7)) do
        policy:decode(token)
        same:decode(token)
        assert.is_true(policy:resident():equals(same:resident()))
      end
      assert.equal("recency", policy:stats().policy)
      local back = policy:fork{on_demand = true}
      back:decode(3)
      assert.equal("on demand", back:stats().policy)
    end)
  end)

  it("loses nothing when memory runs out in a step", function()
    local full = flash:session{select = "full"}
    local s = flash:session{on_demand = true, hot = NEED + 1}
    full:prefill(tokens(flash, 120, 1))
    s:prefill(tokens(flash, 120, 1))
    local failures = 0
    for i, token in ipairs(tokens(flash, 130, 2)) do
      C.lsa_memory_fail_after(i % 7)
      local ok, logits = pcall(s.decode, s, token)
      C.lsa_memory_fail_after(-1)
      if not ok then
        failures = failures + 1
        assert.matches("out of memory", logits)
        logits = s:decode(token)
      end
      assert.is_true(bits(logits) == bits(full:decode(token)), "step " .. i)
    end
    assert.is_true(failures >= 1) -- where memory is had for 64 steps; none of those can fail
  end)

  -- A prompt under a policy that is told what the steps to come pick, and under none: the same tokens, the same hot pool.
  local function replayed(model, hot, more)
    local prompt, steps = tokens(model, 300, 1), tokens(model, 96, 2)
    local full = model:session{select = "full"}
    full:prefill(prompt)
    local wanted = {} -- by position: what any layer picked
    for i, token in ipairs(steps) do
      full:decode(token)
      local set = lsa.set(10000)
      for layer = 0, LAYERS - 1 do
        for _, chunk in ipairs(picks(full, layer)) do set:add(chunk) end
      end
      wanted[299 + i] = set
    end
    local function policy(cycle)
      local out = lsa.set(cycle.n)
      for t = cycle.t, cycle.t + cycle.tau - 1 do
        if wanted[t] then
          local more_of = out:copy():union(wanted[t]:copy():resize(cycle.n))
          if more_of:count() > cycle.room then break end
          out = more_of
        end
      end
      return out
    end
    local options = {on_demand = true, hot = hot, select = policy, budget = 400, tail = 0, every = 1}
    for name, value in pairs(more or {}) do options[name] = value end
    local s, plain = model:session(options), model:session{on_demand = true, hot = hot, cold = options.cold}
    s:prefill(prompt)
    plain:prefill(prompt)
    return s, plain, steps
  end

  it("with a policy has the logits of full attention, and misses less at the same hot pool", function()
    local hot = 2 * NEED + 9
    local s, plain, steps = replayed(flash, hot)
    local full = flash:session{select = "full"}
    full:prefill(tokens(flash, 300, 1))
    for i, token in ipairs(steps) do
      local expected = bits(full:decode(token))
      assert.is_true(expected == bits(s:decode(token)) and expected == bits(plain:decode(token)), "step " .. i)
    end
    local a, b = s:stats(), plain:stats()
    assert.equal(0, a.policy_errors, a.last_error)
    assert.same({#steps, "on demand, a function", 0}, {a.cycles, a.policy:gsub("function.*", "a function"), a.failed})
    assert.equal(a.fetched_chunks, a.prefetched_chunks + a.misses)
    assert.same({0, b.fetched_chunks}, {b.prefetched_chunks, b.misses})
    assert.is_true(b.misses > 100 and a.misses < b.misses / 4, ("%d misses, %d without a policy"):format(a.misses, b.misses))
    assert.equal(b.hits + b.misses, a.hits + a.misses)
    assert.is_true(a.miss_stall_ms < a.transfer_stall_ms and b.miss_stall_ms == b.transfer_stall_ms)
    assert.matches("on demand +hits %d+, misses %d+, prefetched %d+", tostring(a))
    assert.equal(hot, tonumber(C.lsa_pool_cells(s.pool)))
    for _, row in ipairs(s:cycles()) do assert.is_true(row.selected <= hot - NEED) end
  end)

  it("with any policy, every and evict lru has the logits of full attention", function()
    local full = flash:session{select = "full"}
    full:prefill(tokens(flash, 250, 1))
    for _, options in ipairs {{select = "recency"}, {select = "lsa_topk", every = 3}, {select = {"random"}, every = 5}, {select = "h2o", every = 2},
      {select = "none", tail = 0}, {select = "native_topk", every = "jaccard"}, {select = "random", every = 7, no_hot = true, budget = 0.5},
      {select = "recency", hot = NEED}, {select = function() error "at random" end, every = 4, quiet = true}} do
      local quiet, warn, said = options.quiet, registry.warn, 0
      if quiet then registry.warn = function() said = said + 1 end end
      options.every = options.every or 4
      options.on_demand, options.hot, options.no_hot, options.quiet = true, options.hot or not options.no_hot and NEED + 30 or nil, nil, nil
      local s, same = flash:session(options), full:fork()
      s:prefill(tokens(flash, 250, 1))
      assert_as_full(flash, s, same, 23, 4)
      local fork = s:fork{hot = options.hot and options.hot + 7}
      assert.equal(s:stats().policy, fork:stats().policy)
      assert_as_full(flash, fork, same:fork(), 9, 5)
      same:prefill(tokens(flash, 60, 6))
      s:prefill(tokens(flash, 60, 6))
      assert_as_full(flash, s, same, 12, 7)
      registry.warn = warn
      local stats = s:stats()
      assert.equal(quiet and stats.cycles or 0, stats.failed, stats.last_error)
      assert.equal(quiet and 1 or 0, said)
      assert.is_true(stats.cycles >= 2 and stats.hits > 0, tostring(stats))
      s:generate{n = 5}
    end
  end)

  it("prefetches as what was used last, and pins nothing", function()
    local s = flash:session{on_demand = true, hot = NEED + 40, budget = 4, tail = 0, every = 8, select = function() return {3, 1, 2, 0} end}
    s:prefill(tokens(flash, 230, 1))
    local model = shadow(NEED + 40)
    for i, token in ipairs(tokens(flash, 64, 2)) do
      local before = s:stats()
      s:decode(token)
      if i % 8 == 1 then model.use {0, 1, 2, 3} end
      for layer = 0, LAYERS - 1 do model.use(picks(s, layer)) end
      local resident = s:resident()
      assert.equal(#model.order, resident:count())
      for _, chunk in ipairs(model.order) do assert.is_true(resident:has(chunk)) end
      assert.equal(i % 8 == 1 and before.cycles + 1 or before.cycles, s:stats().cycles)
    end
    local stats = s:stats()
    assert.same({model.fetched, model.evicted}, {stats.fetched_chunks, stats.evicted_chunks})
    assert.is_true(stats.prefetched_chunks >= 4 and model.evicted > 0)
  end)

  it("with a policy is refused where the pool has no room, and goes on", function()
    local said, warn = {}, registry.warn
    registry.warn = function(text) said[#said + 1] = text end
    local s, full = flash:session{on_demand = true, hot = NEED + 10, select = "recency", sink = 30, budget = 20}, flash:session{select = "full"}
    s:prefill(tokens(flash, 400, 1))
    full:prefill(tokens(flash, 400, 1))
    assert_as_full(flash, s, full, 9, 2)
    registry.warn = warn
    assert.equal(1, s:stats().failed)
    assert.matches(("the set has 30 chunks, a step can pick %d, and 17 can be born; the hot pool has %d cells"):format(NEED, NEED + 10), said[1])
    local out = ffi.new "int64_t[1]"
    for _, case in ipairs {{{5, 4}, 2}, {{0, 4000}, 2}, {{-1}, 1}} do
      assert.is_true(C.lsa_session_prefetch(s.c, ffi.new("int32_t[?]", #case[1], case[1]), case[2], out) < 0)
    end
  end)

  it("with a policy is saved, restored, forked and on disk", function()
    long.with_model("flash", function(model, folder)
      local full = model:session{select = "full"}
      local s = model:session{on_demand = true, select = "lsa_topk", hot = NEED + 60, every = 4, cold = "disk:" .. folder}
      local prompt = long.tokens(model, 6000, rng.new(1))
      assert.is_true(bits(s:prefill(prompt)) == bits(full:prefill(prompt)))
      assert_as_full(model, s, full, 10, 1)
      assert.equal(1, C.lsa_pool_spilled(s.pool))
      s:save(folder .. "/saved")
      local t, fork = model:restore(folder .. "/saved", {trust = true}), s:fork()
      for _, token in ipairs(tokens(model, 12, 3)) do
        local expected = bits(full:decode(token))
        for _, one in ipairs {s, t, fork} do assert.is_true(expected == bits(one:decode(token))) end
      end
      for _, name in ipairs {"policy", "cycles", "hits", "misses", "fetched_chunks", "prefetched_chunks", "evicted_chunks"} do
        assert.equal(s:stats()[name], t:stats()[name], name)
      end
      assert.equal("on demand, lsa_topk", fork:stats().policy)
      local off = s:fork{on_demand = false}
      off:decode(1)
      assert.same({"lsa_topk", false}, {off:stats().policy, off.opt.on_demand})
      local other = s:fork{select = "recency"}
      other:decode(1)
      assert.equal("on demand, recency", other:stats().policy)
    end)
  end)

  it("says what it does not go with", function()
    local function says(pattern, ...)
      local ok, message = pcall(...)
      assert.is_false(ok)
      assert.matches(pattern, message)
    end
    says("session: async is true; on_demand has", flash.session, flash, {on_demand = true, async = true})
    says("session: coverage is true; on_demand counts hits and misses", flash.session, flash, {on_demand = true, select = "recency", coverage = true})
    says("session: evict is arc; on_demand evicts by lru", flash.session, flash, {on_demand = true, select = "recency", evict = "arc"})
    says("session: evict is a table; on_demand", flash.session, flash, {on_demand = true, select = "recency", evict = {"fifo"}})
    says("on_demand counts", function() flash:session{on_demand = true, select = "recency"}:fork{coverage = true} end)
    says("evict is arc", function() flash:session{select = "recency", evict = "arc"}:fork{on_demand = true, select = "recency"} end)
    says("fetches nothing on demand", function() flash:session{select = "full"}:prefetch(lsa.set(0)) end)
    says("granularity is page; on_demand fetches chunks", flash.session, flash, {on_demand = true, granularity = "page"})
    says("record: an on_demand session", flash:session{on_demand = true}.record, flash:session{on_demand = true}, "x")
    says("no CSA layers", function() lsa.model(golden .. "swa"):session{on_demand = true} end)
  end)
end)
