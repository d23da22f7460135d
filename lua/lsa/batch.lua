-- Owns lsa.batch: many requests over one hot pool and one reserve.
--
--   b = lsa.batch(model, {hot = "64 MiB", memory = "1 GiB", most = 16, select = …, budget = …, every = …, evict = …})
--   id = b:submit{tokens = ids or text, n = 64, stop = "\n", select = …}     its options before the batch's; waits in a queue
--   id = b:submit{session = s, tokens = …}     on a fork of s, so that one prefill serves many requests
--   b:step() -> how many requests are not finished      b:run{progress = true} -> b:stats()
--   b:result(id)   b:session(id)   b:cancel(id)   b:stats()   b:close()
--
-- A step admits, prefills up to `piece` tokens, and decodes one token of every request that has its prompt behind it, all in one
-- pass (core/session/batch.c). A request is admitted, first come first served, when the cells that its residents and newborn chunks can
-- need are not promised to others, and its bytes fit in what `memory` leaves; lua/lsa/serve/request.lua has the sums.
--
--   hot       size of the hot pool; without it the pool has as many cells as are promised, and no reserve beyond
--   memory    bound of fast memory: the hot pool, and of each request HCA entries, window and resident index keys (of one that
--             selects "full": all its KV and keys; on demand: all its keys); without it nothing but `hot` and `most`, requests at once,
--             bounds them. On a GPU, prompts of those that have cells then read their records over the bus, as these have no bound
--
-- Each request's residents are its own, by identity. What leaves a resident set stays in its cell, the reserve, until the one
-- eviction object of the pool lets it go (lua/lsa/serve/shared_hot_tier.lua). One on demand has cells of the pool to itself, `hot` of
-- them or as many as its budget and a step's picks need, empty at first. Cycles of requests with a numeric `every` are staggered:
-- stagger = true, false, or "auto", which does so on a CPU; on a GPU steps between cycles follow one another without the host, so that
-- cycles of all requests at one step are better. What fails in a request ends it, and no other.
local lib = require "lsa.ffi"
local commons = require "lsa.serve.shared_hot_tier"
local loops = require "lsa.cycle.loop"
local options = require "lsa.options"
local interrupts = require "lsa.interrupts"
local progress = require "lsa.progress"
local raise = require "lsa.raise"
local report = require "lsa.serve.batch_report"
local request = require "lsa.serve.request"
local session = require "lsa.session"

local C = lib.C

local Batch = {}
Batch.__index = Batch

local M = {}

local NOTHING = {cells = 0, bytes = 0}

local own = {memory = false, most = 16, stagger = "auto", piece = 512}

-- A session's options, whose defaults are the session's, and its own.
local all = options.copy(own)
for name in pairs(session.defaults) do
  if own[name] == nil then all[name] = false end
end

local run_options = {progress = false}

M.class, M.options, M.run_options = Batch, all, run_options

local function pool_bytes(self, cells)
  return cells * self.unit * self.chunk_bytes
end

-- The dimensions of the requests' pools, from a session that is like them; and the hot pool.
local function measure(self, opt)
  local base = session.new(self.model, self.defaults)
  self.base_options, self.csa_layers = base.opt, base.csa_layers
  self.base_options.select = self.defaults.select or session.default_select(self.model) -- of requests that are not on demand
  local c = self.model.config
  self.unit, self.rate = loops.unit(base.opt), tonumber(c.csa_rate)
  self.record = tonumber(C.lsa_kv_record_bytes(base.format, c.head_dim, c.rope_dim))
  self.key = tonumber(C.lsa_index_key_bytes(base.format, c.index_dim))
  self.chunk_bytes = self.csa_layers * self.record
  if self.csa_layers > 0 then
    self.defaults.indexer = base.indexer -- one for all requests
    local cells = loops.cells({hot = opt.hot, granularity = base.opt.granularity, page = base.opt.page}, self.chunk_bytes)
    self.commons = commons.new(base.pool, base.opt.evict, cells)
  end
  base:close()
end

