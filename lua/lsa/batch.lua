-- Owns lsa.batch: many requests over one hot pool and one reserve.
--
--   b = lsa.batch(model, {hot = "64 MiB", memory = "1 GiB", most = 16, select = …, budget = …, every = …, evict = …})
--   id = b:submit{tokens = ids or text, n = 64, stop = "\n", select = …}     its options before the batch's; waits in a queue
--   id = b:submit{session = s, tokens = …}     on a fork of s, so that one prefill serves many requests
--   b:step() -> how many requests are not finished      b:run{progress = true} -> b:stats()
--   b:result(id)   b:session(id)   b:cancel(id)   b:stats()   b:close()
--
--   b = lsa.batch(model, {devices = {0, 1}, …})     the model on each of these GPUs, and requests shared out among them
--
-- A step admits, prefills up to `piece` tokens, and decodes one token of every request that has its prompt behind it, all in one
-- pass (core/session/run.c). A request is admitted, first come first served, when the cells that its residents and newborn chunks can
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
--
--   devices   numbers of GPUs: the weights are on each, and `hot`, `memory` and `most` are each one's. A request goes where fewest are, one
--             on a fork of a session where that is; all decode at the same time (core/session/run_groups.c)
--
-- lua/lsa/serve/replica.lua has the requests of one GPU.
local options = require "lsa.options"
local interrupts = require "lsa.interrupts"
local progress = require "lsa.progress"
local models = require "lsa.model"
local raise = require "lsa.raise"
local replica = require "lsa.serve.replica"
local report = require "lsa.serve.batch_report"
local request = require "lsa.serve.request"
local session = require "lsa.session"

local Batch = {}
Batch.__index = Batch

local M = {}

local own = {memory = false, most = 16, stagger = "auto", piece = 512, devices = false}

-- A session's options, whose defaults are the session's, and its own.
local all = options.copy(own)
for name in pairs(session.defaults) do
  if own[name] == nil then all[name] = false end
end

local run_options = {progress = false}

M.class, M.options, M.run_options = Batch, all, run_options

-- The model on each GPU that is named, or where it is.
local function models_on(model, gpus)
  if not gpus then return {model} end
  if model.device ~= "cuda" then raise("lsa.batch: devices are numbers of GPUs; the model is on the CPU") end
  local out, known = {}, {}
  for i, gpu in ipairs(options.list(gpus, "lsa.batch: devices")) do
    options.whole(gpu, 0, "lsa.batch: devices")
    if known[gpu] then raise("lsa.batch: devices: GPU %d is there twice", gpu) end
    known[gpu], out[i] = true, gpu
  end
  for i, gpu in ipairs(out) do out[i] = gpu == model.gpu and model or models.on_gpu(model, gpu) end
  return out
end

function M.new(model, opt)
  models.check(model, "lsa.batch: the first argument")
  local mine, settings = {}, {}
  opt = options.check(opt, all, "lsa.batch")
  for name, value in pairs(opt) do
    if own[name] == nil then settings[name] = value else mine[name] = value end
  end
  options.whole(mine.most, 1, "lsa.batch: most")
  options.whole(mine.piece, 1, "lsa.batch: piece")
  if mine.stagger ~= "auto" and type(mine.stagger) ~= "boolean" then
    raise("lsa.batch: stagger is %s; it can be true, false or \"auto\"", tostring(mine.stagger))
  end
  local self = setmetatable({requests = {}, replicas = {}}, Batch)
  self.counts = {steps = 0, rows = 0, prefilled = 0, decode_s = 0, prefill_s = 0, seconds = 0, at_once = 0, peak = 0}
  local there = models_on(model, mine.devices)
  if #there > 1 and type(settings.indexer) == "table" then
    raise "lsa.batch: indexer is an object, which is one model's; with several devices, give its file"
  end
  for i, each in ipairs(there) do self.replicas[i] = replica.new(each, mine, settings, self.replicas, self.counts) end
  return self
end

local function open(self)
  if self.closed then raise "the batch is closed" end
end

-- In a step, scripts' functions are called, which may look at the batch and submit to it.
local function idle(self, what)
  if self.stepping then raise(what .. ": a step of the batch is under way, from which this was called") end
end

-- Requests that are not finished.
local function left(self)
  local n = 0
  for _, each in ipairs(self.replicas) do n = n + #each.running + #each.queue end
  return n
end

-- Where a request goes: to its session's model, or where fewest are.
local function replica_for(self, opt)
  local from, best = type(opt) == "table" and opt.session, self.replicas[1]
  for _, each in ipairs(self.replicas) do
    if type(from) == "table" and from.model == each.model then return each end
    if #each.running + #each.queue < #best.running + #best.queue then best = each end
  end
  return best
end

function Batch:submit(opt)
  open(self)
  local r = replica_for(self, opt):submit(opt)
  r.id = #self.requests
  self.requests[r.id + 1] = r
  return r.id
end

local MOST_STEPS = 1024 -- of b:run() in one call

-- Up to `steps` steps of all that decode, in one call.
local function decode(self, steps)
  local rows, asks, count = {}, {}, self.counts
  for _, each in ipairs(self.replicas) do steps = each:ask(rows, asks, steps) end
  if #rows == 0 then return end
  local start = request.seconds()
  local results, taken = session.run_together(asks, steps), 0
  local stopped
  for i, r in ipairs(rows) do
    local result = results[i]
    taken = math.max(taken, #result.out)
    count.rows = count.rows + #result.out
    replica.guarded(r, r.stepped, r, result) -- also of one that failed or was interrupted: it took steps before
    if result.problem and interrupts.came() then stopped = result.problem
    elseif result.problem and result.problem ~= results.problem and r:running() then r:finish("failed", result.problem) end
  end
  count.steps = count.steps + taken
  count.decode_s = count.decode_s + request.seconds() - start
  stopped = stopped or results.problem
  if stopped then raise("%s", stopped) end
end

-- A step that was broken off goes on where it was: the same rows are side by side then, whose number rounds products (linear.h), and
-- answers are to the bit what they are without Ctrl-C.
local function step(self, steps)
  for _, each in ipairs(self.replicas) do each:begin() end
  decode(self, steps)
  for _, each in ipairs(self.replicas) do each:finish() end
end

local take = interrupts.method(function(self, steps)
  local start = request.seconds()
  self.stepping = true
  local ok, problem = pcall(step, self, steps)
  self.stepping = false
  if not ok then error(problem, 0) end
  self.counts.seconds = self.counts.seconds + request.seconds() - start
  return left(self)
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
  local unfinished = left(self)
  local bar = opt.progress and progress(unfinished, "requests")
  while unfinished > 0 do
    local now = take(self, MOST_STEPS)
    if bar then bar:step(unfinished - now, ("%d left"):format(now)) end
    unfinished = now
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
  r.batch:leave(r)
  return true
end

function Batch:stats()
  return report.new(self)
end

-- Ends all requests and lets go of the hot pool.
function Batch:close()
  if self.closed then return end
  idle(self, "close")
  for _, r in ipairs(self.requests) do
    if not r.ended then r:finish "cancelled" end
  end
  for _, each in ipairs(self.replicas) do each:close() end
  self.closed = true
end

for _, name in ipairs {"submit", "cancel", "close"} do Batch[name] = interrupts.method(Batch[name]) end

function Batch:__tostring()
  return self.closed and "batch (closed)" or tostring(self:stats())
end

require("lsa.arity").methods(Batch, "batch:")

return M
