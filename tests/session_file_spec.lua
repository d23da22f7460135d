-- Saved sessions: what is restored goes on to the same bits, sets and counts; what is wrong with a file is said, with its name.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local long = require "long_support"
local lsa = require "lsa"
local process = require "process_support"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local tokens = require("token_support").random
local support = require "file_support"

local C = lib.C
local golden = lib.root .. "/tests/golden/"
local flash = lsa.model(golden .. "flash")

local function bits(t) return ffi.string(t.c.data, t:bytes()) end

-- What two sessions that went the same way agree in: all of the statistics that are no times.
local function counts(s)
  local out = {}
  for name, value in pairs(s:stats()) do
    if type(value) ~= "table" and not name:find "ms" then out[name] = value end
  end
  for i, row in ipairs(s:cycles()) do
    for name, value in pairs(row) do
      if not name:find "_ms$" then out[i .. name] = value end
    end
  end
  return out
end

local function assert_go_on_alike(a, b, n, seed)
  local list = tokens(a.model, n, seed)
  for i = 1, n do
    local x, y = a:decode(list[i]), b:decode(list[i])
    assert.is_true(bits(x) == bits(y), "step " .. i)
    assert.is_true(a:resident():equals(b:resident()), "residents of step " .. i)
  end
  assert.same(counts(a), counts(b))
end

-- A session that has prefilled, decoded, prefilled again and decoded.
local function used(model, case, n)
  local s = model:session(case)
  s:prefill(tokens(model, n or 50, 1))
  for _, token in ipairs(tokens(model, 9, 2)) do s:decode(token) end
  s:prefill(tokens(model, 13, 3))
  for _, token in ipairs(tokens(model, 7, 4)) do s:decode(token) end
  return s
end

local function closure_evict()
  return [[
    return function(capacity, opt)
      local self, order, count = {}, {}, 0
      local stamps = setmetatable({}, {__index = function() return 0 end})
      local function touch(id) count = count + 1; stamps[id] = count; order[id] = true end
      self.hit = function(_, id) touch(id) end
      self.insert = function(_, id) touch(id) end
      function self:victim(allowed)
        local best
        for id in pairs(order) do
          if allowed:has(id) and (not best or stamps[id] < stamps[best]) then best = id end
        end
        if best then order[best] = nil end
        return best
      end
      function self:remove(id) order[id] = nil end
      return self
    end]]
end

