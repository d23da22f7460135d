-- Owns the command line: core/host/main.c runs this file with the arguments; what it returns is the exit code.
local host = require "lsa.host"
local trace = require "lsa.prompt.traceback"

-- Room for the machine code of everything that a session's scripts compile: LuaJIT's own 512 KiB hold a few eviction
-- policies, and when it is full all of it is thrown away.
jit.opt.start("maxtrace=16000", "maxmcode=32768")

local usage = [[
usage: lsa [-i] [script.lua | -e CODE | command] [arguments]

  lsa                    a prompt; reads statements from standard input where that is no terminal
  lsa script.lua a b     runs a script with arg[1] = "a", arg[2] = "b"; - is standard input; --help is the script's
  lsa -i script.lua a b  the same, then a prompt with its locals, also where it failed
  lsa -e CODE a b        runs CODE, with lsa loaded, and prints its values
  lsa new KIND NAME      a commented start of a policy, eviction, schedule or experiment, and its spec
  lsa test [arguments]   the tests, through busted; --device cuda runs them on the GPU
  lsa bench [filter]     the benchmarks
  lsa doctor             what this machine has, what is missing
  lsa kernel --install   makes lsa a kernel of Jupyter notebooks
  lsa docs [folder]      the pages of lua/docs as a site
  lsa completion SHELL   completion for bash or zsh, to be evaluated
  lsa --help, --version

Each command says more after --help. Experiments are in experiments/; at the prompt, ? is help.
The launcher ./lsa takes --debug or --sanitize before all of these, for a build of that kind.
Exit code: 0; 1 the script failed; 2 bad command line; 130 Ctrl-C.
]]

local FAILED, BAD_USAGE = 1, 2

local function complain(message)
  io.stderr:write("lsa: ", message, "\n")
end

local function bad_usage(message)
  complain(message)
  complain "lsa --help lists what there is"
  return BAD_USAGE
end

-- Makes the global `arg` of a script: name at 0, arguments from 1.
local function set_arguments(argv, name_at)
  local list = { [0] = argv[name_at] }
  for i = name_at + 1, #argv do list[#list + 1] = argv[i] end
  rawset(_G, "arg", list)
  return list
end

-- Recordings that are under way are written, however the program ends; the code of failure where one cannot be.
local function finish_recordings()
  local recordings = package.loaded["lsa.session.recording_writer"]
  local problem = recordings and recordings.finish_all()
  if problem then complain(problem) end
  return problem and FAILED
end

local exit = os.exit
rawset(os, "exit", function(code, ...)
  local failed = finish_recordings()
  if failed and (code == nil or code == true or code == 0) then code = failed end
  exit(code, ...)
end)

-- A script that went well leaves the job of ranks that it may have joined.
local function finish(code)
  local failed = finish_recordings()
  if code == 0 and failed then code = failed end
  local ranks = package.loaded["lsa.train.ranks"]
  if ranks and code == 0 then ranks.leave() end
  return code
end

local function prompt()
  return finish((require "lsa.prompt.repl".main()))
end

-- The script's text as a chunk; with `stays`, at its end a prompt opens that has its locals.
local function load_script(text, name, stays)
  text = text:gsub("^#[^\n]*", "")
  if stays then
    local chunk = loadstring(text .. "\nrequire('lsa.prompt.interact').here()", name)
    if chunk then return chunk end
  end
  local chunk, message = loadstring(text, name)
  if not chunk or not stays then return chunk, message end
  return function(...) -- it returns something: its locals are gone then
    chunk(...)
    require "lsa.prompt.interact".here()
  end
end

local function script(argv, stays)
  local name = argv[1]
  if not name then return bad_usage "-i needs a script" end
  if name == "-" and host.input_closed then return bad_usage "standard input is closed" end
  local file = name == "-" and io.stdin or io.open(name)
  local text = file and file:read "*a"
  if not text then return bad_usage(("there is no script or command %q"):format(name)) end
  local chunk, message = load_script(text, name == "-" and "=stdin" or "@" .. name, stays)
  if not chunk then
    complain(message)
    return FAILED
  end
  if name ~= "-" then require("lsa.prompt.script_modules").allow(name) end
  if stays then require "lsa.prompt.interact".on_error() end
  return finish((trace.run("script", chunk, unpack(set_arguments(argv, 1)))))
end

local function one_line(argv)
  if not argv[2] then return bad_usage "-e needs code" end
  local chunk = require "lsa.prompt.repl".expression(argv[2], "=-e")
  local message
  if not chunk then chunk, message = loadstring(argv[2], "=-e") end
  if not chunk then
    complain(message)
    return FAILED
  end
  local arguments = set_arguments(argv, 2)
  return finish((trace.run("script", function()
    rawset(_G, "lsa", require "lsa")
    require "lsa.prompt.inspect".print(chunk(unpack(arguments)))
  end)))
end

-- A command that is a module: its main(arguments) returns the exit code.
local function command(how)
  return function(argv)
    local code, result = trace.run(how, function()
      return require("lsa.prompt." .. argv[1]).main(set_arguments(argv, 1))
    end)
    return code ~= 0 and code or result or 0
  end
end

local commands = {
  ["-e"] = one_line,
  test = command "process",
  bench = command "process",
  doctor = command "script",
  kernel = function(argv) return finish(require "lsa.prompt.kernel".main(set_arguments(argv, 1))) end,
  new = command "script",
  docs = command "script",
  completion = command "script",
  ["-i"] = function(argv)
    table.remove(argv, 1)
    return script(argv, true)
  end,
  ["--help"] = function()
    io.write(usage)
    return 0
  end,
  ["--version"] = function()
    print("lsa " .. require "lsa.version" .. ", " .. jit.version)
    return 0
  end,
}
commands["-h"], commands["-v"] = commands["--help"], commands["--version"]

local argv = ...
local first = argv[1]
if not first then
  return prompt()
elseif commands[first] then
  return commands[first](argv)
elseif first ~= "-" and first:sub(1, 1) == "-" then
  return bad_usage(("there is no option %q"):format(first))
end
return script(argv)
