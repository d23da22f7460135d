-- The command line, through the real executable.
local process = require "process_support"
local lsa, shell, quote = process.lsa, process.shell, process.quote

describe("a script", function()
  local path

  local function script(text) return process.write(path, text) end

  before_each(function() path = os.tmpname() end)
  after_each(function() os.remove(path) end)

  it("gets its arguments in arg and in ...", function()
    local out, err, code = lsa { script "print(arg[0], #arg, arg[1], ...)", "a", "b c" }
    assert.equals(path .. "\t2\ta\ta\tb c\n", out)
    assert.equals("", err)
    assert.equals(0, code)
  end)

  it("may begin with an interpreter line, and errors count it", function()
    local _, err, code = lsa { script "#!/usr/bin/env lsa\nlocal t\nt.x = 1\n" }
    assert.is_truthy(err:find(path .. ":3: attempt to index local 't'", 1, true))
    assert.equals(1, code)
  end)

  it("has its error with the line and its own frames on stderr, and exit code 1", function()
    local out, err, code = lsa { script "local function f()\n  error 'deep'\nend\nprint 'before'\nf()\nreturn 1" }
    assert.equals("before\n", out)
    assert.equals(("lsa: %s:2: deep\nstack traceback:\n\t%s:2: in function 'f'\n\t%s:5: in main chunk\n")
      :format(path, path, path), err)
    assert.equals(1, code)
  end)

  it("that does not compile fails with its line", function()
    local _, err, code = lsa { script "x = \n= 2" }
    assert.is_truthy(err:find(path .. ":2:", 1, true))
    assert.equals(1, code)
  end)

  it("may raise what is no string", function()
    local _, err, code = lsa { script "error(setmetatable({}, {__tostring = function() return 'an object' end}))" }
    assert.equals("lsa: an object\n", err)
    assert.equals(1, code)
    _, err, code = lsa { script "error()" }
    assert.is_truthy(err:find("an error that is a nil", 1, true))
    assert.equals(1, code)
  end)

  it("chooses its exit code by os.exit", function()
    local _, _, code = lsa { script "os.exit(7)" }
    assert.equals(7, code)
    _, _, code = lsa { script "return 5" }
    assert.equals(0, code)
  end)

  it("that is - comes from standard input", function()
    local out, _, code = lsa({ "-", "a" }, "local x = 4\nprint(x + 1, ...)")
    assert.equals("5\ta\n", out)
    assert.equals(0, code)
  end)

  it("is found from wherever it is called", function()
    script "print 'here'"
    local out = shell(("cd %s && %s ./%s"):format(path:match "^(.*)/", process.program, path:match "[^/]*$"))
    assert.equals("here\n", out)
  end)

  it("can require the library, and so can plain luajit", function()
    script "local lsa = require 'lsa'\nprint(type(lsa.zeros))"
    assert.equals("function\n", (lsa { path }))
    if not process.program:find("/build/bin/lsa", 1, true) then return end
    local out = shell(("LUA_PATH=%s luajit %s"):format(
      quote(process.root .. "/lua/?.lua;" .. process.root .. "/lua/?/init.lua;;"), path))
    assert.equals("function\n", out)
  end)
end)

