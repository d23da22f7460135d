-- Owns sessions as scripts see them: options, the LSA cycle, forks, statistics. The forward pass is core/forward.c.
--
--   s = model:session{select = "recency", budget = 0.1}
--   logits = s:prefill(tokens)      [vocab] of the last token; {all = true}: [T, vocab]; {trace = true}: also a table of
--                                   intermediates
--   logits = s:decode(token)        s:generate{n =, temperature =, stop =} -> list of tokens
--   s:stats() s:cycles() s:fork{...} s:close()
--   s:keys(layer) s:hidden(layer) s:entries(layer)      layer is a CSA ordinal
--
-- One cycle: the policy names the chunks that the next τ steps may use, they are made resident, and Level 2 chooses
-- among them until the next cycle. A prefill makes a cycle due; it runs at the start of the next decode.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local cycles = require "lsa.cycle"
local evictions = require "lsa.evictions"
local options = require "lsa.options"
local registry = require "lsa.registry"
local rng = require "lsa.rng"
local set = require "lsa.set"
local stats = require "lsa.stats"
local tensor = require "lsa.tensor"
local tier = require "lsa.tier"

local C = lib.C

local Session = {}
Session.__index = Session

local M = {}

-- What api names; false: no default.
local defaults = {
  select = false, budget = 0.135, sink = 0, tail = false, every = 64, evict = "lru", indexer = false, ensemble = false,
  granularity = "chunk", page = 64, kv = "fp8", hot = false, async = false, strict = false, seed = 1,
}

-- What a fork may change; changing one makes a cycle due.
local forkable = {select = true, evict = true, every = true, hot = true, budget = true, seed = true, strict = true}

local formats = {f32 = C.LSA_KV_F32, bf16 = C.LSA_KV_BF16, fp8 = C.LSA_KV_FP8}
local dtypes = {f32 = "f32", bf16 = "bf16"}

local function seconds() return tonumber(C.lsa_clock_ns()) / 1e9 end