function M.new(model, opt)
  require("lsa.model").check(model, "lsa.batch: the first argument")
  local mine = {}
  opt = options.check(opt, all, "lsa.batch")
  for name in pairs(own) do mine[name] = opt[name] end
  local room = tonumber(C.lsa_activations_piece(model.scratch))
  if options.whole(mine.most, 1, "lsa.batch: most") > room then
    raise("lsa.batch: most is %d; the model's pieces have %d rows (lsa.model's option piece)", mine.most, room)
  end
  if mine.stagger == "auto" then mine.stagger = model.device == "cpu" end
  if type(mine.stagger) ~= "boolean" then raise("lsa.batch: stagger is %s; it can be true, false or \"auto\"", tostring(mine.stagger)) end
  local self = setmetatable({model = model, most = mine.most, stagger = mine.stagger, requests = {}, queue = {}, running = {},
    defaults = {}}, Batch)
  self.counts = {steps = 0, rows = 0, prefilled = 0, decode_s = 0, prefill_s = 0, seconds = 0, at_once = 0, peak = 0}
  -- A session prefills in pieces of this size; multiples of it give the same bits.
  self.piece = math.max(1, math.ceil(options.whole(mine.piece, 1, "lsa.batch: piece") / room)) * room
  for name, value in pairs(opt) do
    if own[name] == nil and name ~= "hot" then self.defaults[name] = value end
  end
  if mine.memory then self.memory = options.bytes(mine.memory, "lsa.batch: memory") end
  measure(self, opt)
  local fixed = self.commons and self.commons.fixed
  if self.memory and fixed and pool_bytes(self, fixed) > self.memory then
    raise("lsa.batch: the hot pool has %d bytes, memory is %d", pool_bytes(self, fixed), self.memory)
  end
  return self
end

---- admission ----

-- Bytes of fast memory with what is running and `need` beside it.
local function bytes_with(self, need)
  local total = need.bytes
  for _, r in ipairs(self.running) do total = total + r.need.bytes end
  if self.commons and not self.closed then total = total + pool_bytes(self, self.commons:cells_with(need.cells)) end
  return total
end

-- Why a request could not run even alone, or nil.
local function never_fits(self, need)
  local fixed = self.commons and self.commons.fixed
  if fixed and need.cells > fixed then
    return ("the request needs %d cells of the hot pool, which has %d"):format(need.cells, fixed)
  end
  local bytes = need.bytes + pool_bytes(self, fixed or need.cells)
  if self.memory and bytes > self.memory then
    return ("the request needs %d bytes with the hot pool; memory is %d"):format(bytes, self.memory)
  end
end

local function fits(self, need)
  if #self.running >= self.most then return false end
  local fixed = self.commons and self.commons.fixed
  if fixed and self.commons.promised + need.cells > fixed then return false end
  return not self.memory or bytes_with(self, need) <= self.memory
end

local function open(self)
  if self.closed then raise "the batch is closed" end
  if self.model.device == "cuda" then raise.check(C.lsa_device_check()) end
end

-- In a step, scripts' functions are called, which may look at the batch and submit to it.
local function idle(self, what)
  if self.stepping then raise(what .. ": a step of the batch is under way, from which this was called") end
end

