-- Replay of recorded sessions against the sessions themselves.
local lsa = require "lsa"
local rng = require "lsa.rng"
local files = require "file_support"

local golden = require("lsa.ffi").root .. "/tests/golden/"

local function tokens_of(model, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

-- A session run and recorded: prefill, decode, a second prefill, decode.
local function live(model, options, path)
  local s = model:session(options)
  s:prefill(tokens_of(model, 90, 1))
  s:record(path)
  for _, token in ipairs(tokens_of(model, 60, 2)) do s:decode(token) end
  s:prefill(tokens_of(model, 20, 3))
  for _, token in ipairs(tokens_of(model, 30, 4)) do s:decode(token) end
  s:record(false)
  return s
end

local columns = {"t", "n", "tau", "selected", "resident", "kept", "hits", "fetched_chunks", "fetched_bytes", "evicted_chunks",
  "coverage"}

describe("replay", function()
  local model = lsa.model(golden .. "flash")

  local runs = {
    {select = "lsa_topk", budget = 0.4, every = 8},
    {select = "lsa_topk", budget = 0.4, every = 8, kv = "f32", hot = 30, evict = "fifo"},
    {select = {"random"}, budget = 0.3, every = 7, hot = 24, seed = 5},
    {select = "native_topk", budget = 12, every = 5, sink = 1, tail = 2},
    {select = "recency", budget = 0.5, every = 16, granularity = "page", page = 4},
    {select = "stride", budget = 0.25, every = 6, async = true},
    {select = {"lsa_threshold", theta = 0.9}, budget = 1, every = "jaccard"},
    {select = "full"},
  }
  for i, options in ipairs(runs) do
    it(("has the counts of the live run that was recorded: %s, case %d"):format(tostring(options.select[1] or options.select), i), function()
      files.with_folder(function(folder)
        local s = live(model, options, folder .. "/trace.safetensors")
        local r = lsa.replay(folder .. "/trace.safetensors")
        local a, b = s:cycles(), r:cycles()
        assert.equal(#a, #b)
        for row = 1, #a do
          for _, name in ipairs(columns) do assert.equal(a[row][name], b[row][name], name .. " of cycle " .. row) end
        end
        local x, y = s:stats(), r:stats()
        for _, name in ipairs {"steps", "cycles", "fetched_chunks", "fetched_bytes", "evicted_chunks", "hits", "resident_bytes",
          "resident_pct", "coverage", "kv_bytes"} do
          assert.equal(x[name], y[name], name)
        end
        assert.is_false(r.open_loop)
        assert.matches("as recorded", tostring(r))
      end)
    end)
  end

  it("runs other policies, and says that it is open-loop", function()
    files.with_folder(function(folder)
      local path = folder .. "/trace.safetensors"
      live(model, runs[1], path)
      local best
      local r = lsa.replay(path, {select = function(cycle)
        best = cycle.future.native
        return cycle.future.counts:topk(cycle.room)
      end})
      assert.is_true(r.open_loop)
      assert.is_true(best:count() > 0)
      assert.is_true(r:stats().step_coverage > lsa.replay(path, {select = "recency"}):stats().step_coverage)
      assert.equal(1, lsa.replay(path, {select = "full"}):stats().step_coverage)
      -- What the policy cannot see in a recording is an error that the loop reports, not a crash.
      assert.equal(90, lsa.replay(path, {every = 1}):stats().steps)
    end)
  end)

  it("refuses files that are no recordings", function()
    local ok, e = pcall(lsa.replay, golden .. "csa/golden.safetensors")
    assert.is_false(ok)
    assert.matches("is no recording of a session", e)
  end)
end)
