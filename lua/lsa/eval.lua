-- Owns lsa.eval: policies on several tasks, with the same questions for all, so that they are compared question by question.
--
--   t = lsa.eval{model = model, tasks = {"single", {"traced", tokens = 16384}, {"longbench", path = "data.json"}}, n = 100,
--     policies = {"full", "lsa_topk", "recency"}, budgets = {0.05, 0.1}, results = "eval.jsonl"}
--   print(t)  t:plot()  t:write "table.csv"  t.rows        as lsa.sweep's, a row for each task and combination
--   t.questions                                            a table of its own, a row for each question: t.questions:write "questions.csv"
--
-- tasks: names of lsa.tasks (lsa.tasks.names()) with their options; n: questions of each task at most. policies, budgets, taus, evictions, hots,
-- seeds, results and about are lsa.sweep's; what the results file has is not asked again, question by question of a context.
--   against = "full"     a policy, "full" or the first one where it is not given: change is the difference of accuracy from it, mean over
--                        the questions that both were asked (evidence where there are no answers), with a 95 % interval, paired
--
-- Beside each figure stand n, its interval, and how many of the cycles failed or were clipped.
local grid = require "lsa.prompt.results_table"
local intervals = require "lsa.intervals"
local options = require "lsa.options"
local raise = require "lsa.raise"
local sweep = require "lsa.sweep"

local M = {}

local passed_on = {"model", "policies", "budgets", "taus", "evictions", "hots", "seeds", "results", "about"}
local allowed = {tasks = false, n = false, against = false, session = false}
for _, name in ipairs(passed_on) do allowed[name] = false end
M.options = allowed

-- A task's name and options, as a table of its own.
local function spec_of(given, spec)
  local own = options.copy(type(spec) == "table" and spec or {spec})
  options.one_of(own[1], require("lsa.tasks.init").names(), "lsa.eval: task")
  if own.n == nil then own.n = given.n end
  if own.session == nil then own.session = given.session end
  return own
end

local function sorted(names)
  local out = {}
  for name in pairs(names) do out[#out + 1] = name end
  table.sort(out)
  return out
end

-- What tasks are called in the table: by name, and by what tells those of one name apart beside their length, which has a column.
local function labels_of(specs)
  local out, seen = {}, {}
  for i, spec in ipairs(specs) do
    local parts, names = {spec[1]}, {}
    for _, other in ipairs(specs) do
      for name in pairs(other[1] == spec[1] and other or {}) do
        if grid.shown(other[name]) ~= grid.shown(spec[name]) and name ~= "tokens" then names[name] = true end
      end
    end
    for _, name in ipairs(sorted(names)) do parts[#parts + 1] = name .. "=" .. grid.shown(spec[name]) end
    out[i] = table.concat(parts, " ")
    local whole = out[i] .. " " .. grid.shown(spec.tokens)
    if seen[whole] then raise("lsa.eval: tasks has %s twice", whole) end
    seen[whole] = true
  end
  return out
end

-- The row that another is compared with: the same but for its policy.
local function baseline_of(rows, row, against, axes)
  for _, other in ipairs(rows) do
    local same = grid.shown(other.select) == against
    for _, name in ipairs(axes) do
      if not name:find "^select" then same = same and grid.shown(other[name]) == grid.shown(row[name]) end
    end
    if same then return other end
  end
end

-- Adds change, change_low and change_high.
local function compare(rows, against, axes)
  for _, row in ipairs(rows) do
    local base = baseline_of(rows, row, against, axes)
    local name = row.accuracy and "accuracy" or row.evidence and "evidence"
    if base and base ~= row and name and #base.questions == #row.questions then
      local differences, sum = {}, 0
      for i, question in ipairs(row.questions) do
        if question[name] then
          differences[#differences + 1] = question[name] - base.questions[i][name]
          sum = sum + differences[#differences]
        end
      end
      row.change = sum / #differences
      row.change_low, row.change_high = intervals.changes(differences)
    end
  end
end

-- Whether a text comes twice.
local function repeats(list)
  local seen = {}
  for _, text in ipairs(list) do
    if seen[text] then return true end
    seen[text] = true
  end
  return false
end

local function joined(a, b)
  local out = {unpack(a)}
  for _, name in ipairs(b) do out[#out + 1] = name end
  return out
end

-- Questions as a table: what they are asked under, and what was measured.
local function by_question(rows, axes)
  local out = {}
  for _, row in ipairs(rows) do
    for number, question in ipairs(row.questions) do
      local one = options.copy(question)
      for _, name in ipairs(axes) do one[name] = row[name] end
      one.question = number
      out[#out + 1] = one
    end
  end
  local names = joined(axes, sweep.present({"question", "context", "id", "kind", "tokens", "depth", "accuracy", "digits", "evidence", "coverage", "resident_pct",
    "fetched_bytes", "cycles", "failed", "clipped", "cut", "ms_per_token", "said", "error"}, out))
  return grid.new(out, names, {}, axes)
end

function M.new(given)
  given = options.check(given, allowed, "lsa.eval")
  require("lsa.model").check(given.model, "lsa.eval: model")
  if given.n then options.whole(given.n, 1, "lsa.eval: n") end
  options.list(given.policies, "lsa.eval: policies")
  local specs, rows, axes, notes = {}, {}, nil, {}
  for i, spec in ipairs(options.list(given.tasks, "lsa.eval: tasks")) do specs[i] = spec_of(given, spec) end
  local against = given.against or grid.shown(given.policies[1])
  for _, policy in ipairs(given.policies) do
    if policy == "full" and not given.against then against = "full" end
  end
  local labels = labels_of(specs)
  for i, spec in ipairs(specs) do
    local own = {task = spec, label = labels[i]}
    for _, name in ipairs(passed_on) do own[name] = given[name] end
    local t = sweep.new(own)
    if t.rows[1] and not t.rows[1].questions then
      raise('lsa.eval: task "%s" has no questions that stand alone; lsa.sweep runs it', spec[1])
    end
    axes = t.axes
    for _, row in ipairs(t.rows) do
      row.task = labels[i]
      if type(spec.tokens) == "number" then row.tokens = spec.tokens end
      rows[#rows + 1] = row
    end
    for _, text in ipairs(t.notes) do
      notes[#notes + 1] = #specs > 1 and labels[i] .. ": " .. text or text
      if repeats(notes) then notes[#notes] = nil end
    end
  end
  axes = joined(repeats(labels) and {"task", "tokens"} or {"task"}, axes)
  compare(rows, against, axes)
  local names = joined(axes, sweep.present(sweep.measures, rows))
  local t = grid.new(rows, names, notes, axes)
  if sweep.present({"change"}, rows)[1] then table.insert(t.notes, 1, ("change is the difference from %s, question by question"):format(against)) end
  t.questions = by_question(rows, axes)
  return t
end

return M