describe("modules", function()
  local folder

  before_each(function()
    folder = os.tmpname()
    os.remove(folder)
    shell("mkdir -p " .. folder .. "/lsa " .. folder .. "/own/deep")
  end)
  after_each(function() shell("rm -rf " .. folder) end)

  -- Files that say so when they are run, named as modules of the tree and the system are.
  local function plant(where)
    for _, name in ipairs {"lsa", "lsa/init", "cjson", "posix", "ffi", "term", "busted"} do
      process.write(where .. "/" .. name .. ".lua", "io.write 'planted\\n' return {}")
    end
    process.write(where .. "/cjson.so", "not an object file")
  end

  it("come from the tree and the system, whatever lies in the current folder", function()
    plant(folder)
    local script = process.write(folder .. "/own/script.lua", "print(type(require 'lsa'.sweep), require 'cjson'.encode {1})")
    local here = "cd " .. folder .. " && " .. process.program .. " "
    for _, way in ipairs {quote(script), "own/script.lua", "-e " .. quote "type(lsa.sweep), require 'cjson'.encode {1}",
      "- < own/script.lua", "< own/script.lua"} do
      local out, err, code = shell(here .. way)
      assert.equals("function\t[1]\n", out, way)
      assert.equals("", err)
      assert.equals(0, code)
    end
    local out = shell(here .. "-e " .. quote "package.path .. ';' .. package.cpath")
    for place in out:gsub("\n", ""):gmatch "[^;]+" do assert.equals("/", place:sub(1, 1)) end
    out = shell(here .. "doctor; " .. process.program .. " --version")
    assert.is_nil(out:find "planted")
  end)

  it("beside a script are the script's and one another's, from wherever it is called", function()
    shell("mkdir -p " .. folder .. "/own/lsa")
    plant(folder .. "/own")
    process.write(folder .. "/own/helper.lua", "return {name = ..., deep = require 'deep'}")
    process.write(folder .. "/own/deep/init.lua", "return require 'deep.er'")
    process.write(folder .. "/own/deep/er.lua", "return 'found'")
    process.write(folder .. "/own/broken.lua", "x = = 1")
    process.write(folder .. "/own/script.lua", [[
      local lsa = require "lsa"
      local helper = require "helper"
      getmetatable(lsa).__names.helper, package.loaded.helper = "helper", nil
      print(helper.name, helper.deep, (pcall(function() return lsa.helper end)))
      print((select(2, pcall(require, "broken"))))
      print((select(2, pcall(require, "nowhere")):match "no file '[^']*own/nowhere.lua'"))]])
    for _, way in ipairs {"cd / && %s %s/own/script.lua", "cd %2$s && %1$s own/script.lua", "cd %2$s/own && %1$s script.lua"} do
      local command = way:gsub("%%%d%$s", {["%1$s"] = process.program, ["%2$s"] = folder})
      if command == way then command = way:format(process.program, folder) end
      local out = shell(command)
      assert.is_truthy(out:find("helper\tfound\tfalse\n", 1, true), command)
      assert.is_truthy(out:find "broken.lua:1: unexpected symbol")
    end
    assert.is_truthy(shell("cd / && " .. process.program .. " " .. folder .. "/own/script.lua"):find("no file '" .. folder .. "/own/nowhere.lua'", 1, true))
  end)
end)

describe("-e", function()
  it("runs code with lsa loaded and its arguments", function()
    local out, err, code = lsa { "-e", "local x = 2 print(type(lsa), x, ...)", "a" }
    assert.equals("table\t2\ta\n", out)
    assert.equals("", err)
    assert.equals(0, code)
  end)

  it("prints the values of an expression", function()
    assert.equals("3\tfour\t{ 5, x = 6 }\n", (lsa { "-e", "1 + 2, 'four', {5, x = 6}" }))
    assert.equals("once\n", (lsa { "-e", "print 'once'" }))
  end)

  it("fails with the line", function()
    local _, err, code = lsa { "-e", "\nerror 'no'" }
    assert.is_truthy(err:find("^lsa: %-e:2: no\n"))
    assert.equals(1, code)
    _, err, code = lsa { "-e", "x = = 1" }
    assert.is_truthy(err:find("-e:1:", 1, true))
    assert.equals(1, code)
  end)
end)

describe("a bad command line", function()
  for name, words in pairs {
    ["with an unknown option"] = { "--nope" },
    ["with a script that is not there"] = { "/nonexistent/script.lua" },
    ["with -e and no code"] = { "-e" },
    ["with an unknown device"] = { "test", "--device", "tpu" },
  } do
    it(name .. " gives exit code 2 and says so", function()
      local out, err, code = lsa(words)
      assert.equals("", out)
      assert.is_truthy(err:find "^lsa: ")
      assert.equals(2, code)
    end)
  end
end)

describe("--help and --version", function()
  it("go to stdout", function()
    local out, err, code = lsa { "--help" }
    assert.is_truthy(out:find "^usage: lsa")
    assert.equals("", err)
    assert.equals(0, code)
    out, err, code = lsa { "--version" }
    assert.equals("", err)
    assert.is_truthy(out:find "^lsa %d.*LuaJIT")
    assert.equals(0, code)
  end)
end)

