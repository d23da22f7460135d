-- The scripting API under bad input: every public function and method is called with seeded garbage and with right calls that
-- are wrong in one place. Nothing crashes, every failure is an error with a message that is meant for the caller, no C memory
-- and no open file is left behind, and sessions that had no part in it decode the same logits as before.
--
-- `./lsa test --operations N tests/api_fuzz_spec.lua` makes N calls; the seed is in every failure's message.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local registry = require "lsa.registry"
local files = require "file_support"
local fuzz = require "api_fuzz_support"
local world = require "api_world"
local C = lib.C

ffi.cdef [[
int fcntl(int descriptor, int command, ...);
int chdir(const char *path);
char *getcwd(char *buffer, size_t bytes);
struct lsa_spec_rlimit { unsigned long now, most; };
int getrlimit(int what, struct lsa_spec_rlimit *limit);
int setrlimit(int what, const struct lsa_spec_rlimit *limit);
extern char lsa_activity[256];
]]

local OWN = debug.getinfo(1, "S").short_src:match "[^/]*$"
local CALLS = 60                                             -- of a round
local OPERATIONS = (package.loaded["lsa.prompt.test"] or {}).operations or 2400
local SECONDS = lib.build:find "sanitize" and 60 or 5        -- that a call may take
local SEED = 1

local golden = lib.root .. "/tests/golden/"

local tokens = world.tokens
local shared                                                 -- what rounds do not change

---- a round ----

