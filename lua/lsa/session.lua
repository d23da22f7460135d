-- Owns sessions as scripts see them: options, the LSA cycle, forks; lua/lsa/session/queries.lua has what they are asked. The forward pass
-- is core/session/forward.c.
--
--   s = model:session{select = "recency", budget = 0.1}
--   s:fill(1048576, {seed = 1})     a synthetic context in place of a prefill's: what costs are measured on
--   logits = s:prefill(tokens)      [vocab] of the last token; {all = true}: [T, vocab]; {trace = true}: also a table of
--                                   intermediates; {trace = {"attn_input", "layer.2.index_topk"}}: of those
--   logits = s:decode(token)        s:generate{n =, temperature =, stop =} -> list of tokens
--   s:stats() s:cycles() s:plot "traffic" s:fork{...} s:close()
--   s:save(path)                    model:restore(path, {...}) has the session again, whenever
--   s:keys(layer) s:hidden(layer) s:entries(layer)      layer is a CSA ordinal
--
-- One cycle: the policy names the chunks that the next τ steps may use, they are made resident, and Level 2 chooses
-- among them until the next cycle. A prefill makes a cycle due; it runs at the start of the next decode.
local ffi = require "ffi"
local arity = require "lsa.arity"
local devices = require "lsa.devices"
local interrupts = require "lsa.interrupts"
local lib = require "lsa.ffi"
local look = require "lsa.session.look"
local loops = require "lsa.cycle.loop"
local options = require "lsa.options"
local pressure = require "lsa.tensor.memory_pressure"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local rng = require "lsa.cycle.rng"
local set = require "lsa.tensor.set"
local stops = require "lsa.session.stop"
local tensor = require "lsa.tensor.tensor"
local tier = require "lsa.cycle.hot_tier"

local C = lib.C

