-- Owns the LSA loop: when a cycle is due, what the policy selects, what becomes resident, and the books of it. Sessions run
-- it on a live model and replay on a recorded one; both are a `source`:
--
--   source:position()            tokens known, chunks that are candidates
--   source:resident()            the set of resident chunks
--   source:set_resident(chunks)  Level 2's set from here on: all at once
--   source:drop_absent()         residents that have lost their cells leave the set
--   source:coverage()            covered, total: how much of the native top-k at the last token is resident
--   source.observed_all          whether every chunk was observed since the last set took over
--   and what lua/lsa/cycle/cycle.lua asks for
local lib = require "lsa.ffi"
local cycles = require "lsa.cycle.cycle"
local interrupts = require "lsa.interrupts"
local options = require "lsa.options"
local owned = require "lsa.tensor.memory_pressure"
local plain = require "lsa.files.plain_data"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local set = require "lsa.tensor.set"

local C = lib.C

local Loop = {}
Loop.__index = Loop

local M = {class = Loop}

-- Bytes of dead tensors that a cycle may leave behind where the cold tier is on disk to save memory.
local GARBAGE = 2 ^ 22

local SEGMENT = tonumber(C.LSA_COLD_SEGMENT)

local DEMAND_STEPS = 64 -- on demand: steps that the loop sees to at once

local MOST_RESERVED = 4096 -- steps that a cycle has memory for, at most: of a longer one, later ones ask again

-- What of a session's options the loop reads; a fork may change these (lsa.replay may, too).
M.options = {select = false, budget = 0.135, sink = 0, tail = false, every = 64, evict = "lru", hot = false, page = 64,
  granularity = "chunk", async = false, strict = false, coverage = false, seed = 1}

-- What of a loop a saved session keeps beside the policy's state; the rest follows from its options.
M.saved = {"due", "tau", "number", "appended", "fresh", "pending", "rng", "rows", "covered", "coverable", "policy_errors", "clipped", "unspilled",
  "last_error", "complained"}

-- Steps between two cycles, at most: no context is longer.
M.longest = 2 ^ 24

local function seconds() return tonumber(C.lsa_clock_ns()) / 1e9 end
local function ms(from) return (seconds() - from) * 1e3 end

function M.check_options(opt)
  options.one_of(opt.granularity, {"chunk", "page"}, "session: granularity")
  options.whole(opt.page, 1, "session: page")
  options.whole(opt.sink, 0, "session: sink")
  options.whole(opt.seed, 0, "session: seed")
  options.boolean(opt.async or false, "session: async")
  options.boolean(opt.strict or false, "session: strict")
  options.boolean(opt.coverage or false, "session: coverage")
  if opt.tail then options.whole(opt.tail, 0, "session: tail") end
  if type(opt.budget) ~= "number" or not (opt.budget >= 0 and opt.budget < 2 ^ 31) then
    raise("session: budget is %s; a share (0 to 1) or a number of chunks is wanted", options.shown(opt.budget))
  end
end

-- Chunks a cell holds.
function M.unit(opt)
  return opt.granularity == "page" and opt.page or 1
end

-- Cells of the hot pool, or nil: bytes ("64 MiB") or chunks.
function M.cells(opt, chunk_bytes)
  if not opt.hot then return nil end
  local amount, chunks = options.bytes(opt.hot, "session: hot")
  return math.floor((chunks and amount or amount / chunk_bytes) / M.unit(opt))
end

-- The schedule of `every`: steps, a schedule's name, or a function.
local function open_schedule(every)
  if type(every) == "number" then
    options.whole(every, 1, "session: every", M.longest)
    return registry.open("schedules", {"fixed", every = every})
  end
  if type(every) == "table" and type(every.every) == "number" then options.whole(every.every, 1, "session: every: every", M.longest) end
  return registry.open("schedules", every)
end

-- Steps between cycles, as far as `every` tells before a schedule was asked.
function M.first_tau(every)
  if type(every) == "number" then return every end
  return type(every) == "table" and type(every.every) == "number" and every.every or 64
end