local function keep(w, value)
  if value == nil or type(value) == "number" or #w.objects > 60 then return end
  w.objects[#w.objects + 1] = value
end

local function complain(seed, at, text, why, message)
  error(("seed %d, call %d: %s: %s: %s"):format(seed, at, text, why, tostring(message)), 0)
end

local function one_call(w, calls, seed, at)
  local call = w.random:pick(calls[w.random:pick(calls.kinds)])
  local args = fuzz.arguments(w.random, w, call.right and call.right(w))
  if call.self then
    for i = args.n, 1, -1 do args[i + 1] = args[i] end
    args[1], args.n = world.receiver(w, call.self), args.n + 1
  end
  local text = fuzz.call_text(call.name, args)
  ffi.copy(ffi.C.lsa_activity, ("seed %d call %d "):format(seed, at):sub(1, 60) .. text:sub(1, 190))
  w.threw = nil
  local start = C.lsa_clock_ns()
  local ok, result = pcall(call.fn, unpack(args, 1, args.n))
  local seconds = tonumber(C.lsa_clock_ns() - start) / 1e9
  local why = not ok and fuzz.fault(result, OWN)
  if ok then
    if type(result) == "cdata" or type(result) == "table" then
      local printed, problem = pcall(tostring, result)
      if not printed then why, result = "its result does not print", problem end
    end
    keep(w, result)
  end
  if why and w.threw and (call.name == "lsa.sweep" or call.name == "lsa.evaluate") then why = nil end -- the script's own error
  if seconds > SECONDS then why = ("it took %.1f s"):format(seconds) end
  if why then complain(seed, at, text, why, result) end
end

local function control_logits()
  local s = shared.control:fork {}
  local bits = ffi.string(s:decode(5).c.data, 4 * tonumber(shared.model.config.vocab))
  s:close()
  return bits
end

local function round(seed, folder)
  local random = fuzz.random(seed)
  local w = world.new(random, folder)
  local calls = world.discover(w)
  for at = 1, CALLS do one_call(w, calls, seed, at) end
end

local function settle()
  require("lsa.session.recording_writer").finish_all() -- a session that records lives until then
  collectgarbage()
  collectgarbage()
  collectgarbage()
  return tonumber(C.lsa_memory_in_use())
end

local function open_files()
  local n, limit, F_GETFD = 0, 256, 1
  for descriptor = 0, limit - 1 do
    if ffi.C.fcntl(descriptor, F_GETFD) >= 0 then n = n + 1 end
  end
  return n
end

-- The same round again and again: what is kept from call to call is there already, soon; what is lost grows each time.
local function check_losses(seed, folder)
  local memory, open = settle(), open_files()
  local before, open_before
  for _ = 1, 4 do
    before, open_before = memory, open
    round(seed, folder)
    memory, open = settle(), open_files()
    if memory <= before and open <= open_before then return end
  end
  error(("seed %d: %d bytes in use, %d before; %d files are open, %d before"):format(seed, memory, before, open, open_before), 0)
end


-- No more memory than a gigabyte beyond what is in use: a size that is too large fails, whatever the machine has.
local function with_limit(f)
  if lib.build:find "sanitize" then return f() end
  local limit = ffi.new "struct lsa_spec_rlimit"
  local RLIMIT_AS = 9
  ffi.C.getrlimit(RLIMIT_AS, limit)
  local before = limit.now
  local pages = tonumber(assert(files.read "/proc/self/statm"):match "^%d+")
  limit.now = (pages * 4096 + 2 ^ 30)
  ffi.C.setrlimit(RLIMIT_AS, limit)
  local ok, problem = pcall(f)
  limit.now = before
  ffi.C.setrlimit(RLIMIT_AS, limit)
  if not ok then error(problem, 0) end
end

describe("the scripting API", function()
  it("answers any arguments with an error for the caller, and loses nothing", function()
    local warn, cwd = registry.warn, ffi.string(ffi.C.getcwd(ffi.new "char[4096]", 4096))
    registry.warn = function() end
    local ok, problem = pcall(files.with_folder, function(folder)
      assert(ffi.C.chdir(folder) == 0)
      with_limit(function()
        shared = world.prepare(folder)
        local expected = control_logits()
        for r = 0, math.ceil(OPERATIONS / CALLS) - 1 do
          local seed = SEED + r
          round(seed, folder)
          if r % 8 == 0 then check_losses(seed, folder) end
          if control_logits() ~= expected then error(("seed %d: other sessions' logits changed"):format(seed), 0) end
        end
      end)
    end)
    registry.warn = warn
    ffi.C.chdir(cwd)
    shared = nil
    world.forget()
    if not ok then error(problem, 0) end
  end)
end)

-- What the calls above found, each by itself.
describe("the scripting API, where it is called from within itself:", function()
  local model = lsa.model(golden .. "flash")

  local function says(pattern, f, ...)
    local ok, message = pcall(f, ...)
    assert.is_false(ok)
    assert.matches(pattern, message)
  end

  it("a policy can look at its session, and neither change nor close it", function()
    local s, seen
    s = model:session {select = function(cycle)
      seen = {}
      for _, name in ipairs {"decode", "prefill", "generate", "fork", "close", "save", "record"} do
        local _, message = pcall(s[name], s, name ~= "close" and 1 or nil)
        seen[name] = message
      end
      assert(#s:resident() >= 0 and s:stats().tokens == cycle.t and s:keys(0))
      return cycle.newest(1)
    end, budget = 0.5}
    s:prefill(tokens(20))
    s:decode(1)
    assert.equal(0, s:stats().policy_errors)
    for name, message in pairs(seen) do
      assert.matches("^[^:]-api_fuzz_spec.lua:%d+: " .. name .. ": a cycle is under way in the session, from which this was called", message)
    end
    s:close()
    says("the session is closed", s.resident, s)
  end)

  it("an eviction policy cannot close the pool or the batch that asks it", function()
    local pool, batch, message
    local function evict()
      local ids, self = {}, {hit = function() end, remove = function() end}
      function self.insert(_, id) ids[#ids + 1] = id end
      function self.victim(_, allowed)
        message = select(2, pcall((pool or batch).close, pool or batch))
        for i, id in ipairs(ids) do
          if allowed:has(id) then return table.remove(ids, i) end
        end
      end
      return self
    end
    pool = lsa.pool {layers = 1, record = 8, chunks = 9, hot = 2, evict = evict}
    pool:fetch {0, 1}
    pool:fetch {2, 3}
    assert.matches("pool: close: the eviction policy is being asked", message)
    pool:close()
    pool = nil
    batch = lsa.batch(model, {hot = 30, select = "random", budget = 8, every = 4, evict = evict})
    for i = 1, 2 do batch:submit {tokens = tokens(120, i), n = 30} end
    batch:run()
    assert.matches("close: a step of the batch is under way", message)
    assert.equal("done", batch:result(1).state)
    batch:close()
  end)

  it("a request whose session is closed before its prompt is done ends alone", function()
    local b = lsa.batch(model, {select = "recency", budget = 0.3, piece = 1})
    local long, short = b:submit {tokens = tokens(2000), n = 2}, b:submit {tokens = tokens(3), n = 2}
    b:step()
    assert.equal("prefill", b:result(long).state)
    b:session(long):close()
    b:run()
    assert.same({"failed", "done"}, {b:result(long).state, b:result(short).state})
    b:close()
  end)

  it("a policy made of functions is let go with its session", function()
    local held = setmetatable({}, {__mode = "k"})
    for _ = 1, 3 do
      local s
      local function newest(cycle) return s and cycle.newest(1) end
      held[newest] = true
      s = model:session {select = {"stale1", of = newest}, budget = 0.5}
      s:prefill(tokens(20))
      s:decode(1)
      s:close()
    end
    collectgarbage()
    collectgarbage()
    local left = 0
    for _ in pairs(held) do left = left + 1 end
    assert.is_true(left <= 1, left) -- the last one's may be on the stack still
  end)

  it("a recording holds options that no file can hold as text, and one that cannot be written costs a request no cells", function()
    files.with_folder(function(folder)
      local looped = {1}
      looped[2] = looped
      files.write(folder .. "/rule.lua", "return function(cycle, opt) assert(pairs(opt)) return cycle.newest() end")
      local s = model:session {select = {folder .. "/rule.lua", a = math.huge, b = looped, c = {[1] = 1, x = 2}, d = lsa.set(3)}, budget = 0.5}
      s:prefill(tokens(20))
      s:record(folder .. "/trace")
      s:decode(1)
      s:close()
      assert.equal(1, lsa.replay(folder .. "/trace", {trust = true}):stats().steps)
    end)
    local b = lsa.batch(model, {select = "recency", budget = 0.3})
    local id = b:submit {tokens = tokens(9), n = 3}
    b:step()
    local gone
    files.with_folder(function(folder)
      gone = folder .. "/trace"
      b:session(id):record(gone)
    end)
    b:run()
    assert.equal("done", b:result(id).state)
    assert.matches(gone, b:result(id).error, nil, true)
    assert.equal(0, b.replicas[1].commons.promised)
    b:close()
  end)

  it("a sweep's values and results that are nested in themselves are errors", function()
    local looped = {1}
    looped[2] = looped
    says("budgets has a value that is nested deeper than 16", lsa.sweep, {budgets = {looped}, run = function() return {} end})
    says("run's result has a value that is nested", lsa.sweep, {budgets = {1}, run = function() return looped end})
  end)

  it("a name with a zero byte is no other file's name", function()
    local path = golden .. "flash/model.safetensors\0.old"
    says("load: path is .* which has a zero byte", lsa.load, path)
    says("save: path is .* which has a zero byte", lsa.save, path, {})
    says("lsa.model: directory is .*; a file's name is wanted", lsa.model, golden .. "flash\0")
  end)

  it("queries without heads, and ids beyond the records, are errors", function()
    local K, none = lsa.kernels, lsa.zeros {0}
    says("q has 0 heads of 4 dimensions", K.attention, {q = lsa.zeros {1, 0, 4}, window = lsa.zeros {1, 4}, sinks = none, rope_dim = 0,
      own = 0, window_size = 1, scale = 1})
    says("ids has 9 for query 0, there are 2 records", K.attention, {q = lsa.zeros {1, 1, 4}, window = lsa.zeros {1, 4},
      sinks = lsa.zeros {1}, rope_dim = 0, own = 0, window_size = 1, scale = 1, records = lsa.zeros({2, 16}, "u8"), format = "f32",
      counts = lsa.tensor({1}, "i32"), ids = lsa.tensor({{9}}, "i32")})
  end)
end)
