-- Owns a request of a batch (lua/lsa/batch.lua): what it asks for, what it needs, its life from queue to end.
--
--   state   "queued", "prefill", "decode"; then "done", "failed" or "cancelled"
--   need    {cells =, bytes =, units =, longest =}: cells of the hot pool and bytes beside it, at its last token; units that it
--           can have; the longest τ
local accounting = require "lsa.accounting"
local lib = require "lsa.ffi"
local loops = require "lsa.cycle.loop"
local options = require "lsa.options"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local session = require "lsa.session"
local stops = require "lsa.session.stop"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local Request = {}
Request.__index = Request

local M = {}

local PAGE_EDGES = 3 -- pages that sink, tail and the selection's end fill in part

-- What a request may say; the rest are a session's options.
M.own = {tokens = false, session = false, n = 64, stop = false, keep_stop = false, temperature = 0, decoded = 1}
M.policy = {on_demand = true, select = true, budget = true, every = true, sink = true, tail = true, seed = true, strict = true, coverage = true}

-- Both, and their defaults.
M.options = options.copy(M.own)
for name in pairs(M.policy) do M.options[name] = false end
M.options.hot = false

local function seconds() return tonumber(C.lsa_clock_ns()) / 1e9 end
M.seconds = seconds

-- A list of ids from ids, an i32 tensor or text.
local function token_list(model, tokens)
  if type(tokens) == "string" then tokens = model:tokens(tokens) end
  if tensor.is(tokens) then tokens = tokens:totable() end
  if type(tokens) ~= "table" then
    raise("submit: tokens are a list, an i32 tensor or text; this is a %s", type(tokens))
  end
  local vocabulary = tonumber(model.config.vocab)
  for i, id in ipairs(tokens) do
    options.whole(id, 0, ("submit: token %d"):format(i - 1))
    if id >= vocabulary then raise("submit: token %d is %d; the vocabulary has %d", i - 1, id, vocabulary) end
  end
  return tokens
end

local function check_session(self, from, given)
  local batch = self.batch
  if getmetatable(from) ~= session.class then
    raise("submit: session is a %s; a session of the batch's model is wanted", type(from))
  end
  if not from.c then raise "submit: the session is closed" end
  if from.model ~= batch.model then raise "submit: the session is of another model than the batch" end
  for _, name in ipairs {"kv", "granularity", "page", "cold"} do
    if from.opt[name] ~= batch.base_options[name] then
      raise("submit: the session's %s is %s, the batch's %s", name, tostring(from.opt[name]),
        tostring(batch.base_options[name]))
    end
  end
  for name in pairs(M.policy) do
    if given[name] ~= nil and not session.forkable[name] then
      raise("submit: '%s' cannot change in a fork of the session", name)
    end
  end
end

local function check_own(self, opt)
  options.whole(opt.n, 0, "submit: n")
  options.whole(opt.decoded, 0, "submit: decoded")
  options.boolean(opt.keep_stop or false, "submit: keep_stop")
  if type(opt.temperature) ~= "number" or not (opt.temperature >= 0) then
    raise("submit: temperature is %s; a number of at least 0 is wanted", tostring(opt.temperature))
  end
  self.before = 0
  if opt.session then
    check_session(self, opt.session, opt)
    self.before = opt.session:tokens()
  end
  if #self.tokens + self.before == 0 then raise "submit: there are no tokens" end
  local most, all = tonumber(self.batch.model.config.max_positions), self.before + #self.tokens + opt.n
  if all > most then
    raise("submit: %d tokens with the answer; the model's max_position_embeddings is %d", all, most)
  end
end

-- Options of a new session, or what changes in a fork of the given one: the request's before the batch's.
local function session_options(batch, opt)
  local out = {}
  for name in pairs(M.policy) do out[name] = opt[name] end
  for name, value in pairs(batch.defaults) do
    if out[name] == nil and (not opt.session or (M.policy[name] and session.forkable[name])) then out[name] = value end
  end
  return out
end

-- Whether its session fetches on demand, as lua/lsa/session.lua decides of new ones and of forks; then `select` is in the settings.
local function settle_on_demand(self)
  local settings, from, batch = self.settings, self.opt.session, self.batch
  if settings.on_demand == nil and from and from.opt.on_demand then
    settings.on_demand = not (settings.select and from.loop.full)
  end
  if not settings.on_demand then return false end
  if not settings.select and not (from and from.opt.on_demand) then settings.select = "full" end
  settings.evict, settings.hot = "lru", false -- of its share; the batch's eviction object has the others
  local checked = {}
  for name, value in pairs(batch.base_options) do checked[name] = value end
  for _, options_of in ipairs {from and from.opt or {}, settings} do
    for name, value in pairs(options_of) do checked[name] = value end
  end
  session.check_options(checked)
  return true
end

-- In cells are the index keys that can be on disk; of a session on demand none are.
local function check_cells_alike(self)
  local batch, own = self.batch, self.on_demand or false
  local whole = batch.base_options.on_demand or false
  if own == whole or not options.cold(batch.base_options.cold) then return end
  raise("submit: on_demand is %s, the batch's %s; with the cold tier on disk their cells differ", tostring(own), tostring(whole))
