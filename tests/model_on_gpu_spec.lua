-- A whole model on a GPU: the CPU's logits within rounding and the CPU's resident sets, in every way of decoding. Without a GPU, an
-- error that says what is missing.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local tokens = require("token_support").random
local files = require "file_support"

local C = lib.C
local golden = lib.root .. "/tests/golden/"
local here = C.lsa_device_count() > 0

-- The largest difference, against the largest value of b.
local function distance(a, b)
  local worst, largest = 0, 0
  local p, q = ffi.cast("const float *", a.c.data), ffi.cast("const float *", b.c.data)
  for i = 0, a:count() - 1 do
    local off = math.abs(p[i] - q[i])
    if not (off <= worst) then worst = off end
    largest = math.max(largest, math.abs(q[i]))
  end
  return worst / largest
end

local WAYS = {{select = "full"}, {select = "recency", budget = 6, every = 4}, {select = "lsa_topk", budget = 0.5, every = 3, hot = 60},
  {on_demand = true}, {on_demand = true, select = "recency", every = 4, budget = 6}}
-- bf16 records round keys that differ by a bit to one side or the other.
local BOUNDS = {f32 = 2e-5, bf16 = 1e-3, fp8 = 2e-5}

describe("a model on a GPU", function()
  if not here then
    it("is an error that says what is missing where there is none", function()
      local ok, message = pcall(lsa.model, golden .. "csa", {device = "cuda"})
      assert.is_false(ok)
      assert.matches("no device: ", message)
    end)
    return
  end

  for _, name in ipairs {"swa", "hca", "csa", "hash", "experts", "flash", "odd"} do
    it("has the CPU's logits and residents: " .. name, function()
      local cpu, gpu = lsa.model(golden .. name, {device = "cpu"}), lsa.model(golden .. name, {device = "cuda"})
      for _, kv in ipairs(name == "odd" and {"f32", "bf16"} or {"f32", "bf16", "fp8"}) do
        for _, way in ipairs(WAYS) do
          if #cpu.csa_layers > 0 or way.select == "full" then
            local options = {kv = kv}
            for key, value in pairs(way) do options[key] = value end
            local s, t = cpu:session(options), gpu:session(options)
            local prompt = tokens(cpu, 70, 1)
            local off = distance(t:prefill(prompt, {all = true}), s:prefill(prompt, {all = true}))
            assert.is_true(off <= BOUNDS[kv], ("prefill, %s: %g"):format(kv, off))
            for i, token in ipairs(tokens(cpu, 14, 2)) do
              off = distance(t:decode(token), s:decode(token))
              assert.is_true(off <= BOUNDS[kv], ("step %d, %s: %g"):format(i, kv, off))
            end
            if #cpu.csa_layers > 0 then assert.is_true(s:resident():equals(t:resident())) end
            local fork = t:fork()
            assert.same(t:generate{n = 6}, fork:generate{n = 6})
          end
        end
      end
    end)
  end

  it("has the set of what reaches a threshold without its scores", function()
    local model, seen = lsa.model("needle", {device = "cuda"}), 0
    local s = model:session{budget = 0.5, every = 2, select = function(cycle)
      local thetas, sets = {0, 0.1, 0.5, 2}, {}
      for i, theta in ipairs(thetas) do sets[i] = cycle.reached(theta) end
      assert.is_nil(rawget(cycle, "scores"))
      for i, theta in ipairs(thetas) do
        assert.is_true(sets[i]:equals(cycle.scores:ge(theta)))
        seen = seen + sets[i]:count()
      end
      return cycle.clip(sets[2])
    end}
    s:prefill(tokens(model, 600, 1))
    s:generate{n = 6}
    assert.is_true(seen > 0)
    assert.equal(0, s:stats().policy_errors)
  end)

  it("takes many requests, each with what it gives alone", function()
    local model = lsa.model(golden .. "flash", {device = "cuda"})
    local batch, alone = lsa.batch(model, {select = "recency", budget = 8, every = 4, kv = "f32"}), {}
    for i = 1, 5 do
      local prompt = tokens(model, 30 + 9 * i, i)
      local s = model:session{select = "recency", budget = 8, every = 4, kv = "f32"}
      local last = table.remove(prompt)
      s:prefill(prompt)
      s:decode(last)
      alone[i] = s:generate{n = 7}
      prompt[#prompt + 1] = last
      batch:submit{tokens = prompt, n = 7}
    end
    batch:run()
    for i = 1, 5 do assert.same(alone[i], batch:result(i - 1).tokens) end
  end)

  it("answers alike with its cold tier on disk, at once and in the background", function()
    local model, prompt = lsa.model("needle", {device = "cuda"}), {}
    for i = 1, 6000 do prompt[i] = (i * i * 7 + i) % 250 end
    local function answer(options)
      local s = model:session{select = "lsa_topk", budget = 0.1, every = 8, cold = options.cold, async = options.async}
      s:prefill(prompt)
      local ids = s:generate{n = 40}
      assert.is_true(s:stats().fetched_chunks > 100)
      return ids
    end
    files.with_folder(function(folder)
      for _, async in ipairs {false, true} do
        assert.same(answer{async = async}, answer{async = async, cold = "disk:" .. folder})
      end
      local ok, message = pcall(model.session, model, {on_demand = true, cold = "disk:" .. folder})
      assert.is_false(ok)
      assert.matches('cold is "disk:.*"; what on_demand misses on a GPU comes from memory', message)
    end)
  end)

  it("decodes under a policy that scores with a kernel of its own", function()
    if not require("lsa.cuda.compiler").version() then return end
    local s = lsa.model(golden .. "flash", {device = "cuda"}):session{select = lib.root .. "/experiments/own_kernel.lua", budget = 6, every = 3,
      strict = true}
    s:prefill(tokens(s.model, 70, 1))
    s:generate{n = 9}
    assert.equal(0, s:stats().failed)
    assert.is_true(s:resident():count() > 0)
  end)
end)
