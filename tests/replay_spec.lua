-- Replay of recorded sessions against the sessions themselves.
local cjson = require "cjson"
local ffi = require "ffi"
local lsa = require "lsa"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local files = require "file_support"
local process = require "process_support"

local C = require("lsa.ffi").C

local golden = require("lsa.ffi").root .. "/tests/golden/"

local function tokens_of(model, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

-- A session run and recorded: prefill, decode, a second prefill, decode.
local function live(model, options, path)
  local measured = {coverage = true}
  for name, value in pairs(options) do measured[name] = value end
  local s = model:session(measured)
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

  it("evicts by belady, of whom no eviction policy fetches less", function()
    files.with_folder(function(folder)
      local path = folder .. "/trace.safetensors"
      live(model, {select = "lsa_topk", budget = 0.4, every = 4}, path):close()
      local fetched, differ = {}, false
      for _, name in ipairs {"belady", "lru", "fifo", "random", "sieve", "arc"} do
        local r = lsa.replay(path, {select = "random", every = 4, budget = 0.2, hot = 16, evict = name})
        assert.equal(0, r:stats().policy_errors)
        assert.is_true(r:stats().evicted_chunks > 0)
        fetched[name] = r:stats().fetched_chunks
      end
      for name, count in pairs(fetched) do
        assert.is_true(fetched.belady <= count, name)
        differ = differ or fetched.belady < count
      end
      assert.is_true(differ)
      assert.equal(fetched.belady, lsa.replay(path, {select = "random", every = 4, budget = 0.2, hot = 16, evict = {"belady"}}):stats().fetched_chunks)
    end)
  end)

  it("runs the oracles that a recording knows", function()
    files.with_folder(function(folder)
      local path = folder .. "/trace.safetensors"
      live(model, {select = "lsa_topk", budget = 0.4, every = 8}, path):close()
      local best = lsa.replay(path, {select = "oracle_native", budget = 1})
      assert.equal(0, best:stats().policy_errors)
      assert.equal(1, best:stats().step_coverage)
      local within = lsa.replay(path, {select = "oracle_budget", budget = 0.2, tail = 0}):stats()
      assert.equal(0, within.policy_errors)
      assert.is_true(within.step_coverage >= lsa.replay(path, {select = "random", budget = 0.2, tail = 0}):stats().step_coverage)
      local mixed = lsa.replay(path, {select = {"hybrid", of = {"recency", "oracle_budget"}}, budget = 0.2}):stats()
      assert.equal(0, mixed.policy_errors)
    end)
  end)

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
          if not options.async then -- every resident chunk was there or came: all are chunks, of pages too
            assert.equal(a[row].resident, a[row].hits + a[row].fetched_chunks)
          end
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

  -- A trace with what `change` makes of its tensors and of its metadata's text.
  local function changed(folder, change)
    local path = folder .. "/trace.safetensors"
    local tensors, metadata = lsa.load(path)
    local copy = {}
    for name, t in pairs(tensors) do copy[name] = t:copy() end
    metadata.about = change(copy, metadata.about) or metadata.about
    lsa.save(folder .. "/changed.safetensors", copy, metadata)
    return folder .. "/changed.safetensors"
  end

  local endings = {
    ["the script's end"] = {"", 0},
    ["an error"] = {"error 'as it happens'", 1},
    ["os.exit"] = {"os.exit(3)", 3},
    ["garbage collection"] = {"s = nil; collectgarbage(); collectgarbage()", 0},
    ["Ctrl-C"] = {"ffi.C.kill(ffi.C.getpid(), 2); while true do s:decode(1) end", 130},
    ["kill"] = {"ffi.C.kill(ffi.C.getpid(), 9)", 137},
  }
  for name, ending in pairs(endings) do
    it("reads what was recorded before " .. name, function()
      files.with_folder(function(folder)
        local path = folder .. "/trace.safetensors"
        local script = process.write(folder .. "/script.lua", ([[
          local ffi = require "ffi"
          ffi.cdef "int kill(int, int); int getpid(void);"
          local lsa = require "lsa"
          local s = lsa.model(%q):session{select = "recency", budget = 0.2, every = 50}
          s:record(%q)
          assert(lsa.replay(%q):stats().steps == 0) -- the file is there
          s:prefill(("some text "):rep(20))
          for i = 1, 600 do s:decode(i %% 256) end
          %s]]):format(lsa.root .. "/experiments/models/needle", path, path, ending[1]))
        local _, err, code = process.lsa {script}
        assert.equal(ending[2], code, err)
        local r = lsa.replay(path)
        local steps = r:stats().steps
        assert.equal(name == "kill" and "601 rows; it is being written, or who wrote it was killed" or nil, r.unfinished)
        assert.equal(name == "kill", tostring(r):find("as recorded; unfinished: 601 rows", 1, true) ~= nil)
        if name == "Ctrl-C" then assert.is_true(steps >= 600, steps)
        else assert.equal(600, steps) end
        assert.equal("script.lua trace.safetensors", (files.names(folder)))
      end)
    end)
  end

  -- Every tensor of the one is the other's, or the beginning of it.
  local function assert_begins(part, whole)
    local metadata, of_whole
    part, metadata = lsa.load(part)
    whole, of_whole = lsa.load(whole)
    assert.same(cjson.decode(of_whole.about), cjson.decode(metadata.about))
    for name, t in pairs(part) do
      local shape, full = t:shape(), whole[name]:shape()
      assert.equal(full[2], shape[2], name)
      assert.is_true(shape[1] <= full[1], name)
      if shape[1] > 0 then
        assert.equal(ffi.string(t.c.data, t:bytes()), ffi.string(whole[name].c.data, t:bytes()), name)
      end
    end
    for name in pairs(whole) do
      if not name:find "^observed" and not name:find "scores" then assert.truthy(part[name], name) end
    end
    return part.positions:count(), metadata.unfinished
  end

  it("reads of a killed run what was recorded, up to the last whole row", function()
    files.with_folder(function(folder)
      local script = process.write(folder .. "/script.lua", ([[
        local lsa = require "lsa"
        local s = lsa.model(%q):session{select = "lsa_topk", budget = 0.3, every = 7, seed = 3}
        s:prefill(("some text "):rep(20))
        s:record(arg[1])
        for i = 1, 40 do s:decode(i) end
        s:generate{n = 60, temperature = 1}
        s:prefill "and more of it"
        s:generate{n = 50, temperature = 1}]]):format(lsa.root .. "/experiments/models/needle"))
      local _, err, code = process.lsa {script, folder .. "/whole"}
      assert.equal(0, code, err)
      local counts, n, killed = {}, 2, 0
      repeat
        os.remove(folder .. "/part")
        _, _, code = process.shell(process.killed_at(n, script, process.quote(folder .. "/part")) .. " 2>/dev/null")
        if code == 137 and files.read(folder .. "/part") then
          killed = killed + 1
          local rows, unfinished = assert_begins(folder .. "/part", folder .. "/whole")
          counts[#counts + 1] = rows
          assert.matches("^" .. rows .. " rows", unfinished)
          if rows > 0 then assert.equal(rows - (rows > 101 and 2 or 1), lsa.replay(folder .. "/part"):stats().steps) end
        end
        n = math.ceil(n * 1.25)
      until code ~= 137
      assert.equal(0, code)
      assert.is_true(killed >= 8, killed .. " runs were killed")
      for i = 2, #counts do assert.is_true(counts[i] >= counts[i - 1]) end
      assert.is_true(counts[#counts] > 100 and counts[1] < 20, table.concat(counts, " "))
      local rows, unfinished = assert_begins(folder .. "/part", folder .. "/whole")
      assert.same({152}, {rows, unfinished})
    end)
  end)

  it("reads unfinished recordings that are cut or damaged, up to there", function()
    files.with_folder(function(folder)
      local s = model:session{select = "lsa_topk", budget = 0.4, every = 4}
      s:prefill(tokens_of(model, 90, 1))
      s:record(folder .. "/live")
      assert.has_error(function() model:session():record(folder .. "/live") end)
      s:generate{n = 40}
      local bytes = files.read(folder .. "/live")
      s:close()
      local random, most = rng.new(5), -1
      for at = 1, 300 do
        local n = at == 300 and #bytes or random(#bytes)
        local cut = bytes:sub(1, n)
        if at % 2 == 1 then cut = cut .. string.char((bytes:byte(n + 1) + 1 + random(255)) % 256) .. bytes:sub(n + 2) end
        files.write(folder .. "/cut", cut)
        local ok, rows = pcall(assert_begins, folder .. "/cut", folder .. "/live")
        if ok then
          most = math.max(most, rows)
          lsa.replay(folder .. "/cut")
        else
          assert.is_true(n < 6000, rows)
          assert.matches("/cut", rows)
        end
      end
      assert.equal(41, most)
    end)
  end)

  it("goes on in memory where its file cannot be appended to", function()
    files.with_folder(function(folder)
      local s, said = model:session{select = "recency", budget = 0.3}, {}
      s:prefill(tokens_of(model, 90, 1))
      s:record(folder .. "/trace")
      local warn = registry.warn
      registry.warn = function(text) said[#said + 1] = text end
      C.lsa_io_fail_after(0)
      local ok, problem = pcall(s.generate, s, {n = 40})
      C.lsa_io_fail_after(-1)
      registry.warn = warn
      assert.is_true(ok, problem)
      assert.equal(1, #said)
      assert.matches("record: .*/trace: .*Input/output error; the recording goes on in memory", said[1])
      assert.matches("^1 rows", lsa.replay(folder .. "/trace").unfinished)
      s:close()
      local r = lsa.replay(folder .. "/trace")
      assert.same({40}, {r:stats().steps, r.unfinished})
    end)
  end)

  it("refuses a path that cannot be written before anything is recorded", function()
    local s = model:session{select = "recency"}
    assert.has_error(function() s:record "/no/such/folder/trace.safetensors" end)
    s:prefill {1, 2, 3}
    s:close()
  end)

  it("says which cycles failed and which were clipped", function()
    files.with_folder(function(folder)
      local path = folder .. "/trace.safetensors"
      live(model, {select = "lsa_topk", budget = 0.4, every = 8}, path)
      local failing = lsa.replay(path, {select = function(cycle) return cycle.keep:invert() end, budget = 0.2})
      local stats = failing:stats()
      assert.same({stats.cycles, 0}, {stats.failed, stats.clipped})
      assert.matches(("%d of %d cycles failed; the last: "):format(stats.cycles, stats.cycles), tostring(failing), nil, true)
      local clipped = lsa.replay(path, {select = {"lsa_threshold", theta = -1}, budget = 0.2})
      stats = clipped:stats()
      assert.same({0, stats.cycles}, {stats.failed, stats.clipped})
      assert.matches(("%d of %d cycles clipped to the budget"):format(stats.cycles, stats.cycles), tostring(clipped), nil, true)
      assert.is_nil(tostring(lsa.replay(path)):find "clipped")
    end)
  end)

  it("takes scores that cycles had from the recording, and computes others, with the same counts", function()
    files.with_folder(function(folder)
      live(model, {select = "lsa_topk", budget = 0.4, every = 8}, folder .. "/trace.safetensors")
      local path = folder .. "/trace.safetensors"
      local bare = changed(folder, function(t)
        local found = 0
        for name in pairs(t) do
          if name:find "scores" then
            t[name] = nil
            found = found + 1
          end
        end
        assert.equal(2 * (#model.csa_layers + 1), found)
      end)
      for _, opt in ipairs {{}, {every = 4}, {every = 5}, {select = "lsa_page_max", page = 4}, {select = "native_topk"},
        {select = {"lsa_threshold", theta = 0.4}, budget = 1}} do
        local a, b = lsa.replay(path, opt), lsa.replay(bare, opt)
        assert.same(a:cycles()[1].resident, b:cycles()[1].resident)
        for _, name in ipairs {"cycles", "fetched_chunks", "hits", "resident_bytes", "step_coverage", "coverage"} do
          assert.equal(a:stats()[name], b:stats()[name], name)
        end
      end
      -- Scores are what the file says: others there, other sets.
      local other = changed(folder, function(t) t.ensemble_scores:fill(0) end)
      assert.not_equal(lsa.replay(path):stats().step_coverage, lsa.replay(other):stats().step_coverage)
    end)
  end)

  it("runs no file that the recording names, unless it is trusted", function()
    files.with_folder(function(folder)
      local policy, path = folder .. "/policy.lua", folder .. "/trace.safetensors"
      files.write(policy, "return function(cycle) return cycle.newest() end")
      live(model, {select = {"dilate", of = policy}, budget = 0.4, every = 8}, path)
      files.write(policy, ("io.open(%q, 'w'):close() return function(cycle) return cycle.newest() end"):format(folder .. "/ran"))
      local ok, message = pcall(lsa.replay, path)
      assert.is_false(ok)
      assert.matches("trace.safetensors: it names select = \"[^\"]*/policy.lua\"", message)
      lsa.replay(path, {select = "recency"})
      assert.is_nil(files.read(folder .. "/ran"))
      lsa.replay(path, {trust = true})
      assert.equal("", files.read(folder .. "/ran"))
    end)
  end)

  it("refuses recordings that do not fit together, by tensor and value", function()
    files.with_folder(function(folder)
      live(model, {select = "lsa_topk", budget = 0.4, every = 8}, folder .. "/trace.safetensors")
      local function refused(pattern, change)
        local ok, message = pcall(lsa.replay, changed(folder, change))
        assert.is_false(ok, pattern)
        assert.matches(pattern, message)
        assert.matches("changed%.safetensors", message)
      end
      refused("no tensor decoded", function(t) t.decoded = nil end)
      refused("positions is i32", function(t) t.positions = t.positions:to "i32" end)
      refused("position 5 of row 3; ascending ones", function(t) t.positions:set(3, 5) end)
      refused("position 1000000 of row %d+; ascending ones below 200", function(t) t.positions:set(t.positions:count() - 1, 1e6) end)
      refused("native_layer_1: chunk 4000 at place 0 of row 2", function(t) t.native_layer_1:set(2, 0, 4000) end)
      refused("picked_layer_0: chunk %-2 at place 0", function(t) t.picked_layer_0:set(0, 0, -2) end)
      refused("picked_layer_0: chunk 0 at place 1", function(t)
        t.picked_layer_0:set(4, 0, 0)
        t.picked_layer_0:set(4, 1, 0)
      end)
      refused("mass_layer_0 is f32 %[%d+, %d+%]; f32 %[%d+, %d+%] is wanted", function(t) t.mass_layer_0 = t.mass_layer_0:narrow(1, 0, 1):copy() end)
      refused("compk_layer_1", function(t) t.compk_layer_1 = t.compk_layer_1:narrow(0, 0, 5):copy() end)
      refused("memory_query_layer_0", function(t) t.memory_query_layer_0 = nil end)
      refused("ensemble_scores_rows: row 900", function(t) t.ensemble_scores_rows:set(0, 900) end)
      refused("ensemble_scores is f32", function(t) t.ensemble_scores = t.ensemble_scores:narrow(0, 0, 7):copy() end)
      refused("observed_used_layer_0_0", function(t) t.observed_used_layer_0_0 = lsa.zeros({3}, "i32") end)
      refused("label_pointers: 7 of row 1", function(t)
        t.label_pointers, t.label_indices = lsa.zeros({t.positions:count() + 1}, "i32"), lsa.zeros({2}, "i32")
        t.label_pointers:set(1, 7)
      end)
      refused("csa_rate is 0", function(_, about) return (about:gsub('"csa_rate":%d+', '"csa_rate":0')) end)
      refused("target layer 7", function(_, about) return (about:gsub('"layers":%[0', '"layers":[7')) end)
      refused("kv is f8", function(_, about) return (about:gsub('"kv":"fp8"', '"kv":"f8"')) end)
      refused("no recording", function() return "{" end)
    end)
  end)

  it("survives damaged recordings", function()
    files.with_folder(function(folder)
      live(model, {select = "lsa_topk", budget = 0.4, every = 8}, folder .. "/trace.safetensors")
      local bytes, random = files.read(folder .. "/trace.safetensors"), rng.new(11)
      local refused = 0
      for _ = 1, 300 do
        local parts, at = {}, 0
        for _ = 1, 1 + random(3) do -- most of what matters is in the header and in ids
          local place = at + random(random(2) == 0 and math.min(6000, #bytes - at) or #bytes - at)
          parts[#parts + 1] = bytes:sub(at + 1, place) .. string.char(random(256))
          at = math.min(#bytes, place + 1)
          if at == #bytes then break end
        end
        parts[#parts + 1] = bytes:sub(at + 1)
        files.write(folder .. "/damaged.safetensors", table.concat(parts))
        local ok, message = pcall(lsa.replay, folder .. "/damaged.safetensors")
        if not ok then
          assert.equal("string", type(message))
          refused = refused + 1
        end
      end
      assert.is_true(refused > 50, refused .. " were refused")
    end)
  end)
end)