end

-- opt.every of a session whose cycles are a share of τ later than another's.
local function staggered(every, slot, of)
  return {"stagger", every = every, index = slot, of = of}
end

function M.new(batch, given)
  local opt = options.check(given, M.options, "submit")
  local self = setmetatable({batch = batch, opt = opt, state = "queued", out = {}, submitted = seconds()}, Request)
  self.tokens = token_list(batch.model, opt.tokens or {})
  check_own(self, opt)
  self.stop = stops.new(batch.model, opt.stop)
  self.settings = session_options(batch, opt)
  self.on_demand = settle_on_demand(self)
  check_cells_alike(self)
  -- What decides: the settings, after them the forked session's own.
  local effective = setmetatable({}, {__index = function(_, name)
    if self.settings[name] ~= nil then return self.settings[name] end
    if opt.session then return opt.session.opt[name] end
    return batch.base_options[name]
  end})
  local checked = {}
  for name in pairs(loops.options) do checked[name] = effective[name] end
  loops.check_options(checked)
  local policy = registry.open("policies", checked.select)
  if type(checked.every) == "number" then options.whole(checked.every, 1, "submit: every")
  else registry.open("schedules", checked.every) end
  self.full, self.policy, self.every = policy.name == "full" and not self.on_demand, policy.name, checked.every
  if self.on_demand then self.policy = policy.name == "full" and "on demand" or "on demand, " .. policy.name end
  self.need = self:needs(checked)
  return self
end

-- The longest τ, which cells for newborn chunks are promised for.
local function longest_tau(every)
  local most = type(every) == "table" and every.most
  return type(most) == "number" and most or loops.first_tau(every)
end

-- Cells at the last token: the residents that the budget or sink and tail allow, and room for what is born within τ.
local function cells_of(self, opt, chunks)
  local unit, rate = self.batch.unit, self.batch.rate
  if self.opt.hot then
    return loops.cells({hot = self.opt.hot, granularity = opt.granularity, page = opt.page}, self.batch.chunk_bytes)
  end
  local budget = opt.budget <= 1 and math.floor(opt.budget * chunks) or opt.budget
  local tail = opt.tail or math.min(2048, math.floor(budget / 4))
  local loop, tau = setmetatable({unit = unit, rate = rate}, loops.class), longest_tau(opt.every)
  local residents, spare = math.max(budget, opt.sink + tail), loop:spare_cells(tau)
  if opt.async then residents = residents + loop:born_room(tau) + opt.sink + tail end -- an older set, and what is always kept now
  residents = math.min(chunks, residents)
  if unit == 1 then return residents + spare end
  return math.min(math.ceil(chunks / unit), math.ceil(residents / unit) + PAGE_EDGES) + spare
end

-- On demand: the budget, or what a step can pick; with a policy both, and what is born within τ.
local function demanded_cells(self, opt, chunks)
  local batch = self.batch
  local picks = math.min(chunks, tonumber(batch.model.config.index_topk) * batch.csa_layers)
  if self.opt.hot then
    local cells = loops.cells({hot = self.opt.hot, granularity = "chunk"}, batch.chunk_bytes)
    if cells < picks then raise("submit: hot is %d chunks; on_demand needs %d, which a step can pick", cells, picks) end
    return cells
  end
  local budget = math.min(chunks, opt.budget <= 1 and math.floor(opt.budget * chunks) or opt.budget)
  if opt.select == "full" then return math.max(1, budget, picks) end
  local born = setmetatable({rate = batch.rate}, loops.class):born_room(longest_tau(opt.every))
  return budget + math.min(picks + born, tonumber(batch.model.config.index_topk) * batch.csa_layers) + born
end

function Request:needs(opt)
  local batch = self.batch
  local tokens = self.before + #self.tokens + self.opt.n
  local held = accounting.bytes(batch.model.config, {tokens = tokens, record = batch.record, key = batch.key})
  local fixed = held.hca + held.window
  if self.full or batch.csa_layers == 0 then return {cells = 0, bytes = fixed + held.attention + held.keys, units = 0} end
  local chunks = math.floor(tokens / batch.rate)
  if self.on_demand then
    return {cells = demanded_cells(self, opt, chunks), bytes = fixed + held.keys, units = chunks + 1, longest = longest_tau(opt.every)}
  end
  local cells = cells_of(self, opt, chunks)
  return {cells = cells, bytes = fixed + cells * batch.unit * batch.key * batch.csa_layers,
    units = math.ceil(chunks / batch.unit) + 1, longest = longest_tau(opt.every)}
end

---- life ----

