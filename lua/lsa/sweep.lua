-- Owns lsa.sweep: a function of some parameters run over all their combinations, with a progress bar; it resumes where it stopped.
--
--   t = lsa.sweep{policies = {"lsa_topk", {"h2o", recent = 0.25}}, budgets = {0.05, 0.1}, taus = {64}, run = f}
--
-- run(params) returns a table of results; params are named as a session's options:
--   policies -> select   budgets -> budget   taus -> every   evictions -> evict   hots -> hot   seeds -> seed
-- A rule may be given by a name that the table is to call it by, behind those without one: policies = {"recency", mine = function … end}.
-- grid = {name = {values}} adds others of any name. In the place of run: model = model, and task = {…}, the options of
-- needle.task (lua/lsa/tasks/needle.lua), or {NAME, …}, another of lsa.tasks. All combinations are asked of one context before the next is
-- prefilled; t.rows[i].questions has a row of each question.
--   results = "sweep.jsonl"    a line of JSON for each finished combination, only ever appended to; combinations that it has are not
--                              run again. They are known by content: parameters, the rules' files and what these require,
--                              the model, the task, the engine's version, the file that `run` is in, and about, a text
--   columns = {…}              of the table, after the parameters'; where it is nil all that there are, M.measures in their order before
--                              the others, by name, which text for people leaves out
-- A rule's options are in columns of their own: select, select.recent. t.notes says what the rows cannot show: one cycle in every run,
-- an axis that changed nothing.
-- Returns a table object: t:csv() t:markdown() t:json() t:write(path) tostring(t), t.rows (lua/lsa/prompt/results_table.lua).
local cjson = require "cjson"
local content = require "lsa.content"
local grid = require "lsa.prompt.results_table"
local options = require "lsa.options"
local progress = require "lsa.progress"
local raise = require "lsa.raise"
local registry = require "lsa.registry"

local M = {}

local axes = {{"policies", "select"}, {"budgets", "budget"}, {"taus", "every"}, {"evictions", "evict"}, {"hots", "hot"}, {"seeds", "seed"}}

local allowed = {run = false, model = false, task = false, grid = false, results = false, about = false, columns = false,
  label = "sweep"}
for _, axis in ipairs(axes) do allowed[axis[1]] = false end
M.options = allowed

local kinds = {select = "policies", every = "schedules", evict = "evictions"}

-- What a task measures, in the order in which it is read.
M.measures = {"n", "accuracy", "accuracy_low", "accuracy_high", "change", "change_low", "change_high", "evidence", "evidence_n", "coverage", "resident_pct",
  "fetched_bytes", "cycles", "failed", "clipped", "cut", "ms_per_token", "error"}