describe("Ctrl-C", function()
  -- Runs code that gets SIGINT a little after it began; the exit code of the executable.
  local function interrupted(code)
    local later = "os.execute '(sleep 0.3; kill -INT $PPID) >/dev/null 2>&1 &' "
    local _, err, rc = shell(("env --default-signal=INT timeout -k 1 20 %s -e %s"):format(process.program, quote(later .. code)))
    return rc, err
  end

  it("ends an interpreted loop with its line", function()
    local code, err = interrupted "jit.off()\nlocal x = 0\nwhile true do x = x + 1 end"
    assert.equals(130, code)
    assert.is_truthy(err:find("-e:3: interrupted", 1, true))
  end)

  it("ends a compiled loop", function()
    assert.equals(130, (interrupted "local x = 0 while true do x = x + 1 end"))
  end)

  it("ends a loop that catches every error", function()
    assert.equals(130, (interrupted [[
      jit.off()
      local x = 0
      while true do pcall(function() while true do x = x + 1 end end) end]]))
  end)

  it("ends a loop in a coroutine", function()
    assert.equals(130, (interrupted "jit.off() coroutine.wrap(function() local x = 0 while true do x = x + 1 end end)()"))
  end)

  it("ends a wait for standard input", function()
    local _, _, code = shell(("sleep 5 | env --default-signal=INT timeout -s INT -k 10 --preserve-status 0.5 %s"):format(process.program))
    assert.equals(130, code)
  end)
end)

describe("a crash", function()
  it("says what was being done", function()
    if process.program:find("sanitize", 1, true) then return pending "the sanitizer reports it" end
    local out, err, code = lsa { "-e", [[
      local ffi = require "ffi"
      ffi.cdef "extern char lsa_activity[256];"
      ffi.copy(ffi.C.lsa_activity, "a test of crashes")
      io.stdout:setvbuf "no"
      print "before"
      ffi.cast("volatile int *", 8)[0] = 1]] }
    assert.equals("before\n", out)
    assert.is_truthy(err:find("crashed with SIGSEGV, in: a test of crashes", 1, true))
    assert.equals(139, code)
  end)
end)

describe("the test command", function()
  local path

  local function run(text, ...)
    process.write(path, text)
    return lsa { "test", path, ... }
  end

  before_each(function() path = os.tmpname() .. "_spec.lua" end)
  after_each(function()
    os.remove(path)
    os.remove((path:gsub("_spec%.lua$", "")))
  end)

  it("ends with the counts and fails when a test does", function()
    local out, _, code = run [[
      it("a", function() end)
      it("b", function() assert.equals(1, 2) end)
      it("c", function() error "x" end)]]
    assert.is_truthy(out:find "\n1 passed, 2 failed\n$")
    assert.equals(1, code)
    out, _, code = run 'it("a", function() end)'
    assert.is_truthy(out:find "\n1 passed, 0 failed\n$")
    assert.equals(0, code)
  end)

  it("fails without tests but those that wait, and when a spec does not load", function()
    local _
    local out, err, code = run "local x"
    assert.is_truthy(out:find "0 passed, 0 failed\n$")
    assert.is_truthy(err:find "there were no tests")
    assert.equals(1, code)
    out, _, code = run 'pending "a GPU is needed"'
    assert.is_truthy(out:find "0 passed, 0 failed\n$")
    assert.equals(0, code)
    out, _, code = run 'it("a", function() end) error "broken"'
    assert.is_truthy(out:find "passed, 1 failed\n$")
    assert.equals(1, code)
  end)

  it("hands busted its options, and specs the device", function()
    local out, _, code = run([[
      it("this one", function() assert.equals("cuda", rawget(_G, "LSA_TEST_DEVICE")) end)
      it("other", function() error "no" end)]], "--device", "cuda", "--filter", "this")
    assert.is_truthy(out:find "\n1 passed, 0 failed\n$")
    assert.equals(0, code)
  end)
end)

describe("doctor", function()
  it("tells the code path, the libraries and what is missing", function()
    local out, err, code = lsa { "doctor" }
    local level = require("lsa.ffi").C.lsa_cpu_level()
    local name = require("ffi").string(require("lsa.ffi").C.lsa_cpu_level_name(level))
    assert.is_truthy(out:find("code path +" .. name))
    assert.is_truthy(out:find "jansson +%d")
    assert.is_truthy(out:find "zlib +%d")
    local there, all = out:match "packages +(%d+) of (%d+) are installed"
    local _, named = out:gsub("\n  [%w.+-]+: [^\n]*apt%-get install", "")
    local _, by_launcher = out:gsub("\n  [%w.+-]+: %./lsa %-%-with", "")
    assert.equals(tonumber(all), there + named + by_launcher)
    assert.is_truthy(out:lower():find "missing")
    assert.equals("", err)
    assert.equals(0, code)
  end)
end)