-- The session, joined to the batch's hot pool. slot: which of the `of` that can run at once.
function Request:open(slot, of)
  local batch, settings = self.batch, {}
  for name, value in pairs(self.settings) do settings[name] = value end
  if batch.stagger and not self.full and type(self.every) == "number" then
    self.every = staggered(self.every, slot, of)
    settings.every = self.every
  end
  self.slot, self.admitted = slot, seconds()
  self.wait = self.admitted - self.submitted
  local from = self.opt.session
  self.session = from and from:fork(settings) or session.new(batch.model, settings)
  if not self.full then
    self.session:join(batch.commons, self.need)
    if batch.memory then C.lsa_pool_set_mirror(self.session.pool, C.LSA_MIRROR_NEVER) end -- of which its need says nothing
  end
  self.start, self.at = self.session:tokens(), 0 -- at: tokens of the prompt that ran
  self.state = "prefill"
  self:after_prefill()
end

-- Tokens of the prompt that are prefilled; the others are decoded.
local function prefilled_part(self)
  return math.max(0, #self.tokens - self.opt.decoded)
end

-- Prefills the prompt up to its token `to`.
function Request:prefill(to)
  local start = seconds()
  self.at = self.session:tokens() - self.start -- an interruption may have come between two pieces
  local piece = {}
  for i = 1, math.min(to, prefilled_part(self)) - self.at do piece[i] = self.tokens[self.at + i] end
  local n = #piece
  if n > 0 then self.session:prefill(piece) end
  self.at = self.at + n
  self.prefill_s = (self.prefill_s or 0) + seconds() - start
  self:after_prefill()
end

-- Decoding begins with the rest of the prompt; without one, with a token drawn from what the last one gave.
function Request:after_prefill()
  if self.state ~= "prefill" or self.at < prefilled_part(self) then return end
  self.state, self.began = "decode", seconds()
  if self.at == #self.tokens and self.opt.n == 0 then
    self.why = "steps"
    self:finish "done"
  end
end

-- What is asked of the next steps (lua/lsa/session.lua, run_together). The answer's last token is drawn and not decoded.
function Request:ask()
  local rest = {}
  for i = self.at + 1, #self.tokens do rest[#rest + 1] = self.tokens[i] end
  local left = self.opt.n - #self.out
  local steps = #rest + math.max(0, left - 1)
  if not self.first and left > 0 then steps = math.min(steps, #rest + 1) end -- so that its time is known
  return {session = self.session, given = rest, steps = steps, temperature = self.opt.temperature,
    stop = self.stop and self.stop.c}
end

-- After steps: what came of them (run_together's result); returns how many tokens were drawn.
function Request:stepped(result)
  local before = #self.out
  for _, token in ipairs(result.out) do
    if self.at < #self.tokens then
      self.at = self.at + 1
    else
      self.out[#self.out + 1] = token
      self.first = self.first or seconds()
    end
  end
  if result.ended == "stopped" or result.ended == "context" or #self.out >= self.opt.n then
    if self.at == #self.tokens then
      self.why = result.ended
      self:finish "done"
    end
  elseif #self.out == self.opt.n - 1 and self.at == #self.tokens then
    self.out[#self.out + 1] = self.session:draw(self.opt.temperature)
    self.first = self.first or seconds()
    self.why = stops.text(self.batch.model, self.stop, self.out) and "stopped" or "steps"
    self:finish "done"
  end
  return #self.out - before
end

-- Ends in a state; its cells are free and its ids forgotten.
function Request:finish(state, problem)
  self.state, self.error, self.ended = state, problem, seconds()
  local s = self.session
  if not s then return end
  local ok, stats = pcall(s.stats, s)
  self.stats, self.cycles = ok and stats or nil, s:cycles()
  local closed, why = pcall(s.close, s)
  if not closed then -- a recording that cannot be written; its cells are free all the same
    self.error = self.error or tostring(why)
    if s.recorder then s.recorder:forget() end
    s.recorder = nil
    s:close()
  end
  self.session, self.opt.session = nil, nil
end

function Request:running()
  return self.state == "prefill" or self.state == "decode"
end

-- Its answer as text, without what stopped it unless keep_stop.
function Request:text()
  local model = self.batch.model
  return self.why == "stopped" and not self.opt.keep_stop and stops.text(model, self.stop, self.out) or model:text(self.out)
end

-- What is known of it: a row of b:stats(), and b:result().
function Request:row()
  local stats = self.stats or self.session and self.session:stats() or {}
  local now = self.ended or seconds()
  return {id = self.id, gpu = self.batch.model.gpu, state = self.state, ended = self.why, policy = self.policy, every = self.every, prompt = #self.tokens, tokens = self.out,
    error = self.error, cells = self.need.cells, bytes = self.need.bytes, wait_s = self.wait or now - self.submitted,
    prefill_s = self.prefill_s or 0, decode_s = self.began and now - self.began or 0,
    first_token_s = self.first and self.first - self.submitted or nil, stats = self.stats,
    fetched_bytes = stats.fetched_bytes or 0, fetched_chunks = stats.fetched_chunks or 0,
    evicted_chunks = stats.evicted_chunks or 0, steps = stats.steps or 0,
    hits = stats.hits or 0, policy_errors = stats.policy_errors or 0, failed_cycles = stats.failed or 0,
    clipped = stats.clipped or 0, unspilled = stats.unspilled or 0, mirror_refused = stats.mirror_refused or 0, cycles = stats.cycles or 0, last_error = stats.last_error, resident_pct = stats.resident_pct}
end

return M