describe("a restored session", function()
  local cases = {
    ["full attention"] = {select = "full"}, ["a random policy"] = {select = "random", sink = 2},
    ["asynchronous cycles"] = {select = "random", async = true}, ["bf16 records"] = {select = "native_topk", kv = "bf16"},
    ["pages on their way"] = {select = "random", granularity = "page", page = 4, async = true, hot = 32, evict = "s3fifo"},
    ["tensors in the policy's state"] = {select = "h2o_ema", hot = 12, evict = {"random", seed = 3}},
    ["a policy in a policy"] = {select = {"hysteresis", of = "random"}, hot = 12, evict = "lfu"},
    ["a schedule"] = {select = "random", every = "stagger"}, ["sets in the policy's state"] = {select = "stale1", evict = "arc", hot = 12},
  }
  for name, case in pairs(cases) do
    it("goes on to the same bits, sets and counts: " .. name, function()
      support.with_folder(function(folder)
        case.budget, case.every, case.seed = case.budget or 0.4, case.every or 4, 5
        local s = used(flash, case)
        s:save(folder .. "/s")
        assert.equal("s", support.names(folder))
        local t = flash:restore(folder .. "/s")
        assert.same(counts(s), counts(t))
        assert.is_true(bits(s:logits()) == bits(t:logits()))
        for layer = 0, s.csa_layers - 1 do
          assert.is_true(bits(s:keys(layer)) == bits(t:keys(layer)) and bits(s:entries(layer)) == bits(t:entries(layer)))
          assert.is_true(bits(s:hidden(layer)) == bits(t:hidden(layer)))
        end
        assert_go_on_alike(s, t, 11, 6)
        assert.is_true(bits(s:prefill(tokens(flash, 9, 7))) == bits(t:prefill(tokens(flash, 9, 7))))
        assert_go_on_alike(s, t, 6, 8)
        assert.same(s:generate{n = 5, temperature = 1}, t:generate{n = 5, temperature = 1})
      end)
    end)
  end

  for _, name in ipairs {"csa", "hca", "hash", "swa", "short"} do
    it("is of any model: " .. name, function()
      support.with_folder(function(folder)
        local model = lsa.model(golden .. name)
        for _, n in ipairs {1, 3, 4, 5, 9, 14} do
          local s = model:session{select = model.csa_layers[1] and "random" or "full", every = 3, budget = 0.5}
          s:prefill(tokens(model, n, n))
          s:save(folder .. "/s")
          assert_go_on_alike(s, model:restore(folder .. "/s"), 4, 1)
        end
        local empty = model:session{select = "full"}
        empty:save(folder .. "/s")
        local t = model:restore(folder .. "/s")
        assert.is_true(bits(empty:prefill {1, 2, 3}) == bits(t:prefill {1, 2, 3}))
      end)
    end)
  end

  it("has its cold tier on disk again, elsewhere if so wanted, and in no more memory", function()
    long.with_model("flash", function(model, folder)
      local at_first = support.memory()
      local s = model:session{select = "random", budget = 0.1, every = 8, cold = "disk:" .. folder, async = true}
      s:prefill(long.tokens(model, 9000, rng.new(1)))
      for _ = 1, 12 do s:decode(5) end
      local path = folder .. "/s"
      s:save(path)
      support.make_folder(folder .. "/other")
      local before = support.memory()
      local t = model:restore(path, {cold = "disk:" .. folder .. "/other"})
      assert.is_true(support.memory() - before < 1.02 * (before - at_first))
      local u = model:restore(path, {trust = true})
      for _, restored in ipairs {t, u} do
        assert.equal(1, C.lsa_pool_spilled(restored.pool))
        assert.equal(s:stats().disk_bytes, restored:stats().disk_bytes)
      end
      local v = model:restore(path, {cold = "ram"})
      assert.equal(0, v:stats().disk_bytes)
      local list = tokens(model, 20, 3)
      for i = 1, #list do
        local expected = bits(s:decode(list[i]))
        for _, restored in ipairs {t, u, v} do assert.is_true(expected == bits(restored:decode(list[i]))) end
      end
    end)
  end)

  it("is not disturbed by the one that was saved, nor that one by being saved", function()
    support.with_folder(function(folder)
      local case = {select = "random", budget = 0.4, every = 4, async = true, hot = 14}
      local s, never = used(flash, case), used(flash, case)
      s:save(folder .. "/s")
      assert_go_on_alike(s, never, 15, 5)
      local t = flash:restore(folder .. "/s")
      local fork = t:fork()
      t:close()
      local control = used(flash, case)
      for _, token in ipairs(tokens(flash, 12, 9)) do assert.is_true(bits(control:decode(token)) == bits(fork:decode(token))) end
    end)
  end)

  it("has what every policy, schedule and eviction policy remembers, and so has a fork", function()
    support.with_folder(function(folder)
      local every_one, warn = {}, registry.warn
      registry.warn = function() end
      for _, name in ipairs(registry.names "policies") do
        if not name:find "oracle" and name ~= "full" then every_one[#every_one + 1] = {select = name} end
      end
      for _, name in ipairs(registry.names "schedules") do every_one[#every_one + 1] = {select = "random", every = {name, every = 4}, hot = 60} end
      for _, name in ipairs(registry.names "evictions") do
        if name ~= "belady" then every_one[#every_one + 1] = {select = "random", evict = name} end
      end
      for n, case in ipairs(every_one) do
        case.budget, case.every, case.seed, case.hot, case.page = 0.4, case.every or 4, 5, case.hot or 14, 4
        local s = used(flash, case)
        assert.equal(0, s:stats().policy_errors)
        s:save(folder .. "/s")
        local t, fork = flash:restore(folder .. "/s"), s:fork()
        assert.is_nil(t:stats().eviction_rebuilt)
        local list = tokens(flash, 17, 6)
        for i = 1, #list do
          local x = bits(s:decode(list[i]))
          for _, other in ipairs {t, fork} do
            assert.is_true(x == bits(other:decode(list[i])), ("case %d, step %d: %s"):format(n, i, case.select))
            assert.is_true(s:resident():equals(other:resident()) and s.tier:present():equals(other.tier:present()))
          end
        end
      end
      registry.warn = warn
    end)
  end)

  it("makes an eviction object without state() anew from what is present, as a fork does, and says so", function()
    support.with_folder(function(folder)
      local evict = folder .. "/evict.lua"
      support.write(evict, closure_evict())
      local s = used(flash, {select = "random", budget = 0.4, every = 4, evict = evict, hot = 14, strict = true})
      assert.is_nil(s:stats().eviction_rebuilt)
      s:save(folder .. "/s")
      local t, fork = flash:restore(folder .. "/s", {trust = true}), s:fork()
      for _, other in ipairs {t, fork} do
        assert.matches("evict.lua: it has no state%(%) and restore%(%), so its object was made anew", other:stats().eviction_rebuilt)
        assert.matches("\n  eviction +eviction policy", tostring(other:stats()))
      end
      for _, token in ipairs(tokens(flash, 20, 3)) do
        assert.is_true(bits(t:decode(token)) == bits(fork:decode(token)))
        assert.is_true(t.tier:present():equals(fork.tier:present()))
      end
    end)
  end)

  it("has the state of a script's eviction object; one that is no plain data is named", function()
    support.with_folder(function(folder)
      local evict, path = folder .. "/evict.lua", folder .. "/s"
      local text = [[
        return function(capacity)
          local self, order = {}, {}
          function self:hit(id) self:remove(id) self:insert(id) end
          function self:insert(id) order[#order + 1] = id end
          function self:remove(id) for i = 1, #order do if order[i] == id then return table.remove(order, i) end end end
          function self:victim(allowed)
            for i = 1, #order do if allowed:has(order[i]) then return table.remove(order, i) end end
          end
          function self:state() return {order = %s} end
          function self:restore(data) assert(capacity == 14) order = data.order end
          return self
        end]]
      support.write(evict, text:format "order")
      local case = {select = "random", budget = 0.4, every = 4, evict = evict, hot = 14, strict = true}
      local s = used(flash, case)
      s:save(path)
      local t, fork = flash:restore(path, {trust = true}), s:fork()
      local list = tokens(flash, 20, 3)
      for i = 1, #list do
        s:decode(list[i])
        for _, other in ipairs {t, fork} do
          other:decode(list[i])
          assert.is_true(s.tier:present():equals(other.tier:present()), "step " .. i)
        end
      end
      assert.is_nil(t:stats().eviction_rebuilt)
      support.write(evict, text:format "{print}")
      s = used(flash, case)
      local ok, message = pcall(s.fork, s)
      assert.is_false(ok)
      assert.matches("evict.lua: state%(%).order.1 is a function, which is no plain data", message)
      s:save(path)
      ok, message = pcall(flash.restore, flash, path)
      assert.is_false(ok)
      assert.matches("s: eviction policy .*evict.lua: state%(%).order.1 is a function, which is no plain data; give it anew: " ..
        "model:restore%(path, {evict = …}%)", message)
      assert.equal(72 + 7, flash:restore(path, {evict = "lru"}):tokens())
    end)
  end)

  it("runs no file, writes to no folder and opens no indexer that the saved one names, unless it is trusted", function()
    support.with_folder(function(folder)
      local path, marker = folder .. "/s", folder .. "/ran"
      support.make_folder(folder .. "/cold")
      local ix = folder .. "/ix.safetensors"
      lsa.indexer{model = flash, layers = {0, 1}, from = "native"}:save(ix)
      local function program(name, text)
        support.write(folder .. "/" .. name, ("io.open(%q, 'a'):close() %s"):format(marker, text))
        return folder .. "/" .. name
      end
      local select = program("select.lua", "return function(cycle) return cycle.newest() end")
      for _, case in ipairs {
        {"select = \"[^\"]*/select.lua\"", {select = select}, {select = "recency"}},
        {"select = \"[^\"]*/select.lua\"", {select = {"dilate", of = {select}}}, {select = "recency"}},
        {"every = \"[^\"]*/every.lua\"", {select = "recency", every = program("every.lua", "return function() return 8 end")}, {every = 8}},
        {"evict = \"[^\"]*/evict.lua\"", {select = "recency", evict = program("evict.lua", closure_evict()), hot = 20}, {evict = "lru"}},
        {"cold = \"disk:[^\"]*/cold\"", {select = "recency", cold = "disk:" .. folder .. "/cold"}, {cold = "ram"}},
        {"indexer = \"[^\"]*/ix.safetensors\"", {select = "lsa_topk", indexer = ix}, {indexer = "native"}},
        {"indexer = \"[^\"]*/ix.safetensors\"", {select = "lsa_topk",
          indexer = lsa.indexer{model = flash, layers = {0, 1}, from = ix}}, {indexer = "native"}},
      } do
        local named, opt, anew = unpack(case)
        opt.budget = 0.4
        local s = used(flash, opt)
        s:save(path)
        os.remove(marker)
        local ok, message = pcall(flash.restore, flash, path)
        assert.is_false(ok, named)
        assert.matches(named, message)
        assert.matches("trust = true", message)
        assert.is_false((pcall(flash.restore, flash, path, {trust = false})))
        assert.is_nil(support.read(marker))
        assert.equal(s:tokens(), flash:restore(path, anew):tokens())
        assert.is_nil(support.read(marker))
        local t = flash:restore(path, {trust = true})
        for token = 1, 9 do assert.is_true(bits(s:decode(token)) == bits(t:decode(token))) end
      end
    end)
  end)

  it("begins an eviction policy whose file has changed with what is present", function()
    support.with_folder(function(folder)
      local evict = folder .. "/evict.lua"
      support.write(evict, closure_evict())
      local s = used(flash, {select = "random", budget = 0.4, every = 4, evict = evict, hot = 14, strict = true})
      s:save(folder .. "/s")
      support.write(evict, "-- changed\n" .. closure_evict())
      local t = flash:restore(folder .. "/s", {trust = true})
      for _ = 1, 9 do t:decode(3) end
      assert.equal(0, t:stats().policy_errors)
      assert.matches("its code has changed since", t:stats().eviction_rebuilt)
    end)
  end)

  it("takes anew what a fork may change, and is then as a fork is", function()
    support.with_folder(function(folder)
      local s = used(flash, {select = "full"})
      s:save(folder .. "/s")
      for _, changes in ipairs {{select = "recency", budget = 6}, {select = {"random"}, every = 3, seed = 9, hot = 20, evict = "fifo"}} do
        local fork, t = s:fork(changes), flash:restore(folder .. "/s", changes)
        assert.equal(0, t:stats().steps)
        assert_go_on_alike(fork, t, 13, 2)
      end
      local ok, message = pcall(flash.restore, flash, folder .. "/s", {kv = "f32"})
      assert.is_false(ok)
      assert.matches("restore: no option 'kv'; there are: budget, cold, coverage, every, evict, hot, indexer, on_demand, seed, select, strict", message)
    end)
  end)

  it("wants anew what a file cannot hold, and says what", function()
    support.with_folder(function(folder)
      local path = folder .. "/s"
      local function refuses(case, what)
        case.budget, case.every = 0.5, case.every or 4
        local s = used(flash, case)
        s:save(path)
        local ok, message = pcall(flash.restore, flash, path)
        assert.is_false(ok)
        assert.is_true(message:find(path .. ": " .. what, 1, true) ~= nil, message)
        return s
      end
      local function newest(cycle) return cycle.newest() end
      local s = refuses({select = newest}, "select is a function, which is no plain data; give it anew: model:restore(path, {select = …})")
      assert_go_on_alike(s:fork{select = newest}, flash:restore(path, {select = newest}), 9, 1)
      refuses({select = "recency", every = function() return 3 end}, "every is a function, which")
      refuses({select = "recency", evict = {function(n) return require("lsa.cycle.eviction_objects").new("lru", n) end}}, "evict.1 is a function, which")
      local policy = folder .. "/policy.lua"
      support.write(policy, "return function(cycle) cycle.state.f = io.stdout return cycle.newest() end")
      refuses({select = policy}, "cycle.state.f is a userdata, which is no plain data; give it anew: model:restore(path, {select = …})")
      local ix = lsa.indexer{model = flash, from = lsa.indexer{model = flash}:tensors()}
      s = refuses({select = "lsa_topk", indexer = ix}, "indexer is made of tensors, which")
      assert_go_on_alike(s, flash:restore(path, {indexer = ix}), 9, 1)
      local native = lsa.indexer{model = flash, layers = {1}}
      s = used(flash, {select = "lsa_topk", indexer = native, budget = 0.4, every = 4})
      s:save(path)
      assert_go_on_alike(s, flash:restore(path), 9, 1)
    end)
  end)
end)

describe("a saved session", function()
  local function fails(path, model)
    local before = support.memory()
    local ok, message = pcall(model.restore, model, path)
    assert.is_false(ok)
    assert.is_true(message:find(path, 1, true) ~= nil, message)
    assert.is_true(support.memory() <= before)
    return message
  end

  local small = {select = "random", budget = 0.3, every = 4, async = true, evict = "arc"}

  it("of another model, or another file, is refused by name", function()
    support.with_folder(function(folder)
      local path = folder .. "/s"
      used(flash, small):save(path)
      assert.matches("of a model of other configuration", fails(path, lsa.model(golden .. "csa")))
      assert.matches("it was computed in f32, the model computes in bf16", fails(path, lsa.model(golden .. "flash", {compute = "bf16"})))
      local other = folder .. "/other"
      support.make_folder(other)
      support.write(other .. "/config.json", support.read(golden .. "flash/config.json"))
      local weights = support.read_tensors(golden .. "flash/model.safetensors")
      for name, t in pairs(weights) do
        if name:find "o_a_proj.weight$" or name:find "layers.1.*gate_proj.weight$" then t.data = t.data:sub(5) .. t.data:sub(1, 4) end
      end
      support.write_tensors(other .. "/model.safetensors", weights)
      assert.matches("of a model of other weights", fails(path, lsa.model(other)))
      lsa.save(path, {x = lsa.zeros {3}})
      assert.matches("it is no saved session: its format is nil", fails(path, flash))
      for version, age in pairs {["1"] = "an older", ["99"] = "a newer"} do
        lsa.save(path, {x = lsa.zeros {3}}, {format = "lsa session " .. version})
        assert.matches(("it was written by %s lsa, in version %s of the format; this one reads version %%d+"):format(age, version),
          fails(path, flash))
      end
      fails(folder .. "/nothing", flash)
    end)
  end)

  it("that is damaged anywhere is an error that says where, and nothing else", function()
    support.with_folder(function(folder)
      local path, random = folder .. "/s", rng.new(7)
      used(flash, small, 30):save(path)
      local text = support.read(path)
      for i = 0, 79 do
        local at = i < 40 and random(1, 2000) or random(1, #text)
        support.write(path, text:sub(1, at - 1) .. string.char((text:byte(at) + random(1, 255)) % 256) .. text:sub(at + 1))
        fails(path, flash)
      end
      for _ = 1, 25 do
        support.write(path, text:sub(1, random(0, #text - 1)))
        fails(path, flash)
      end
      support.write(path, text .. "x")
      fails(path, flash)
      support.write(path, text)
      flash:restore(path)
    end)
  end)

  -- The file with other tensors and checksums that fit them, as a program would write that is mistaken, or malicious.
  local function sealed(tensors, metadata, path)
    local list, sum = {}, 0ULL
    for name in pairs(tensors) do
      if name ~= "checksums" then list[#list + 1] = name end
    end
    table.sort(list)
    local sums = lsa.zeros({#list}, "i64")
    for i, name in ipairs(list) do
      local t, own = tensors[name], 0ULL
      for from = 0, t:bytes() - 1, 2 ^ 20 do
        own = C.lsa_hash(ffi.cast("uint8_t *", t.c.data) + from, math.min(2 ^ 20, t:bytes() - from), own)
      end
      ffi.cast("uint64_t *", sums.c.data)[i - 1] = own
      local about = ("%s %s [%s]"):format(name, t:dtype(), table.concat(t:shape(), ", "))
      sum = C.lsa_hash(ffi.new("uint64_t[1]", own), 8, C.lsa_hash(about, #about, sum))
    end
    tensors.checksums, metadata.checksum = sums, bit.tohex(sum)
    lsa.save(path, tensors, metadata)
  end

  it("whose numbers do not fit together is an error, or a session, never a crash", function()
    support.with_folder(function(folder)
      local path, random = folder .. "/s", rng.new(11)
      local s = used(flash, small, 30)
      assert.is_true(C.lsa_pool_under_way(s.pool) == 1)
      s:save(path)
      local text, refused = support.read(path), 0
      local names = {"head", "residents", "pool.units", "pool.free_cells", "pool.moving", "layer.0.picked", "tokens", "loop", "about"}
      for i = 1, 120 do
        support.write(path, text)
        local tensors, metadata = lsa.load(path)
        for name, t in pairs(tensors) do tensors[name] = t:copy() end
        local name = names[1 + i % #names]
        local t = tensors[name]
        if not t then name = "layer.2.picked" t = tensors[name] end
        if t:count() > 0 then
          local at = random(t:count())
          local bytes = ffi.cast("uint8_t *", t.c.data) + at * t:bytes() / t:count()
          if t:dtype() == "u8" then bytes[0] = random(256)
          else ffi.cast(t:dtype() == "i64" and "int64_t *" or "int32_t *", bytes)[0] = ({-1, -2, -7, 0, 1, 5, 1000, 2 ^ 31 - 1})[random(1, 8)] end
        end
        sealed(tensors, metadata, path)
        local ok, t2 = pcall(flash.restore, flash, path)
        if ok then
          local warn = registry.warn
          registry.warn = function() end -- a policy may be told nonsense
          for _ = 1, 5 do pcall(t2.decode, t2, 3) end
          registry.warn = warn
          t2:close()
        else
          refused = refused + 1
          assert.is_true(t2:find(path, 1, true) ~= nil, t2)
        end
      end
      assert.is_true(refused > 40)
    end)
  end)

  it("is whole, old or new, whatever read, write or allocation fails", function()
    support.with_folder(function(folder)
      local path = folder .. "/s"
      local s = used(flash, small, 30)
      s:save(path)
      local old, expected = support.read(path), s:decode(3)
      expected = bits(expected)
      for _, door in ipairs {"lsa_memory_fail_after", "lsa_io_fail_after"} do
        for _, what in ipairs {"save", "restore"} do
          local n = 0
          while true do
            C[door](n)
            local ok, message
            if what == "save" then ok, message = pcall(s.save, s, path) else ok, message = pcall(flash.restore, flash, path) end
            C[door](-1)
            if what == "restore" and ok then message:close() end
            if ok then break end
            if what == "restore" then assert.is_true(message:find(path, 1, true) ~= nil, message)
            else assert.matches(door:find "io" and "Input/output error" or "out of memory", message) end
            assert.equal("s", support.names(folder))
            assert.is_true(what == "restore" or n == 0 or support.read(path) == old or bits(flash:restore(path):logits()) == expected)
            n = n + 1
          end
          assert.is_true(n > 3, what)
          support.write(path, old)
        end
      end
      assert.is_true(support.memory() > 0)
    end)
  end)

  it("is the old one when the process that writes it is killed", function()
    support.with_folder(function(folder)
      local path, script = folder .. "/s", folder .. "/script.lua"
      used(flash, {select = "full"}):save(path)
      process.write(script, [[
        local lsa = require "lsa"
        local model = lsa.model(arg[2])
        local s = model:session{select = "full"}
        s:prefill{1, 2, 3, 4, 5, 6, 7, 8, 9}
        require("lsa.ffi").C.lsa_io_kill_after(tonumber(arg[3]))
        s:save(arg[1])]])
      local text, old = support.read(path), 0
      for n = 0, 1000, 7 do
        local code = select(3, process.shell(("%s %s %s %s %d"):format(process.program, process.quote(script), process.quote(path),
          process.quote(golden .. "flash"), n)))
        if code == 0 then break end
        assert.equal(137, code)
        if support.read(path) ~= text then break end
        old = old + 1
      end
      assert.is_true(old >= 2)
      assert.equal(9, flash:restore(path):tokens())
    end)
  end)
end)