-- rate: tokens a chunk. tier: see lua/lsa/cycle/hot_tier.lua; nil on models without CSA layers.
function M.new(opt, rate, tier)
  local self = setmetatable({opt = opt, rate = rate, tier = tier, unit = M.unit(opt)}, Loop)
  self:open_rules()
  self.state, self.rng = {}, rng.new(opt.seed)
  self.due, self.tau, self.number = 0, M.first_tau(opt.every), 0
  self:reset_counts()
  return self
end

function Loop:open_rules()
  self.policy = registry.open("policies", self.opt.select)
  self.full = self.policy.name == "full"
  self.schedule = open_schedule(self.opt.every)
end

function Loop:reset_counts()
  self.rows = {}
  self.covered, self.coverable, self.policy_errors, self.clipped, self.unspilled = 0, 0, 0, 0, 0
end

-- Files of policies that change from here on are not loaded anew.
function Loop:settle()
  self.settled = true
end

-- For a fork: `changed` holds the options given anew, `tier` serves the fork's pool.
function Loop:fork(opt, changed, tier)
  local fork = setmetatable({}, Loop)
  for name, value in pairs(self) do fork[name] = value end
  fork.opt, fork.tier, fork.under_way = opt, tier, nil
  fork:reset_counts()
  fork.state, fork.rng = changed.select and {} or plain.copy(self.state, "cycle.state"), self.rng:clone()
  if changed.select then fork.number = 0 end -- states remember numbers of cycles
  if changed.seed then fork.rng = rng.new(opt.seed) end
  if changed.select or changed.every then
    fork:open_rules()
    if not changed.select then fork.policy = self.policy end
    if not changed.every then fork.schedule = self.schedule end
  end
  if next(changed) then fork.fresh = true end
  if changed.every then fork.tau = M.first_tau(changed.every) end
  if next(changed) then fork.due = 0 end
  return fork
end

-- Tokens were prefilled: a cycle is due, and what it then finds was all observed.
function Loop:appended_tokens()
  self.due, self.appended, self.fresh = 0, true, true
end

-- Chunks that may be born in τ steps, and cells for them: a page that is begun may need one more.
function Loop:born_room(tau)
  return math.ceil(tau / self.rate) + 1
end

function Loop:spare_cells(tau)
  local room = self:born_room(tau or self.tau)
  return self.unit == 1 and room or math.ceil(room / self.unit) + 1
end

-- Cells that stay for what a step on demand picks, while chunks are born for tau steps.
local function picks_of(self, source, n, tau)
  return self.opt.on_demand and source:demand_cells(n + self:born_room(tau)) or 0
end

-- Chunks that a policy may select of n candidates, its sink and tail included. picks: see picks_of.
local function budget_of(self, n, picks)
  local wanted = self.opt.budget <= 1 and math.floor(self.opt.budget * n) or self.opt.budget
  local cells = self.tier.fixed
  if not cells then return wanted end
  return math.max(0, math.min(wanted, cells * self.unit - self:born_room(self.tau) - picks))
end

local function keep_of(self, n, budget)
  local tail = self.opt.tail or math.min(2048, math.floor(budget / 4))
  local keep = set.new(n)
  keep:range(0, math.min(self.opt.sink, n))
  return keep:range(math.max(0, n - tail), n)
end

-- The policy's set, joined with what is kept and checked. Errors leave nothing changed. own: what the engine goes by, whatever a
-- policy does to the cycle it is given.
local function selection(self, cycle, own)
  if not self.settled then self.policy:refresh() end
  local ok, answer = self.policy:call(cycle)
  if not ok then error(answer, 0) end
  local fits, chosen = pcall(cycles.as_set, answer, own.n)
  if not fits then error(self.policy:blame(chosen), 0) end
  chosen = chosen:union(own.keep)
  if chosen:count() > own.budget and not own.keep:equals(chosen) then
    error(self.policy:blame(("%s: %d chunks with sink and tail, the budget is %d"):format(self.policy:called(), chosen:count(),
      own.budget)), 0)
  end
  return chosen
end