function Batch:submit(opt)
  open(self)
  local r = request.new(self, opt)
  local problem = never_fits(self, r.need)
  if problem then raise("submit: " .. problem) end
  r.id = #self.requests
  self.requests[r.id + 1] = r
  self.queue[#self.queue + 1] = r
  return r.id
end

local MOST_STEPS = 1024 -- of b:run() in one call

-- Runs f, which is a request's own affair: what goes wrong there ends it. An interruption is everybody's, and raised.
local function guarded(r, f, ...)
  local ok, answer = pcall(f, ...)
  if ok then return answer end
  if interrupts.came() then error(answer, 0) end
  r:finish("failed", raise.words(answer))
end

-- Those that ended leave the list of the running.
local function sweep(self)
  local left, gone = {}, false
  for _, r in ipairs(self.running) do
    if r:running() then left[#left + 1] = r else gone = true end
  end
  self.running = left
  if gone and self.commons then self.commons:settle() end
end

local function free_slot(self)
  local taken = {}
  for _, r in ipairs(self.running) do taken[r.slot] = true end
  local slot = 0
  while taken[slot] do slot = slot + 1 end
  return slot
end

-- Opens the next request; one that Ctrl-C kept from being opened is the next again.
local function open_next(self)
  local r, slot = table.remove(self.queue, 1), free_slot(self)
  local every = r.every
  self.running[#self.running + 1] = r
  local ok, problem = pcall(guarded, r, r.open, r, slot, self.most)
  if ok then return end
  if r.session then r.session:close() end
  r.session, r.every, r.state = nil, every, "queued"
  table.remove(self.running)
  table.insert(self.queue, 1, r)
  error(problem, 0)
end

local function admit(self)
  while self.queue[1] and fits(self, self.queue[1].need) do
    open_next(self)
    self.counts.at_once = math.max(self.counts.at_once, #self.running)
    self.counts.peak = math.max(self.counts.peak, bytes_with(self, NOTHING))
    sweep(self)
  end
end

---- running ----

-- The prompts' next tokens, first come first served.
local function prefill(self, turn)
  local start = request.seconds()
  for _, r in ipairs(self.running) do
    if r.state == "prefill" and not turn.done[r] and (turn.from[r] or turn.spent < self.piece) then
      turn.from[r] = turn.from[r] or r.at
      guarded(r, r.prefill, r, turn.from[r] + self.piece)
      turn.done[r] = true
      turn.spent = turn.spent + r.at - turn.from[r]
      self.counts.prefilled = self.counts.prefilled + r.at - turn.from[r]
    end
  end
  self.counts.prefill_s = self.counts.prefill_s + request.seconds() - start
end

-- Up to `steps` steps of all that decode, in one call. Where requests wait or prompts are being prefilled, no further than to the
-- first answer's end; where an answer begins, to its first token.
local function decode(self, steps)
  local rows, asks = {}, {}
  local others = #self.queue > 0
  for _, r in ipairs(self.running) do
    if r:running() and not r.session.c then
      r:finish("failed", "its session was closed")
    elseif r.state == "decode" then
      rows[#rows + 1], asks[#rows + 1] = r, r:ask()
    elseif r.state == "prefill" then
      steps = 1
    end
  end
  if #rows == 0 then return end
  for i, ask in ipairs(asks) do
    if others or not rows[i].first then steps = math.min(steps, math.max(1, ask.steps)) end
  end
  local start, count = request.seconds(), self.counts
  local results, taken = session.run_together(asks, steps), 0
  local stopped
  for i, r in ipairs(rows) do
    local result = results[i]
    taken = math.max(taken, #result.out)
    count.rows = count.rows + #result.out
    guarded(r, r.stepped, r, result) -- also of one that failed or was interrupted: it took steps before
    if result.problem and interrupts.came() then stopped = result.problem
    elseif result.problem and result.problem ~= results.problem and r:running() then r:finish("failed", result.problem) end
  end
  count.steps = count.steps + taken
  count.decode_s = count.decode_s + request.seconds() - start
  stopped = stopped or results.problem
  if stopped then raise("%s", stopped) end
end

-- A step that was broken off goes on where it was: the same rows are side by side then, whose number rounds products (linear.h), and
-- answers are to the bit what they are without Ctrl-C. turn: tokens that it has prefilled, and where its requests were before.
local function step(self, steps)
  if not self.turn then
    admit(self)
    self.turn = {spent = 0, from = {}, done = {}}
  end
  prefill(self, self.turn)
  decode(self, steps)
  self.turn = nil
  sweep(self)
end

local take = interrupts.method(function(self, steps)
  local start = request.seconds()
  self.stepping = true
  local ok, problem = pcall(step, self, steps)
  self.stepping = false
  if not ok then error(problem, 0) end
  self.counts.seconds = self.counts.seconds + request.seconds() - start
  return #self.running + #self.queue
end)

-- Admits, prefills, and decodes a token of each.
function Batch:step()
  open(self)
  idle(self, "step")
  return take(self, 1)
end

function Batch:run(opt)
  open(self)
  idle(self, "run")
  opt = options.check(opt, run_options, "run")
  local left = #self.running + #self.queue
  local bar = opt.progress and progress(left, "requests")
  while left > 0 do
    local now = take(self, MOST_STEPS)
    if bar then bar:step(left - now, ("%d running"):format(#self.running)) end
    left = now
  end
  if bar then bar:done() end
  return self:stats()
end

---- what is known ----

local function find(self, id)
  local r = type(id) == "number" and self.requests[id + 1]
  if not r then raise("batch: no request %s; there are %d, from 0 on", tostring(id), #self.requests) end
  return r
end

-- {state =, ended = "steps" | "stopped" | "context", tokens = {…}, text = (without the stop, unless keep_stop), error =, wait_s =, …}: what a row of stats() has, of a request in any state.
function Batch:result(id)
  local r = find(self, id)
  local out = r:row()
  local ok, text = pcall(r.text, r)
  out.text, out.cycles = ok and text or nil, r.cycles or r.session and r.session:cycles() or {}
  return out
end

-- The session of a request that runs, to look at and to fork; nil otherwise. The batch decodes it.
function Batch:session(id)
  return find(self, id).session
end

-- Ends a request that is not finished; whether there was something to end.
function Batch:cancel(id)
  local r = find(self, id)
  idle(self, "cancel")
  if r.ended then return false end
  for i, waiting in ipairs(self.queue) do
    if waiting == r then table.remove(self.queue, i) break end
  end
  r:finish "cancelled"
  sweep(self)
  return true
end

function Batch:stats()
  local memory = {limit = self.memory, peak = self.counts.peak, used = bytes_with(self, NOTHING)}
  return report.new(self, memory)
end

-- Ends all requests and lets go of the hot pool.
function Batch:close()
  if self.closed then return end
  idle(self, "close")
  for _, r in ipairs(self.requests) do
    if not r.ended then r:finish "cancelled" end
  end
  self.queue, self.running, self.closed = {}, {}, true
  if self.commons then self.commons:close() end
end

for _, name in ipairs {"submit", "cancel", "close"} do Batch[name] = interrupts.method(Batch[name]) end

function Batch:__tostring()
  return self.closed and "batch (closed)" or tostring(self:stats())
end

require("lsa.arity").methods(Batch, "batch:")

return M
