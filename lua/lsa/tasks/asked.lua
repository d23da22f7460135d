-- Owns tasks whose questions are asked one by one, each of a fork of its own, from one prefill a context.
--
--   task = lsa.tasks.single{model = model, tokens = 32768, items = 8}       or another kind of lua/lsa/tasks/items.lua
--   task = lsa.tasks.mixed{model = model, kinds = {"single", "traced"}, items = 4}
--   row = task:run{select = "lsa_topk", budget = 0.1}      task.questions: what was measured of each, in order
--
-- Every token of an answer is decoded under the policy, and is the model's own. generate = false decodes a question's last token alone
-- and tells what is resident then: evidence without answers, at a fraction of the time.
--
-- A question is {question =, answer =, context = the text before it, spans = {{from, to}, …}: bytes, from 0, of its evidence}; with choices, a
-- list of answers, the likeliest of them is the model's; with score, a function, the model writes up to `most` tokens or a line, and
-- score(text) says whether that is right. Evidence is told of questions that have some.
local intervals = require "lsa.intervals"
local items = require "lsa.tasks.items"
local options = require "lsa.options"
local parts = require "lsa.tasks.parts"
local phrasings = require "lsa.tasks.phrasings"
local rng = require "lsa.cycle.rng"

local M = {}

local MANY = 32 -- spans, for which not the text before each is made tokens, but each token text

-- How many tokens of a text are over at byte `at`, as a function of it, which is asked for growing places.
local function place_of(model, text)
  local tokens = model:tokens(text)
  if #tokens == #text then return function(at) return at end end
  local done, bytes = 0, 0
  return function(at)
    if at < bytes then done, bytes = 0, 0 end
    while done < #tokens and bytes < at do
      done = done + 1
      bytes = bytes + #model:text {tokens[done]}
    end
    return done
  end
end

-- The chunks whose entries hold a part of a question's evidence, in a session whose context begins with the haystack: a list of ids,
-- each once. An entry is made of its chunk's tokens and of those of the chunk before, so the chunk behind a statement is among them.
function M.chunks(model, question)
  if question.chunks_of == model then return question.chunks end
  local rate, seen, out = tonumber(model.config.csa_rate), {}, {}
  local place = #question.spans > MANY and place_of(model, question.context) or function(at) return #model:tokens(question.context:sub(1, at)) end
  for _, span in ipairs(question.spans) do
    local from, to = place(span[1]), place(span[2])
    for chunk = math.floor(from / rate), math.floor((to - 1) / rate) + 1 do
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

-- The share of these chunks that is resident, of those that are there yet, of none nil; of what the native top-k would pick, the share that is, which costs a look
-- at all keys of all layers.
function M.kept(session, chunks, uncovered)
  local resident, there, known = session:resident(), 0, 0
  for _, chunk in ipairs(chunks) do
    if chunk < resident:size() then known = known + 1 end
    if resident:has(chunk) then there = there + 1 end
  end
  local covered, total = 0, 0
  if not uncovered then covered, total = session:coverage() end
  return known > 0 and there / known or nil, total > 0 and covered / total or 1
end

-- The likeliest of texts as the next token.
local function chosen(model, logits, choices)
  local best
  for _, choice in ipairs(choices) do
    local token = model:tokens(choice)[1]
    if not best or logits:get(token) > logits:get(best) then best = token end
  end
  return best
end

-- Whether a text of the model's own is over: a line that says something.
local function is_line(text) return text:find "%S[^\n]*\n" ~= nil end