-- Steps until the next cycle, by the schedule; no more than the tier has promised cells for, where it has (`longest`).
local function next_tau(self, cycle)
  if not self.settled then self.schedule:refresh() end
  local ok, tau = self.schedule:call(cycle)
  if not ok then error(tau, 0) end
  if type(tau) ~= "number" or not (tau >= 1 and tau <= M.longest) or tau ~= math.floor(tau) then
    error(self.schedule:blame(("%s: %s steps; a whole number from 1 to %d is wanted"):format(self.schedule:called(),
      tostring(tau), M.longest)), 0)
  end
  return math.min(tau, self.tier.longest or tau)
end

-- On demand: a set comes into the hot pool, as what was used last, and leaves like any other. Returns the hits.
local function prefetch(self, source, chunks, tau)
  local _, n = source:position()
  local count, picks, born = chunks:count(), picks_of(self, source, n, tau), self:born_room(tau)
  if not self.tier.fixed and count + picks + born > self.tier:cells() then self.tier:resize(count + picks + born) end
  if count > 0 and count + picks + born > self.tier:cells() then
    raise("the set has %d chunks, a step can pick %d, and %d can be born; the hot pool has %d cells", count, picks, born, self.tier:cells())
  end
  return source:prefetch(chunks)
end

-- Makes a chunk set resident: transfers, then Level 2's list, all at once. Returns the set in force and the hits.
local function make_resident(self, source, chunks, tau)
  if self.opt.on_demand then
    local hits = prefetch(self, source, chunks, tau)
    source.observed_all = true -- of the steps from here on
    return chunks, hits
  end
  local units = self.unit == 1 and chunks or chunks:pages(self.unit)
  local hits = self.tier:apply(units, self:spare_cells(tau))
  if self.unit > 1 then chunks = units:chunks(self.unit, chunks:size()) end
  source:set_resident(chunks)
  source.observed_all = false
  return chunks, hits
end

-- Messages of one kind differ in their numbers alone. Each kind is said once.
local function warn_once(self, message, consequence)
  local kind, known = message:gsub("%-?%d[%w.]*", "#"):gsub("%s+", " "), self.complained or "\n"
  if known:find("\n" .. kind .. "\n", 1, true) then return end
  self.complained = known .. kind .. "\n"
  registry.warn(("lsa: %s; %s"):format(message, consequence))
end

local function complain(self, problem)
  local message = raise.words(problem)
  self.policy_errors, self.last_error = self.policy_errors + 1, message
  if self.opt.strict then error(problem, 0) end
  warn_once(self, message, "the previous set stays in force")
end

-- The cold tier goes to its file, where it has one. Where the disk refuses, it stays in memory, which is as good to all but those who
-- want the memory: they are told once, it is counted, and tried again at the next cycle.
local function spill(self, row)
  if row.unspilled then return end
  local ok, problem = pcall(self.tier.spill, self.tier)
  if ok then return end
  row.unspilled, self.unspilled = true, (self.unspilled or 0) + 1
  warn_once(self, raise.words(problem), "the cold tier stays in memory")
end

-- The most steps for which a pool of `cells` has room for what is born.
local function longest_tau(self, cells)
  local room = self.unit == 1 and cells - 1 or (cells - 1) * self.unit - 1
  return math.max(1, room * self.rate)
end

-- Of a chunk set, what lies in its newest `most` units.
local function newest_units(self, chunks, most)
  local units = self.unit == 1 and chunks or chunks:pages(self.unit)
  local over = units:count() - math.max(0, most)
  if over <= 0 then return chunks end
  local ids = units:ids()
  for i = 0, over - 1 do units:remove(ids:get(i)) end
  return self.unit == 1 and units or units:chunks(self.unit, chunks:size()):intersect(chunks)
end

-- After a failure the previous set serves on: what was born with it, and, when tokens were prefilled since, what is
-- always resident. A pool too small for that and for what will be born loses its oldest chunks; one that is too small
-- for what is born in so many steps has its next cycle sooner.
local function fall_back(self, source, own, row)
  spill(self, row)
  if self.opt.on_demand then return end -- what is there stays, and what is missed is fetched
  local wanted, cells = self.appended and own.resident:union(own.keep) or own.resident:copy(), self.tier.fixed
  if cells then
    self.tau = math.min(self.tau, longest_tau(self, cells))
    wanted = newest_units(self, wanted, cells - self:spare_cells(self.tau))
  end
  local ok, problem = pcall(make_resident, self, source, wanted, self.tau)
  if ok then return end
  source:drop_absent()
  error(problem, 0)
