-- Owns a batch's requests on one model (lua/lsa/batch.lua): their queue, admission, prompts, and the hot pool that they share. A batch has
-- one of these, or one on each of several GPUs.
--
--   r = replica:submit(options)     a request, which waits in the queue      replica:leave(r)     it waits no more, and runs no more
--   replica:begin()                 admits, and prefills the prompts' next tokens: once a step, however often it is broken off
--   steps = replica:ask(rows, asks, steps)     what its requests ask of the steps that come, and for how many of them
--   replica:finish()                the step is over: those that ended leave
--   replica:bytes()                 of fast memory, now      replica:close()
local lib = require "lsa.ffi"
local commons = require "lsa.serve.shared_hot_tier"
local devices = require "lsa.devices"
local interrupts = require "lsa.interrupts"
local loops = require "lsa.cycle.loop"
local options = require "lsa.options"
local raise = require "lsa.raise"
local request = require "lsa.serve.request"
local session = require "lsa.session"

local C = lib.C

local Replica = {}
Replica.__index = Replica

local M = {}

local NOTHING = {cells = 0, bytes = 0}

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

-- own: the batch's options; settings: the sessions' of all requests, of which `hot` is the pool's. all: the batch's replicas, counts: of
-- all of them together.
function M.new(model, own, settings, all, counts)
  local room = tonumber(C.lsa_activations_piece(model.scratch))
  if own.most > room then
    raise("lsa.batch: most is %d; the model's pieces have %d rows (lsa.model's option piece)", own.most, room)
  end
  local self = setmetatable({model = model, most = own.most, all = all, counts = counts, queue = {}, running = {}, defaults = {}}, Replica)
  self.stagger = own.stagger
  if self.stagger == "auto" then self.stagger = model.device == "cpu" end
  -- A session prefills in pieces of this size; multiples of it give the same bits.
  self.piece = math.max(1, math.ceil(own.piece / room)) * room
  for name, value in pairs(settings) do
    if name ~= "hot" then self.defaults[name] = value end
  end
  if own.memory then self.memory = options.bytes(own.memory, "lsa.batch: memory") end
  devices.on(model.gpu, measure, self, settings)
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

function Replica:submit(opt)
  if self.model.device == "cuda" then raise.check(C.lsa_device_check()) end
  local r = request.new(self, opt)
  local problem = never_fits(self, r.need)
  if problem then raise("submit: " .. problem) end
  self.queue[#self.queue + 1] = r
  return r
end

-- Runs f, which is a request's own affair: what goes wrong there ends it. An interruption is everybody's, and raised.
function M.guarded(r, f, ...)
  local ok, answer = pcall(f, ...)
  if ok then return answer end
  if interrupts.came() then error(answer, 0) end
  r:finish("failed", raise.words(answer))
end

local guarded = M.guarded

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

-- The most requests, and bytes, of all replicas of the batch together.
local function count(self)
  local running, bytes = 0, 0
  for _, replica in ipairs(self.all) do running, bytes = running + #replica.running, bytes + bytes_with(replica, NOTHING) end
  self.counts.at_once, self.counts.peak = math.max(self.counts.at_once, running), math.max(self.counts.peak, bytes)
end

local function admit(self)
  while self.queue[1] and fits(self, self.queue[1].need) do
    open_next(self)
    count(self)
    sweep(self)
  end
end

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

function Replica:begin()
  if self.model.device == "cuda" then raise.check(C.lsa_device_check()) end
  if not self.turn then
    admit(self)
    self.turn = {spent = 0, from = {}, done = {}} -- tokens that it has prefilled, and where its requests were before
  end
  prefill(self, self.turn)
end

-- Where requests wait or prompts are being prefilled, no further than to the first answer's end; where an answer begins, to its first
-- token.
function Replica:ask(rows, asks, steps)
  local others, before = #self.queue > 0, #rows
  for _, r in ipairs(self.running) do
    if r:running() and not r.session.c then
      r:finish("failed", "its session was closed")
    elseif r.state == "decode" then
      rows[#rows + 1], asks[#asks + 1] = r, r:ask()
    elseif r.state == "prefill" then
      steps = 1
    end
  end
  for i = before + 1, #rows do
    if others or not rows[i].first then steps = math.min(steps, math.max(1, asks[i].steps)) end
  end
  return steps
end

function Replica:finish()
  self.turn = nil
  sweep(self)
end

function Replica:leave(r)
  for i, waiting in ipairs(self.queue) do
    if waiting == r then table.remove(self.queue, i) break end
  end
  r:finish "cancelled"
  sweep(self)
end

function Replica:bytes() return bytes_with(self, NOTHING) end

function Replica:close()
  self.queue, self.running, self.closed = {}, {}, true
  if self.commons then self.commons:close() end
end

devices.methods(Replica, function(self) return self.model.gpu end)

return M
