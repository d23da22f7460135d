-- Sessions under random operations, each beside a twin that computes the same from the same resident sets by the plainest means:
-- in memory, with a cell for every chunk, nothing in the background, and nothing that fails. After every operation the
-- invariants of a session hold; where everything is resident, the twin is plain full attention.
--
-- `./lsa test --operations 1e6 tests/session_random_spec.lua` runs more; a failure tells seed and operation.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local long = require "long_support"
local registry = require "lsa.registry"
local options = require "lsa.options"
local rng = require "lsa.cycle.rng"
local sessions = require "lsa.session"
local raise = require "lsa.raise"
local support = require "file_support"

local C = lib.C
local settings = package.loaded["lsa.prompt.test"] or {}
local OPERATIONS = settings.operations or 1e4
local SEED = 1
local MOST_SESSIONS, MOST_TOKENS, LARGE = 7, 5200, 4300

local POLICY = [[
return function(cycle, opt)
  local u, out = cycle.rng(), {}
  cycle.state.calls = (cycle.state.calls or 0) + 1
  cycle.state.scores = cycle.u
  if u < 0.06 then error "at random" end
  if u < 0.12 then return {{0, cycle.n}} end
  if u < 0.15 then return "nonsense" end
  if u < 0.20 then return {} end
  for i = 1, math.floor(cycle.room * cycle.rng()) do out[i] = cycle.rng(cycle.n) end
  return out
end]]

-- Fails now and then, but not again while the cycle that it failed in falls back, whatever object does that.
local EVICT = [[
local calls = 0
return function(capacity)
  local lru = require("lsa.cycle.eviction_objects").new("lru", capacity)
  return {hit = function(_, id) lru:hit(id) end, insert = function(_, id) lru:insert(id) end,
    remove = function(_, id) lru:remove(id) end, victim = function(_, allowed)
      calls = calls + 1
      if calls % 997 == 0 then error "an eviction at random" end
      return lru:victim(allowed)
    end}
end]]

local function bits(t) return ffi.string(t.c.data, t:bytes()) end

---- the twin ----

local function ids_of(set)
  local t = set:ids()
  return ffi.cast("const int32_t *", t.c.data), t:count(), t
end

local function same_residents(c, ids, n)
  if tonumber(C.lsa_session_residents(c, nil)) ~= n then return false end
  local own = ffi.new("int32_t[?]", math.max(1, n))
  C.lsa_session_residents(c, own)
  for i = 0, n - 1 do
    if own[i] ~= ids[i] then return false end
  end
  return true
end

-- Gives the twin a resident set; nil: all chunks, without a set.
local function twin_residents(twin, set)
  raise.check(C.lsa_session_set_tiered(twin.c, set and 1 or 0))
  if not set then return end
  local cells = tonumber(C.lsa_session_chunks(twin.c)) + 64
  if cells > tonumber(C.lsa_pool_cells(twin.pool)) + 32 then raise.check(C.lsa_pool_set_cells(twin.pool, cells)) end
  local ids, n, keep = ids_of(set)
  if same_residents(twin.c, ids, n) then return end
  local absent, count = ffi.new("int32_t[?]", math.max(1, n)), 0
  for i = 0, n - 1 do
    if C.lsa_pool_has(twin.pool, ids[i]) == 0 then
      absent[count] = ids[i]
      count = count + 1
    end
  end
  raise.check(C.lsa_pool_fetch(twin.pool, absent, count))
  raise.check(C.lsa_session_set_residents(twin.c, ids, n))
  return keep
end

---- the world ----

local World = {}
World.__index = World

local function fail(self, what, ...)
  error(("seed %d, operation %d (%s): "):format(SEED, self.number, self.what) .. what:format(...), 0)
end

local function expect(self, condition, what, ...)
  if not condition then fail(self, what, ...) end
end

-- The twin gets the residents that the step just taken saw.
local function prepare(self, one)
  local s, twin = one.s, one.twin
  local t, n = s:position()
  local rate = tonumber(self.model.config.csa_rate)
  local born = t % rate == 0 and n - 1 or nil
  local before = born or n
  if s.loop.full or s.opt.on_demand then
    twin_residents(twin, nil)
  else
    local set = s:resident()
    expect(self, not born or set:has(born), "chunk %d was born, and is not resident", born or 0)
    set = set:resize(before)
    twin_residents(twin, set:count() < before and set or nil)
  end
end

