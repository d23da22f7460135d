-- Owns what the prompt knows beside Lua: lines that begin with % or !, and those with a ? at either end.
--
--   commands.run(text, prompt) -> whether the line was one        prompt: lua/lsa/prompt/repl.lua's object
--   commands.names()                                              "%bench", … sorted
--
-- A command is a function of the rest of its line and of the prompt; about[name] says what it does.
local compile = require "lsa.prompt.compile"
local help = require "lsa.prompt.help"
local host = require "lsa.host"
local inspect = require "lsa.prompt.inspect"
local screen = require "lsa.prompt.screen"
local unistd = require "posix.unistd"

local M = {}

local commands, about, order = {}, {}, {}

local function command(name, usage, f)
  commands[name], about[name] = f, usage
  order[#order + 1] = name
end

-- What is wrong with a line itself, which is told without a traceback.
local function complain(format, ...)
  M.complaint = select("#", ...) > 0 and format:format(...) or format
  error(M.complaint, 0)
end

function M.names()
  local names = {}
  for i, name in ipairs(order) do names[i] = "%" .. name end
  table.sort(names)
  return names
end

-- ---- help ----

local function show_help(text, prompt)
  if text == "" then return screen.page(help.overview()) end
  local line = about[text:match "^%%(%w+)$"]
  if line then return print(line) end
  local facts = help.find(text, prompt.environment)
  if not facts then
    local hint = require "lsa.nearest".hint(text, help.names())
    complain("there is no help for %q%s", text, hint ~= "" and hint or "; ? alone lists what there is")
  end
  screen.page(help.text(facts, screen.paint "title"))
end

local function show_source(text, prompt)
  local facts = help.find(text, prompt.environment)
  local source = facts and help.source(facts)
  if not source then complain("there is no source of %q", text) end
  screen.page(source .. (facts.path and ("\n-- %s:%d"):format(facts.path, facts.line or 1) or ""))
end

command("help", "%help NAME, ?NAME, NAME?   what there is to know of a value, a rule, an option; ??NAME its source", show_help)

command("magic", "%magic                     this list", function()
  local lines = {}
  for _, name in ipairs(order) do lines[#lines + 1] = about[name] end -- some share a line
  lines[#lines + 1] = "!COMMAND                   runs a command of the shell; x = !COMMAND keeps its lines"
  lines[#lines + 1] = "STATEMENTS; EXPRESSION     shows the expression; a ; at the end shows nothing"
  lines[#lines + 1] = "In[n] Out[n] _ __ ___      what was typed, what came of it; _ is the last value"
  screen.page(table.concat(lines, "\n"))
end)

-- ---- time ----

local function chunk_of(text, prompt)
  if text == "" then complain "an expression or a statement is wanted" end
  local run, problem = compile.chunk(text, "=prompt", 1, prompt)
  if not run then complain("%s", problem) end
  return run
end

local function clock_ns() return tonumber(require("lsa.ffi").C.lsa_clock_ns()) end

-- Nanoseconds for people.
local function duration(ns)
  for _, unit in ipairs {{1e9, "s"}, {1e6, "ms"}, {1e3, "us"}} do
    if ns >= unit[1] then return ("%.3g %s"):format(ns / unit[1], unit[2]) end
  end
  return ("%.3g ns"):format(ns)
end

command("time", "%time STATEMENT            runs it once and says how long that took", function(text, prompt)
  local run, began, cpu = chunk_of(text, prompt), clock_ns(), os.clock()
  prompt:show(run)
  print(("took %s, %s of processor time"):format(duration(clock_ns() - began), duration((os.clock() - cpu) * 1e9)))
end)

local SAMPLES, SAMPLE_NS, BUDGET_NS, LEAST, FIRST = 100, 2e6, 2e9, 3, 5

-- What the compiler did while f ran: a text.
local function watched(f, ...)
  if not jit.status() then return "interpreted: the compiler is off", f(...) end
  local compiled, aborted, why = 0, 0, nil
  local _, names = pcall(require, "jit.vmdef")
  local function watch(what, _, func, pc, number, detail)
    if what == "stop" then compiled = compiled + 1 end
    if what ~= "abort" then return end
    local words = type(names) == "table" and names.traceerr and names.traceerr[number] or "error " .. tostring(number)
    if not words:find "NYI" and not words:find "blacklisted" then return end -- tried again elsewhere
    aborted = aborted + 1
    if type(detail) == "number" and words:find "bytecode" then detail = names.bcnames:sub(detail * 6 + 1, detail * 6 + 6) end
    if type(detail) == "function" then detail = "function" end
    local info = require "jit.util".funcinfo(func, pc)
    if why and not words:find "NYI" then return end -- what is blacklisted is so for an earlier reason
    why = ("%s, %s"):format(info.loc or "?", (words:gsub("%%[ds]", (tostring(detail):gsub(" ", "")))))
  end
  jit.attach(watch, "trace")
  local ok, result = pcall(f, ...)
  jit.attach(watch)
  if not ok then error(result, 0) end
  if aborted == 0 then return compiled > 0 and "compiled" or "", result end
  return ("%s interpreted: %s"):format(compiled > 0 and "in part" or "all", why), result
end

-- Sorted nanoseconds of one run, and how many runs a sample has. The loop is new each time: what the compiler made of an earlier one
-- is not this one's.
local function sampled(run)
  local loop = loadstring "local f, n = ... for _ = 1, n do f() end"
  local function sample(n)
    local began = clock_ns()
    loop(run, n)
    return (clock_ns() - began) / n
  end
  -- The quickest of a few, since other programs may come in between; then of as many as a sample has, by which time they are compiled.
  local function runs_of(n)
    local best = math.huge
    for _ = 1, FIRST do
      best = math.min(best, sample(n))
      if best * n > BUDGET_NS / FIRST then break end
    end
    return math.max(1, math.ceil(SAMPLE_NS / math.max(best, 0.1)))
  end
  local n = runs_of(1)
  if n > 1 then n = runs_of(n) end
  local list, began = {}, clock_ns()
  while #list < LEAST or #list < SAMPLES and clock_ns() - began < BUDGET_NS do list[#list + 1] = sample(n) end
  table.sort(list)
  return {list = list, n = n}
end

command("bench", "%bench STATEMENT           runs it again and again: the median, and whether it ran compiled", function(text, prompt)
  local run = chunk_of(text, prompt)
  local how, got = watched(sampled, run)
  local list = got.list
  print(("%s median of %d runs in %d samples; best %s, worst %s%s"):format(duration(list[math.floor((#list + 1) / 2)]), #list * got.n, #list,
    duration(list[1]), duration(list[#list]), how ~= "" and "; " .. how or ""))
end)

command("prof", "%prof STATEMENT            where the time goes, line by line", function(text, prompt)
  local run, profiler = chunk_of(text, prompt), require "jit.p"
  function prompt.after() -- Ctrl-C breaks the statement off, not this
    prompt.after = nil
    profiler.stop()
    host.profiled()
  end
  profiler.start "li1"
  prompt:show(run)
end)

-- ---- files ----

command("run", "%run FILE ARGUMENTS        runs a script; its globals stay", function(text, prompt)
  local words = {}
  for word in text:gmatch "%S+" do words[#words + 1] = word end
  local name = words[1] or complain "a script is wanted: %run FILE ARGUMENTS"
  local file, why = io.open(name)
  if not file then complain("%s", why) end
  local source = file:read "*a"
  file:close()
  local chunk, problem = loadstring(source:gsub("^#[^\n]*", ""), "@" .. name)
  if not chunk then complain("%s", problem) end
  require "lsa.prompt.script_modules".allow(name)
  local kept, exit = rawget(_G, "arg"), os.exit
  rawset(_G, "arg", {[0] = name, unpack(words, 2)})
  rawset(os, "exit", function(code) -- leaves the script alone
    prompt.left = code == true and 0 or tonumber(code) or code == false and 1 or 0
    error("exit", 0)
  end)
  function prompt.after()
    rawset(_G, "arg", kept)
    rawset(os, "exit", exit)
    prompt.after = nil
  end
  chunk(unpack(words, 2))
end)

-- The inputs of "3", "2-5", or "" for all: a list of their texts.
local function range(text, prompt)
  local from, to = text:match "^(%d+)%-(%d+)$"
  if not from then from = text:match "^%d+$" end
  from, to = tonumber(from) or 1, tonumber(to or from) or #prompt.inputs
  if text ~= "" and not text:find "^%d+%-?%d*$" then complain("%q is no range; 3 and 2-5 are", text) end
  local list = {}
  for i = from, math.min(to, #prompt.inputs) do
    if not prompt.inputs[i]:find "^%s*%%save" and not prompt.inputs[i]:find "^%s*%%hist" then list[#list + 1] = prompt.inputs[i] end
  end
  return list
end

command("save", "%save FILE [2-5]           writes what was typed to a file", function(text, prompt)
  local path, which = text:match "^(%S+)%s*(%S*)$"
  if not path then complain "a file is wanted: %save FILE [2-5]" end
  local list = range(which, prompt)
  require "lsa.files.replace".write(path, table.concat(list, "\n") .. "\n")
  print(("%s has %d inputs"):format(path, #list))
end)

command("hist", "%hist [2-5]                what was typed", function(text, prompt)
  screen.page(table.concat(range(text, prompt), "\n"))
end)

command("log", "%log FILE | off            writes everything from here on, values as comments", function(text, prompt)
  if prompt.log then prompt.log:close() end
  prompt.log = nil
  if text == "off" or text == "" then return print "no log is written" end
  local file, why = io.open(text, "a")
  if not file then complain("%s", why) end
  prompt.log = file
  print("writing to " .. text)
end)

command("edit", "%edit [FILE]               the editor; what is written runs", function(text, prompt)
  local path = text ~= "" and text or os.tmpname()
  local editor = os.getenv "VISUAL" or os.getenv "EDITOR" or "vi"
  os.execute(("%s '%s'"):format(editor, (path:gsub("'", "'\\''"))))
  local file = io.open(path)
  if not file then return end
  local source = file:read "*a"
  file:close()
  if text == "" then os.remove(path) end
  if source:find "%S" then prompt:show(chunk_of(source, prompt)) end
end)

command("cd", "%cd FOLDER                 the current folder", function(text)
  local where = text:gsub("^~", os.getenv "HOME" or "~")
  if text ~= "" then
    local ok, why = unistd.chdir(where)
    if not ok then complain("%s", why) end
  end
  print(unistd.getcwd())
end)

-- ---- what there is ----

command("who", "%who                       variables of this session", function(_, prompt)
  local rows = {}
  for name, value in prompt:variables() do
    local ok, text = pcall(inspect.text, value)
    text = ok and text:gsub("%s*\n%s*", " ") or "?"
    rows[#rows + 1] = {name = name, kind = require "lsa.raise".kind(value):gsub("^an? ", ""), value = #text > 70 and text:sub(1, 67) .. "..." or text}
  end
  table.sort(rows, function(a, b) return a.name < b.name end)
  if #rows == 0 then return print "nothing yet" end
  io.write(tostring(require "lsa.prompt.results_table".new(rows, {"name", "kind", "value"})))
end)

command("reset", "%reset                     forgets Out and the last error, so that what they hold can go", function(_, prompt)
  prompt.frames = nil
  for n in pairs(prompt.outputs) do prompt.outputs[n] = nil end
  for _, name in ipairs {"_", "__", "___"} do rawset(_G, name, nil) end
  collectgarbage()
end)

command("debug", "%debug                     looks into where the last error was: a prompt with its locals", function(_, prompt)
  if not screen.is_terminal() then complain "%debug wants a terminal" end
  if not prompt.frames then complain "there was no error" end
  prompt.then_run = function() require "lsa.prompt.interact".post_mortem(prompt.frames) end
end)

local function move(by)
  return function(_, prompt)
    if not prompt.stack then complain "%up, %down and %where are for %debug and lsa.interact" end
    require "lsa.prompt.interact".move(prompt, by)
  end
end

command("up", "%up  %down  %where         in %debug: the caller, what it called, all of them", move(1))
command("down", nil, move(-1))
command("where", nil, move(0))

-- ---- dispatch ----

local function shell(text, prompt)
  local name, line = text:match "^%s*([%a_][%w_]*)%s*=%s*!(.+)$"
  if name then
    local pipe, lines = io.popen(line), {}
    for got in pipe:lines() do lines[#lines + 1] = got end
    pipe:close()
    prompt.environment[name] = lines
    return true
  end
  line = text:match "^%s*!(.+)$"
  if not line then return false end
  io.flush()
  local status = os.execute(line)
  if status ~= 0 then io.stderr:write(("it ended with exit code %d\n"):format(status % 256 == 0 and status / 256 or 128 + status % 128)) end
  return true
end

-- Whether the line is a command, whatever it may be.
function M.is_one(text)
  return text:find "^%s*[%%!?]" ~= nil or text:find "^[^\n\"'%-]*[%w_%)]%?%??%s*$" ~= nil or text:find "^%s*[%a_][%w_]*%s*=%s*!." ~= nil
end

function M.run(text, prompt)
  M.complaint = nil
  if not M.is_one(text) then return false end
  local marks, asked = text:match "^%s*(%?+)%s*(.-)%s*$"
  if not marks then asked, marks = text:match "^%s*([^%%!].-)%s*(%?%??)%s*$" end
  if marks then
    (#marks > 1 and show_source or show_help)(asked, prompt)
    return true
  end
  if shell(text, prompt) then return true end
  local name, rest = text:match "^%s*%%(%a*)%s*(.-)%s*$"
  if not commands[name] then complain("there is no command %%%s; %%magic lists what there is%s", name or "", require "lsa.nearest".hint(name or "", commands)) end
  commands[name](rest, prompt)
  return true
end

return M
