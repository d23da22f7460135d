-- `lsa test`: runs the specs through busted in this process and counts.
-- Its last line is `N passed, N failed`; no tests at all is a failure.
local ffi = require "ffi"
local host = require "lsa.host"

local M = {}

ffi.cdef "extern char lsa_activity[256];"

-- Takes `--NAME VALUE` out of the arguments.
local function take(arguments, name)
  for i, argument in ipairs(arguments) do
    local value = argument:match("^%-%-" .. name .. "=(.*)$")
    if value or argument == "--" .. name then
      value = value or table.remove(arguments, i + 1)
      table.remove(arguments, i)
      return value or ""
    end
  end
end

-- The arguments as busted gets them: from the tree's root, on its specs unless others are named. Files are named from
-- there too, so that messages are the same wherever the tests are started.
local function busted_arguments(arguments)
  local path = require "pl.path"
  local list = { [0] = "lsa test", "--no-auto-insulate", "--directory=" .. host.root, "--pattern=_spec%.lua$" }
  for _, value in ipairs(arguments) do
    if value:sub(1, 1) ~= "-" and path.exists(value) then
      value = path.abspath(value)
      if value:sub(1, #host.root + 1) == host.root .. "/" then value = value:sub(#host.root + 2) end
    end
    list[#list + 1] = value
  end
  local options = require "busted.modules.cli"({ standalone = false, output = "plainTerminal" }):parse(list)
  if options and #options.ROOT == 1 and options.ROOT[1] == "spec" then list[#list + 1] = "tests" end
  return list
end

-- busted's output handler with our counts beside it, and the running test's name kept for a crash.
local function make_handler(options)
  local busted = require "busted"
  local terminal = io.type(io.stdout) == "file" and require "term".isatty(io.stdout)
  local handler = require("busted.outputHandlers." .. (terminal and "utfTerminal" or "plainTerminal"))(options)
  local subscribe = handler.subscribe
  function handler.subscribe(self, opts)
    busted.subscribe({ "file", "start" }, function(file)
      ffi.copy(ffi.C.lsa_activity, file.name:sub(1, 255))
    end)
    busted.subscribe({ "test", "start" }, function(element)
      ffi.copy(ffi.C.lsa_activity, handler.getFullName(element):sub(1, 255))
    end)
    M.handler = handler
    return subscribe(self, opts)
  end
  return handler
end

-- Every global name that a spec reads walks up busted's contexts, a hundred times what an oracle's sum costs: the language's own are
-- put where they are found at once.
local own = {"math", "string", "table", "ipairs", "pairs", "next", "type", "tonumber", "tostring", "select", "unpack"}

local function shorten_look_ups()
  local make = require "busted.environment"
  package.loaded["busted.environment"] = function(context)
    local environment = make(context)
    local wrap = environment.wrap
    function environment.wrap(f)
      local wrapped = wrap(f)
      local names = getfenv(f)
      for _, name in ipairs(own) do rawset(names, name, _G[name]) end
      return wrapped
    end
    return environment
  end
end

local usage = [[
usage: lsa test [files or folders] [options]

Runs the specs, all of tests/ where none is named; its last line is `N passed, N failed`.
  --device cpu|cuda    where models run that a spec opens without saying so
  --operations N       operations of tests that do random ones
  --filter PATTERN     tests whose names have it
All other options are busted's:

]]

function M.main(arguments)
  local device, operations = take(arguments, "device"), take(arguments, "operations")
  if operations and not (tonumber(operations) and tonumber(operations) >= 1) then
    io.stderr:write "lsa test: --operations wants a number\n"
    return 2
  end
  M.operations = tonumber(operations) -- of tests that run random ones; nil: as many as each finds enough
  if device and device ~= "cpu" and device ~= "cuda" then
    io.stderr:write("lsa: --device is cpu or cuda\n")
    return 2
  end
  if not pcall(require, "busted") then
    io.stderr:write("lsa: the tests need busted (Debian: apt-get install lua-busted)\n")
    return 1
  end
  for _, value in ipairs(arguments) do
    if value == "--help" then
      io.write(usage)
      local _, text = require "busted.modules.cli"({ standalone = false }):parse { "--help" }
      print((tostring(text):gsub("^[^\n]-Usage:", "usage:")))
      return 0
    end
  end
  rawset(_G, "LSA_TEST_DEVICE", device)
  package.path = host.root .. "/tests/?.lua;" .. package.path
  package.loaded["busted.outputHandlers.lsa"] = make_handler
  shorten_look_ups()
  rawset(_G, "arg", busted_arguments(arguments))
  -- Where tests failed the runner leaves by an error, provided that a Lua file calls it; else by os.exit.
  local ok, message = pcall(function()
    require "busted.runner" { standalone = false, output = "lsa" }
    return true
  end)
  if not M.handler then
    if not ok and message then io.stderr:write("lsa: ", tostring(message), "\n") end
    return ok and 0 or 2
  end
  ffi.copy(ffi.C.lsa_activity, "")
  local passed, failed = M.handler.successesCount, M.handler.failuresCount + M.handler.errorsCount
  if not ok and message and failed == 0 then
    io.stderr:write("lsa: ", tostring(message), "\n")
    failed = 1
  end
  local pending = M.handler.pendingsCount -- a GPU is needed, say
  if passed + failed + pending == 0 then io.stderr:write("lsa: there were no tests\n") end
  print(("%d passed, %d failed"):format(passed, failed))
  return (failed > 0 or passed + pending == 0) and 1 or 0
end

return M
