-- lsa.batch: what each request gives alone, whatever runs beside it; who waits, who fails, whose cells are whose.
local ffi = require "ffi"
local lsa = require "lsa"
local commons = require "lsa.serve.shared_hot_tier"
local ranges = require "lsa.serve.id_ranges"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local set = require "lsa.tensor.set"
local C = require("lsa.ffi").C

local golden = require("lsa.ffi").root .. "/tests/golden/"
local flash = lsa.model(golden .. "flash")

local function tokens_of(n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(flash.config.vocab)) end
  return out
end

local function bits(t) return ffi.string(t.c.data, t:count() * 4) end

local function says(pattern, f, ...)
  local ok, e = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, e)
end

-- Runs f with the registry's warnings collected.
local function quiet(f)
  local said, warn = {}, registry.warn
  registry.warn = function(text) said[#said + 1] = text end
  local ok, e = pcall(f, said)
  registry.warn = warn
  assert(ok, e)
end

-- What a session holds after a step, as text.
local function state(s)
  return table.concat(s:resident():ids():totable(), " ") .. "|" .. bits(s:logits())
end

-- A request alone, with as many cells as it needs: its tokens, and its state after each step.
local function alone(request, options, every)
  local opt = {}
  for name, value in pairs(options) do opt[name] = value end
  for _, name in ipairs {"select", "budget", "sink", "tail", "seed"} do
    if request[name] ~= nil then opt[name] = request[name] end
  end
  opt.every, opt.hot, opt.evict = every or request.every or opt.every, nil, nil
  local s = flash:session(opt)
  local prompt, out, states = request.tokens, {}, {}
  local last = #prompt
  local first = {}
  for i = 1, last - 1 do first[i] = prompt[i] end
  if #first > 0 then s:prefill(first) end
  local token = prompt[last]
  for i = 1, request.n do
    s:decode(token)
    states[i] = state(s)
    token = s:logits():argmax()
    out[i] = token
  end
  s:close()
  return out, states
end

local several = {
  {select = "recency", budget = 6, every = 5}, {select = "random", budget = 0.4, every = 3}, {select = "full"},
  {select = "lsa_topk", budget = 0.5, every = 8}, {select = "none", tail = 0, every = 7},
  {select = "h2o", budget = 0.3, every = 4},
}

local function request(i, n)
  local out = {tokens = tokens_of(23 + 19 * i, i), n = n or 12 + 5 * (i % 4)}
  for name, value in pairs(several[(i - 1) % #several + 1]) do out[name] = value end
  return out
end

-- Steps until all is done; every running request's state is what it is alone after as many steps.
local function run_and_compare(b, requests, options, between)
  local expected = {}
  repeat
    local left = b:step()
    for id, r in pairs(requests) do
      local s = b:session(id)
      if s then
        local steps = s:stats().steps
        if steps > 0 then
          if not expected[id] then expected[id] = {alone(r, options, b:result(id).every)} end
          assert.is_true(expected[id][2][steps] == state(s), ("request %d, step %d"):format(id, steps))
        end
      end
    end
    if between then between(left) end
  until left == 0
  for id, r in pairs(requests) do
    local result = b:result(id)
    if result.state == "done" then
      expected[id] = expected[id] or {alone(r, options, result.every)}
      assert.same(expected[id][1], result.tokens)
    end
  end
end

describe("a batch", function()
  setup(function() C.lsa_cpu_limit(C.LSA_CPU_GENERIC) end) -- where products do not depend on the number of rows
  teardown(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

  for name, options in pairs {
    ["as many cells as are promised"] = {}, ["a fixed pool with a reserve"] = {hot = 260, evict = "lru"},
    ["a tight pool"] = {hot = 90, evict = "sieve"}, ["pages"] = {granularity = "page", page = 4, hot = 70, evict = "arc"},
    ["the cold tier on disk"] = {cold = "disk:/tmp", hot = 200}, ["asynchronous cycles"] = {async = true, hot = 200},
    ["cycles that are not staggered"] = {stagger = false, hot = 150},
  } do
    it("gives each request what it gives alone: " .. name, function()
      local session_options, requests = {}, {}
      for option, value in pairs(options) do
        if option ~= "stagger" then session_options[option] = value end
      end
      local b = lsa.batch(flash, options)
      for i = 1, 9 do
        local r = request(i)
        if name == "pages" and (r.select == "random" or r.select == "lsa_topk" or r.select == "h2o") then
          r.select = "lsa_page_max" -- scattered chunks are more pages than their number tells
        end
        if not options.hot or options.hot > 90 or r.select == "full" or r.budget ~= 0.5 then requests[b:submit(r)] = r end
      end
      run_and_compare(b, requests, session_options)
      local stats = b:stats()
      assert.same({0, 0, stats.done}, {stats.failed, stats.running, #stats.rows})
      assert.same({0, 0, 0, stats.cells.total}, {stats.cells.used, stats.cells.reserve, stats.cells.promised, stats.cells.free})
      if name == "a tight pool" then assert.is_true(stats.evicted_chunks > 0 and stats.wait_max > 0) end
      b:close()
    end)
  end

  it("keeps every request's residents where others end, in another order than they came", function()
    local b, requests, lengths = lsa.batch(flash, {hot = 300}), {}, {40, 5, 25, 1, 33}
    for i, n in ipairs(lengths) do
      local r = request(i == 3 and 6 or i, n)
      requests[b:submit(r)] = r
    end
    local before, ended, seen = nil, {}, {}
    run_and_compare(b, requests, {}, function()
      for id = 0, 4 do
        if b:result(id).state == "done" and not seen[id] then ended[#ended + 1], seen[id] = id, true end
      end
      local c = b:stats().cells
      if before then assert.is_true(c.total == 300 and c.used + c.reserve + c.free == 300) end
      before = c
    end)
    assert.same({3, 1, 2, 4, 0}, ended)
  end)

  it("frees exactly the cells of a request that is cancelled", function()
    local b = lsa.batch(flash, {hot = 200, select = "random", budget = 12, every = 2, stagger = false})
    local ids = {}
    for i = 1, 4 do ids[i] = b:submit{tokens = tokens_of(100, i), n = 60} end
    for _ = 1, 9 do b:step() end
    local held, kept = {}, {}
    for _, id in ipairs(ids) do
      held[id] = tonumber(C.lsa_pool_held_cells(b:session(id).pool))
      kept[id] = state(b:session(id))
    end
    local before = b:stats().cells
    assert.is_true(before.reserve > 0 and held[1] > 0)
    assert.is_true(b:cancel(1))
    assert.is_false(b:cancel(1))
    local after = b:stats().cells
    assert.equal(before.free + held[1], after.free)
    assert.equal(before.promised - b:result(1).cells, after.promised)
    for _, id in ipairs {0, 2, 3} do
      assert.equal(held[id], tonumber(C.lsa_pool_held_cells(b:session(id).pool)))
      assert.equal(kept[id], state(b:session(id)))
    end
    assert.same({"cancelled", "decode"}, {b:result(1).state, b:result(2).state})
    assert.is_nil(b:session(1))
  end)

  it("admits first come first served: by cells, by bytes, by number", function()
    local function started(options, sizes)
      local b = lsa.batch(flash, options)
      for _, budget in ipairs(sizes) do
        b:submit{tokens = tokens_of(200, 1), n = 4, select = "recency", budget = budget, every = 4}
      end
      b:step()
      local out = {}
      for id = 0, #sizes - 1 do out[#out + 1] = b:result(id).state == "queued" and "-" or "x" end
      local report = b:run()
      assert.equal(#sizes, report.done)
      return table.concat(out), report
    end
    -- A chunk is born within 4 steps, and one more cell is promised: 2 cells beside the budget.
    assert.equal("xx--", (started({hot = 40}, {18, 18, 20, 3}))) -- the last would fit, and waits its turn
    assert.equal("xxx-", (started({hot = 60}, {18, 18, 18, 3})))
    assert.equal("xxx-", (started({hot = 64, most = 3}, {3, 3, 3, 3})))
    local one = lsa.batch(flash, {})
    one:submit{tokens = tokens_of(200, 1), n = 4, select = "recency", budget = 18, every = 4}
    local bytes = one:result(0).bytes + 20 * one.replicas[1].chunk_bytes
    local order, report = started({memory = 2 * bytes}, {18, 18, 18})
    assert.equal("xx-", order)
    assert.is_true(report.memory.peak <= 2 * bytes and report.wait_max > 0)
    assert.equal("x--", (started({memory = 2 * bytes - 1}, {18, 18, 18})))
  end)

  it("refuses what could never run, naming both numbers, and what makes no sense", function()
    local b = lsa.batch(flash, {hot = 30, memory = "100 KB"})
    says("submit: the request needs 52 cells of the hot pool, which has 30", b.submit, b,
      {tokens = tokens_of(400, 1), select = "recency", budget = 50, n = 4, every = 4})
    says("submit: the request needs %d+ bytes with the hot pool; memory is 100000", b.submit, b,
      {tokens = tokens_of(3000, 1), select = "full", n = 4})
    says("submit: token 1 is 64; the vocabulary has 64", b.submit, b, {tokens = {3, 64}})
    says("submit: there are no tokens", b.submit, b, {tokens = {}})
    says("submit: no option 'evict'", b.submit, b, {tokens = {1}, evict = "lru"})
    says("no policy 'nonsense'", b.submit, b, {tokens = {1}, select = "nonsense"})
    says("tokens with the answer; the model's max_position_embeddings is", b.submit, b, {tokens = {1}, n = 1e9})
    says("another model than the batch", b.submit, b, {session = lsa.model(golden .. "csa"):session {}, tokens = {1}})
    says("the session's kv is f32, the batch's fp8", b.submit, b, {session = flash:session {kv = "f32"}, tokens = {1}})
    says("submit: hot is 3 chunks; on_demand needs %d+, which a step can pick", b.submit, b,
      {tokens = tokens_of(300, 1), on_demand = true, hot = 3})
    says("the request needs 70 cells of the hot pool, which has 30", b.submit, b, {tokens = tokens_of(300, 1), on_demand = true, hot = 70})
    says("async is true; on_demand has", function() lsa.batch(flash, {async = true}):submit{tokens = {1}, on_demand = true} end)
    says("granularity is page; on_demand", lsa.batch, flash, {granularity = "page", on_demand = true})
    says("evict is arc; on_demand evicts by lru", lsa.batch, flash, {evict = "arc", on_demand = true, select = "recency"})
    says("submit: on_demand is false, the batch's true; with the cold tier on disk", function()
      lsa.batch(flash, {cold = "disk:/tmp", on_demand = true}):submit{tokens = {1}, on_demand = false}
    end)
    says("'tail' cannot change in a fork", b.submit, b, {session = flash:session {}, tokens = {1}, tail = 3})
    says("no request 7; there are 0", b.result, b, 7)
    says("the hot pool has %d+ bytes, memory is 100", lsa.batch, flash, {hot = 30, memory = 100})
    says("lsa.batch: no option 'hott'", lsa.batch, flash, {hott = 3})
    assert.equal(0, b:stats().queued)
  end)

  it("ends a request that fails, and no other", function()
    quiet(function(said)
      local b, requests = lsa.batch(flash, {hot = 260}), {}
      for i = 1, 5 do
        local r = request(i)
        requests[b:submit(r)] = r
      end
      local fails = b:submit{tokens = tokens_of(60, 9), n = 20, strict = true, every = 5, stop = 99, budget = 7,
        select = function(cycle)
          if cycle.number == 2 then error "as it happens" end
          return cycle.newest()
        end}
      local stays = b:submit{tokens = tokens_of(60, 9), n = 20, every = 5, budget = 7, select = function(cycle)
        if cycle.number == 2 then return {1e6} end
        return cycle.newest()
      end}
      local closed = b:submit{tokens = tokens_of(60, 9), n = 20, select = "recency", budget = 7}
      run_and_compare(b, requests, {}, function()
        if b:session(closed) and b:session(closed):stats().steps == 3 then b:session(closed):close() end
      end)
      assert.same({"failed", "done", "failed"}, {b:result(fails).state, b:result(stays).state, b:result(closed).state})
      assert.matches("lsa_batch_spec.lua:%d+: as it happens", b:result(fails).error)
      assert.matches("its session was closed", b:result(closed).error)
      assert.same({1, 1}, {b:result(stays).policy_errors, b:result(stays).failed_cycles})
      assert.is_true(b:stats().failed_cycles >= 1)
      assert.matches("not as asked  " .. b:stats().failed_cycles .. " of ", tostring(b:stats()), nil, true)
      assert.equal(20, #b:result(stays).tokens)
      assert.equal(1, #said)
      assert.equal(260, b:stats().cells.free)
    end)
  end)

  it("fetches nothing for a chunk that comes back while the shared reserve has it", function()
    local function turns(cycle) -- two sets by turns, of six chunks each
      local from = cycle.number % 2 == 0 and 0 or 10
      return set.new(cycle.n):range(from, from + 6)
    end
    local function fetched(hot)
      local b = lsa.batch(flash, {hot = hot, select = turns, budget = 6, tail = 0, every = 4, stagger = false})
      local report
      for i = 1, 2 do b:submit{tokens = tokens_of(100, i), n = 30} end
      report = b:run()
      assert.equal(2, report.done)
      return report.fetched_chunks, report.hits
    end
    local chunks, hits = fetched(64)
    assert.same({2 * 12, 2 * 6 * 6}, {chunks, hits}) -- eight cycles; each set is fetched once a request
    chunks, hits = fetched(16)
    assert.same({2 * 8 * 6, 0}, {chunks, hits})
  end)

  it("lets no eviction policy take a live resident: naming one is an error that harms nobody", function()
    local named = 0
    local function adversary()
      local object, known = {}, {}
      function object.hit() end
      function object.insert(_, id) known[id] = true end
      function object.remove(_, id) known[id] = nil end
      function object.victim(_, allowed)
        for id in pairs(known) do
          if not allowed:has(id) then
            named = named + 1
            return id
          end
        end
      end
      return object
    end
    quiet(function()
      local b, requests = lsa.batch(flash, {hot = 30, evict = adversary, every = 4}), {}
      for i = 1, 2 do -- these never need room
        local r = {tokens = tokens_of(90, i), n = 12, select = "none", tail = 5, budget = 5, every = 4}
        requests[b:submit(r)] = r
      end
      local greedy = b:submit{tokens = tokens_of(90, 7), n = 12, select = "random", budget = 8, tail = 0}
      run_and_compare(b, requests, {})
      assert.is_true(named > 0)
      local result = b:result(greedy) -- lives on with the set that it had
      assert.equal(named, result.policy_errors)
      assert.matches("eviction policy function at .*: victim %d+ is not one of the %d+ units that may leave",
        result.stats.last_error)
      assert.same({"done", "done", "done", 30}, {b:result(0).state, b:result(1).state, result.state, b:stats().cells.free})
    end)
  end)

  it("forks a session for each request: one prefill, many questions", function()
    local base = flash:session{select = "recency", budget = 9, every = 6, tail = 0}
    base:prefill(tokens_of(150, 1))
    for i = 1, 4 do base:decode(i) end
    local b, expected, prompts = lsa.batch(flash, {hot = 120, stagger = false}), {}, {}
    for i = 1, 4 do
      prompts[i] = tokens_of(i, 50 + i)
      b:submit{session = base, tokens = prompts[i], n = 9, select = i == 3 and {"random"} or nil, budget = i == 4 and 5 or nil}
      local s = base:fork{select = i == 3 and {"random"} or nil, budget = i == 4 and 5 or nil}
      s.loop.due = 0
      local out, token = {}, prompts[i][i]
      if i > 1 then s:prefill({unpack(prompts[i], 1, i - 1)}) end
      for t = 1, 9 do
        token = s:decode(token):argmax()
        out[t] = token
      end
      expected[i] = out
    end
    local whole = b:submit{session = base, n = 3}
    local copy
    while b:step() > 0 do
      local s = b:session(2)
      if s and s:stats().steps == 4 then
        copy = s:fork()
        says("the session is in a batch; save a fork of it", s.save, s, os.tmpname())
      end
    end
    for i = 1, 4 do assert.same(expected[i], b:result(i - 1).tokens) end
    assert.equal(base:logits():argmax(), b:result(whole).tokens[1])
    -- A fork of a batched session lives on by itself.
    assert.same({unpack(expected[3], 5, 8)}, (function()
      local out, token = {}, copy:logits():argmax()
      for t = 1, 4 do
        token = copy:decode(token):argmax()
        out[t] = token
      end
      return out
    end)())
    assert.equal(154, base:tokens())
  end)

  it("says what ended an answer, and leaves the stop out of its text", function()
    local needle = lsa.model(require("lsa.ffi").root .. "/experiments/models/needle")
    local prompt = ("The code is 4711. "):rep(8)
    local s = needle:session{select = "full"}
    s:prefill(prompt)
    local twin = s:fork()
    local ids, ended = s:generate{n = 12}
    local text = needle:text(ids)
    assert.same({12, "steps"}, {#ids, ended})
    -- Two tokens make the stop: a byte each.
    local stop = text:sub(5, 6)
    local at = text:find(stop, 1, true)
    ids, ended = twin:generate{n = 12, stop = {"no such text", stop}}
    assert.same({text:sub(1, at + 1), "stopped"}, {needle:text(ids), ended})
    assert.equal("each", (select(2, twin:generate{n = 3, each = function() return true end})))
    local b, batch_ids = lsa.batch(needle, {select = "full"}), {}
    for i, opt in ipairs {{}, {stop = stop}, {stop = stop, keep_stop = true}, {stop = text:byte(5)}, {stop = stop, n = at + 1}} do
      opt.tokens, opt.n = prompt, opt.n or 12
      batch_ids[i] = b:submit(opt)
    end
    b:run()
    local cut = text:sub(1, at - 1)
    for i, wanted in ipairs {{text, "steps"}, {cut, "stopped"}, {cut .. stop, "stopped"},
      {text:sub(1, text:find(text:sub(5, 5), 1, true) - 1), "stopped"}, {cut, "stopped"}} do
      local r = b:result(batch_ids[i])
      assert.same(wanted, {r.text, r.ended}, "request " .. i)
    end
    b:close()
  end)

  it("generates to the end of the context and says so", function()
    local s = flash:session{select = "full"}
    local most = tonumber(flash.config.max_positions)
    s:prefill(tokens_of(most - 3, 2))
    local ids, ended = s:generate{n = 50}
    assert.same({4, "context", most}, {#ids, ended, s:tokens()})
    -- Nothing fits any more: what comes next is still known.
    ids, ended = s:generate{n = 50}
    assert.same({1, "context"}, {#ids, ended})
  end)

  it("stops at a token, draws by temperature from the request's seed, and takes no answer at all", function()
    local b = lsa.batch(flash, {select = "recency", budget = 8, stagger = false})
    local first = b:submit{tokens = tokens_of(50, 1), n = 8}
    b:run()
    local answer = b:result(first).tokens
    local stop = b:submit{tokens = tokens_of(50, 1), n = 8, stop = answer[3]}
    local warm, same = b:submit{tokens = tokens_of(50, 1), n = 30, temperature = 1, seed = 4},
      b:submit{tokens = tokens_of(50, 1), n = 30, temperature = 1, seed = 4}
    local none, whole = b:submit{tokens = tokens_of(50, 1), n = 0}, b:submit{tokens = tokens_of(50, 1), n = 8, decoded = 0}
    b:run()
    local until_stop = {}
    for i, token in ipairs(answer) do
      until_stop[i] = token
      if token == answer[3] then break end
    end
    assert.same(until_stop, b:result(stop).tokens)
    assert.same(b:result(warm).tokens, b:result(same).tokens)
    assert.same({}, b:result(none).tokens)
    local s = flash:session{select = "recency", budget = 8}
    s:prefill(tokens_of(50, 1))
    assert.same(s:generate{n = 8}, b:result(whole).tokens)
  end)

  it("loses nothing to an interruption", function()
    local b, requests = lsa.batch(flash, {hot = 260}), {}
    for i = 1, 6 do
      local r = request(i)
      requests[b:submit(r)] = r
    end
    local steps, interruptions = 0, 0
    repeat
      steps = steps + 1
      if steps % 3 == 0 then C.lsa_interrupt() end
      local ok, left = pcall(b.step, b)
      C.lsa_interrupt_clear()
      if not ok then
        assert.matches("interrupted", left)
        interruptions = interruptions + 1
      end
    until ok and left == 0
    assert.is_true(interruptions > 5)
    assert.equal(6, b:stats().done)
    run_and_compare(b, requests, {})
  end)

  it("ends at most the requests that memory runs out for, and has all cells back", function()
    local expected, options = {}, {hot = 60, evict = "arc", stagger = false}
    local requests = {}
    for i, budget in ipairs {6, 12, 9} do
      requests[i] = {tokens = tokens_of(60 + i, i), n = 9, select = "random", budget = budget, every = 3}
      expected[i] = alone(requests[i], {})
    end
    local failed, raised = 0, 0
    quiet(function()
      for n = 0, 400, 3 do
        local b = lsa.batch(flash, options)
        for i = 1, 3 do b:submit(requests[i]) end
        for _ = 1, n % 5 do b:step() end
        C.lsa_memory_fail_after(math.floor(n / 3))
        local ok, problem = pcall(b.step, b)
        C.lsa_memory_fail_after(-1)
        if not ok then
          raised = raised + 1
          assert.matches("out of memory", problem)
        end
        local report = b:run()
        for i, row in ipairs(report.rows) do
          if row.state == "failed" then
            failed = failed + 1
            assert.matches("out of memory", row.error)
          elseif row.policy_errors == 0 then -- a cycle that memory ran out for leaves the set before
            assert.same(expected[i], row.tokens)
          end
        end
        assert.same({60, 0, 0}, {report.cells.free, report.cells.promised, report.running})
        b:close()
      end
    end)
    assert.is_true(failed > 5, ("%d requests failed, %d steps"):format(failed, raised))
  end)

  ---- on demand ----

  local NEED = tonumber(flash.config.index_topk) * #flash.csa_layers
  local COUNTED = {"steps", "hits", "misses", "fetched_chunks", "fetched_bytes", "evicted_chunks", "prefetched_chunks", "cycles", "failed"}

  -- A session on demand with the request's share as its hot pool, at the start of what is decoded.
  local function begun_alone(b, id, r, more)
    local opt = {on_demand = true, hot = b.requests[id + 1].need.cells, select = r.select, every = r.every, budget = r.budget}
    for name, value in pairs(more or {}) do opt[name] = value end
    local s, first = flash:session(opt), {unpack(r.tokens)}
    table.remove(first)
    if #first > 0 then s:prefill(first) end
    return s
  end

  for name, options in pairs {["a fixed pool"] = {hot = 5 * NEED}, ["as many cells as are promised"] = {},
    ["on disk"] = {cold = "disk:/tmp", on_demand = true, hot = 6 * NEED}} do
    it("serves requests on demand beside others, with full attention's logits and the counts that each has alone: " .. name, function()
      options.stagger = false
      local b, requests, twins = lsa.batch(flash, options), {}, {}
      for i, r in ipairs {{hot = NEED}, {hot = NEED + 9, select = "recency", every = 5, budget = 8}, {}, {select = "random", every = 4, budget = 0.2},
        {hot = NEED + 3}} do
        r.tokens, r.n, r.on_demand = tokens_of(150 + 31 * i, i), 12 + 9 * (i % 3), true
        requests[b:submit(r)] = r
      end
      local others = {}
      for i = 1, 6 do
        local r = request(i)
        if not options.on_demand and r.select ~= "full" then others[b:submit(r)] = r end
      end
      local full, shared = {}, 0
      repeat
        local left = b:step()
        local now = 0
        for id, r in pairs(requests) do
          local s = b:session(id)
          if s and s:stats().steps > 0 then
            now = now + 1
            twins[id] = twins[id] or begun_alone(b, id, r, {cold = options.cold})
            full[id] = full[id] or begun_alone(b, id, r, {on_demand = false, select = "full"})
            local twin, at = twins[id], s:tokens() - 1
            local token = at < #r.tokens and r.tokens[#r.tokens] or b:result(id).tokens[at - #r.tokens + 1]
            twin:decode(token)
            full[id]:decode(token)
            assert.is_true(bits(s:logits()) == bits(full[id]:logits()), ("request %d, token %d"):format(id, at))
            assert.is_true(s:resident():equals(twin:resident()))
            local a, t = s:stats(), twin:stats()
            for _, counter in ipairs(COUNTED) do assert.equal(t[counter], a[counter], counter) end
            assert.is_true(s:resident():count() <= b.requests[id + 1].need.cells)
          end
        end
        shared = math.max(shared, now)
      until left == 0
      local report = b:stats()
      assert.same({0, #report.rows}, {report.failed, report.done})
      assert.same({0, 0, 0, report.cells.total}, {report.cells.used, report.cells.reserve, report.cells.promised, report.cells.free})
      for id, r in pairs(others) do assert.same((alone(r, {})), b:result(id).tokens) end
      assert.is_true(shared > 1 and report.rows[1].stats.misses > 20 and report.rows[1].stats.evicted_chunks > 0)
      assert.matches("^on demand", report.rows[1].policy)
      b:close()
    end)
  end

  it("forks from and into requests on demand", function()
    local base, plain = flash:session{on_demand = true, hot = NEED + 4}, flash:session{select = "full"}
    base:prefill(tokens_of(200, 3))
    plain:prefill(tokens_of(200, 3))
    for i = 1, 9 do
      base:decode(i)
      plain:decode(i)
    end
    local b = lsa.batch(flash, {hot = 4 * NEED})
    local demanded, full, off = b:submit{session = base, tokens = {5}, n = 14}, b:submit{session = plain, tokens = {5}, n = 14, on_demand = true},
      b:submit{session = base, tokens = {5}, n = 14, select = "recency"}
    local copy
    while b:step() > 0 do
      local s = b:session(demanded)
      if s and s:stats().steps == 6 then copy = s:fork() end
    end
    plain:decode(5)
    local expected = plain:generate{n = 14}
    assert.same(expected, b:result(demanded).tokens)
    assert.same(expected, b:result(full).tokens)
    assert.same({"on demand", "on demand", "recency"}, {b:result(demanded).policy, b:result(full).policy, b:result(off).policy})
    assert.is_true(copy.opt.on_demand)
    assert.same({unpack(expected, 6, 13)}, copy:generate{n = 8}) -- it lives on by itself, with a hot pool of its own
    b:close()
    copy:generate{n = 20}
    assert.equal(0, copy:stats().failed)
  end)

  it("has all cells back from requests on demand that memory runs out for", function()
    local r = {tokens = tokens_of(130, 1), n = 9, on_demand = true, hot = NEED}
    local expected, failed = nil, 0
    quiet(function()
      for n = 0, 240, 3 do
        local b = lsa.batch(flash, {hot = 3 * NEED, stagger = false})
        for _, other in ipairs {r, {tokens = tokens_of(99, 2), n = 9, select = "recency", budget = 9, every = 3}, r} do b:submit(other) end
        for _ = 1, n % 4 do b:step() end
        if n > 0 then C.lsa_memory_fail_after(math.floor(n / 3)) end
        pcall(b.step, b)
        C.lsa_memory_fail_after(-1)
        local report = b:run()
        expected = expected or report.rows[1].tokens
        for _, i in ipairs {1, 3} do
          local row = report.rows[i]
          if row.state == "failed" then
            failed = failed + 1
            assert.matches("out of memory", row.error)
          else
            assert.same(expected, row.tokens)
          end
        end
        assert.same({3 * NEED, 0, 0}, {report.cells.free, report.cells.promised, report.running})
        b:close()
      end
    end)
    assert.is_true(failed > 0)
  end)

  it("runs models without chunks, which have nothing but windows and entries", function()
    for _, name in ipairs {"swa", "hca_only"} do
      local model = lsa.model(golden .. name)
      local b, tokens = lsa.batch(model, {memory = "1 MiB"}), {}
      for i = 1, 40 do tokens[i] = i % tonumber(model.config.vocab) end
      local ids = {b:submit{tokens = tokens, n = 5}, b:submit{tokens = tokens, n = 7}}
      local report = b:run()
      assert.same({2, 12}, {report.done, report.tokens})
      assert.same({unpack(b:result(ids[2]).tokens, 1, 5)}, b:result(ids[1]).tokens)
    end
  end)

  it("prints what happened", function()
    local b = lsa.batch(flash, {hot = 64, memory = "1 MiB", most = 2, select = "recency", budget = 6, every = 4})
    for i = 1, 3 do b:submit{tokens = tokens_of(60, i), n = 6} end
    local report = b:run()
    assert.is_true(report.tokens == 18 and report.tokens_per_s > 0 and report.rows_per_step > 1 and report.at_once == 2)
    assert.matches("batch: 0 requests running, 0 queued, 3 done, 0 failed", tostring(report))
    assert.matches("hot pool +64 cells: 0 in use, 0 reserve, 64 free; 0 promised", tostring(b))
    b:close()
    assert.equal("batch (closed)", tostring(b))
    says("the batch is closed", b.step, b)
  end)

  it("forks a request's session, whose cells then have other numbers", function()
    local first, second = request(1, 40), request(4, 40)
    local b = lsa.batch(flash, {hot = 150})
    b:submit(first)
    local id = b:submit(second)
    while not (b:session(id) and b:session(id):tokens() >= #second.tokens + 9) do b:step() end
    local s = b:session(id)
    local fork, step = s:fork(), s:tokens() - #second.tokens + 2
    fork:decode(s:logits():argmax())
    local _, states = alone(second, {}, b:result(id).every)
    assert.is_true(fork:resident():count() > 0)
    assert.same(states[step], state(fork))
    fork:close()
    b:close()
  end)

  it("gives what each gives alone whatever is submitted, cancelled and forked meanwhile", function()
    local seed = os.time() % 1000
    local random, options = rng.new(seed), {hot = 150, evict = "s3fifo", most = 5}
    local templates, expected = {}, {}
    for i = 1, 6 do templates[i] = request(i, 8 + i) end
    local b, which = lsa.batch(flash, options), {}
    for _ = 1, 150 do
      local what = random(10)
      if what < 2 and #which < 30 then
        local i = 1 + random(#templates)
        local id = b:submit(templates[i])
        which[#which + 1] = {id = id, template = i}
      elseif what == 2 and #which > 0 and random(3) == 0 then
        b:cancel(which[1 + random(#which)].id)
      elseif what == 3 and #which > 0 then
        local s = b:session(which[1 + random(#which)].id)
        if s and s:tokens() > 0 then s:fork():decode(1) end
      else
        b:step()
      end
      local c = b:stats().cells
      assert.is_true(c.used + c.reserve + c.free == 150 and c.promised <= 150, "seed " .. seed)
    end
    b:run()
    for _, one in ipairs(which) do
      local result = b:result(one.id)
      if result.state ~= "cancelled" then
        assert.equal("done", result.state, ("seed %d: %s"):format(seed, result.error))
        local key = one.template .. tostring(type(result.every) == "table" and result.every.index)
        expected[key] = expected[key] or alone(templates[one.template], {}, result.every)
        assert.same(expected[key], result.tokens, "seed " .. seed)
      end
    end
    assert.equal(150, b:stats().cells.free)
  end)
end)

describe("ranges of ids", function()
  it("are nobody else's until they are given back, and serve again", function()
    local r = ranges.new()
    assert.same({0, 64}, {r:take(3)})
    assert.same({64, 128}, {r:take(100)})
    assert.same({192, 64}, {r:take(64)})
    r:give(64)
    assert.same({64, 64}, {r:take(1)})
    assert.same({256, 128}, {r:take(65)})
    assert.same({128, 64}, {r:take(64)})
    assert.equal(384, r:span())
    says("7 is no range", r.give, r, 7)
    says("do not fit below 2147483648", r.take, r, 2 ^ 31)
  end)
end)

describe("a hot tier that requests share", function()
  -- A pool of one-byte records, each of which tells its owner and chunk.
  local function new_pool(unit, chunks, tag)
    local out, byte = ffi.new "lsa_pool *[1]", ffi.new "uint8_t[1]"
    assert(C.lsa_pool_new(out, 1, 1, unit) == 0)
    local pool = ffi.gc(out[0], C.lsa_pool_free)
    assert(C.lsa_pool_resize(pool, chunks) == 0)
    for chunk = 0, chunks - 1 do
      byte[0] = (tag * 37 + chunk) % 251
      assert(C.lsa_pool_write(pool, 0, ffi.new("int32_t[1]", chunk), 1, byte) == 0)
    end
    return pool
  end

  local function hot_byte(pool, chunk)
    local slot = ffi.new "int32_t[1]"
    C.lsa_pool_slots(pool, ffi.new("int32_t[1]", chunk), 1, slot)
    if slot[0] < 0 then return nil end
    local r = C.lsa_pool_hot_records(pool, 0, 0)
    return r.blocks[bit.rshift(slot[0], r.block_shift)][bit.band(slot[0], bit.lshift(1, r.block_shift) - 1) * r.stride]
  end

  it("lets nobody take what is left of a set in force whose successor could not be fetched", function()
    local shared, a, b = commons.new(new_pool(1, 0, 0), "lru", 10), new_pool(1, 20, 1), new_pool(1, 20, 2)
    local share_a, share_b = shared:join(a, a, {units = 20, cells = 6}), shared:join(b, b, {units = 20, cells = 4})
    local function ids(...) return set.new(20):add {...} end
    share_b:apply(ids(0, 1, 2, 3), 0)
    share_b:apply(ids(4, 5, 6, 7), 0)
    share_a:apply(ids(0, 1, 2, 3, 4, 5), 0)
    assert.same({0, 0}, {shared:free(), shared:reserve()})
    -- As a disk that refuses leaves it: two have left, what was to come in their place did not, and the eviction object was told of both.
    C.lsa_pool_evict(a, ffi.new("int32_t[2]", 2, 3), 2)
    shared.stale = true
    assert.equal(4, tonumber(C.lsa_pool_held_cells(a)))
    assert.same({2, 0}, {shared:free(), shared:reserve()})
    share_b:apply(ids(8, 9, 10, 11), 0)
    assert.same({0, 1, 4, 5}, share_a:present():ids():totable())
    share_a:apply(ids(0, 1, 2, 3, 4, 5), 0)
    assert.equal(6, share_a:present():intersect_count(ids(0, 1, 2, 3, 4, 5)))
    assert.same({0, 0, 0}, {shared:free(), shared:reserve(), shared:cells() - 10})
  end)

  for _, unit in ipairs {1, 4} do
    for _, evict in ipairs {"lru", "arc", "wtinylfu", "random"} do
      it(("keeps its invariants under random operations: cells of %d, %s"):format(unit, evict), function()
        local seed = 7 * unit + #evict
        local random, CELLS, tags = rng.new(seed), 48, 0
        local owner = new_pool(unit, 0, 0)
        local shared = commons.new(owner, evict, CELLS)
        local live = {} -- {pool, share, tag, residents = {[unit] = true}, chunks, quota, left = births promised}

        local function fits(condition, what, ...)
          if not condition then error(("seed %d: "):format(seed) .. what:format(...), 2) end
        end

        local operations = {}
        function operations.join()
          local quota = 6 + random(12)
          if shared.promised + quota > CELLS then return end
          tags = tags + 1
          local chunks = random(60)
          local pool = new_pool(unit, chunks, tags)
          local share = shared:join(pool, pool, {units = 40, cells = quota})
          live[#live + 1] = {pool = pool, share = share, tag = tags, residents = {}, chunks = chunks, quota = quota, left = 0}
        end
        function operations.leave(m, at)
          m.share:leave()
          C.lsa_pool_free(ffi.gc(m.pool, nil))
          table.remove(live, at)
        end
        function operations.apply(m)
          local units, born = math.ceil(m.chunks / unit), random(4)
          local spare = unit == 1 and born or (born > 0 and math.ceil(born / unit) + 1 or 1)
          local wanted, all = set.new(units), random(m.quota - spare + 2)
          for _ = 1, math.min(all, 3 * units) do
            if units > 0 then wanted:add(random(units)) end
          end
          local before = {}
          for _, other in ipairs(live) do before[other] = other.share:present() end
          if random(12) == 0 then C.lsa_memory_fail_after(random(6)) end
          local ok, problem = pcall(m.share.apply, m.share, wanted, spare)
          C.lsa_memory_fail_after(-1)
          if ok then
            m.residents, m.left = {}, born
            for id in wanted:each() do m.residents[id] = true end
            local returned = wanted:intersect(before[m]):chunks(unit, m.chunks):count()
            fits(problem == returned, "%d hits, %d chunks were present", problem, returned)
          else
            fits(problem:find "out of memory" or wanted:count() + spare > m.quota, "%s", problem)
            -- The set in force is made whole again, as the loop does.
            local old = set.new(units)
            for id in pairs(m.residents) do old:add(id) end
            fits(pcall(m.share.apply, m.share, old, 0), "the old set does not come back")
            m.left = 0
          end
        end
        function operations.birth(m)
          if m.left == 0 or m.chunks >= 150 or m.chunks >= 39 * unit then return end
          m.left = m.left - 1
          fits(C.lsa_pool_resize(m.pool, m.chunks + 1) == 0, "grow")
          fits(C.lsa_pool_adopt(m.pool, m.chunks) == 0, "no cell for a newborn chunk")
          local byte = ffi.new("uint8_t[1]", (m.tag * 37 + m.chunks) % 251)
          fits(C.lsa_pool_publish(m.pool, 0, m.chunks, byte) == 0, "publish")
          m.residents[math.floor(m.chunks / unit)] = true
          m.chunks = m.chunks + 1
        end

        local function check_all()
          local held, idle, promised = 0, 0, 0
          for _, m in ipairs(live) do
            local present = m.share:present()
            fits(present:count() == tonumber(C.lsa_pool_held_cells(m.pool)), "held cells")
            for id in pairs(m.residents) do
              fits(present:has(id), "unit %d of request %d is resident and has no cell", id, m.tag)
              fits(not shared.idle:has(m.share.base + id), "unit %d of request %d is resident and may leave", id, m.tag)
            end
            for id in present:each() do
              for chunk = id * unit, math.min(m.chunks, (id + 1) * unit) - 1 do
                fits(hot_byte(m.pool, chunk) == (m.tag * 37 + chunk) % 251, "chunk %d of request %d has other bytes", chunk,
                  m.tag)
              end
              if shared.idle:has(m.share.base + id) then idle = idle + 1 end
            end
            held, promised = held + present:count(), promised + m.quota
          end
          fits(held + shared:free() == CELLS, "%d cells are held and %d free", held, shared:free())
          fits(idle == shared:reserve(), "%d idle units are present, %d are known", idle, shared:reserve())
          fits(promised == shared.promised, "promises")
        end

        local names = {"apply", "apply", "apply", "birth", "birth", "join", "leave"}
        for _ = 1, 800 do
          local name, at = names[1 + random(#names)], 1 + random(math.max(1, #live))
          if name == "leave" and random(6) > 0 then name = "birth" end
          if name == "join" then operations.join()
          elseif live[at] then operations[name](live[at], at) end
          check_all()
        end
      end)
    end
  end
end)
