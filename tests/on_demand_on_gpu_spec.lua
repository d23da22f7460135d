-- On demand on a GPU, whose steps find, fetch and evict by themselves: full attention's logits to the bit, and the CPU's counts.
-- Without a GPU, on a stub (tests/stub_support.lua).
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local tokens = require("token_support").random
local stub = require "stub_support"

local C = lib.C
local folder = lib.root .. "/tests/golden/flash"

if C.lsa_device_count() == 0 then
  describe("on demand on a GPU", function()
    it("is right on a stub", function() assert.is_nil(stub.failure_of "on_demand_on_gpu_spec.lua") end)
  end)
  return
end

local function bits(t)
  local host = t:to "cpu":contiguous()
  return ffi.string(host.c.data, host:bytes())
end

local COUNTED = {"steps", "hits", "misses", "fetched_chunks", "fetched_bytes", "evicted_chunks", "prefetched_chunks", "cycles", "failed", "resident_bytes"}

local function same_counts(a, b)
  local p, q = a:stats(), b:stats()
  for _, name in ipairs(COUNTED) do assert.equal(p[name], q[name], name) end
  assert.is_true(a:resident():equals(b:resident()))
end

describe("on demand on a GPU", function()
  local cpu, gpu = lsa.model(folder, {device = "cpu"}), lsa.model(folder, {device = "cuda"})
  local need = tonumber(gpu.config.index_topk) * #gpu.csa_layers
  -- Both at the same tokens, those that the GPU draws: 40 steps in one call there, one at a time here.
  local function together(s, t, n)
    local first = t:draw(0)
    local out = t:generate{n = n}
    assert.equal(first, out[1])
    for _, token in ipairs(out) do s:decode(token) end
    return out
  end

  for _, way in ipairs {{hot = 3}, {hot = 40}, {hot = 400}, {}, {hot = 40, select = "recency", every = 5, budget = 9},
    {hot = 60, select = "lsa_topk", every = 3, budget = 20}, {select = "random", every = 7, budget = 0.3}} do
    it(("has full attention's logits and the CPU's counts: hot %s, select %s"):format(tostring(way.hot), tostring(way.select)), function()
      local options = {on_demand = true, kv = "f32"}
      for name, value in pairs(way) do options[name] = value end
      options.hot = way.hot and need + way.hot
      local s, t, full = cpu:session(options), gpu:session(options), gpu:session{select = "full", kv = "f32"}
      for round = 1, 2 do
        local prompt = tokens(gpu, 170, round)
        s:prefill(prompt)
        assert.is_true(bits(t:prefill(prompt)) == bits(full:prefill(prompt)))
        for i, token in ipairs(together(s, t, 41)) do
          full:decode(token)
          if i == 41 then assert.is_true(bits(t:logits()) == bits(full:logits())) end
        end
        same_counts(s, t)
        for i, token in ipairs(tokens(gpu, 9, round + 7)) do
          s:decode(token)
          assert.is_true(bits(t:decode(token)) == bits(full:decode(token)), "step " .. i)
        end
        same_counts(s, t)
      end
      local fork, cut = t:fork(), s:fork()
      together(cut, fork, 20)
      same_counts(cut, fork)
      local misses = t:stats().misses
      assert.is_true(misses > 0 and t:stats().transfer_stall_ms > 0)
    end)
  end

  it("ends at a stop id, saves, and goes on as the CPU does", function()
    local options = {on_demand = true, hot = need + 9, kv = "f32"}
    local s, t = cpu:session(options), gpu:session(options)
    s:prefill(tokens(cpu, 200, 3))
    t:prefill(tokens(cpu, 200, 3))
    local all = t:fork():generate{n = 30}
    local out, ended = t:generate{n = 30, stop = {all[17]}}
    assert.same({"stopped", all[17]}, {ended, out[#out]})
    for i = 1, #out - 1 do s:decode(out[i]) end
    same_counts(s, t)
    local path = os.tmpname()
    t:save(path)
    local restored = gpu:restore(path)
    os.remove(path)
    for _, token in ipairs(tokens(cpu, 12, 5)) do
      s:decode(token)
      assert.is_true(bits(restored:decode(token)) == bits(t:decode(token)))
    end
    same_counts(s, t)
    same_counts(s, restored)
  end)

  it("shares a batch's hot pool, with full attention's logits and the CPU's counts", function()
    C.lsa_cpu_limit(C.LSA_CPU_GENERIC)
    local b, twins = lsa.batch(gpu, {hot = 4 * need, kv = "f32", stagger = false}), {}
    local requests = {{hot = need, on_demand = true}, {hot = need + 20, on_demand = true, select = "recency", every = 6, budget = 9},
      {select = "recency", budget = 8, every = 4}, {hot = need + 3, on_demand = true}}
    for i, r in ipairs(requests) do
      r.tokens, r.n = tokens(gpu, 140 + 20 * i, i), 30
      b:submit(r)
    end
    while b:step() > 0 do
      for id, r in ipairs(requests) do
        local s = b:session(id - 1)
        if s and r.on_demand and s:stats().steps > 0 then
          local twin, full = unpack(twins[id] or {})
          local out = b:result(id - 1).tokens
          if not twin then
            local first = {unpack(r.tokens, 1, #r.tokens - 1)}
            twin, full = cpu:session{on_demand = true, kv = "f32", hot = r.hot, select = r.select, every = r.every, budget = r.budget},
              gpu:session{select = "full", kv = "f32"}
            twin:prefill(first)
            full:prefill(first)
            twins[id] = {twin, full}
          end
          while full:tokens() < s:tokens() do
            local token = full:tokens() < #r.tokens and r.tokens[full:tokens() + 1] or out[full:tokens() - #r.tokens + 1]
            full:decode(token)
            twin:decode(token)
          end
          if stub.here then -- where a row has the same bits in any pass
            assert.is_true(bits(s:logits()) == bits(full:logits()), "request " .. id)
            same_counts(twin, s)
          end
        end
      end
    end
    local report = b:stats()
    assert.same({4, report.cells.total, 0}, {report.done, report.cells.free, report.cells.promised})
    assert.is_true(report.rows[1].stats.misses > 0 and report.rows[1].stats.evicted_chunks > 0)
    for id, r in ipairs(requests) do
      local full = gpu:session{select = "full", kv = "f32"}
      full:prefill {unpack(r.tokens, 1, #r.tokens - 1)}
      full:decode(r.tokens[#r.tokens])
      if r.on_demand then assert.same(full:generate{n = r.n}, b:result(id - 1).tokens) end
    end
    b:close()
    C.lsa_cpu_limit(C.lsa_cpu_best())
  end)

  it("is as it was after any call of the GPU that failed", function()
    local base = gpu:session{on_demand = true, hot = need + 3, kv = "f32"}
    base:prefill(tokens(gpu, 120, 1))
    base:generate{n = 20}
    local want, refused = base:fork():generate{n = 6}, 0
    for n = 0, 60 do
      local s = base:fork()
      C.lsa_device_fail_after(n)
      local ok, result = pcall(s.generate, s, {n = 6})
      C.lsa_device_fail_after(-1)
      local had = s:tokens() - base:tokens()
      if not ok then
        refused, result = refused + 1, {}
        for i = 1, had do result[i] = want[i] end
        for _, token in ipairs(s:generate{n = 6 - had}) do result[#result + 1] = token end
      end
      assert.same(want, result, "call " .. n)
      s:close()
    end
    assert.is_true(refused > 0)
  end)
end)
