-- Owns lsa.sweep: a function of some parameters run over all their combinations, with a progress bar; it resumes where it stopped.
--
--   t = lsa.sweep{policies = {"lsa_topk", {"h2o", recent = 0.25}}, budgets = {0.05, 0.1}, taus = {64}, run = f}
--
-- run(params) returns a table of results; params are named as a session's options:
--   policies -> select   budgets -> budget   taus -> every   evictions -> evict   hots -> hot   seeds -> seed
-- grid = {name = {values}} adds others of any name. In the place of run: model = model, and task = {…}, the options of
-- needle.task (lua/lsa/tasks/needle.lua).
--   results = "sweep.jsonl"    a line of JSON for each finished combination, only ever appended to; combinations that it has are not
--                              run again. about: a text that tells these results from others in the file
--   columns = {…}              of the table, after the parameters'; all that there are, by name, when nil
-- Returns a table object: t:csv() t:markdown() t:write(path) tostring(t), t.rows (lua/lsa/prompt/results_table.lua).
local cjson = require "cjson"
local grid = require "lsa.prompt.results_table"
local options = require "lsa.options"
local progress = require "lsa.progress"
local raise = require "lsa.raise"

local M = {}

local axes = {{"policies", "select"}, {"budgets", "budget"}, {"taus", "every"}, {"evictions", "evict"}, {"hots", "hot"}, {"seeds", "seed"}}

local allowed = {run = false, model = false, task = false, grid = false, results = false, about = false, columns = false,
  label = "sweep"}
for _, axis in ipairs(axes) do allowed[axis[1]] = false end

-- JSON with sorted names and whole numbers: equal values are equal text.
local function text_of(value)
  local kind = type(value)
  if kind == "number" then return ("%.17g"):format(value) end
  if kind == "string" or kind == "boolean" then return cjson.encode(value) end
  if kind ~= "table" then raise("a %s cannot be written to the results; give policies as names or files", kind) end
  local parts, names = {}, {}
  for name in pairs(value) do names[#names + 1] = name end
  table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
  for i, name in ipairs(names) do parts[i] = cjson.encode(tostring(name)) .. ":" .. text_of(value[name]) end
  return "{" .. table.concat(parts, ",") .. "}"
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
    if ok and type(item) == "table" and item.key and item.row then known[item.key] = item.row end
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

-- Every combination, the first axis changing slowest.
local function combinations(given)
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
    if type(axis[2]) ~= "table" then raise("lsa.sweep: %s is a %s, a list is wanted", axis[3], type(axis[2])) end
    for _, value in ipairs(axis[2]) do check_depth(value, axis[3], 1) end
    local longer = {}
    for _, params in ipairs(out) do
      for _, value in ipairs(axis[2]) do
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

-- The parameters' columns, then the results'.
local function all_columns(columns, wanted, rows)
  local out, seen, names = {unpack(columns)}, {}, {}
  for _, name in ipairs(out) do seen[name] = true end
  if wanted then
    for _, name in ipairs(wanted) do out[#out + 1] = name end
    return out
  end
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
  return out
end

-- One line: what is already known, or run now and appended.
local function obtain(given, run, params, known)
  local key = given.results and text_of {about = given.about or "", params = params}
  local row = key and known[key]
  if not row then
    row = run(params)
    if type(row) ~= "table" then raise("lsa.sweep: run returned a %s, a table of results is wanted", type(row)) end
    check_depth(row, "run's result", 1)
    if key then append(given.results, text_of {key = key, row = row} .. "\n") end
  end
  local out = {}
  for name, value in pairs(params) do out[name] = value end
  for name, value in pairs(row) do out[name] = value end
  return out
end

function M.new(given)
  given = options.check(given, allowed, "lsa.sweep")
  local run = given.run
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
    local task = require("lsa.tasks.needle").task(given.model, given.task)
    given.about = given.about or text_of {model = given.model.directory, task = given.task or {}}
    function run(params) return task:run(params) end
  end
  local list, columns = combinations(given)
  local known, whole = {}, true
  if given.results then known, whole = read(given.results) end
  if not whole then append(given.results, "\n") end
  local rows, bar = {}, progress(#list, given.label)
  for i, params in ipairs(list) do
    rows[i] = obtain(given, run, params, known)
    bar:step(1, grid.shown(params))
  end
  bar:done()
  return grid.new(rows, all_columns(columns, given.columns, rows))
end

return M