-- Decodes the question's last token and the answer, as the model gives it, so every answer token is chosen under the
-- session's policy. Returns whether the whole answer came out, how many of its tokens did before the first wrong one, and, as
-- means over the decoded steps, {evidence = the share of the evidence's chunks that was resident, coverage = the share of
-- what the native top-k would pick that was}, the last token, which is still to be decoded, and the tokens. steps: at most so many.
-- uncovered: coverage is not asked for.
function M.answer(session, question, steps, uncovered)
  local model = session.model
  local asked, expected = model:tokens(question.question), model:tokens(question.answer)
  local chunks = M.chunks(model, question)
  local right, exact, evidence, coverage, out = 0, true, 0, 0, {}
  local token, n = asked[#asked], math.min(question.score and question.most or #expected, steps or math.huge)
  while #out < n do
    local logits = session:decode(token)
    token = question.choices and chosen(model, logits, question.choices) or logits:argmax()
    out[#out + 1] = token
    exact = exact and token == expected[#out]
    if exact then right = right + 1 end
    local there, covered = M.kept(session, chunks, uncovered)
    evidence, coverage = there and evidence + there, coverage + covered
    if question.score and is_line(model:text(out)) then break end
  end
  if question.score then exact = question.score(model:text(out)) end
  return exact, right, {evidence = evidence and evidence / #out, coverage = not uncovered and coverage / #out or nil}, token, out
end

-- Both, of a fork whose context is prefilled.
function M.ask(session, question, steps, uncovered)
  M.pose(session, question)
  return M.answer(session, question, steps, uncovered)
end

local Task = {}
Task.__index = Task
M.Task = Task

-- What is asked of whom.
function Task:__tostring()
  return ("%s: %d contexts%s; %s"):format(self.kinds and table.concat(self.kinds, ", ") or "a task", self.contexts,
    self.tokens and (" of %d tokens"):format(self.tokens) or "", tostring(self.model))
end

M.defaults = {tokens = 8192, contexts = 1, n = false, seed = 1, session = false, step = false, generate = true, coverage = true}
M.of_text = {text = "bible", part = "test"}

-- make(random, task, i) -> {text =, questions =}: context i. options beside those of `make`:
--   tokens, contexts    of each context; how many there are
--   n                   questions at most
--   text, part          what to cut from, and which part of it (lua/lsa/tasks/parts.lua); not of tasks that have a path
--   session             options of the sessions that are forked       step: called after each prefill and question
--   generate            false: no answers but evidence alone
--   coverage            false: it is not asked for, which costs a look at all keys each step
function M.task(model, opt, defaults, what, make)
  local allowed = options.copy(M.defaults)
  for _, more in ipairs {defaults.path == nil and M.of_text or {}, defaults} do
    for name, value in pairs(more) do allowed[name] = value end
  end
  local self = setmetatable(options.check(opt, allowed, what), Task)
  for _, name in ipairs {"tokens", "contexts", "n"} do
    if self[name] then options.whole(self[name], 1, what .. ": " .. name) end
  end
  for _, name in ipairs {"generate", "coverage"} do options.boolean(self[name], what .. ": " .. name) end
  M.seed(self)
  self.model, self.make, self.bases, self.made = model, make, {}, {}
  if self.text then
    local part = parts.open(self.text, self.part)
    self.text, self.words = part.text, part.words
  end
  return self
end

-- The seed of a run: that of its options, or the task's. Contexts' numbers are made of it.
function M.seed(task, params)
  return options.whole(type(params) == "table" and params.seed or task.seed, 0, "task: seed", 2 ^ 32 - 1)
end

-- The text and the questions of context i.
function Task:questions_of(seed, i)
  local key = seed * 1000000 + i
  self.made[key] = self.made[key] or self.make(rng.new(seed * 1000 + i), self, i)
  return self.made[key]
end

-- How many questions of each context are asked: all, or the first n.
function Task:plan(seed)
  local out, left = {}, self.n or math.huge
  for i = 1, self.contexts do
    if left <= 0 then break end
    out[i] = self.n and math.min(left, self.each or #self:questions_of(seed, i).questions) or math.huge
    left = left - out[i]
  end
  return out
end

-- The prefilled session of context i, and its questions.
function Task:context(seed, i)
  local made, key = self:questions_of(seed, i), seed * 1000000 + i
  if not self.bases[key] then
    local settings = {select = "full"}
    for name, value in pairs(self.session or {}) do settings[name] = value end
    local base = self.model:session(settings)
    base:prefill(made.text)
    self.bases[key] = base
    if self.step then self.step() end
  end
  return self.bases[key], made.questions
end

local of_stats = {"resident_bytes", "resident_pct", "fetched_bytes", "cycles", "failed", "clipped", "transfer_stall_ms", "ms_per_token"}

-- What one question showed.
local function measured(self, base, one, params)
  local fork = base:fork(params)
  local exact, right, quality, _, said = M.ask(fork, one, not self.generate and 1 or nil, not self.coverage)
  local stats = fork:stats()
  fork:close()
  local span = one.spans[1]
  local row = {kind = one.kind, id = one.id, cut = one.cut, depth = span and span[1] / #one.context, tokens = stats.tokens,
    evidence = quality.evidence, coverage = quality.coverage, error = stats.last_error}
  if self.generate then
    row.accuracy, row.said = exact and 1 or 0, self.model:text(said)
    if not (one.score or one.choices) then row.digits = right / #one.answer end
  end
  for _, name in ipairs(of_stats) do row[name] = stats[name] end
  if self.step then self.step() end
  return row
end

-- The values of the rows that have one, and their mean.
local function column(list, name)
  local out, sum = {}, 0
  for _, one in ipairs(list) do
    if one[name] ~= nil then
      out[#out + 1] = one[name]
      sum = sum + one[name]
    end
  end
  return out, sum / #out
end

-- Means over questions, with 95 % intervals.
local function summed(list)
  local out = {n = #list}
  for _, name in ipairs(of_stats) do out[name] = select(2, column(list, name)) end
  for _, name in ipairs {"digits", "evidence", "coverage", "accuracy"} do
    local each, mean = column(list, name)
    if #each > 0 then
      out[name] = mean
      if name == "accuracy" then
        out.accuracy_low, out.accuracy_high = intervals.wilson(math.floor(mean * #each + 0.5), #each)
      else
        out[name .. "_low"], out[name .. "_high"] = intervals.shares(each)
      end
      if #each < #list then out[name .. "_n"] = #each end
    end
  end
  for _, row in ipairs(list) do
    out.error = row.error or out.error
    if row.cut then out.cut = (out.cut or 0) + 1 end
  end
  return out
end

-- Asks the first `most` questions of context i, of forks with these options, or with those that params(base, question) returns: a row of
-- each question.
function Task:ask(i, params, most)
  local seed, out = M.seed(self, params), {}
  local base, questions = self:context(seed, i)
  for number = 1, math.min(#questions, most) do
    local one = questions[number]
    out[number] = measured(self, base, one, type(params) == "function" and params(base, one) or params)
    out[number].context = i
  end
  return out
end

-- Of the rows of questions, as means over them: accuracy (whole answers), digits (tokens before the first wrong one), evidence,
-- coverage, resident_bytes, resident_pct, fetched_bytes, cycles, failed and clipped (of the cycles), transfer_stall_ms, ms_per_token;
-- where there are several kinds, NAME_accuracy and NAME_evidence of each; error, where the policy failed: what it said
-- last; cut: how many questions had their context shortened; evidence_n: how many have evidence, where not all do; n, the questions, and the 95 % intervals accuracy_low .. accuracy_high, and so
-- for digits, evidence and coverage (lua/lsa/intervals.lua).
function M.sum(list)
  local out, by_kind, names = summed(list), {}, {}
  for _, row in ipairs(list) do
    local kind = row.kind or ""
    if not by_kind[kind] then
      by_kind[kind] = {}
      names[#names + 1] = kind
    end
    table.insert(by_kind[kind], row)
  end
  for _, name in ipairs(#names > 1 and names or {}) do
    local own = summed(by_kind[name])
    out[name .. "_accuracy"], out[name .. "_evidence"] = own.accuracy, own.evidence
  end
  return out
end

-- Asks every question of forks with these options, or with those that params(base, question) returns: M.sum of what was measured. A seed
-- of theirs makes the haystack, keys and depths, too.
function Task:run(params)
  local all = {}
  for i, most in ipairs(self:plan(M.seed(self, params))) do
    for _, row in ipairs(self:ask(i, params, most)) do all[#all + 1] = row end
  end
  self.questions = all
  return M.sum(all)
end

-- Gives back what contexts take.
function Task:close()
  for _, base in pairs(self.bases) do base:close() end
  self.bases, self.made = {}, {}
end

-- kinds: of lua/lsa/tasks/items.lua; items: of each kind in a context; phrasings: places of those that statements and questions take.
local function make(random, task)
  local draw, list = items.draw(random, task.words, task.phrasings, task.phrasings), {}
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
  local self = M.task(model, opt, {items = 4, kinds = kinds, phrasings = false}, what, make)
  options.whole(self.items, 1, what .. ": items")
  self.phrasings = self.phrasings or nil
  for _, place in ipairs(self.phrasings and options.list(self.phrasings, what .. ": phrasings") or {}) do
    options.whole(place, 1, what .. ": phrasing", #phrasings)
  end
  for _, kind in ipairs(options.list(self.kinds, what .. ": kinds")) do options.one_of(kind, items.names, what .. ": kind") end
  return self
end

require("lsa.arity").methods(Task, "task:")

return M