end

local function sample_coverage(self, source)
  local covered, total = source:coverage()
  self.covered, self.coverable = self.covered + covered, self.coverable + total
  return total > 0 and covered / total or nil
end

local function new_cycle(self, source, t, n)
  local budget, resident = budget_of(self, n, picks_of(self, source, n, self.tau)), source:resident()
  local own = {n = n, budget = budget, resident = resident, keep = keep_of(self, n, budget)}
  local residents = resident:copy()
  return cycles.new(source, {t = t, n = n, number = self.number, budget = budget, page = self.opt.page, unit = self.unit,
    resident = residents, previous = residents, keep = own.keep:copy(), state = self.state, rng = self.rng, tau = self.tau}), own
end

-- Against the residents before: churn, the share of the new set that was not among them; jaccard, what is in both over what is in
-- either.
local function compare(row, before)
  local either = row.resident + before - row.kept
  row.churn = row.resident > 0 and 1 - row.kept / row.resident or 0
  row.jaccard = either > 0 and row.kept / either or 1
end

-- Asynchronous mode: the set that serves from the next cycle on is fetched while decode computes. What is in force stays; what
-- does not fit beside it is fetched when it is applied, and so is everything where the transfer cannot start.
local function fetch_ahead(self, chosen, in_force)
  local units = self.unit == 1 and chosen or chosen:pages(self.unit)
  local kept = self.unit == 1 and in_force or in_force:pages(self.unit)
  pcall(self.tier.start, self.tier, units, self:spare_cells(), kept)
end

-- What of a cycle can fail: select, schedule, fetch. Fills the row.
local function turn(self, source, cycle, own, row)
  local arrived, problem = pcall(self.tier.finish, self.tier)
  local started = seconds()
  local chosen = selection(self, cycle, own)
  cycle.selected = chosen:copy()
  if cycle.clipped then row.clipped, self.clipped = true, (self.clipped or 0) + 1 end
  self.tau = next_tau(self, cycle)
  row.policy_ms = ms(started)
  local apply = chosen
  if self.opt.async then -- the set of this cycle serves from the next one on; the first has no predecessor
    if self.pending then
      apply = self.pending:copy():resize(own.n):range(self.pending:size(), own.n):union(own.keep)
    end
    self.pending = chosen
  end
  row.selected = chosen:count()
  if not arrived then error(problem, 0) end
  spill(self, row)
  local in_force
  in_force, row.hits = make_resident(self, source, apply, self.tau)
  row.resident = in_force:count()
  row.kept = in_force:intersect_count(own.resident)
  if self.opt.async then fetch_ahead(self, chosen, in_force) end
  if row.number > 0 then compare(row, own.resident:count()) end
end

-- Whoever has the cold tier on disk wants the memory: what a cycle took goes back to the system.
local function save_memory()
  owned.collect(GARBAGE)
  C.lsa_memory_give_back()
end

local function guarded(self, what, f, ...)
  local outer = self.under_way
  self.under_way = what
  local ok, answer = pcall(f, ...)
  self.under_way = outer
  if not ok then error(answer, 0) end
  return answer
end

-- Runs f, in which a script's functions are called, so that the session stays as it is until f is done: see Session's idle().
-- Masked, so that no interrupt keeps it from having been done.
function Loop:guarded(what, f, ...)
  return interrupts.masked(guarded, self, what, f, ...)
end

local function built_in(entry) return not entry or registry.is_built_in(entry.source) end

-- A cycle that Ctrl-C broke off in a script's rule is run again, as if it had never begun: what the rules remember is as it was.
-- Returns the function that puts it back; the library's own rules are not broken off, so there is nothing to keep of them.
local function checkpoint(self, source)
  local held = self.tier
  if not interrupts.survived() or built_in(self.policy) and built_in(self.schedule) and built_in(held.entry) then
    return function() end
  end
  local fields, flops, known, stale = options.copy(self), source.policy_flops, held.known, held.stale
  local state, generator = plain.try(self.state, "cycle.state"), self.rng:clone()
  local object = held.entry and held:copy_of_object()
  return function()
    for name in pairs(self) do self[name] = fields[name] end
    self.rng, source.policy_flops, held.known, held.stale = generator, flops, known, stale
    if state then self.state = plain.decode(state) end
    if object then held.policy = object end
  end
