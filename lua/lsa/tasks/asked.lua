-- Owns tasks whose questions are asked one by one, each of a fork of its own, from one prefill a context.
--
--   task = lsa.tasks.single{model = model, tokens = 32768, items = 8}       or another kind of lua/lsa/tasks/items.lua
--   task = lsa.tasks.mixed{model = model, kinds = {"single", "traced"}, items = 4}
--   row = task:run{select = "lsa_topk", budget = 0.1}      task.questions: what was measured of each, in order
--
-- Every token of an answer is decoded under the policy, and is the model's own. generate = false decodes a question's last token alone
-- and tells what is resident then: evidence without answers, at a fraction of the time.
local intervals = require "lsa.intervals"
local items = require "lsa.tasks.items"
local options = require "lsa.options"
local parts = require "lsa.tasks.parts"
local rng = require "lsa.cycle.rng"

local M = {}

-- The chunks that hold a part of a question's evidence, in a session whose context begins with the haystack: a list of ids,
-- each once.
function M.chunks(model, question)
  if question.chunks_of == model then return question.chunks end
  local rate, seen, out = tonumber(model.config.csa_rate), {}, {}
  for _, span in ipairs(question.spans) do
    local from = #model:tokens(question.context:sub(1, span[1]))
    local to = #model:tokens(question.context:sub(1, span[2]))
    for chunk = math.floor(from / rate), math.floor((to - 1) / rate) do
      if not seen[chunk] then
        seen[chunk] = true
        out[#out + 1] = chunk
      end
    end
  end
  question.chunks, question.chunks_of = out, model
  return out
end

-- Puts the question behind the context, all but its last token, which M.answer decodes: forks of one posed session can answer
-- under policies of their own.
function M.pose(session, question)
  local tokens = session.model:tokens(question.question)
  table.remove(tokens)
  session:prefill(tokens)
end

-- The share of these chunks that is resident; of what the native top-k would pick, the share that is.
function M.kept(session, chunks)
  local resident, there = session:resident(), 0
  for _, chunk in ipairs(chunks) do
    if resident:has(chunk) then there = there + 1 end
  end
  local covered, total = session:coverage()
  return there / #chunks, total > 0 and covered / total or 1
end

-- Decodes the question's last token and the answer, as the model gives it, so every answer token is chosen under the
-- session's policy. Returns whether the whole answer came out, how many of its tokens did before the first wrong one, and, as
-- means over the decoded steps, {evidence = the share of the statements' chunks that was resident, coverage = the share of
-- what the native top-k would pick that was}, and the last token, which is still to be decoded. steps: at most so many.
function M.answer(session, question, steps)
  local model = session.model
  local asked, expected = model:tokens(question.question), model:tokens(question.answer)
  local chunks = M.chunks(model, question)
  local right, exact, evidence, coverage = 0, true, 0, 0
  local token, n = asked[#asked], math.min(#expected, steps or #expected)
  for i = 1, n do
    token = session:decode(token):argmax()
    exact = exact and token == expected[i]
    if exact then right = right + 1 end
    local there, covered = M.kept(session, chunks)
    evidence, coverage = evidence + there, coverage + covered
  end
  return exact, right, {evidence = evidence / n, coverage = coverage / n}, token
end

-- Both, of a fork whose context is prefilled.
function M.ask(session, question, steps)
  M.pose(session, question)
  return M.answer(session, question, steps)
end

local Task = {}
Task.__index = Task
M.Task = Task

M.defaults = {tokens = 8192, contexts = 1, text = "bible", part = "test", seed = 1, session = false, step = false, generate = true}

-- make(random, task) -> {text =, questions =}: one context. options beside those of `make`:
--   tokens, contexts    of each context; how many there are
--   text, part          what to cut from, and which part of it (lua/lsa/tasks/parts.lua)
--   session             options of the sessions that are forked       step: called after each prefill and question
--   generate            false: no answers but evidence alone
function M.task(model, opt, defaults, what, make)
  local allowed = options.copy(M.defaults)
  for name, value in pairs(defaults) do allowed[name] = value end
  local self = setmetatable(options.check(opt, allowed, what), Task)
  for _, name in ipairs {"tokens", "contexts"} do options.whole(self[name], 1, what .. ": " .. name) end
  options.boolean(self.generate, what .. ": generate")
  local part = parts.open(self.text, self.part)
  self.model, self.make, self.bases, self.made, self.text, self.words = model, make, {}, {}, part.text, part.words
  return self
end

-- The prefilled session of context i, and its questions.
function Task:context(seed, i)
  i = seed * 1000 + i
  if not self.bases[i] then
    self.made[i] = self.make(rng.new(i), self)
    local settings = {select = "full"}
    for name, value in pairs(self.session or {}) do settings[name] = value end
    local base = self.model:session(settings)
    base:prefill(self.made[i].text)
    self.bases[i] = base
    if self.step then self.step() end
  end
  return self.bases[i], self.made[i].questions
end

local of_stats = {"resident_bytes", "resident_pct", "fetched_bytes", "cycles", "failed", "clipped", "transfer_stall_ms", "ms_per_token"}

-- What one question showed.
local function measured(self, base, one, params)
  local fork = base:fork(params)
  local exact, right, quality = M.ask(fork, one, not self.generate and 1 or nil)
  local stats = fork:stats()
  fork:close()
  local row = {kind = one.kind, accuracy = exact and 1 or 0, digits = right / #one.answer, evidence = quality.evidence,
    coverage = quality.coverage, error = stats.last_error}
  if not self.generate then row.accuracy, row.digits = nil, nil end
  for _, name in ipairs(of_stats) do row[name] = stats[name] end
  if self.step then self.step() end
  return row
end

local function column(list, name)
  local out, sum = {}, 0
  for i, one in ipairs(list) do
    out[i] = one[name]
    sum = sum + one[name]
  end
  return out, sum
end

-- Means over questions, with 95 % intervals.
local function summed(self, list)
  local out = {n = #list}
  for _, name in ipairs(of_stats) do out[name] = select(2, column(list, name)) / #list end
  for _, name in ipairs(self.generate and {"digits", "evidence", "coverage"} or {"evidence", "coverage"}) do
    local each, sum = column(list, name)
    out[name] = sum / #list
    out[name .. "_low"], out[name .. "_high"] = intervals.bootstrap(each)
  end
  if self.generate then
    local right = select(2, column(list, "accuracy"))
    out.accuracy = right / #list
    out.accuracy_low, out.accuracy_high = intervals.wilson(right, #list)
  end
  return out
end

-- Asks every question of forks with these options, or with those that params(base, question) returns. A seed of theirs makes the
-- haystack, keys and depths, too. Means over questions: accuracy (whole answers), digits (tokens before the first wrong one), evidence,
-- coverage, resident_bytes, resident_pct, fetched_bytes, cycles, failed and clipped (of the cycles), transfer_stall_ms, ms_per_token;
-- where there are several kinds, NAME_accuracy and NAME_evidence of each; error, where the policy failed: what it said
-- last; n, the questions, and the 95 % intervals accuracy_low .. accuracy_high, and so for digits, evidence and coverage
-- (lua/lsa/intervals.lua).
function Task:run(params)
  local seed, all, by_kind, names = type(params) == "table" and params.seed or self.seed, {}, {}, {}
  for i = 1, self.contexts do
    local base, questions = self:context(seed, i)
    for _, one in ipairs(questions) do
      local row = measured(self, base, one, type(params) == "function" and params(base, one) or params)
      row.context = i
      all[#all + 1] = row
      local kind = one.kind or ""
      if not by_kind[kind] then
        by_kind[kind] = {}
        names[#names + 1] = kind
      end
      table.insert(by_kind[kind], row)
    end
  end
  self.questions = all
  local out = summed(self, all)
  for _, row in ipairs(all) do out.error = row.error or out.error end
  for _, name in ipairs(#names > 1 and names or {}) do
    local own = summed(self, by_kind[name])
    out[name .. "_accuracy"], out[name .. "_evidence"] = own.accuracy, own.evidence
  end
  return out
end

function Task:close()
  for _, base in pairs(self.bases) do base:close() end
  self.bases = {}
end

-- kinds: of lua/lsa/tasks/items.lua; items: of each kind in a context.
local function make(random, task)
  local draw, list = items.draw(random, task.words), {}
  for _ = 1, task.items do
    for _, kind in ipairs(task.kinds) do
      local item = items.kinds[kind](draw)
      item.kind = kind
      list[#list + 1] = item
    end
  end
  return items.context(random, task.text, task.tokens, list)
end

function M.kinds(model, opt, kinds, what)
  local self = M.task(model, opt, {items = 4, kinds = kinds}, what, make)
  options.whole(self.items, 1, what .. ": items")
  for _, kind in ipairs(options.list(self.kinds, what .. ": kinds")) do options.one_of(kind, items.names, what .. ": kind") end
  return self
end

return M