-- Those names that a row has.
function M.present(names, rows)
  local out = {}
  for _, name in ipairs(names) do
    for _, row in ipairs(rows) do
      if row[name] ~= nil then
        out[#out + 1] = name
        break
      end
    end
  end
  return out
end

-- JSON with sorted names and exact numbers: equal values are equal text. What JSON has no number for is {"number": "nan"}, and a
-- table that is more than a list has its places as names.
local function text_of(value)
  local kind = type(value)
  if kind == "number" then
    local text = grid.number(value)
    return value - value == 0 and text or '{"number":"' .. text .. '"}'
  end
  if kind == "string" or kind == "boolean" then return cjson.encode(value) end
  if kind ~= "table" then raise("a %s cannot be written to the results; give policies as names or files", kind) end
  local parts, names, whole = {}, {}, true
  for name in pairs(value) do
    names[#names + 1] = name
    whole = whole and type(name) == "number"
    if type(name) == "string" and (name:find "^%d+$" or name == "number" and type(value[name]) == "string") then
      raise("a table with the name '%s' cannot be written to the results", name)
    end
  end
  if whole and #names == #value then
    for i, item in ipairs(value) do parts[i] = text_of(item) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
  for i, name in ipairs(names) do parts[i] = cjson.encode(tostring(name)) .. ":" .. text_of(value[name]) end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- What text_of wrote, as it was.
local function value_of(decoded)
  if type(decoded) ~= "table" then return decoded end
  local odd = decoded.number
  if type(odd) == "string" then return odd == "nan" and 0 / 0 or odd == "inf" and math.huge or -math.huge end
  local out = {}
  for name, item in pairs(decoded) do out[type(name) == "string" and name:find "^%d+$" and tonumber(name) or name] = value_of(item) end
  return out
end

-- Results by the text of their parameters. A last line that was cut off is left aside.
local function read(path)
  local known, file = {}, io.open(path)
  if not file then return known, true end
  local text, why = file:read "*a"
  file:close()
  if not text then raise("lsa.sweep: results %s: %s", path, why) end
  for line in text:gmatch "[^\n]+" do
    local ok, item = pcall(cjson.decode, line)
    if ok and type(item) == "table" and item.key and item.row then known[item.key] = value_of(item.row) end
  end
  return known, text == "" or text:sub(-1) == "\n"
end

local function append(path, text)
  local file, why = io.open(path, "a")
  if not file then raise(why) end
  local ok, problem = file:write(text)
  local closed, late = file:close()
  if not ok or not closed then raise("lsa.sweep: results %s: %s", path, problem or late) end
end

local DEPTH = 16

-- Raises where a value is nested deeper than any policy's options are: in itself, say.
local function check_depth(value, what, depth)
  if type(value) ~= "table" then return end
  if depth > DEPTH then raise("lsa.sweep: %s has a value that is nested deeper than %d", what, DEPTH) end
  for _, item in pairs(value) do check_depth(item, what, depth + 1) end
end

-- The values of an axis, rules by name last. labels: what an axis's rules are called, by the rule.
local function values_of(axis, labels)
  local name, given, what = unpack(axis)
  if type(given) ~= "table" then raise("lsa.sweep: %s is a %s, a list is wanted", what, type(given)) end
  local out, named = {unpack(given)}, {}
  for key in pairs(given) do
    if type(key) == "string" then
      if not kinds[name] then raise("lsa.sweep: %s has %s; a list of values is wanted", what, key) end
      named[#named + 1] = key
    end
  end
  table.sort(named)
  local own = {}
  for _, key in ipairs(named) do
    local rule = given[key]
    if rule ~= rule then raise("lsa.sweep: %s.%s is nan", what, key) end
    if own[rule] then raise("lsa.sweep: %s has one rule as %s and as %s", what, own[rule], key) end
    out[#out + 1], own[rule] = rule, key
  end
  labels[name] = own
  for _, value in ipairs(out) do check_depth(value, what, 1) end
  return out
end

-- Every combination, the first axis changing slowest.
local function combinations(given, labels)
  local list = {}
  for _, axis in ipairs(axes) do
    if given[axis[1]] then list[#list + 1] = {axis[2], given[axis[1]], axis[1]} end
  end
  if given.grid and type(given.grid) ~= "table" then
    raise("lsa.sweep: grid is %s; lists of values by name are wanted", options.shown(given.grid))
  end
  local names = {}
  for name in pairs(given.grid or {}) do
    if type(name) ~= "string" then raise("lsa.sweep: grid has %s; names are wanted", options.shown(name)) end
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do list[#list + 1] = {name, given.grid[name], "grid." .. name} end
  local out, columns = {{}}, {}
  for i, axis in ipairs(list) do
    columns[i] = axis[1]
    local values, longer = values_of(axis, labels), {}
    for _, params in ipairs(out) do
      for _, value in ipairs(values) do
        local copy = {}
        for name, other in pairs(params) do copy[name] = other end
        copy[axis[1]] = value
        longer[#longer + 1] = copy
      end
    end
    out = longer
  end
  return out, columns
end

-- The parameters' columns, then the results'; how many of them people see, where not all.
local function all_columns(columns, wanted, rows, of_task)
  local out, seen, names = {unpack(columns)}, {questions = true}, {}
  if wanted then
    for _, name in ipairs(wanted) do out[#out + 1] = name end
    return out
  end
  for _, name in ipairs(M.present(M.measures, of_task and rows or {})) do out[#out + 1] = name end
  for _, name in ipairs(out) do seen[name] = true end
  local most = of_task and #out or nil
  for _, row in ipairs(rows) do
    for name in pairs(row) do
      if not seen[name] then
        seen[name] = true
        names[#names + 1] = name
      end
    end
  end
  table.sort(names)
  for _, name in ipairs(names) do out[#out + 1] = name end
  return out, most
end

-- What a row depends on beside its parameters.
local function rules_of(params)
  local out = {}
  for axis, kind in pairs(kinds) do
    local spec = params[axis]
    if spec ~= nil and type(spec) ~= "number" then out[axis] = content.rule(kind, spec) end
  end
  return out
end

-- A misspelt name is found before an hour was spent on the rows before it.
local function resolve(list)
  for _, params in ipairs(list) do
    for axis, kind in pairs(kinds) do
      local spec = params[axis]
      if spec ~= nil and type(spec) ~= "number" then registry.open(kind, spec) end
    end
  end
end

-- A rule that is a function goes by where that is.
local function called(kind, value) return type(value) == "function" and kind and raise.place(value) or value end

-- A parameter's columns.
local function spread(out, name, value, labels)
  local label = value ~= nil and labels[name] and labels[name][value]
  if label then
    out[name] = label
  elseif kinds[name] and type(value) == "table" and value[1] ~= nil then
    for option, item in pairs(value) do out[option == 1 and name or name .. "." .. tostring(option)] = called(option == 1 and kinds[name], item) end
  else
    out[name] = called(kinds[name], value)
  end
end

-- Where the times of a run stand.
local function is_time(name) return name:find "_ms$" or name:find "^ms_" or name:find "_s$" end

local function without_times(row)
  local out = {}
  for name, value in pairs(row) do
    if name ~= "questions" and not is_time(tostring(name)) then out[name] = value end
  end
  return out
end

-- What a table is silent of: rules that were never asked twice, and parameters that made no difference.
local function notes_of(list, results, columns)
  local notes, one = {}, #results > 0
  for _, row in ipairs(results) do one = one and type(row.cycles) == "number" and row.cycles <= 1 end
  if one then
    notes[1] = "every run had one cycle at most: schedules, evictions and what policies remember cannot show here"
  end
  for _, axis in ipairs(columns) do
    local groups, same, compared = {}, true, false
    for i, params in ipairs(list) do
      local rest = {}
      for name, value in pairs(params) do
        if name ~= axis then rest[#rest + 1] = name .. "=" .. grid.shown(value) end
      end
      table.sort(rest)
      local key, text = table.concat(rest, "\n"), grid.shown(without_times(results[i]))
      if groups[key] then
        compared = true
        same = same and groups[key] == text
      end
      groups[key] = groups[key] or text
    end
    if compared and same and results[1] and next(results[1]) then notes[#notes + 1] = axis .. " changed nothing" end
  end
  return notes
end

-- One line: what is already known, or run now and appended.
local function obtain(given, run, params, known, context)
  local key = given.results and text_of {about = given.about or "", params = params, rules = rules_of(params), subject = given.subject,
    context = context}
  local row = key and known[key]
  if not row then
    row = run(params)
    if type(row) ~= "table" then raise("lsa.sweep: run returned a %s, a table of results is wanted", type(row)) end
    check_depth(row, "run's result", 1)
    if key then append(given.results, text_of {key = key, row = row} .. "\n") end
  end
  return row
end

-- The results of a task, whose questions are kept context by context: all combinations of one, then the next.
local function of_contexts(given, task, list, known, label)
  local questions, by_seed, seeds, total = {}, {}, {}, 0
  for i, params in ipairs(list) do
    local seed = params.seed or task.seed
    if not by_seed[seed] then by_seed[seed], seeds[#seeds + 1] = {}, seed end
    table.insert(by_seed[seed], i)
    questions[i] = {}
  end
  local plans = {}
  for i, seed in ipairs(seeds) do
    plans[i] = task:plan(seed)
    total = total + #plans[i] * #by_seed[seed]
  end
  local bar = progress(total, label)
  for at, seed in ipairs(seeds) do
    for context, most in ipairs(plans[at]) do
      for _, i in ipairs(by_seed[seed]) do
        local row = obtain(given, function(params) return task:ask(context, params, most) end, list[i], known, context)
        for _, question in ipairs(row) do table.insert(questions[i], question) end
        bar:step(1, grid.shown(list[i]))
      end
      task:close()
    end
  end
  bar:done()
  local out = {}
  for i in ipairs(list) do
    out[i] = require("lsa.tasks.asked").sum(questions[i])
    out[i].questions = questions[i]
  end
  return out
end

-- The results of a function, one by one.
local function of_function(given, run, list, known, label)
  local out, bar = {}, progress(#list, label)
  for i, params in ipairs(list) do
    out[i] = obtain(given, run, params, known)
    bar:step(1, grid.shown(params))
  end
  bar:done()
  return out
end

-- The parameters' columns, each followed by those of its options.
local function parameter_columns(names, list, labels)
  local out = {}
  for _, name in ipairs(names) do
    local found, options_there = {}, {}
    for _, params in ipairs(list) do
      local parts = {}
      spread(parts, name, params[name], labels)
      for column in pairs(parts) do found[column] = true end
    end
    found[name] = nil
    for column in pairs(found) do options_there[#options_there + 1] = column end
    table.sort(options_there)
    out[#out + 1] = name
    for _, column in ipairs(options_there) do out[#out + 1] = column end
  end
  return out
end

-- A task by its name: {"stream", tokens = …}.
function M.task(kind, model, settings)
  local own = options.copy(settings or {})
  own[1] = nil
  return require("lsa.tasks.init").open(kind, model, own)
end

function M.new(given)
  given = options.check(given, allowed, "lsa.sweep")
  local run, task = given.run, nil
  if run and type(run) ~= "function" then
    raise("lsa.sweep: run is %s; a function of the parameters is wanted", options.shown(run))
  end
  for _, name in ipairs(given.columns and options.list(given.columns, "lsa.sweep: columns") or {}) do
    if type(name) ~= "string" then raise("lsa.sweep: columns have %s; names are wanted", options.shown(name)) end
  end
  for _, name in ipairs {"about", "label"} do
    if given[name] and type(given[name]) ~= "string" then
      raise("lsa.sweep: %s is %s; a text is wanted", name, options.shown(given[name]))
    end
  end
  if given.results then options.path(given.results, "lsa.sweep: results") end
  if not run then
    if not given.model then raise "lsa.sweep: there is neither run nor model" end
    local kind, settings = "needle", {}
    for name, value in pairs(given.task or {}) do
      if name == 1 then kind = value elseif name ~= "step" and name ~= "opened" then settings[name] = value end
    end
    task = M.task(kind, given.model, given.task)
    if given.results then
      if settings.session then
        settings.session = options.copy(settings.session)
        settings.session.indexer = settings.session.indexer and content.indexer(settings.session.indexer)
      end
      given.subject = {version = require "lsa.version", model = content.model(given.model), task = settings, kind = kind,
        text = content.digest(task.text), code = require("lsa.tasks.init").digest()}
    end
    function run(params) return task:run(params) end
  end
  local labels = {}
  local list, columns = combinations(given, labels)
  if given.run then given.subject = given.results and {version = require "lsa.version", run = content.code(run)} else resolve(list) end
  local known, whole = {}, true
  if given.results then known, whole = read(given.results) end
  if not whole then append(given.results, "\n") end
  local results = task and task.ask and of_contexts(given, task, list, known, given.label) or of_function(given, run, list, known, given.label)
  local rows = {}
  for i, params in ipairs(list) do
    rows[i] = {}
    for name, value in pairs(params) do spread(rows[i], name, value, labels) end
    for name, value in pairs(results[i]) do rows[i][name] = value end
  end
  local parameters = parameter_columns(columns, list, labels)
  local named, most = all_columns(parameters, given.columns, rows, task)
  return grid.new(rows, named, notes_of(list, results, columns), parameters, most)
end

return M
