-- An argument too many is an error of every public function and method, whatever it is: none is dropped in silence.
local lsa = require "lsa"
local arity = require "lsa.arity"
local files = require "file_support"
local fuzz = require "api_fuzz_support"
local processes = require "process_support"
local world = require "api_world"

local MANY = 40

-- Those that take any number of arguments, for the reason given.
local ANY = {["lsa.display.show"] = "shows each", ["tensor.flip"] = "dimensions, each once: tests/tensor_ops_spec.lua"}

local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  return not ok and tostring(message) or "no error"
end

-- How many arguments f declares, or nil where it takes any number.
local function declared(f)
  local info = debug.getinfo(arity.original(f), "u")
  return not info.isvararg and info.nparams or nil
end

-- Functions that the fuzzer leaves out, or has no object of.
local function others(w)
  local list = {}
  local function add(name, fn, self) list[#list + 1] = {name = name, fn = fn, self = self} end
  for _, module in ipairs {"plot", "tasks", "display", "cuda"} do
    for name, value in pairs(lsa[module]) do
      if type(value) == "function" then add(("lsa.%s.%s"):format(module, name), value) end
    end
  end
  add("lsa.plot", function(...) return lsa.plot(...) end)
  add("lsa.interact", lsa.interact)
  local task = lsa.tasks.single {model = w.model, tokens = 200}
  local stream = setmetatable({}, require("lsa.tasks.stream").class)
  local objects = {figure = lsa.plot.line {{1, 2}}, rule = lsa.policies.h2o, task = task, stream = stream, eval = w.sweep_example,
    cache = lsa.cache {pages = {1, 2}, capacity = 1}, config = w.model.config, stats = w.session:stats()}
  for object, self in pairs(objects) do
    for method, fn in pairs(fuzz.methods(self)) do
      if rawget(self, method) == nil then add(object .. ":" .. method, fn, self) end
    end
  end
  for object, self in pairs {session = w.session, batch = w.batch, indexer = w.indexer, trainer = w.trainer_example} do
    for method, fn in pairs(fuzz.methods(self)) do
      if fuzz.EXCLUDED[object .. "." .. method] then add(object .. ":" .. method, fn, self) end
    end
  end
  return list
end

local function all_calls(w)
  local list = others(w)
  for _, calls in pairs(world.discover(w)) do
    for _, call in ipairs(calls) do
      if type(call) == "table" and not call.name:find "^%l+s%." then -- rules are called by sessions, kernels have names
        list[#list + 1] = {name = call.name, fn = call.fn, self = call.self and world.receiver(w, call.self)}
      end
    end
  end
  return list
end

describe("an argument too many", function()
  it("is an error of every public function and method, which says how many it takes", function()
    files.with_folder(function(folder)
      world.prepare(folder)
      local w, counts, faults = world.new(fuzz.random(3), folder), {}, {}
      for _, call in ipairs(all_calls(w)) do
        local kind, own = call.name:match "^[^.:]*", call.self and 1 or 0
        local takes = declared(call.fn)
        local given = {}
        for i = 1, (takes or MANY) + 1 - own do given[i] = 1 end
        if call.self then table.insert(given, 1, call.self) end
        if not ANY[call.name] then
          local message = message_of(call.fn, unpack(given))
          local n = #given - own
          if call.name == "tensor.set" then n = n - 1 end -- the last is the value
          local expected = takes and ("%d argument%s given, it takes "):format(n, n == 1 and " is" or "s are") or tostring(n)
          if not message:find(expected, 1, true) or message:find("lua/lsa/", 1, true) then
            faults[#faults + 1] = ("%s of %d arguments: %s"):format(call.name, n, message)
          end
        end
        counts[kind] = (counts[kind] or 0) + 1
      end
      world.forget()
      assert.same({}, faults)
      for kind, least in pairs {lsa = 50, tensor = 75, set = 20, session = 30, model = 5, pool = 10, batch = 6, trainer = 5, replay = 2,
        sweep = 4, figure = 2, task = 3, cycle = 10, accounting = 3} do
        assert.is_true((counts[kind] or 0) >= least, ("%s: %d calls were tried"):format(kind, counts[kind] or 0))
      end
    end)
  end)

  it("is named with those that there are, at the caller's line", function()
    local x = lsa.ones {2, 3}
    local cases = {
      {"softmax: 2 arguments are given, it takes 1: dim", function() return x:softmax(0, 2) end},
      {"row: 2 arguments are given, it takes 1: i", function() return x:row(0, 1) end},
      {"unique: 1 argument is given, it takes none", function() return x:unique(0) end},
      {"lsa.set: 2 arguments are given, it takes 1: n", function() return lsa.set(3, 4) end},
      {"lsa.tensor: 3 arguments are given, it takes 2: data, dtype", function() return lsa.tensor({1}, "f32", 1) end},
      {"sum: 2 arguments are given, it takes 1: dim", function() return x:sum(0, true) end},
      {"set add: 2 arguments are given, it takes 1: ids", function() return lsa.set(9):add(1, 2) end},
      {"lsa.zeros: 3 arguments are given, it takes 2: shape, dtype", function() return lsa.zeros(2, 3, 4) end},
      {"lsa.zeros: 4 arguments are given, it takes 2: shape, dtype", function() return lsa.zeros(2, "f32", nil, 4) end},
    }
    for _, case in ipairs(cases) do
      local message = message_of(case[2])
      assert.is_truthy(message:find(case[1], 1, true), message)
      assert.is_truthy(message:find "^[^:]*arity_spec%.lua:%d+: ")
    end
    assert.equal(3, lsa.set(3, nil, nil):size()) -- what is nothing loses nothing
  end)

  it("is none where a call's several results are passed on as pages do", function()
    local model = lsa.model "needle"
    local s = model:session {select = "recency"}
    s:prefill "a text"
    assert.equal(5, #model:text(s:fork():generate {n = 5}))
    files.with_folder(function(folder)
      lsa.save(folder .. "/a.safetensors", {x = lsa.ones {2}}, {about = "ones"})
      lsa.save(folder .. "/b.safetensors", lsa.load(folder .. "/a.safetensors"))
      assert.equal("ones", select(2, lsa.load(folder .. "/b.safetensors")).about)
    end)
    s:close()
  end)

  it("costs a call that has none too many no memory, compiled", function()
    -- In a process of its own: what other specs did here may keep LuaJIT from compiling the loop.
    local out = processes.lsa {"-e", [[
      local x = lsa.ones {8}
      local function sum()
        local total = 0
        for i = 0, 99999 do total = total + x:get(i % 8) end
        return total
      end
      sum()
      collectgarbage()
      local before = collectgarbage "count"
      print(sum(), collectgarbage "count" - before < 100)]]}
    assert.equal("100000\ttrue\n", out)
  end)
end)
