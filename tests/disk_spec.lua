-- Sessions whose cold tier is on disk: the same bits as in memory, whatever moves, fails or is forked.
local ffi = require "ffi"
local lsa = require "lsa"
local long = require "long_support"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local support = require "file_support"
local C = require("lsa.ffi").C

local N = 9000 -- two segments and a bit

local function options(folder, more)
  local out = {select = {"random"}, budget = 0.1, every = 16, cold = "disk:" .. folder}
  for name, value in pairs(more or {}) do out[name] = value end
  return out
end

-- Prefills n tokens and decodes m; a list of the decoded logits' bytes.
local function run(s, n, m, seed)
  local random, out = rng.new(seed or 3), {}
  if n > 0 then s:prefill(long.tokens(s.model, n, random)) end
  for i = 1, m do out[i] = long.bytes(s:decode(random(64))) end
  return out
end

local function assert_same(expected, got)
  assert.equal(#expected, #got)
  for i = 1, #expected do assert.is_true(expected[i] == got[i], "step " .. i) end
end

local function spilled(s) return C.lsa_pool_spilled(s.pool) == 1 end

-- Runs f with the registry's warnings collected.
local function quiet(f)
  local said, warn = {}, registry.warn
  registry.warn = function(text) said[#said + 1] = text end
  local ok, e = pcall(f, said)
  registry.warn = warn
  assert(ok, e)
end

describe("a session with its cold tier on disk", function()
  for name, case in pairs {
    ["fp8 records"] = {kv = "fp8"}, ["f32 records, a fixed pool"] = {kv = "f32", hot = 400, evict = "lru"},
    ["pages"] = {granularity = "page", page = 32}, ["asynchronous cycles"] = {select = "lsa_topk", async = true},
    ["everything resident"] = {select = "recency", budget = 1},
  } do
    it("decodes the same bits as one in memory: " .. name, function()
      long.with_model("flash", function(model, folder)
        local s = model:session(options(folder, case))
        local got = run(s, N, 70)
        assert.is_true(spilled(s))
        case.cold = "ram"
        local ram = model:session(options(folder, case))
        assert_same(run(ram, N, 70), got)
        local a, b = s:stats(), ram:stats()
        assert.same({b.fetched_bytes, b.evicted_chunks, b.hits, b.resident_pct}, {a.fetched_bytes, a.evicted_chunks, a.hits, a.resident_pct})
        assert.is_true(a.cold_bytes < b.cold_bytes / 3 and a.disk_bytes > 0 and b.disk_bytes == 0)
      end)
    end)
  end

  it("keeps everything in memory until the first cycle, and has it back for a prefill", function()
    long.with_model("flash", function(model, folder)
      local s, ram = model:session(options(folder)), model:session(options(folder, {cold = "ram"}))
      for round = 1, 2 do
        local a, b = {}, {}
        for i, t in ipairs {s, ram} do
          local logits = t:prefill(long.tokens(model, N, rng.new(round)))
          assert.is_false(spilled(t))
          local out = run(t, 0, 20, round)
          out[#out + 1] = long.bytes(logits);
          ({a, b})[i].out = out
        end
        assert.is_true(spilled(s))
        assert_same(b.out, a.out)
      end
    end)
  end)

  it("spills what decode makes, once it is a whole segment", function()
    long.with_model("csa", function(model, folder)
      local s = model:session(options(folder, {budget = 20, every = 8}))
      local ram = model:session(options(folder, {budget = 20, every = 8, cold = "ram"}))
      run(s, 4000, 0)
      run(ram, 4000, 0)
      local before = s:stats().disk_bytes
      assert_same(run(ram, 0, 150, 9), run(s, 0, 150, 9))
      assert.equal(0, before)
      assert.is_true(spilled(s) and s:stats().disk_bytes > 0)
    end)
  end)

  it("answers about keys and entries that are on disk", function()
    long.with_model("flash", function(model, folder)
      local indexer = lsa.indexer{model = model, layers = {1}, from = "native"}
      local seen = {}
      local function session(cold)
        return model:session(options(folder, {cold = cold, indexer = indexer, select = function(cycle)
          seen[cold] = {}
          for layer = 0, 2 do
            local row = {cycle.native(layer), cycle.keys(layer), cycle.scores}
            for i, t in ipairs(row) do row[i] = long.bytes(t) end
            seen[cold][layer] = row
          end
          return {5, 1000, 2100}
        end}))
      end
      local disk = "disk:" .. folder
      local s, ram = session(disk), session "ram"
      run(s, N, 17)
      run(ram, N, 17)
      assert.same({1, 0, 0}, {C.lsa_pool_has_keys(s.pool, 1), C.lsa_pool_has_keys(s.pool, 0), C.lsa_pool_has_keys(s.pool, 2)})
      for layer = 0, 2 do
        for i = 1, 3 do assert.is_true(seen.ram[layer][i] == seen[disk][layer][i]) end
        assert.is_true(long.bytes(ram:entries(layer)) == long.bytes(s:entries(layer)))
        local a, b = ffi.new "int32_t[64]", ffi.new "int32_t[64]"
        local n = C.lsa_session_native_topk(ram.c, layer, a)
        assert.equal(n, C.lsa_session_native_topk(s.c, layer, b))
        assert.is_true(n > 0 and ffi.string(a, tonumber(n) * 4) == ffi.string(b, tonumber(n) * 4))
      end
      assert.is_true(spilled(s))
    end)
  end)

  it("forks share the file, and neither disturbs the other", function()
    long.with_model("flash", function(model, folder)
      local s, ram = model:session(options(folder)), model:session(options(folder, {cold = "ram"}))
      run(s, N, 20)
      run(ram, N, 20)
      local bytes = s:stats().disk_bytes
      local forks, others = {}, {}
      for i = 1, 4 do forks[i], others[i] = s:fork{select = "stride", budget = 0.02 * i}, ram:fork{select = "stride", budget = 0.02 * i} end
      assert.equal(bytes, forks[4]:stats().disk_bytes)
      for i = 1, 4 do assert_same(run(others[i], 0, 40, i), run(forks[i], 0, 40, i)) end
      -- One goes on in full, one appends: both have everything in memory again; the file does not change for the rest.
      assert_same(run(others[1]:fork{select = "full"}, 0, 5), run(forks[1]:fork{select = "full"}, 0, 5))
      assert_same(run(others[2], 5000, 20), run(forks[2], 5000, 20))
      assert.is_true(spilled(s) and spilled(forks[3]))
      s:close()
      assert_same(run(ram, 0, 0), {})
      assert_same(run(others[3], 0, 40), run(forks[3], 0, 40))
    end)
  end)

  it("is written once, however many forks are taken before the first decode", function()
    long.with_model("csa", function(model, folder)
      local s = model:session(options(folder))
      run(s, N, 0)
      local forks = {}
      for i = 1, 5 do forks[i] = s:fork{seed = i} end
      local bytes = s:stats().disk_bytes
      assert.is_true(bytes > 0)
      for i = 1, 5 do run(forks[i], 0, 3) end
      assert.equal(bytes, forks[5]:stats().disk_bytes)
    end)
  end)

  it("goes on in memory when the disk refuses, and says so", function()
    long.with_model("csa", function(model, folder)
      quiet(function(said)
        local s = model:session(options(folder))
        run(s, N, 0)
        local ram = model:session(options(folder, {cold = "ram"}))
        run(ram, N, 0)
        C.lsa_io_fail_after(0) -- the cycle's first operation on the file sets space aside; there is none
        assert_same(run(ram, 0, 1), run(s, 0, 1))
        assert.matches("cannot be given space: Input/output error; the cold tier stays in memory", said[1])
        assert.is_false(spilled(s))
        local stats = s:stats()
        assert.same({0, 1, true}, {stats.failed, stats.unspilled, s:cycles()[1].unspilled})
        assert.matches("not as asked  the cold tier stayed in memory 1 times, its disk has refused it", tostring(stats), nil, true)
        assert_same(run(ram, 0, 20), run(s, 0, 20))
        assert.is_true(spilled(s)) -- the next cycle's attempt went well
        assert.equal(1, s:stats().unspilled)
        assert.equal(1, #said)
      end)
    end)
  end)

  it("restores a session where the disk refuses, in memory, and goes on to the same bits", function()
    long.with_model("csa", function(model, folder)
      quiet(function(said)
        local s = model:session(options(folder))
        run(s, N, 3)
        s:save(folder .. "/saved")
        local mask = ("mkdir %s/full && mount -t tmpfs -o size=16k none %s/full 2>/dev/null"):format(folder, folder)
        if os.execute(mask) ~= 0 then return pending "no file system can be mounted here" end
        local ok, problem = pcall(function()
          local again = model:restore(folder .. "/saved", {cold = "disk:" .. folder .. "/full"})
          assert.is_false(spilled(again))
          assert_same(run(s, 0, 40, 7), run(again, 0, 40, 7))
          assert.same({0, 2}, {again:stats().failed, again:stats().unspilled})
          assert.equal(1, #said)
          assert.matches("No space left on device; the cold tier stays in memory", said[1])
        end)
        collectgarbage()
        collectgarbage()
        os.execute(("umount %s/full; rmdir %s/full"):format(folder, folder))
        assert(ok, problem)
      end)
    end)
  end)

  it("keeps the previous set when a chunk is damaged, names file and chunk, and goes on", function()
    long.with_model("csa", function(model, folder)
      quiet(function(said)
        local wanted = {0, 10, 20}
        local s = model:session(options(folder, {every = 4, budget = 50, tail = 0, select = function() return wanted end}))
        run(s, N, 1)
        assert.same({0, 10, 20}, s:resident():ids():totable())
        long.damage(folder, 512 * 64, 65536) -- from chunk 512 on
        wanted = {0, 10, 700}
        for _ = 1, 4 do s:decode(1) end
        assert.matches("lsa: " .. folder:gsub("%p", "%%%0") .. "/lsa%-.*: chunk 700 is damaged", said[1])
        assert.same({0, 10, 20, 2250}, s:resident():ids():totable())
        wanted = {0, 10, 15}
        for _ = 1, 4 do s:decode(1) end
        assert.same({0, 10, 15}, s:resident():ids():totable())
      end)
    end)
  end)

  it("says at once what is wrong with the option", function()
    long.with_model("csa", function(model, folder)
      local function says(pattern, cold)
        local ok, e = pcall(model.session, model, {cold = cold})
        assert.is_false(ok)
        assert.matches(pattern, e)
      end
      says('session: cold is "tape"; it can be "ram" or "disk:DIR"', "tape")
      says("No such file or directory", "disk:" .. folder .. "/nowhere")
      says('session: cold is 7', 7)
      assert.equal("", support.names(folder))
    end)
  end)
end)
