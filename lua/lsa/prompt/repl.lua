-- The prompt: reads, compiles, runs and prints. Also the sequence of statements on a standard input that is
-- no terminal.
--
-- A prompt is an object: environment and declare (session_locals.lua), inputs and outputs (In and Out), frames of the last error.
local commands = require "lsa.prompt.commands"
local compile = require "lsa.prompt.compile"
local host = require "lsa.host"
local inspect = require "lsa.prompt.inspect"
local locals = require "lsa.prompt.session_locals"
local registry = require "lsa.registry"
local screen = require "lsa.prompt.screen"
local trace = require "lsa.prompt.traceback"
local state_folder = require "lsa.prompt.state_folder"
local unistd = require "posix.unistd"

local M = {expression = compile.expression}

local INDENT = 2

local Prompt = {}
Prompt.__index = Prompt

-- A new one, whose other names are those of `outer` (the globals).
function M.new(outer)
  local environment, declare = locals.environment(outer)
  local self = setmetatable({environment = environment, declare = declare, inputs = {}, outputs = {}, number = 1, known = {}}, Prompt)
  for name in pairs(_G) do self.known[name] = true end
  return self
end

function Prompt:compile(text, name, line) return compile.chunk(text, name or "=prompt", line, self) end

local ours = {In = true, Out = true, help = true}

-- Names and values of what was made here: locals of the prompt, and new globals.
function Prompt:variables()
  local found = {}
  for name, value in next, _G do
    if type(name) == "string" and not self.known[name] and not name:find "^_" then found[name] = value end
  end
  for name, variable in pairs(self.stack and self.stack[self.at].variables or {}) do found[name] = variable.value end
  for name, value in next, self.environment do
    if not ours[name] then found[name] = value end
  end
  return pairs(found)
end

-- Values as they are shown after Out[n].
local function put(self, ...)
  local text = inspect.joined(...)
  local label = screen.paint "out" (("Out[%d]:"):format(self.number))
  local meta = select("#", ...) == 1 and debug.getmetatable((...))
  io.write(label, text:find("\n", 1, true) and "\n" or " ")
  if type(meta) == "table" and rawget(meta, "__show") then meta.__show((...)) else io.write(text, "\n") end -- a picture shows itself
  if self.log then self.log:write("-- ", (text:gsub("\n", "\n-- ")), "\n") end
end

-- Runs the chunk and shows what it leaves, unless it is quiet; `_` is its first value from then on, and Out has it.
function Prompt:show(run, quiet)
  local function shown(...)
    local n, value = select("#", ...), (...)
    if n == 0 then return end
    if value ~= nil then
      rawset(_G, "___", rawget(_G, "__"))
      rawset(_G, "__", rawget(_G, "_"))
      rawset(_G, "_", value)
      self.outputs[self.number] = value
    end
    if quiet then return end
    if self.plain then inspect.print(...) else put(self, ...) end
  end
  registry.forget()
  shown(run())
end

-- Reads lines until they make a chunk: the text; nil at the end of the input, false after Ctrl-C. Lines that go on are indented.
local function read_chunk(self, readline)
  local text
  readline.before = nil
  repeat
    local line
    if text then
      readline.before = text .. "\n"
      line = readline.line((" "):rep(#tostring(self.number) + 3) .. ">> ", (" "):rep(INDENT * locals.depth(text)))
    else
      line = readline.line(("In[%d]> "):format(self.number), nil, screen.colours() and "32")
    end
    if not line then return line end
    text = text and text .. "\n" .. line or line
    if commands.is_one(text) then break end
    local run, _, incomplete = self:compile(text)
  until run or not incomplete
  return text
end

local function complain(text) io.stderr:write(screen.paint "error" (text), "\n") end

-- Runs one input.
function Prompt:evaluate(text)
  self.inputs[self.number] = text
  if self.log then self.log:write(text, "\n") end
  local run, problem, quiet
  if not commands.is_one(text) then
    run, problem, quiet = self:compile(text)
    if not run then return complain(problem) end
  end
  host.on_error = function(message) self.frames = require "lsa.prompt.interact".capture(message) end
  local ok, err, interrupted = host.call("prompt", function()
    if run then self:show(run, quiet) else commands.run(text, self) end
  end)
  host.on_error = nil
  if self.after then self.after() end
  host.flush()
  if self.log and not self.log:flush() then
    complain "the log cannot be written: it ends here"
    self.log = nil
  end
  local follows = self.then_run
  if follows then
    self.then_run = nil
    return follows()
  end
  if ok or self.left == 0 then
    self.left = nil
  elseif self.left then
    complain(("the script left with exit code %s"):format(tostring(self.left)))
    self.left = nil
  else
    complain(interrupted and "interrupted" or not run and commands.complaint or trace.trim(err))
  end
end

-- What the prompt itself offers beside the commands.
local function furnish(self)
  rawset(self.environment, "In", self.inputs)
  rawset(self.environment, "Out", self.outputs)
  rawset(self.environment, "help", function(what)
    if type(what) == "string" or what == nil then return commands.run("?" .. (what or ""), self) end
    local help = require "lsa.prompt.help"
    screen.page(help.text(help.about(what), screen.paint "title"))
  end)
end

-- Reads and runs until the end; the exit code.
function Prompt:loop(banner)
  local readline = require "lsa.prompt.readline"
  local complete = require "lsa.prompt.complete"
  local state = state_folder()
  readline.start(function(before) return complete.at(before, self.environment) end, state and state .. "/history")
  furnish(self)
  print(banner)
  while true do
    local text = read_chunk(self, readline)
    if text == nil then
      print()
      return 0
    elseif text then
      readline.remember(text)
      if text:match "^%s*exit%s*$" or text:match "^%s*quit%s*$" then return 0 end
      if text:find "%S" then
        self:evaluate(text)
        self.number = self.number + 1
      end
    end
  end
end

M.furnish = furnish

local function prompt()
  return M.new():loop(("lsa %s, %s. ? is help, Ctrl-C interrupts, Ctrl-D leaves."):format(require "lsa.version", jit.version))
end

-- Runs all of standard input, statement by statement; the first error ends it.
local function sequence()
  local self = M.new()
  self.plain = true
  local line_number, first, text = 0, 1, nil
  for line in io.lines() do
    line_number = line_number + 1
    if line_number == 1 then line = line:gsub("^\239\187\191", "") end -- a byte order mark
    text = text and text .. "\n" .. line or line
    local run, message, incomplete = self:compile(text, "=stdin", first)
    if run then
      self:show(run)
    elseif not incomplete then
      error(message, 0)
    end
    if not incomplete then text, first = nil, line_number + 1 end
  end
  if text then error(select(2, self:compile(text, "=stdin", first)), 0) end
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
