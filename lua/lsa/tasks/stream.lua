-- Owns the stream task: one session in which questions about different places of the context come one after another, as in a long
-- talk. Statements are hidden in real text as in the needle task. A topic is some that lie side by side; its questions follow each
-- other, then the topic moves. Every token of question and answer is decoded under the policy, and the answer is the model's own, so
-- τ, schedules, evictions and what policies remember all matter. A statement is asked for once: no earlier answer can serve.
--
--   task = lsa.tasks.stream{model = model, tokens = 16384, needles = 64}
--   row = task:run{select = "lsa_topk", budget = 0.1, every = 32}      task.questions: what was measured of each, in order
local asked = require "lsa.tasks.asked"
local intervals = require "lsa.intervals"
local needle = require "lsa.tasks.needle"
local options = require "lsa.options"
local parts = require "lsa.tasks.parts"
local raise = require "lsa.raise"
local rng = require "lsa.cycle.rng"

local M = {}

local Task = {}
Task.__index = Task

function Task:__tostring()
  return ("stream: %d contexts of %d tokens, %d questions each, %d of a topic; %s"):format(self.contexts, self.tokens, self.needles, self.stay,
    tostring(self.model))
end

local defaults = {tokens = 16384, needles = 64, stay = 4, contexts = 1, text = "bible", part = "test", seed = 1, session = false,
  step = false, opened = false, coverage = true}

-- tokens, needles, contexts: of each context, how many there are; stay: questions before the topic moves. text, part: what to cut from,
-- and which part of it (lua/lsa/tasks/parts.lua); session: options of the sessions that are forked; step: called after each prefill and
-- question; opened: called with each session that is about to be asked, to record it, say; coverage: false, and it is not asked for, which
-- costs a look at all keys each step.
function M.task(model, opt)
  local self = setmetatable(options.check(opt, defaults, "stream.task"), Task)
  for _, name in ipairs {"tokens", "needles", "stay", "contexts"} do options.whole(self[name], 1, "stream.task: " .. name) end
  if self.needles % self.stay ~= 0 then
    raise("stream.task: needles is %d and stay is %d; topics of one size are wanted", self.needles, self.stay)
  end
  options.boolean(self.coverage, "stream.task: coverage")
  asked.seed(self)
  self.model, self.bases, self.made = model, {}, {}
  local part = parts.open(self.text, self.part)
  self.text, self.words = part.text, part.words
  return self
end

-- The needles in the order in which they are asked, each with `distance`: questions since the topic moved.
local function order_of(random, needles, stay)
  local topics, out = {}, {}
  for first = 1, #needles, stay do topics[#topics + 1] = first end
  random:shuffle(topics)
  for _, first in ipairs(topics) do
    local topic = {}
    for i = 0, stay - 1 do topic[i + 1] = needles[first + i] end
    for i, one in ipairs(random:shuffle(topic)) do
      one.distance = i - 1
      out[#out + 1] = one
    end
  end
  return out
end

-- The prefilled session of a context, and what is asked of it.
local function context(self, seed, i)
  i = seed * 1000 + i
  if not self.bases[i] then
    local random = rng.new(i)
    local made = needle.build(random, self.text, self.words, self.tokens, self.needles)
    self.made[i] = order_of(random, made.needles, self.stay)
    local settings = {select = "full"}
    for name, value in pairs(self.session or {}) do settings[name] = value end
    local base = self.model:session(settings)
    base:prefill(made.text)
    self.bases[i] = base
    if self.step then self.step() end
  end
  return self.bases[i], self.made[i]
end

-- Decodes `before`, the last answer's last token where there is one, the question and the answer. Returns what was measured, and the
-- last token, which is still to be decoded.
local function ask(session, one, before, uncovered)
  local at_start = session:stats()
  if before then session:decode(before) end
  local question = session.model:tokens(one.question)
  for i = 1, #question - 1 do session:decode(question[i]) end
  local exact, right, quality, token = asked.answer(session, one, nil, uncovered)
  local now = session:stats()
  local out = {distance = one.distance, accuracy = exact and 1 or 0, digits = right / #session.model:tokens(one.answer),
    evidence = quality.evidence, coverage = quality.coverage}
  for _, name in ipairs {"fetched_bytes", "stall_ms", "transfer_stall_ms"} do out[name] = now[name] - at_start[name] end
  return out, token
end

local function mean(list, name)
  local sum = 0
  for _, one in ipairs(list) do sum = sum + one[name] end
  return sum / #list
end

local function column(list, name)
  local out = {}
  for i, one in ipairs(list) do out[i] = one[name] end
  return out
end

-- Runs the stream on a fork with these options; a seed of theirs makes haystack, keys, depths and order, too. Means over questions:
-- accuracy (whole answers), digits, evidence (the share of the statement's chunks that was resident while the answer was decoded),
-- coverage, fetched_bytes, stall_ms, transfer_stall_ms; the same at_0_…, at_1_… by questions since the topic moved; n with 95 %
-- intervals; steps, cycles, policy_errors, resident_pct as means over contexts; error: what the policy said last.
function Task:run(params)
  local seed, all, contexts, out = asked.seed(self, params), {}, {}, {}
  for i = 1, self.contexts do
    local base, questions = context(self, seed, i)
    local fork, last = base:fork(params), nil
    if self.opened then self.opened(fork) end
    for _, one in ipairs(questions) do
      all[#all + 1], last = ask(fork, one, last, not self.coverage)
      if self.step then self.step() end
    end
    contexts[i] = fork:stats()
    out.error = contexts[i].last_error or out.error
    fork:close()
  end
  for _, name in ipairs {"steps", "cycles", "policy_errors", "resident_pct"} do out[name] = mean(contexts, name) end
  local measured = {"accuracy", "digits", "evidence", "fetched_bytes", "stall_ms", "transfer_stall_ms", self.coverage and "coverage" or nil}
  for _, name in ipairs(measured) do
    out[name] = mean(all, name)
    for distance = 0, self.stay - 1 do
      local some = {}
      for _, one in ipairs(all) do
        if one.distance == distance then some[#some + 1] = one end
      end
      out[("at_%d_%s"):format(distance, name)] = mean(some, name)
    end
  end
  out.n = #all
  out.accuracy_low, out.accuracy_high = intervals.wilson(out.accuracy * out.n, out.n)
  for _, name in ipairs {"digits", "evidence", "fetched_bytes", self.coverage and "coverage" or nil} do
    out[name .. "_low"], out[name .. "_high"] = intervals[name == "fetched_bytes" and "bootstrap" or "shares"](column(all, name))
  end
  self.questions = all
  return out
end

function Task:close()
  for _, base in pairs(self.bases) do base:close() end
  self.bases = {}
end

require("lsa.arity").methods(Task, "task:")

return M
