-- Owns the needle-in-a-haystack task: statements hidden in real text, each asked again at the end, as RULER's
-- "niah" tasks have it (C.-P. Hsieh et al., "RULER", 2024).
local intervals = require "lsa.intervals"
local options = require "lsa.options"
local raise = require "lsa.raise"
local rng = require "lsa.cycle.rng"

local M = {}

M.statement = "The magic number for %s is: %s."
M.question = "The magic number for %s is: "

-- Lower-case words of 4 to 8 letters in a text, each once, sorted.
function M.words(text)
  local seen, words = {}, {}
  for word in text:gmatch "%f[%a]%l+%f[%A]" do
    if #word >= 4 and #word <= 8 and not seen[word] then
      seen[word] = true
      words[#words + 1] = word
    end
  end
  table.sort(words)
  return words
end

local function digits(random, n)
  local out = {}
  for i = 1, n do out[i] = string.char(48 + random(10)) end
  return table.concat(out)
end

-- random: a generator (lua/lsa/cycle/rng.lua). A context of exactly `length` bytes with `n` needles at depths spread evenly with some chance, and what to ask.
--   text: where the haystack is cut from (repeated when too short)     words: for two-word keys
-- Returns {text =, needles = {{key =, value =, question =, answer =, statement =, at = its byte offset, context = the text}, …}}.
-- Each question is to be appended to the text; the answer is what follows.
function M.build(random, text, words, length, n, value_digits)
  if #words * #words < 2 * n then raise("needle: %d words are too few for the keys of %d needles", #words, n) end
  local needles, taken, total = {}, {}, 0
  for i = 1, n do
    local key
    repeat key = words[1 + random(#words)] .. "-" .. words[1 + random(#words)] until not taken[key]
    taken[key] = true
    local value = digits(random, value_digits or 5)
    local statement = " " .. M.statement:format(key, value) .. " "
    total = total + #statement
    needles[i] = {key = key, value = value, statement = statement, question = " " .. M.question:format(key),
      answer = value}
  end
  local room = length - total
  if room < n then raise("needle: %d needles do not fit in %d bytes", n, length) end
  while #text < room do text = text .. text end
  local from = random(#text - room + 1)
  local hay, parts, last = text:sub(from + 1, from + room), {}, 0
  local at = 0
  for i, needle in ipairs(needles) do
    local cut = math.floor(room * (i - 1 + random()) / n)
    parts[#parts + 1] = hay:sub(last + 1, cut)
    at = at + cut - last
    needle.at = at
    parts[#parts + 1] = needle.statement
    at = at + #needle.statement
    last = cut
  end
  parts[#parts + 1] = hay:sub(last + 1)
  local whole = table.concat(parts)
  for _, needle in ipairs(needles) do needle.context = whole end
  return {text = whole, needles = needles}
end

-- The chunks that hold a part of a needle's statement, in a session whose context begins with the haystack: from .. to - 1.
function M.chunks(model, needle)
  local rate = tonumber(model.config.csa_rate)
  local from = #model:tokens(needle.context:sub(1, needle.at + 1))         -- a space comes before and after
  local to = #model:tokens(needle.context:sub(1, needle.at + #needle.statement - 1))
  return math.floor(from / rate), math.floor((to - 1) / rate) + 1
end

-- Puts the question behind the context, all but its last token, which M.answer decodes: forks of one posed session can answer
-- under policies of their own.
function M.pose(session, needle)
  local question = session.model:tokens(needle.question)
  table.remove(question)
  session:prefill(question)
end

-- The share of a needle's statement, in chunks, that is resident; of what the native top-k would pick, covered and all.
function M.kept(session, from, to)
  local resident, there = session:resident(), 0
  for chunk = from, to - 1 do
    if resident:has(chunk) then there = there + 1 end
  end
  local covered, total = session:coverage()
  return there / (to - from), total > 0 and covered / total or 1
end

-- Decodes the question's last token and the answer, as the model gives it, so every answer token is chosen under the
-- session's policy. Returns whether the whole value came out, how many of its digits did before the first wrong one, and, as
-- means over the decoded steps, {evidence = the share of the statement's chunks that was resident, coverage = the share of
-- what the native top-k would pick that was}.
function M.answer(session, needle)
  local model = session.model
  local question, expected = model:tokens(needle.question), model:tokens(needle.answer)
  local from, to = M.chunks(model, needle)
  local right, exact, evidence, coverage = 0, true, 0, 0
  local token = question[#question]
  for i = 1, #expected do
    token = session:decode(token):argmax()
    if token ~= expected[i] then exact = false end
    if exact then right = right + 1 end
    local there, covered = M.kept(session, from, to)
    evidence, coverage = evidence + there, coverage + covered
  end
  return exact, right, {evidence = evidence / #expected, coverage = coverage / #expected}
end

-- Both, of a fork whose context is prefilled.
function M.ask(session, needle)
  M.pose(session, needle)
  return M.answer(session, needle)
end

local Task = {}
Task.__index = Task

local defaults = {tokens = 8192, needles = 4, contexts = 1, text = "bible", seed = 1, session = false, step = false}

-- A task that is run again and again under different options, from one prefill a context.
--   tokens, needles, contexts   of each context; how many there are        text: what to cut from (lua/lsa/texts.lua)
--   session                     options of the sessions that are forked    step: called after each prefill and question
function M.task(model, opt)
  local self = setmetatable(options.check(opt, defaults, "needle.task"), Task)
  self.model, self.bases, self.made = model, {}, {}
  self.text = require("lsa.texts").open(self.text)
  self.words = M.words(self.text)
  return self
end

-- The prefilled session of context i, and its needles.
local function context(self, seed, i)
  i = seed * 1000 + i
  if not self.bases[i] then
    self.made[i] = M.build(rng.new(i), self.text, self.words, self.tokens, self.needles)
    local settings = {select = "full"}
    for name, value in pairs(self.session or {}) do settings[name] = value end
    local base = self.model:session(settings)
    base:prefill(self.made[i].text)
    self.bases[i] = base
    if self.step then self.step() end
  end
  return self.bases[i], self.made[i].needles
end

-- Asks every needle of forks with these options, or with those that params(base, needle) returns. A seed of theirs makes the
-- haystack, keys and depths, too. Means over questions: accuracy (whole answers), digits, evidence, coverage, resident_bytes,
-- resident_pct, fetched_bytes, cycles, failed and clipped (of the cycles), ms_per_token; error, where the policy failed: what it said
-- last; n, the questions, and the 95 % intervals accuracy_low .. accuracy_high, and so for digits, evidence and coverage
-- (lua/lsa/intervals.lua).
function Task:run(params)
  local sum, each, asked, out = {}, {}, 0, {}
  local seed = type(params) == "table" and params.seed or self.seed
  local function add(name, value)
    sum[name], each[name] = (sum[name] or 0) + value, each[name] or {}
    table.insert(each[name], value)
  end
  for i = 1, self.contexts do
    local base, needles = context(self, seed, i)
    for _, one in ipairs(needles) do
      local fork = base:fork(type(params) == "function" and params(base, one) or params)
      local exact, right, quality = M.ask(fork, one)
      local stats = fork:stats()
      fork:close()
      add("accuracy", exact and 1 or 0)
      add("digits", right / #one.answer)
      add("evidence", quality.evidence)
      add("coverage", quality.coverage)
      for _, name in ipairs {"resident_bytes", "resident_pct", "fetched_bytes", "cycles", "failed", "clipped", "ms_per_token"} do add(name, stats[name]) end
      out.error = stats.last_error or out.error
      asked = asked + 1
      if self.step then self.step() end
    end
  end
  for name, value in pairs(sum) do out[name] = value / asked end
  out.n = asked
  out.accuracy_low, out.accuracy_high = intervals.wilson(sum.accuracy, asked)
  for _, name in ipairs {"digits", "evidence", "coverage"} do
    out[name .. "_low"], out[name .. "_high"] = intervals.bootstrap(each[name])
  end
  return out
end

function Task:close()
  for _, base in pairs(self.bases) do base:close() end
  self.bases = {}
end

return M
