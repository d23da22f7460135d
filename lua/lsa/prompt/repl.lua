-- The prompt: reads, compiles, runs and prints. Also the sequence of statements on a standard input that is
-- no terminal.
local host = require "lsa.host"
local inspect = require "lsa.prompt.inspect"
local locals = require "lsa.prompt.session_locals"
local trace = require "lsa.prompt.traceback"
local stat = require "posix.sys.stat"
local unistd = require "posix.unistd"

local M = {}

local environment, declare = locals.environment()
M.environment = environment -- what is typed runs in it

local function is_incomplete(message) return message:find "near '<eof>'$" ~= nil end

-- A function that gives the values of the expressions `text`, or nil and why it is none.
-- Never by a tail call: an error would lose its line.
function M.expression(text, name)
  local chunk, message = loadstring("return true, " .. text, name)
  if not chunk then return nil, message end
  return function(...) return select(2, chunk(...)) end, chunk
end

-- A function that runs `text` and leaves its values, and the chunk in it; or nil and the message, and whether more
-- lines may mend it. `name` is what errors call it, `line` where it begins there.
function M.compile(text, name, line)
  local before = ("\n"):rep((line or 1) - 1)
  text = before .. text:gsub("^%s*=", "")
  local run, chunk = M.expression(text, name)
  if not run then
    local as_expression, lifted, names = chunk, locals.lift(text)
    local message
    chunk, message = loadstring(lifted, name)
    if not chunk then return nil, message, is_incomplete(message) or is_incomplete(as_expression) end
    declare(names)
    run = chunk
  end
  setfenv(chunk, environment)
  return run, chunk
end

-- Prints what the chunk leaves; `_` is its first value from then on.
local function show(run)
  local function shown(...)
    if select("#", ...) > 0 then rawset(_G, "_", (...)) end
    inspect.print(...)
  end
  shown(run())
end

local function is_folder(path)
  local found = stat.stat(path)
  return found ~= nil and stat.S_ISDIR(found.st_mode) ~= 0
end

-- $XDG_STATE_HOME/lsa/history, made when missing; nil where there is no home, which is not made.
local function history_path()
  local state = os.getenv "XDG_STATE_HOME"
  if not state or state == "" then
    local home = os.getenv "HOME"
    if not home or not is_folder(home) then return nil end
    state = home .. "/.local/state"
  end
  local directory = state .. "/lsa"
  os.execute("mkdir -p -m 700 '" .. directory:gsub("'", "'\\''") .. "' 2>/dev/null")
  return directory .. "/history"
end

-- Reads lines until they make a chunk: the text; nil at the end of the input, false after Ctrl-C.
local function read_chunk(read_line)
  local text
  repeat
    local line = read_line(text and ">> " or "> ")
    if not line then return line end
    text = text and text .. "\n" .. line or line
    local run, _, incomplete = M.compile(text, "=prompt")
  until run or not incomplete
  return text
end

-- Runs one input at the prompt.
local function evaluate(text)
  local run, problem = M.compile(text, "=prompt")
  if not run then
    io.stderr:write(problem, "\n")
    return
  end
  local ok, err, interrupted = host.call("prompt", show, run)
  host.flush()
  if not ok then io.stderr:write(interrupted and "interrupted" or trace.trim(err), "\n") end
end

local function prompt()
  local readline = require "lsa.prompt.readline"
  local complete = require "lsa.prompt.complete".complete
  readline.start(function(text) return complete(text, environment) end, history_path())
  print(("lsa %s, %s. Ctrl-C interrupts, Ctrl-D leaves."):format(require "lsa.version", jit.version))
  while true do
    local text = read_chunk(readline.line)
    if text == nil then
      print()
      return 0
    elseif text then
      readline.remember(text)
      if text:match "^%s*exit%s*$" or text:match "^%s*quit%s*$" then return 0 end
      if text:find "%S" then evaluate(text) end
    end
  end
end

-- Runs all of standard input, statement by statement; the first error ends it.
local function sequence()
  local line_number, first, text = 0, 1, nil
  for line in io.lines() do
    line_number = line_number + 1
    if line_number == 1 then line = line:gsub("^\239\187\191", "") end -- a byte order mark
    text = text and text .. "\n" .. line or line
    local run, message, incomplete = M.compile(text, "=stdin", first)
    if run then
      show(run)
    elseif not incomplete then
      error(message, 0)
    end
    if not incomplete then text, first = nil, line_number + 1 end
  end
  if text then error(select(2, M.compile(text, "=stdin", first)), 0) end
end

function M.main()
  if host.input_closed then
    io.stderr:write "lsa: standard input is closed; a script's name or -e CODE is wanted\n"
    return 2
  end
  if unistd.isatty(0) == 1 then
    rawset(_G, "lsa", require "lsa")
    return prompt()
  end
  return (trace.run("script", function()
    rawset(_G, "lsa", require "lsa")
    sequence()
  end))
end

return M