local function exists(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

---- options ----

local function check_options(opt, level)
  options.one_of(opt.kv, {"f32", "bf16", "fp8"}, "session: kv", level)
  options.one_of(opt.granularity, {"chunk", "page"}, "session: granularity", level)
  options.whole(opt.page, 1, "session: page", level)
  options.whole(opt.sink, 0, "session: sink", level)
  if opt.tail then options.whole(opt.tail, 0, "session: tail", level) end
  if type(opt.budget) ~= "number" or not (opt.budget >= 0) then
    error(("session: budget is %s; a share (0 to 1) or a number of chunks is wanted"):format(tostring(opt.budget)), level)
  end
  if opt.ensemble then options.one_of(opt.ensemble, {"max", "mean"}, "session: ensemble", level) end
end

-- The schedule of `every`: steps, a schedule's name, or a function.
local function open_schedule(every, level)
  if type(every) == "number" then
    options.whole(every, 1, "session: every", level)
    return registry.open("schedules", {"fixed", every = every}, level)
  end
  return registry.open("schedules", every, level)
end

-- Cells of the hot pool, or nil: bytes ("64 MiB") or chunks.
local function cells_of(self, hot, level)
  if not hot then return nil end
  local amount, plain = options.bytes(hot, "session: hot", level + 1)
  local chunk = tonumber(C.lsa_pool_layers(self.pool) * C.lsa_pool_record_bytes(self.pool))
  return math.floor((plain and amount or amount / chunk) / self.unit)
end

-- Opens what select, evict, every, hot name, on a session whose C object is there.
local function open_rules(self, opt, level)
  level = level + 1
  self.opt = opt
  self.full = opt.select == "full"
  if not self.full then
    self.policy = registry.open("policies", opt.select, level)
    self.full = self.policy.name == "full"
  end
  self.schedule = open_schedule(opt.every, level + 1)
  lib.check(C.lsa_session_set_tiered(self.c, self.full and 0 or 1), level)
end

local function open_indexer(self, opt, level)
  local from = opt.indexer
  local beside = self.model.directory .. "/indexer.safetensors"
  if not from then from = exists(beside) and beside or "native" end
  if type(from) == "table" then return from end
  return require("lsa.indexer").new({model = self.model, from = from, ensemble = opt.ensemble or "max"}, level + 1)
end

local function wrap(out)
  return ffi.gc(out[0], C.lsa_session_free)
end

function M.new(model, opt, level)
  level = (level or 1) + 1
  opt = options.check(opt, defaults, "session", level)
  check_options(opt, level + 1)
  if not opt.select then
    opt.select = exists(model.directory .. "/indexer.safetensors") and "lsa_threshold" or "lsa_topk"
    if #model.csa_layers == 0 then opt.select = "full" end
  end
  local self = setmetatable({model = model, format = formats[opt.kv]}, Session)
  self.unit = opt.granularity == "page" and opt.page or 1
  local out = ffi.new "lsa_session *[1]"
  lib.check(C.lsa_session_new(out, model.c, model.scratch, self.format, model.compute == "bf16" and 1 or 0, self.unit), level)
  self.c = wrap(out)
  self.pool = C.lsa_session_pool(self.c)
  open_rules(self, opt, level)
  if #model.csa_layers > 0 then
    self.indexer = open_indexer(self, opt, level)
    self.tier = tier.new(self.pool, self, opt.evict, cells_of(self, opt.hot, level), level)
  end
  self.state, self.rng, self.sampler = {}, rng.new(opt.seed), rng.new(opt.seed + 1)
  self:reset_counts()
  self.due, self.tau = 0, type(opt.every) == "number" and opt.every or 64
  self.observed_all = true
  return self
end

function Session:reset_counts()
  self.rows = {}
  self.covered, self.coverable, self.policy_errors = 0, 0, 0
end

local function open(self, level)
  if not self.c then error("the session is closed", level + 1) end
end

---- running ----

-- An int32_t array of token ids and its length, from a list, an i32 tensor, or text.
local function token_array(self, tokens, level)
  if type(tokens) == "string" then tokens = self.model:tokens(tokens) end
  if tensor.is(tokens) then
    tokens = tokens:to "i32":contiguous()
    return ffi.cast("const int32_t *", tokens.c.data), tokens:count(), tokens
  end
  if type(tokens) ~= "table" then
    error(("tokens are a list, an i32 tensor or text; this is a %s"):format(type(tokens)), level + 1)
  end
  for i = 1, #tokens do options.whole(tokens[i], 0, ("token %d"):format(i - 1), level + 1) end
  local ids = ffi.new("int32_t[?]", #tokens, tokens)
  return ids, #tokens, ids
end

local function vocabulary(self) return tonumber(self.model.config.vocab) end

local prefill_options = {all = false, trace = false}

function Session:prefill(tokens, opt)
  open(self, 2)
  opt = options.check(opt, prefill_options, "prefill", 2)
  local ids, n, keep = token_array(self, tokens, 2)
  local out = opt.all and tensor.zeros({n, vocabulary(self)}, "f32") or tensor.zeros({vocabulary(self)}, "f32")
  local trace
  if opt.trace then
    trace = ffi.new "lsa_trace *[1]"
    lib.check(C.lsa_trace_new(trace), 2)
    trace = ffi.gc(trace[0], C.lsa_trace_free)
  end
  local before = C.lsa_session_tokens(self.c)
  local rc = C.lsa_session_prefill(self.c, ids, n, opt.all and 1 or 0, ffi.cast("float *", out.c.data), trace, nil)
  if C.lsa_session_tokens(self.c) > before then
    self.due, self.observed_all, self.appended = 0, true, true
  end
  lib.check(rc, 2)
  if trace then return out, require("lsa.intermediates").tables(trace), keep end
  return out
end

function Session:decode(token)
  open(self, 2)
  if not self.full and self.due <= 0 then self:cycle() end
  local out = tensor.zeros({vocabulary(self)}, "f32")
  options.whole(token, 0, "decode: token", 2)
  lib.check(C.lsa_session_decode(self.c, token, ffi.cast("float *", out.c.data)), 2)
  self.due = self.due - 1
  return out
end

-- A token drawn from [vocab] logits; temperature 0 takes the largest, ties to the lower id.
local function draw(self, logits, temperature)
  if temperature == 0 then return logits:argmax() end
  local p = ffi.cast("const float *", logits.c.data)
  local n, most, sum = logits:count(), logits:max(), 0
  for i = 0, n - 1 do sum = sum + math.exp((p[i] - most) / temperature) end
  local left = self.sampler() * sum
  for i = 0, n - 1 do
    left = left - math.exp((p[i] - most) / temperature)
    if left < 0 then return i end
  end
  return n - 1
end

local generate_options = {n = 64, temperature = 0, stop = false}

-- n: at most so many tokens. stop: a token id, or text whose last byte ends the generation (included in the result).
function Session:generate(opt)
  open(self, 2)
  opt = options.check(opt, generate_options, "generate", 2)
  if C.lsa_session_tokens(self.c) == 0 then error("generate: nothing has been prefilled", 2) end
  local stop = opt.stop
  if type(stop) == "string" then
    local ids = self.model:tokens(stop)
    stop = ids[#ids]
  end
  local logits = tensor.zeros({vocabulary(self)}, "f32")
  ffi.copy(logits.c.data, C.lsa_session_logits(self.c), vocabulary(self) * 4)
  local out = {}
  for i = 1, opt.n do
    local token = draw(self, logits, opt.temperature)
    out[i] = token
    if token == stop then break end
    logits = self:decode(token)
  end
  return out
end

---- the cycle ----

local function ms(from) return (seconds() - from) * 1e3 end

-- Chunks that a policy may select of n candidates, its sink and tail included.
local function budget_of(self, n)
  local wanted = self.opt.budget <= 1 and math.floor(self.opt.budget * n) or self.opt.budget
  local cells = self.tier.fixed
  if not cells then return wanted end
  return math.max(0, math.min(wanted, cells * self.unit - self:born_room(self.tau)))
end

-- Chunks that may be born in τ steps.
function Session:born_room(tau)
  return math.ceil(tau / tonumber(self.model.config.csa_rate)) + 1
end

-- Cells for them: a page that is begun may need one more.
function Session:spare_cells(tau)
  return self.unit == 1 and self:born_room(tau) or math.ceil(self:born_room(tau) / self.unit) + 1
end

local function keep_of(self, n, budget)
  local tail = self.opt.tail or math.min(2048, math.floor(budget / 4))
  local keep = set.new(n)
  keep:range(0, math.min(self.opt.sink, n))
  return keep:range(math.max(0, n - tail), n)
end

function Session:resident()
  local n = tonumber(C.lsa_session_chunks(self.c))
  if self.full then return set.new(n):invert() end
  local count = tonumber(C.lsa_session_residents(self.c, nil))
  local ids = ffi.new("int32_t[?]", math.max(1, count))
  C.lsa_session_residents(self.c, ids)
  local out = set.new(n)
  lib.check(C.lsa_set_add_ids(out.c, ids, count))
  return out
end

-- The policy's set, joined with what is kept and checked. Errors leave nothing changed.
local function selection(self, cycle)
  self.policy:refresh()
  local ok, answer = self.policy:call(cycle)
  if not ok then error(answer, 0) end
  local chosen = cycles.as_set(answer, cycle.n):union(cycle.keep)
  if chosen:count() > cycle.budget and not cycle.keep:equals(chosen) then
    error(("policy %s: %d chunks with sink and tail, the budget is %d"):format(self.policy.name, chosen:count(), cycle.budget), 0)
  end
  return chosen
end

-- Steps until the next cycle, by the schedule.
local function next_tau(self, cycle)
  self.schedule:refresh()
  local ok, tau = self.schedule:call(cycle)
  if not ok then error(tau, 0) end
  if type(tau) ~= "number" or tau < 1 or tau ~= math.floor(tau) then
    error(("schedule %s: %s steps; a whole number of at least 1 is wanted"):format(self.schedule.name, tostring(tau)), 0)
  end
  return tau
end

-- Makes a chunk set resident: transfers, then Level 2's list, all at once.
local function make_resident(self, chunks, tau)
  local units = self.unit == 1 and chunks or chunks:pages(self.unit)
  local hits = self.tier:apply(units, self:spare_cells(tau))
  if self.unit > 1 then chunks = units:chunks(self.unit, chunks:size()) end
  local ids = chunks:ids()
  lib.check(C.lsa_session_set_residents(self.c, ffi.cast("const int32_t *", ids.c.data), ids:count()))
  self.observed_all = false
  return chunks, hits
end

local function complain(self, message, level)
  self.policy_errors, self.last_error = self.policy_errors + 1, message
  if self.opt.strict then error(message, level + 1) end
  if self.complained ~= message then registry.warn("lsa: " .. message .. "; the previous set stays in force") end
  self.complained = message
end

-- After a failure the previous set serves on: what was born with it, and, when tokens were prefilled since, what is
-- always resident. A pool too small for that and for what will be born loses its oldest chunks.
local function fall_back(self, cycle)
  local wanted = self.appended and cycle.resident:union(cycle.keep) or cycle.resident
  local most = self.tier.fixed and self.tier.fixed * self.unit - self:born_room(self.tau)
  if most and wanted:count() > most then
    local ids, fitting = wanted:ids():totable(), set.new(cycle.n)
    for i = #ids - math.max(0, most) + 1, #ids do fitting:add(ids[i]) end
    wanted = fitting
  end
  make_resident(self, wanted, self.tau)
end

function Session:sample_coverage()
  local covered, total = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  lib.check(C.lsa_session_coverage(self.c, covered, total))
  self.covered, self.coverable = self.covered + tonumber(covered[0]), self.coverable + tonumber(total[0])
  return total[0] > 0 and tonumber(covered[0]) / tonumber(total[0]) or nil
end

-- Runs the cycle that is due.
function Session:cycle()
  local started = seconds()
  local before = self.tier:counters()
  local t, n = tonumber(C.lsa_session_tokens(self.c)), tonumber(C.lsa_session_chunks(self.c))
  local row = {number = #self.rows, t = t, n = n}
  if not self.appended then row.coverage = self:sample_coverage() end
  self.tier:refresh()
  local budget = budget_of(self, n)
  local resident = self:resident()
  local cycle = cycles.new(self, {t = t, n = n, number = row.number, budget = budget, page = self.opt.page,
    resident = resident, keep = keep_of(self, n, budget), state = self.state, rng = self.rng, tau = self.tau,
    previous = resident})
  local policy_started = seconds()
  local ok, problem = pcall(function()
    local chosen = selection(self, cycle)
    cycle.selected = chosen
    self.tau = next_tau(self, cycle)
    row.policy_ms = ms(policy_started)
    local apply = chosen
    if self.opt.async then -- the set of this cycle serves from the next one on; the first has no predecessor
      if self.pending then apply = self.pending:copy():resize(n):range(self.pending:size(), n):union(cycle.keep) end
      self.pending = chosen
    end
    row.selected = chosen:count()
    local set_in_force
    set_in_force, row.hits = make_resident(self, apply, self.tau)
    row.resident = set_in_force:count()
    row.kept = set_in_force:intersect_count(resident)
  end)
  if not ok then
    row.error = tostring(problem)
    fall_back(self, cycle)
    complain(self, row.error, 2)
  end
  self.appended = false
  self.due = self.tau
  local after = self.tier:counters()
  row.tau = self.tau
  for _, name in ipairs {"fetched_chunks", "fetched_bytes", "evicted_chunks"} do row[name] = tonumber(after[name] - before[name]) end
  row.transfer_ms = tonumber(after.transfer_ns - before.transfer_ns) / 1e6
  row.stall_ms = ms(started)
  self.rows[#self.rows + 1] = row
end

function Session:cycles()
  return self.rows
end

---- forks and the end ----

function Session:fork(opt)
  open(self, 2)
  local merged = {}
  for name, value in pairs(self.opt) do merged[name] = value end
  for name, value in pairs(opt or {}) do
    if not forkable[name] then
      local names = {}
      for valid in pairs(forkable) do names[#names + 1] = valid end
      table.sort(names)
      error(("fork: '%s' cannot change; these can: %s"):format(tostring(name), table.concat(names, ", ")), 2)
    end
    merged[name] = value
  end
  check_options(merged, 3)
  local fork = setmetatable({}, Session)
  for name, value in pairs(self) do fork[name] = value end
  local out = ffi.new "lsa_session *[1]"
  lib.check(C.lsa_session_fork(out, self.c), 2)
  fork.c = wrap(out)
  fork.pool = C.lsa_session_pool(fork.c)
  fork:reset_counts()
  fork.state, fork.rng, fork.sampler = evictions.copy(self.state), self.rng:clone(), self.sampler:clone()
  opt = opt or {}
  if opt.select then fork.state = {} end
  if opt.seed then fork.rng, fork.sampler = rng.new(opt.seed), rng.new(opt.seed + 1) end
  if next(opt) then fork.due = 0 end
  open_rules(fork, merged, 2)
  if not opt.select then fork.policy = self.policy end
  if not opt.every then fork.schedule = self.schedule end
  if self.tier then fork.tier = self.tier:fork(fork.pool, fork, opt.evict, cells_of(fork, merged.hot, 2), 2) end
  return fork
end

function Session:close()
  if not self.c then return end
  C.lsa_session_free(ffi.gc(self.c, nil))
  self.c, self.pool, self.tier = nil, nil, nil
end

---- what a session holds ----

function Session:keys(layer)
  open(self, 2)
  local c = self.model.config
  local n = tonumber(C.lsa_session_chunks(self.c))
  local width = self.format == C.LSA_KV_FP8 and tonumber(c.index_dim) + 4 or tonumber(c.index_dim)
  local out = tensor.zeros({n, width}, dtypes[self.opt.kv] or "u8")
  lib.check(C.lsa_session_keys(self.c, layer, 0, n, out.c.data), 2)
  return out
end

function Session:hidden(layer)
  open(self, 2)
  local out = tensor.zeros({tonumber(self.model.config.hidden)}, "f32")
  lib.check(C.lsa_session_hidden(self.c, layer, ffi.cast("float *", out.c.data)), 2)
  return out
end

function Session:entries(layer)
  open(self, 2)
  local n = tonumber(C.lsa_session_chunks(self.c))
  local out = tensor.zeros({n, tonumber(self.model.config.head_dim)}, "f32")
  lib.check(C.lsa_session_entries(self.c, layer, 0, n, ffi.cast("float *", out.c.data)), 2)
  return out
end

function Session:tokens()
  open(self, 2)
  return tonumber(C.lsa_session_tokens(self.c))
end

local function sum(rows, name)
  local total = 0
  for _, row in ipairs(rows) do total = total + (row[name] or 0) end
  return total
end

function Session:stats()
  open(self, 2)
  local count, bytes = ffi.new "lsa_session_counters", ffi.new "lsa_session_bytes"
  C.lsa_session_count(self.c, count)
  C.lsa_session_memory(self.c, bytes)
  local steps = tonumber(count.steps)
  local chunk = self.pool ~= nil and tonumber(C.lsa_pool_layers(self.pool) * C.lsa_pool_record_bytes(self.pool)) or 0
  local moved = self.tier and self.tier:counters() or ffi.new "lsa_pool_counters"
  local stall = sum(self.rows, "stall_ms")
  local decode = tonumber(count.decode_ns) / 1e6
  return stats.new {
    policy = self.full and "full" or self.policy.name, tokens = self:tokens(), chunks = tonumber(C.lsa_session_chunks(self.c)),
    steps = steps, cycles = #self.rows,
    resident_bytes = steps > 0 and math.floor(tonumber(count.resident_sum) * chunk / steps + 0.5) or tonumber(bytes.kv_resident),
    resident_pct = steps > 0 and 100 * count.resident_share / steps or 100 * tonumber(bytes.kv_resident) / math.max(1, tonumber(bytes.kv_total)),
    kv_bytes = tonumber(bytes.kv_total), index_key_bytes = tonumber(bytes.index_keys), hca_bytes = tonumber(bytes.hca),
    window_bytes = tonumber(bytes.window), hot_bytes = tonumber(bytes.hot_cells), cold_bytes = tonumber(bytes.cold),
    fetched_chunks = tonumber(moved.fetched_chunks), fetched_bytes = tonumber(moved.fetched_bytes),
    evicted_chunks = tonumber(moved.evicted_chunks), hits = sum(self.rows, "hits"),
    transfer_ms = tonumber(moved.transfer_ns) / 1e6, stall_ms = stall, policy_ms = sum(self.rows, "policy_ms"),
    decode_ms = decode, prefill_ms = tonumber(count.prefill_ns) / 1e6,
    ms_per_token = steps > 0 and (decode + stall) / steps or 0,
    coverage = self.coverable > 0 and self.covered / self.coverable or nil,
    policy_errors = self.policy_errors, last_error = self.last_error,
  }
end

function Session:__tostring()
  if not self.c then return "session (closed)" end
  return ("session: %d tokens, %d chunks, select %s, kv %s"):format(self:tokens(), tonumber(C.lsa_session_chunks(self.c)),
    self.full and "full" or self.policy.name, self.opt.kv)
end

return M