end

local function cycle_of(self, source)
  local started, before = seconds(), self.tier:counters()
  local put_back = checkpoint(self, source)
  local t, n = source:position()
  local row = {number = #self.rows, t = t, n = n}
  if self.opt.coverage and not self.appended then row.coverage = sample_coverage(self, source) end
  if not self.settled then self.tier:refresh() end
  local cycle, own = new_cycle(self, source, t, n)
  local ok, problem = pcall(turn, self, source, cycle, own, row)
  if not ok and interrupts.came() then
    put_back()
    error(problem, 0)
  end
  if not ok then
    row.error = raise.words(problem)
    fall_back(self, source, own, row)
    complain(self, problem)
  end
  self.appended, self.due, row.tau = false, self.tau, self.tau
  if source.reserve then source:reserve(math.min(self.tau, MOST_RESERVED)) end
  local after = self.tier:counters()
  for _, name in ipairs {"fetched_chunks", "fetched_bytes", "evicted_chunks"} do
    row[name] = tonumber(after[name] - before[name])
  end
  row.transfer_ms = tonumber(after.transfer_ns - before.transfer_ns) / 1e6
  row.transfer_stall_ms = tonumber(after.stall_ns - before.stall_ns) / 1e6
  if self.tier:spilled() then save_memory() end
  row.stall_ms = ms(started)
  self.rows[#self.rows + 1], self.number = row, self.number + 1
end

-- Runs the cycle that is due.
function Loop:cycle(source)
  self:guarded("a cycle", cycle_of, self, source)
end

-- On demand, before a step: cells for what it can pick, at least, and after a prefill for the budget; the cold tier to its file, as
-- far as it has come.
local function before_demand(self, source)
  local _, n = source:position()
  local wanted = self.tier.fixed or math.max(self.fresh and budget_of(self, n, 0) or 0,
    source:demand_cells(n + math.ceil(DEMAND_STEPS / self.rate) + 1))
  if wanted > self.tier:cells() or (self.tier.fixed and wanted < self.tier:cells()) then self.tier:resize(wanted) end
  local whole = math.floor(n / SEGMENT)
  if self.fresh or whole ~= self.spilled_segments then
    self.spilled_segments = whole
    spill(self, {})
    if self.tier:spilled() then C.lsa_memory_give_back() end
  end
  self.fresh = false
end

-- Before a step: the cycle, when one is due. After it, or after n steps of which none made a cycle due: so many less.
function Loop:before_step(source)
  if self.opt.on_demand then before_demand(self, source) end
  if not self.full and self.due <= 0 then self:cycle(source) end
end

function Loop:after_step(n)
  self.due = self.due - (n or 1)
end

-- Steps that can be taken before the loop has to be asked again.
function Loop:steps_left()
  local most = self.full and math.huge or math.max(1, self.due)
  return self.opt.on_demand and math.min(DEMAND_STEPS, most) or most
end

-- A column's sum over all cycles.
function Loop:sum(name)
  local total = 0
  for _, row in ipairs(self.rows) do total = total + (row[name] or 0) end
  return total
end

-- A column's mean over the cycles that have it, or nil.
function Loop:mean(name)
  local total, n = 0, 0
  for _, row in ipairs(self.rows) do
    if row[name] then total, n = total + row[name], n + 1 end
  end
  return n > 0 and total / n or nil
end

-- What the loop knows of s:stats().
function Loop:stats()
  return {churn = self:mean "churn", jaccard = self:mean "jaccard",
    policy = self.opt.on_demand and (self.full and "on demand" or "on demand, " .. self.policy.name) or self.policy.name, cycles = #self.rows, hits = self:sum "hits", stall_ms = self:sum "stall_ms",
    policy_ms = self:sum "policy_ms", coverage = self.coverable > 0 and self.covered / self.coverable or nil,
    coverage_measured = self.opt.coverage or false,
    policy_errors = self.policy_errors, failed = self.policy_errors, clipped = self.clipped or 0,
    unspilled = self.unspilled or 0, last_error = self.last_error}
end

return M