local Session = {}
Session.__index = Session
raise.kinds[#raise.kinds + 1] = {function(value) return getmetatable(value) == Session end, "a session"}

local M = {}

-- What api names; false: no default. The loop's options are lua/lsa/cycle/loop.lua's.
local defaults = {indexer = false, ensemble = false, kv = "fp8", scoring = false, cold = "ram", on_demand = false}
for name, value in pairs(loops.options) do defaults[name] = value end

-- What a fork may change; changing one makes a cycle due.
local forkable = {on_demand = true, select = true, evict = true, every = true, hot = true, budget = true, seed = true, strict = true,
  coverage = true}

M.class, M.defaults, M.forkable = Session, defaults, forkable

local formats = {f32 = C.LSA_KV_F32, bf16 = C.LSA_KV_BF16, fp8 = C.LSA_KV_FP8}

---- options ----

-- Replay does not know this option. With a policy, what it names is fetched ahead, into a hot pool that is least recently used.
local function check_on_demand(opt)
  if opt.granularity == "page" then raise "session: granularity is page; on_demand fetches chunks" end
  if opt.async then raise "session: async is true; on_demand has a cycle's set at once" end
  if not opt.select or opt.select == "full" then return end
  if opt.coverage then raise "session: coverage is true; on_demand counts hits and misses" end
  if opt.evict ~= "lru" then
    raise("session: evict is %s; on_demand evicts by lru", type(opt.evict) == "string" and opt.evict or "a " .. type(opt.evict))
  end
end

local function check_options(opt)
  options.one_of(opt.kv, {"f32", "bf16", "fp8"}, "session: kv")
  if opt.scoring then options.one_of(opt.scoring, {"f32", "bf16", "fp8"}, "session: scoring") end
  options.cold(opt.cold, "session: cold")
  if opt.ensemble then options.one_of(opt.ensemble, {"max", "mean"}, "session: ensemble") end
  loops.check_options(opt)
  options.boolean(opt.on_demand or false, "session: on_demand")
  if opt.on_demand then check_on_demand(opt) end
end

-- Bytes of a chunk's records in all CSA layers.
local function chunk_bytes(self)
  return self.pool ~= nil and tonumber(C.lsa_pool_layers(self.pool) * C.lsa_pool_record_bytes(self.pool)) or 1
end
Session.chunk_bytes = chunk_bytes

local function open_indexer(self, opt)
  local from = opt.indexer
  if not from then from = self.model:indexer_file() or "native" end
  if type(from) == "table" then return from end
  return require("lsa.indexer").new({model = self.model, from = from, ensemble = opt.ensemble})
end

-- Only the Memory Indexer's target layers are asked for all their keys at every cycle, so theirs stay in memory. On demand all do.
local function open_disk(self, opt)
  local directory = options.cold(opt.cold)
  if not directory then return end
  local targets = {}
  for layer = 0, self.csa_layers - 1 do targets[layer + 1] = layer end
  if not opt.on_demand then targets = self.indexer.layers end -- on demand, Level 2 sees them all
  raise.check(C.lsa_session_set_disk(self.c, directory, ffi.new("int32_t[?]", math.max(1, #targets), targets), #targets))
end

-- A session without hot tier and loop.
local function bare(model, opt)
  local self = setmetatable({model = model, opt = opt, format = formats[opt.kv], csa_layers = #model.csa_layers,
    observed_all = true, policy_flops = 0, sampler = rng.new(opt.seed + 1)}, Session)
  self.c = ownership.take(C.lsa_session_free, "lsa_session", C.lsa_session_new, model.c, model.scratch, self.format,
    model.compute == "bf16" and 1 or 0, loops.unit(opt))
  raise.check(C.lsa_session_set_scoring(self.c, require("lsa.indexer").scorings[opt.scoring or model.compute]))
  self.pool = C.lsa_session_pool(self.c)
  if self.csa_layers > 0 then
    self.indexer = open_indexer(self, opt)
    open_disk(self, opt)
  end
  return self
end

-- Level 2's way: among all, among residents, or among all with a hot pool that is filled on demand.
local function set_way(self)
  if self.opt.on_demand and self.model.device == "cuda" and options.cold(self.opt.cold) then
    raise('session: cold is "%s"; what on_demand misses on a GPU comes from memory: cold = "ram"', self.opt.cold)
  end
  raise.check(C.lsa_session_set_tiered(self.c, (self.loop.full or self.opt.on_demand) and 0 or 1))
  raise.check(C.lsa_session_set_on_demand(self.c, self.opt.on_demand and 1 or 0))
end

-- A hot pool that a later step would find too small.
local function check_demand(self)
  local cells = self.opt.on_demand and self.tier and self.tier.fixed
  if not cells then return end
  local need = self:demand_cells(math.floor(tonumber(self.model.config.max_positions) / tonumber(self.model.config.csa_rate)))
  if cells < need then raise("session: hot is %d chunks; on_demand needs %d, which a step can pick", cells, need) end
end

function M.default_select(model)
  if #model.csa_layers == 0 then return "full" end
  return model:indexer_file() and "lsa_threshold" or "lsa_topk"
end

function M.new(model, opt)
  opt = options.check(opt, defaults, "session")
  check_options(opt)
  if opt.on_demand and not opt.select then opt.select = "full" end
  if not opt.select then opt.select = M.default_select(model) end
  local self = bare(model, opt)
  if self.csa_layers > 0 then
    self.tier = tier.new(self.pool, self, opt.evict, loops.cells(opt, chunk_bytes(self)))
  end
  self.loop = loops.new(opt, tonumber(model.config.csa_rate), self.tier)
  set_way(self)
  check_demand(self)
  return self
end

M.check_options = check_options

-- A session that can be used: not closed, and not on a GPU that is lost.
local function open(self)
  if not self.c then raise "the session is closed" end
  if self.model.device == "cuda" then raise.check(C.lsa_device_check()) end
end

-- Open, and not in the middle of what calls a script's functions: these may look at the session, not change it.
local function idle(self, what)
  if what ~= "close" then open(self) end
  local commons = self.tier and self.tier.commons
  local doing = self.loop and self.loop.under_way or commons and commons.under_way
  if doing then
    raise("%s: %s is under way in the session, from which this was called", what, doing)
  end
end

---- running ----

local MOST_STEPS = 4096 -- of one call

local ENDED = {[0] = "steps", "stopped", "context", "failed"} -- LSA_RUN_*

local function vocabulary(self) return tonumber(self.model.config.vocab) end

local function check_token(self, token, what)
  options.whole(token, 0, what)
  if token >= vocabulary(self) then
    raise("%s is %.0f; the vocabulary has %d", what, token, vocabulary(self))
  end
end

-- An int32_t array of token ids and its length, from a list, an i32 tensor, or text.
local function token_array(self, tokens)
  if type(tokens) == "string" then tokens = self.model:tokens(tokens) end
  if tensor.is(tokens) then
    if tokens:dtype() ~= "i32" then raise("tokens are a tensor of %s; i32 is wanted", tokens:dtype()) end
    tokens = tokens:to "cpu":contiguous()
    return ffi.cast("const int32_t *", tokens.c.data), tokens:count(), tokens
  end
  if type(tokens) ~= "table" then
    raise("tokens are a list, an i32 tensor or text; this is a %s", type(tokens))
  end
  for i = 1, #tokens do check_token(self, tokens[i], "token " .. i - 1) end
  local ids = ffi.new("int32_t[?]", #tokens, tokens)
  return ids, #tokens, ids
end

local prefill_options = {all = false, trace = false}
M.prefill_options = prefill_options

function Session:prefill(tokens, opt)
  idle(self, "prefill")
  opt = options.check(opt, prefill_options, "prefill")
  local ids, n, keep = token_array(self, tokens)
  local out = opt.all and tensor.zeros({n, vocabulary(self)}, "f32") or tensor.zeros({vocabulary(self)}, "f32")
  local trace = opt.trace and require("lsa.session.intermediates").new(opt.trace) or nil
  local before = C.lsa_session_tokens(self.c)
  local rc = C.lsa_session_prefill(self.c, ids, n, opt.all and 1 or 0, ffi.cast("float *", out.c.data), trace, nil)
  if C.lsa_session_tokens(self.c) > before then
    self.observed_all = true
    self.loop:appended_tokens()
  end
  raise.check(rc)
  if self.recorder then self.recorder:prefilled() end
  if trace then return out, require("lsa.session.intermediates").tables(trace), keep end
  return out
end

local fill_options = {seed = 1}
M.fill_options = fill_options

-- A context without a prefill: n tokens of a new session, of which all but the last are synthetic (core/session/fill.c).
function Session:fill(n, opt)
  idle(self, "fill")
  opt = options.check(opt, fill_options, "fill")
  options.whole(n, 1, "fill: tokens", tonumber(self.model.config.max_positions))
  options.whole(opt.seed, 0, "fill: seed")
  if self.recorder then raise "fill: the session is being recorded; a recording is of what was run" end
  if self:tokens() > 0 then raise("fill: the session has %d tokens; a new one is wanted", self:tokens()) end
  local rc = C.lsa_session_fill(self.c, n - 1, opt.seed, options.cold(self.opt.cold) and 1 or 0)
  if rc ~= 0 then
    local _, problem = pcall(raise.check, rc)
    self:close()
    error(problem, 0)
  end
  return self:prefill {opt.seed % vocabulary(self)}
end

-- A failure in words; of logits that are not finite, where that began.
local function explained(self, message)
  if not message:find("have no finite largest", 1, true) then return message end
  return message .. require("lsa.session.not_finite").began(self)
end

-- The groups of runs that C takes at once: of each GPU, whose sessions are neighbours in `at`.
local function groups_of(runs, at, asks)
  local groups, n = ffi.new("lsa_run_group[?]", math.max(1, #at)), 0
  for row, i in ipairs(at) do
    if row == 1 or asks[i].session.model.gpu ~= asks[at[row - 1]].session.model.gpu then
      groups[n].runs, n = runs + row - 1, n + 1
    end
    groups[n - 1].n = groups[n - 1].n + 1
  end
  return groups, n
end

-- Runs steps of several sessions side by side (core/session/run.h), those of a GPU next to one another and of one model. Each goes from
-- where its loop says to where it next has to be asked. asks: {session =, given = {ids}, steps =, temperature =, stop =} of each; gives, by the same places, {out =
-- {ids}, ended = "steps" | "stopped" | "context" | "failed", problem =}; and problem, where a step of all together failed, which is raised where it was the first. steps: of all; no more than the loops allow.
M.run_together = interrupts.method(function(asks, steps)
  local runs, at, results = ffi.new("lsa_run[?]", math.max(1, #asks)), {}, {}
  steps = math.min(steps, MOST_STEPS)
  local looking = {}
  for _, ask in ipairs(asks) do
    local s = ask.session
    if s.asks_ahead and s.c and s.model.device ~= "cpu" and s.loop.due <= 0 and not s.loop.full and not s.recorder then looking[#looking + 1] = s end
  end
  look.ahead(looking)
  for i, ask in ipairs(asks) do
    local ok, problem = pcall(function()
      idle(ask.session, "decode")
      devices.on(ask.session.model.gpu, ask.session.loop.before_step, ask.session.loop, ask.session)
    end)
    if not ok and interrupts.came() then error(problem, 0) end -- before anybody's step
    results[i] = {out = {}, ended = not ok and "failed" or nil, problem = not ok and raise.words(problem) or nil,
      raised = not ok and problem or nil}
    if ok then steps = math.min(steps, ask.session.loop:steps_left(), ask.session.recorder and ask.session.recorder.STEPS or MOST_STEPS) end
  end
  for i, ask in ipairs(asks) do -- not before all cycles are over: one session's policy may close another
    local s, result = ask.session, results[i]
    if not result.ended and not s.c then result.ended, result.problem = "failed", "the session is closed" end
    if not result.ended then
      local run = runs[#at]
      local given = ask.given or {}
      local ids, out = ffi.new("int32_t[?]", #given, given), ffi.new("int32_t[?]", steps)
      run.session, run.steps, run.out = s.c, math.min(steps, ask.steps or steps), out
      run.given, run.given_count = ids, math.min(#given, tonumber(run.steps))
      run.temperature, run.generator, run.stop = ask.temperature or 0, s.sampler.state, ask.stop
      local log, kept
      if s.recorder then log, kept = s.recorder:open_log(tonumber(run.steps)) end
      run.log = log
      at[#at + 1] = i
      result.kept = {ids, out, log, kept} -- what the run points to
    end
  end
  local groups, count = groups_of(runs, at, asks)
  C.lsa_session_run_groups(groups, count)
  local first, taken, g = nil, 0, 0
  for row, i in ipairs(at) do
    local run, s, result = runs[row - 1], asks[i].session, results[i]
    if runs + row - 1 >= groups[g].runs + groups[g].n then g = g + 1 end
    local problem = groups[g].rc < 0 and ffi.string(groups[g].message)
    first = first or problem
    local n, code = tonumber(run.count), tonumber(run.ended)
    taken = taken + n
    for j = 0, n - 1 do result.out[j + 1] = run.out[j] end
    result.ended = ENDED[code]
    if code == C.LSA_RUN_FAILED then
      result.problem = explained(s, ffi.string(run.message))
    elseif problem then
      result.ended, result.problem = "failed", problem
    end
    s.loop:after_step((code == C.LSA_RUN_STOPPED or code == C.LSA_RUN_CONTEXT) and n - 1 or n)
    if s.recorder then
      s.recorder:close_log(run.log[0], true)
      s.recorder:append()
    end
    result.kept = nil
  end
  if first and taken == 0 then raise("%s", first) end
  results.problem = first or nil
  return results
end)

-- The same of one session, whose failure is an error.
local function run(self, ask, steps)
  ask.session = self
  local result = M.run_together({ask}, steps)[1]
  if result.raised then error(result.raised, 0) end -- it has its line
  if result.problem then raise("%s", result.problem) end
  return result
end

-- One step of a given token: logits [vocab].
function Session:decode(token)
  idle(self, "decode")
  check_token(self, token, "decode: token")
  local out = tensor.zeros({vocabulary(self)}, "f32")
  run(self, {given = {token}}, 1)
  ffi.copy(out.c.data, C.lsa_session_logits(self.c), vocabulary(self) * 4)
  return out
end

-- [vocab] of the last token run.
function Session:logits()
  open(self)
  local out = tensor.zeros({vocabulary(self)}, "f32")
  ffi.copy(out.c.data, C.lsa_session_logits(self.c), vocabulary(self) * 4)
  return out
end

-- A token drawn from the last one's logits, not decoded.
function Session:draw(temperature)
  open(self)
  local token = ffi.new "int32_t[1]"
  if C.lsa_session_draw(self.c, temperature, self.sampler.state, token) < 0 then raise("%s", explained(self, ffi.string(C.lsa_error()))) end
  return token[0]
end

local generate_options = {n = 64, temperature = 0, stop = false, each = false}
M.generate_options = generate_options

-- Gives the tokens, and what ended them: "steps" (there are n), "stopped", "context" (there is no place for more; the last one is
-- drawn and not decoded) or "each". n: at most so many tokens. stop: a token id, text, or a list of these (lua/lsa/session/stop.lua); what completes it is in the
-- result, and is not decoded. each: a function that is given every token as it comes; true from it ends the generation.
function Session:generate(opt)
  idle(self, "generate")
  opt = options.check(opt, generate_options, "generate")
  options.whole(opt.n, 0, "generate: n")
  options.number(opt.temperature, 0, "generate: temperature")
  if opt.each and type(opt.each) ~= "function" then raise("generate: each is %s; a function is wanted", raise.kind(opt.each)) end
  if C.lsa_session_tokens(self.c) == 0 then raise "generate: nothing has been prefilled" end
  local stop, out, ended = stops.new(self.model, opt.stop), {}, "steps"
  while #out < opt.n do
    local result = run(self, {temperature = opt.temperature, stop = stop and stop.c}, opt.each and 1 or opt.n - #out)
    for _, token in ipairs(result.out) do out[#out + 1] = token end
    ended = result.ended
    if opt.each and opt.each(out[#out]) and ended == "steps" then ended = "each" end
    if ended ~= "steps" then break end
  end
  return out, ended
end

require "lsa.session.queries"(Session, open)

---- forks and the end ----

function Session:fork(opt)
  idle(self, "fork")
  if type(opt) == "nil" then opt = {} end
  if type(opt) ~= "table" then raise("fork: options are a table {name = value}, this is a %s", type(opt)) end
  local merged = {}
  for name, value in pairs(self.opt) do merged[name] = value end
  for name, value in pairs(opt) do
    if not forkable[name] then
      local names = {}
      for valid in pairs(forkable) do names[#names + 1] = valid end
      table.sort(names)
      raise("fork: '%s' cannot change; these can: %s", tostring(name), table.concat(names, ", "))
    end
    merged[name] = value
  end
  if opt.select and opt.on_demand == nil and self.loop.full then merged.on_demand = false end -- on demand without a policy
  if opt.on_demand and not opt.select and not self.opt.on_demand then merged.select = "full" end
  check_options(merged)
  if merged.on_demand ~= self.opt.on_demand then
    opt = options.copy(opt)
    opt.on_demand, opt.select = merged.on_demand, merged.select
  end
  local fork = setmetatable({}, Session)
  for name, value in pairs(self) do fork[name] = value end
  if self.pool ~= nil then C.lsa_pool_write_back(self.pool) end -- once, for all forks; where it fails, each spills for itself
  fork.c, fork.opt = ownership.take(C.lsa_session_free, "lsa_session", C.lsa_session_fork, self.c), merged
  fork.pool, fork.recorder, fork.recorded = C.lsa_session_pool(fork.c), nil, nil
  fork.sampler = opt.seed and rng.new(opt.seed + 1) or self.sampler:clone()
  local cells = loops.cells(merged, chunk_bytes(fork))
  self.loop:guarded("a fork", function()
    if self.tier then fork.tier = self.tier:fork(fork.pool, fork, opt.evict, cells) end
    if fork.tier and merged.on_demand ~= self.opt.on_demand then fork.tier:rebuild() end
    fork.loop = self.loop:fork(merged, opt, fork.tier)
  end)
  if next(opt) then set_way(fork) end
  check_demand(fork)
  return fork
end

-- On demand, a share is empty at first, and all of its cells are free for what is missed.
local function join_on_demand(self, share)
  self.loop:guarded("joining a batch", function()
    share:apply(set.new(tonumber(C.lsa_pool_units(self.pool))), share.fixed)
    share.on_demand = true
    raise.check(C.lsa_session_share_demand(self.c, share.fixed))
  end)
end

-- From here on the session's cells are those of `commons` (lua/lsa/serve/shared_hot_tier.lua, which says what `need` is). What is resident is
-- fetched there if it fits, else nothing is resident; on demand, nothing. A cycle is due.
function Session:join(commons, need)
  open(self)
  local resident, unit = self:resident(), loops.unit(self.opt)
  self.tier:finish()
  local share = commons:join(self.pool, self, need)
  self.tier, self.loop.tier, self.loop.due = share, share, 0
  if self.opt.on_demand then
    join_on_demand(self, share)
    return share
  end
  local ok = pcall(self.loop.guarded, self.loop, "joining a batch", share.apply, share,
    unit == 1 and resident or resident:pages(unit), self.loop:spare_cells())
  if not ok then raise.check(C.lsa_session_set_residents(self.c, nil, 0)) end
  return share
end

-- Records from here on into a trace for lsa.replay, whose file s:close() or s:record(false) finishes.
function Session:record(path)
  idle(self, "record")
  if path then options.path(path, "record: path") end
  if self.opt.on_demand then raise "record: an on_demand session has no cycles, so there is nothing to replay" end
  if self.csa_layers == 0 then raise "record: the model has no CSA layers, so there is nothing to replay" end
  if self.recorder then
    self.recorder:finish()
    self.recorder:forget()
    self.recorder = nil
  end
  if path then self.recorder, self.recorded = require("lsa.session.recording_writer").new(self, path), path end
end

local pictures = {"traffic", "residency"}

-- A picture of what it did: "traffic" of its cycles, or "residency", of what s:record writes or wrote, under its own rules.
function Session:plot(kind, given)
  open(self)
  local plot = require "lsa.plot"
  if kind == nil then kind = pictures[1] end
  if type(kind) ~= "string" then raise("plot: the picture is %s; its name is wanted", options.shown(kind)) end
  options.one_of(kind, pictures, "plot")
  if kind == "traffic" then return plot.traffic(self, given) end
  if not self.recorded then raise "plot: residency is drawn of a recording, and there is none: s:record(path) before it decodes" end
  given = options.copy(given or {})
  local opt = self.opt
  given.replay = given.replay or {select = opt.select, evict = opt.evict, every = opt.every, trust = true}
  return plot.residency(self.recorded, given)
end

function Session:close()
  if not self.c then return end
  idle(self, "close")
  if self.recorder then self:record(false) end
  if self.tier and self.tier.leave then self.tier:leave() end
  ownership.free(C.lsa_session_free, self.c)
  self.c, self.pool, self.tier = nil, nil, nil
end

---- files ----

-- Everything that decoding on depends on; see lua/lsa/session/saved_session.lua. What an observer has (s:record) is no part of it.
function Session:save(path)
  idle(self, "save")
  options.path(path, "save: path")
  if self.tier and self.tier.leave then raise "save: the session is in a batch; save a fork of it" end
  self.loop:guarded("saving", require("lsa.session.saved_session").save, self, path)
end

-- What model:restore may change beside what a fork may, and whether it may open what the file names.
local restorable = {cold = false, indexer = false, trust = false}
for name in pairs(forkable) do restorable[name] = false end
M.restorable = restorable

function M.restore(model, path, given)
  options.path(path, "restore: path")
  local changes = {}
  given = options.check(given, restorable, "restore")
  if given.trust ~= nil then options.boolean(given.trust, "restore: trust") end
  for name, value in pairs(given) do
    if forkable[name] then changes[name] = value end
  end
  local session = require("lsa.session.saved_session").restore(path, model, given, function(opt)
    check_options(opt)
    return bare(model, opt)
  end)
  if not next(changes) then return session end
  local forked, fork = pcall(session.fork, session, changes)
  session:close()
  if not forked then error(fork, 0) end
  return fork
end

local function told(before, ...)
  pressure(math.max(0, tonumber(C.lsa_memory_in_use() - before)))
  return ...
end

-- The collector is told what a session has grown by: dead ones are few bytes to it.
local function tell(f, ...) return told(C.lsa_memory_in_use(), f(...)) end

-- Each of these is done whole, or not at all.
for _, name in ipairs {"prefill", "fill", "decode", "fork", "join", "record", "close", "save"} do
  local f = Session[name]
  Session[name] = arity.stands(function(...) return interrupts.masked(tell, f, ...) end, f)
end

function Session:__tostring()
  if not self.c then return "session (closed)" end
  return ("session: %d tokens, %d chunks, select %s, kv %s"):format(self:tokens(), tonumber(C.lsa_session_chunks(self.c)),
    self.loop.policy.name, self.opt.kv)
end

devices.methods(Session, function(self) return self.model and self.model.gpu end) -- a list of sessions turns to theirs itself
arity.methods(Session, "session:")

return M