-- What decoding one token gave is what the twin computes from the same residents.
local function follow(self, one, token, logits)
  C.lsa_memory_fail_after(-1) -- the twin does not fail
  C.lsa_io_fail_after(-1)
  prepare(self, one)
  expect(self, bits(one.twin:decode(token)) == bits(logits), "logits of token %d are not those of the same residents",
    one.s:tokens() - 1)
end

local function adopt(self, s, twin)
  local one = {s = s, twin = twin}
  local decode = getmetatable(s).__index.decode
  s.decode = function(_, token)
    local logits = decode(s, token)
    follow(self, one, token, logits)
    return logits
  end
  self.list[#self.list + 1] = one
  return one
end

local function tokens_of(self, n)
  local out = {}
  for i = 1, n do out[i] = self.random(tonumber(self.model.config.vocab)) end
  return out
end

local function pick(self, list) return list[1 + self.random(#list)] end

local EVICTIONS = {"lru", "lru", "fifo", "arc", "s3fifo", "lfu", "sieve", "clock", "random", "failing"}

local function random_options(self)
  local u = self.random()
  local out = {kv = pick(self, {"f32", "bf16", "fp8", "fp8"}), seed = self.random(1000)}
  out.cold = self.random() < 0.3 and "disk:" .. self.cold or "ram"
  if u < 0.15 then
    out.on_demand = true
    if self.random() < 0.6 then out.hot = self.need + self.random(40) end
    if self.random() < 0.5 then
      out.select, out.budget, out.every = pick(self, {self.policy, "recency", "h2o_ema"}), pick(self, {0.1, 0.6, 1, 5}), pick(self, {1, 2, 5, "stagger"})
    end
    return out
  elseif u < 0.25 then
    out.select = "full"
    return out
  end
  out.select = u < 0.4 and "recency" or u < 0.5 and "lsa_topk" or u < 0.6 and "h2o_ema" or self.policy
  out.budget = u < 0.4 and 1 or pick(self, {0.1, 0.3, 0.6, 5, 20})
  out.every = pick(self, {1, 2, 3, 5, 8, "stagger"})
  out.async = self.random() < 0.35
  out.evict = pick(self, EVICTIONS)
  if out.evict == "failing" then out.evict = self.evict end
  out.sink, out.tail = pick(self, {0, 0, 3}), pick(self, {0, 1, 4})
  if self.random() < 0.3 then out.granularity, out.page = "page", pick(self, {2, 4, 16}) end
  if self.random() < 0.5 then out.hot = (10 + self.random(60)) * (out.page == 16 and 8 or 1) end
  return out
end

---- invariants ----

local function held_units(s)
  local units = ffi.new("int32_t[?]", math.max(1, tonumber(C.lsa_pool_cells(s.pool))))
  return units, tonumber(C.lsa_pool_present(s.pool, units))
end

-- What lies in a chunk's cell is what the cold tier has.
local function check_bytes(self, s, chunk)
  local layers, record = tonumber(C.lsa_pool_layers(s.pool)), tonumber(C.lsa_pool_record_bytes(s.pool))
  local key = tonumber(C.lsa_pool_key_bytes(s.pool))
  local cold, hot = ffi.new("uint8_t[?]", layers * record), ffi.new("uint8_t[?]", record)
  raise.check(C.lsa_pool_read_chunks(s.pool, chunk, 1, cold, ffi.new("uint8_t[?]", layers * key)))
  for layer = 0, layers - 1 do
    raise.check(C.lsa_pool_read(s.pool, layer, ffi.new("int32_t[1]", chunk), 1, hot))
    expect(self, ffi.string(hot, record) == ffi.string(cold + layer * record, record), "chunk %d of layer %d differs in its cell", chunk, layer)
  end
end

local function check_cells(self, s)
  local cells, free = tonumber(C.lsa_pool_cells(s.pool)), tonumber(C.lsa_pool_free_cells(s.pool))
  local held, units, n = tonumber(C.lsa_pool_held_cells(s.pool)), held_units(s)
  expect(self, cells == free + held, "cells leak: %d, %d free, %d held", cells, free, held)
  expect(self, n == held or C.lsa_pool_under_way(s.pool) == 1, "%d cells are held, %d units present", held, n)
  local seen = {}
  for i = 0, n - 1 do
    expect(self, not seen[units[i]], "unit %d has two cells", units[i])
    seen[units[i]] = true
  end
  if s.tier.fixed then
    expect(self, cells <= math.max(s.tier.fixed, s.cells_before or 0), "the hot pool has grown to %d cells of %d", cells, s.tier.fixed)
  else
    local all, unit = tonumber(C.lsa_pool_units(s.pool)), tonumber(C.lsa_pool_unit(s.pool))
    expect(self, cells <= 2 * all + 40 + math.ceil(80 / unit) + (s.cells_before or 0), "the hot pool has grown to %d cells for %d units", cells, all)
  end
  if n > 0 then
    local unit, chunks = tonumber(C.lsa_pool_unit(s.pool)), select(2, s:position())
    local chunk = units[self.random(n)] * unit + self.random(unit)
    if chunk < chunks then check_bytes(self, s, chunk) end
  end
end

local function check_one(self, one)
  local s = one.s
  local t, n = s:position()
  expect(self, t == tonumber(C.lsa_session_tokens(one.twin.c)), "it has %d tokens, the twin %d", t, tonumber(C.lsa_session_tokens(one.twin.c)))
  if t > 0 then
    local own, other = ffi.new "int32_t[1]", ffi.new "int32_t[1]"
    local at = self.random(t)
    C.lsa_session_token_ids(s.c, at, 1, own)
    C.lsa_session_token_ids(one.twin.c, at, 1, other)
    expect(self, own[0] == other[0], "token %d is %d, not %d", at, own[0], other[0])
    expect(self, bits(s:logits()) == bits(one.twin:logits()), "the last logits have changed")
  end
  if not s.loop.full then
    local unit = tonumber(C.lsa_pool_unit(s.pool))
    for chunk in s:resident():each() do
      expect(self, chunk < n and C.lsa_pool_has(s.pool, math.floor(chunk / unit)) == 1, "chunk %d of %d is resident without a cell", chunk, n)
    end
  end
  check_cells(self, s)
end

---- operations ----

-- Whether an operation may fail now, by which door; then it is done with that fault, else without.
local function with_fault(self, fn)
  local u = self.random()
  if u >= 0.2 then return true, fn() end
  local door = u < 0.15 and "lsa_memory_fail_after" or "lsa_io_fail_after"
  C[door](self.random(u < 0.05 and 8 or 70))
  local ok, result = pcall(fn)
  C[door](-1)
  if not ok then
    self.faults = self.faults + 1
    result = tostring(result)
    local known = result:find "out of memory" or result:find "Input/output error" or result:find "memory could not" or
      result:find "not enough memory" or result:find "is missing" or result:find "damaged"
    expect(self, known, "%s", result)
  end
  return ok, result
end

local operations = {}

function operations.create(self)
  if #self.list >= MOST_SESSIONS then return operations.close(self) end
  local opt = random_options(self)
  local ok, s = with_fault(self, function() return self.model:session(opt) end)
  if ok then adopt(self, s, self.model:session{select = "full", kv = opt.kv}) end
end

local function any(self)
  if #self.list == 0 then operations.create(self) end
  return self.list[1 + self.random(math.max(1, #self.list))]
end

function operations.close(self, at)
  if #self.list == 0 then return end
  at = at or 1 + self.random(#self.list)
  self.list[at].s:close()
  self.list[at].twin:close()
  table.remove(self.list, at)
end

local function prefill(self, one, tokens)
  local before = one.s:tokens()
  local ok, logits = with_fault(self, function() return one.s:prefill(tokens) end)
  if not ok then
    local done = one.s:tokens() - before
    expect(self, done >= 0 and done < #tokens, "%d of %d tokens after a failure", done, #tokens)
    local rest = {}
    for i = done + 1, #tokens do rest[#rest + 1] = tokens[i] end
    if done > 0 then -- pieces: the twin takes the same
      local head = {unpack(tokens, 1, done)}
      one.twin:prefill(head)
    end
    logits, tokens = one.s:prefill(rest), rest
  end
  raise.check(C.lsa_session_set_tiered(one.twin.c, 0))
  expect(self, bits(logits) == bits(one.twin:prefill(tokens)), "a prefill of %d tokens has other logits", #tokens)
end

function operations.prefill(self)
  local one = any(self)
  if not one or one.s:tokens() > MOST_TOKENS then return end
  prefill(self, one, tokens_of(self, self.random(1, self.random() < 0.05 and 200 or 24)))
end

function operations.decode(self)
  local one = any(self)
  if not one or one.s:tokens() > MOST_TOKENS or (one.s:tokens() == 0 and self.random() < 0.9) then return end
  for _ = 1, self.random(1, 4) do
    local token, before = self.random(tonumber(self.model.config.vocab)), one.s:tokens()
    local ok = with_fault(self, function() return one.s:decode(token) end)
    if not ok then
      expect(self, one.s:tokens() == before, "a failed step left %d tokens of %d", one.s:tokens(), before)
      check_one(self, one)
      one.s:decode(token)
    end
  end
end

function operations.generate(self)
  local one = any(self)
  if not one or one.s:tokens() == 0 or one.s:tokens() > MOST_TOKENS then return end
  local opt = {n = self.random(1, 5), temperature = pick(self, {0, 1}), stop = 3}
  local fork = self.random() < 0.3 and one.s:fork() -- it takes the same steps in one go
  local before = one.s:tokens()
  opt.each = function(token)
    if one.s:tokens() == before then return end -- a stop, which is not decoded
    before = one.s:tokens()
    C.lsa_memory_fail_after(-1) -- what is looked at here does not fail
    follow(self, one, token, one.s:logits())
  end
  local told = "what failed is no token"
  if fork then -- without faults: a cycle that fails in one of them keeps another set
    told = table.concat(one.s:generate(opt), " ")
  else
    with_fault(self, function() return one.s:generate(opt) end)
  end
  expect(self, one.s:tokens() == before, "generate took %d tokens, %d were told", one.s:tokens(), before)
  if not fork then return end
  opt.each = nil
  local at_once = table.concat(fork:generate(opt), " ")
  expect(self, told == at_once, "token by token %s, in one go %s", told, at_once)
  fork:close()
end

-- One step of each, by its own token: what went wrong, by the place of each that took none.
local function decode_together(list, tokens)
  local asks, problems = {}, {}
  for i, s in ipairs(list) do asks[i] = {session = s, given = {tokens[i]}} end
  for i, result in ipairs(sessions.run_together(asks, 1)) do problems[i] = result.problem end
  return problems
end

-- Products of several rows are rounded in their own way, so the twins go together, too.
function operations.together(self)
  local list, twins, tokens, before, rows = {}, {}, {}, {}, {}
  for _, one in ipairs(self.list) do
    if one.s:tokens() > 0 and one.s:tokens() < MOST_TOKENS and self.random() < 0.7 then
      rows[#rows + 1], list[#list + 1], twins[#twins + 1] = one, one.s, one.twin
      tokens[#tokens + 1], before[#before + 1] = self.random(tonumber(self.model.config.vocab)), one.s:tokens()
    end
  end
  if #list == 0 then return end
  local problems = decode_together(list, tokens)
  for i, one in ipairs(rows) do
    expect(self, not problems[i] and one.s:tokens() == before[i] + 1, "session %d took no step: %s", i, tostring(problems[i]))
    prepare(self, one)
  end
  assert(not next(decode_together(twins, tokens)))
  for i, one in ipairs(rows) do
    expect(self, bits(one.s:logits()) == bits(one.twin:logits()), "logits of session %d of %d are not its twin's", i, #rows)
  end
end

local function random_changes(self, s)
  local out, u = {}, self.random()
  if u < 0.3 then return out end
  if u < 0.5 and tonumber(C.lsa_pool_unit(s.pool)) == 1 and not s.opt.async and C.lsa_pool_keys_stay(s.pool) == 0 then
    out.on_demand, out.hot = true, self.need + self.random(30)
    return out
  end
  if self.random() < 0.5 then out.select = pick(self, {self.policy, "recency", "full", "random"}) end
  if self.random() < 0.4 then out.hot = (self.need + self.random(50)) * (tonumber(C.lsa_pool_unit(s.pool)) == 16 and 4 or 1) end
  local evictions = s.opt.on_demand and not s.loop.full and {"lru"} or {"lru", "sieve", "lfu"} -- a policy on demand has lru
  if self.random() < 0.3 then out.evict = pick(self, evictions) end
  if self.random() < 0.3 then out.budget = pick(self, {0.2, 1, 9}) end
  if self.random() < 0.3 then out.every = self.random(1, 6) end
  if self.random() < 0.2 then out.seed = self.random(100) end
  return out
end

-- A new session beside the old one, or in its place.
local function succeed(self, one, s, changes)
  local fork = adopt(self, s, one.twin:fork())
  s.cells_before = changes.hot and tonumber(C.lsa_pool_cells(s.pool)) or one.s.cells_before
  if #self.list > MOST_SESSIONS or self.random() < 0.5 then
    for at, other in ipairs(self.list) do
      if other == one then return operations.close(self, at) end
    end
  end
  return fork
end

function operations.fork(self)
  local one = any(self)
  if not one then return end
  local changes = random_changes(self, one.s)
  local ok, fork = with_fault(self, function() return one.s:fork(changes) end)
  if ok then succeed(self, one, fork, changes) end
end

function operations.save(self)
  local one = any(self)
  if not one then return end
  local path = self.folder .. "/saved"
  if not with_fault(self, function() one.s:save(path) end) then return end
  local changes = self.random() < 0.4 and random_changes(self, one.s) or {}
  if self.random() < 0.2 and not changes.on_demand then changes.cold = pick(self, {"ram", "disk:" .. self.cold}) end
  local trusted = options.copy(changes)
  trusted.trust = true
  local ok, restored = with_fault(self, function() return self.model:restore(path, trusted) end)
  if ok then succeed(self, one, restored, changes) end
end

-- A fork of the long context, whose cold tier can be on disk.
function operations.large(self)
  if #self.list >= MOST_SESSIONS then operations.close(self) end
  local base = pick(self, self.bases)
  local changes = random_changes(self, base.s)
  local ok, s = with_fault(self, function() return base.s:fork(changes) end)
  if not ok then return end
  local one = adopt(self, s, base.twin:fork())
  s.cells_before = changes.hot and tonumber(C.lsa_pool_cells(s.pool))
  prefill(self, one, tokens_of(self, self.random(1, 9)))
end

local WEIGHTS = {decode = 46, prefill = 14, generate = 8, together = 8, fork = 8, save = 4, create = 7, close = 4, large = 0.6}

local function draw_operation(self)
  local total, at = 0, 0
  local names = {}
  for name, weight in pairs(WEIGHTS) do
    total = total + weight
    names[#names + 1] = name
  end
  table.sort(names)
  local u = self.random() * total
  for _, name in ipairs(names) do
    at = at + WEIGHTS[name]
    if u < at then return name end
  end
  return "decode"
end

local function make_bases(self)
  local prompt = long.tokens(self.model, LARGE, self.random)
  self.bases = {}
  for i, opt in ipairs {{select = self.policy, budget = 0.05, every = 3, cold = "disk:" .. self.cold, async = true},
    {select = "full", cold = "disk:" .. self.cold, on_demand = true, hot = self.need + 30}} do
    local twin = self.model:session{select = "full"}
    local s = self.model:session((function() if opt.on_demand then opt.select = nil end return opt end)())
    s:prefill(prompt)
    twin:prefill(prompt)
    self.bases[i] = {s = s, twin = twin}
  end
end

local function run(self, most)
  make_bases(self)
  while self.number < most do
    self.number = self.number + 1
    self.what = draw_operation(self)
    operations[self.what](self)
    if #self.list > 0 then
      local one = self.list[1 + self.random(#self.list)]
      check_one(self, one)
      check_one(self, self.list[#self.list])
    end
  end
  self.what = "the end"
  while #self.list > 0 do operations.close(self, 1) end
  for _, base in ipairs(self.bases) do
    base.s:close()
    base.twin:close()
  end
end

describe("sessions", function()
  it("keep their invariants under random operations, faults among them", function()
    local warn, warned = registry.warn, 0
    registry.warn = function() warned = warned + 1 end
    local ok, problem = pcall(long.with_model, "flash", function(model, folder)
      local self = setmetatable({model = model, random = rng.new(SEED), list = {}, number = 0, what = "start", faults = 0,
        need = tonumber(model.config.index_topk) * #model.csa_layers, folder = folder, cold = folder, policy = folder .. "/policy.lua",
        evict = folder .. "/evict.lua"}, World)
      support.write(self.policy, POLICY)
      support.write(self.evict, EVICT)
      local function memory() return support.memory() - tonumber(C.lsa_activations_bytes(model.scratch)) end
      local before = memory()
      local done, why = xpcall(run, function(e)
        e = tostring(e)
        return e:find "^seed" and e or ("seed %d, operation %d (%s): %s"):format(SEED, self.number, self.what, debug.traceback(e))
      end, self, OPERATIONS)
      C.lsa_memory_fail_after(-1)
      C.lsa_io_fail_after(-1)
      assert(done, why)
      -- The allocator rounds the sizes of activations and workspace up, by a quarter at most.
      assert.is_true(memory() - before < 2 ^ 17 + tonumber(C.lsa_activations_bytes(model.scratch)) / 4)
      assert.is_true(self.faults > OPERATIONS / 200 and warned > OPERATIONS / 200)
    end)
    registry.warn = warn
    assert(ok, problem)
  end)
end)
