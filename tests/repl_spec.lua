-- The prompt: in a terminal, and as a sequence of statements on a pipe.
local process = require "process_support"
local Terminal = require "terminal_support"

describe("statements on standard input", function()
  local function run(text)
    return process.lsa({}, text)
  end

  it("print the values of expressions, and lsa is there", function()
    local out, err, code = run "1 + 1\nnil, 'a'\nx = {1, {2}, k = 'v'}\nx\ntype(lsa)\n= 7"
    assert.equals("2\nnil\ta\n{ 1, { 2 }, k = \"v\" }\ntable\n7\n", out)
    assert.equals("", err)
    assert.equals(0, code)
  end)

  it("may take several lines", function()
    local out = run "for i = 1, 2 do\n  print(i)\nend\nf(\n)"
    assert.equals("1\n2\n", out)
    assert.equals("12\n", (run "local t = {\n  12,\n}\nt[1]"))
    assert.equals("a\nb\n", (run "[[a\nb]]"))
  end)

  it("end at the first error, with its line", function()
    local out, err, code = run "1\n\nlocal function f()\n  error 'no'\nend\nf()\n2"
    assert.equals("1\n", out)
    assert.is_truthy(err:find("lsa: stdin:4: no", 1, true))
    assert.equals(1, code)
    out, err, code = run "1\nx = = 2"
    assert.equals("1\n", out)
    assert.is_truthy(err:find("stdin:2: ", 1, true))
    assert.equals(1, code)
    out, err, code = run "x = {\n1"
    assert.equals("", out)
    assert.is_truthy(err:find("stdin:2: ", 1, true))
    assert.equals(1, code)
  end)

  it("keep their locals", function()
    assert.equals("3\n", (run "local a, b = 1, 2\na + b"))
    assert.equals("nil\tnil\n", (run "local a, b\na, b"))
    assert.equals("6\n", (run "local function f(n) return n < 2 and 1 or n * f(n - 1) end\nf(3)"))
    assert.equals("2\n", (run "local n = 0; local function up() n = n + 1 end up() up()\nn"))
    assert.equals("5\n", (run "local print = print\nprint(5)"))
    assert.equals("local x = 1\n", (run "local s = 'local x = 1' -- local y\ns"))
    assert.equals("nil\n", (run "do local inner = 1 end\ninner"))
    assert.equals("7\tnil\n", (run "local x = 7\nx, _G.x"))
    assert.equals("8\t8\n", (run "y = 8\ny, _G.y"))
  end)
end)

describe("values at the prompt", function()
  local text = require "lsa.prompt.inspect".text

  it("are bounded, however large, deep or circular", function()
    local long = {}
    for i = 1, 1000 do long[i] = i end
    assert.is_truthy(text(long):find("... 960 more", 1, true))
    local ring = {}
    ring.ring = ring
    assert.equals("{ ring = <above> }", text(ring))
    assert.equals("{ { { {...} } } }", text { { { { 1 } } } })
    assert.is_true(#text { ("x"):rep(1e6) } < 300)
  end)

  it("show lists before names, names in order, and odd keys in brackets", function()
    assert.equals('{ 1, 2, b = true, c = "x\\ny", ["end"] = 3 }', text { 1, 2, c = "x\ny", b = true, ["end"] = 3 })
    assert.equals("{ 1, [3] = 3 }", text { 1, nil, 3 })
  end)

  it("print themselves where they can", function()
    local object = setmetatable({}, { __tostring = function() return "an object" end })
    assert.equals("an object", text(object))
    assert.equals("{ an object }", text { object })
  end)
end)

describe("completion", function()
  local complete = require "lsa.prompt.complete".complete
  local environment = {
    alpha = 1,
    object = setmetatable({ field = 1 }, { __index = { method = print, _private = print } }),
    nested = { object = { leaf = 1, list = {} } },
  }

  it("knows names, keywords, fields and methods", function()
    assert.same({ "alpha" }, complete("alp", environment))
    assert.same({ "repeat", "require", "return" }, complete("re", environment))
    assert.same({ "object.field", "object.method" }, complete("object.", environment))
    assert.same({ "object:method" }, complete("object:", environment))
    assert.same({ "object._private" }, complete("object._p", environment))
    assert.same({ "nested.object.leaf", "nested.object.list" }, complete("nested.object.l", environment))
    assert.same({ "string.sub" }, complete("string.su", setmetatable({}, { __index = _G })))
  end)

  it("finds nothing behind what is not there", function()
    assert.same({}, complete("nothing.at.all", environment))
    assert.same({}, complete("alpha.x", environment))
    assert.same({}, complete(".x", environment))
  end)

  it("knows what tensors, sets and the library offer", function()
    local lsa = require "lsa"
    local names = { x = lsa.zeros { 2 }, s = lsa.set(3), lsa = lsa }
    assert.same({ "x:sigmoid" }, complete("x:sig", names))
    assert.same({ "s:dilate" }, complete("s:dil", names))
    assert.same({ "lsa.zeros" }, complete("lsa.ze", names))
  end)
end)

describe("the prompt", function()
  local folder, terminal
  local it = Terminal.available() and it or pending

  before_each(function()
    folder = os.tmpname()
    os.remove(folder)
    terminal = Terminal.start(folder)
    terminal:expect "leaves.\n"
    terminal:expect "> "
  end)

  after_each(function()
    terminal:stop()
    os.execute("rm -rf " .. folder)
  end)

  it("keeps locals, shows values and the last one as _", function()
    assert.equals("", terminal:enter "local x = 20")
    assert.equals("21\n", terminal:enter "x + 1")
    assert.equals("42\n", terminal:enter "_ * 2")
  end)

  it("asks for more lines", function()
    terminal:send "for i = 1, 2 do\r"
    terminal:expect ">> "
    terminal:send "print(i * 10)\r"
    terminal:expect ">> "
    assert.equals("10\n20\n", terminal:enter "end")
  end)

  it("shows errors with their line and goes on", function()
    assert.equals("prompt:1: bad\n", terminal:enter "error 'bad'")
    assert.is_truthy(terminal:enter "local t; t.x = 1":find "^prompt:1: attempt to index")
    assert.is_truthy(terminal:enter "x = = 1":find "^prompt:1: unexpected symbol")
    assert.equals("2\n", terminal:enter "1 + 1")
  end)

  it("completes names by the tab key", function()
    terminal:send "string.rev\t('abc')\r"
    terminal:expect "string.reverse('abc')\n"
    assert.equals("cba\n", terminal:expect "> ")
  end)

  it("survives Ctrl-C in a loop, in a loop that catches errors, and in a C call", function()
    terminal:enter "kept = 5"
    terminal:enter "ffi = require 'ffi'; C = require 'lsa.ffi'.C"
    for _, loop in ipairs {
      "while true do end",
      "while true do pcall(error) end",
      "repeat until C.lsa_interrupted() == 1",
    } do
      terminal:send("io.write('run', 'ning\\n') " .. loop .. "\r")
      terminal:expect "running\n"
      terminal:send "\3"
      terminal:expect "interrupted\n"
      terminal:expect "> "
      assert.equals("0\n", terminal:enter "C.lsa_interrupted()")
    end
    assert.equals("5\n", terminal:enter "kept")
  end)

  it("drops a line at Ctrl-C, and all lines of an unfinished statement", function()
    terminal:send "x = 'half"
    terminal:expect "half"
    terminal:send "\3"
    terminal:expect "^C\n"
    terminal:expect "> "
    terminal:send "x = {\r"
    terminal:expect ">> "
    terminal:send "\3"
    terminal:expect "^C\n"
    terminal:expect "> "
    assert.equals("nil\n", terminal:enter "x")
  end)

  it("does not end at a second Ctrl-C where the first found no way in; Ctrl-\\ ends it", function()
    terminal:enter "C = require 'lsa.ffi'.C" -- a call that does not look at the flag for a long time
    repeat -- until Ctrl-C comes when the call has begun
      terminal:send "io.write('run', 'ning\\n') C.lsa_roofline_f32(1e15)\r"
      terminal:expect "running\n"
      terminal:pause(0.1)
      terminal:send "\3"
    until terminal:expect_one_of {"interrupted\n", "Ctrl-\\ ends lsa"} == 2
    for _ = 1, 3 do
      terminal:send "\3"
      terminal:expect "^C"
    end
    terminal:send "\28"
    assert.equals(131, terminal:wait()) -- SIGQUIT
  end)

  it("loads a module anew whose loading was interrupted", function()
    local path = folder .. "/slow_module.lua"
    os.execute("mkdir -p " .. folder)
    local file = assert(io.open(path, "w"))
    file:write "if not ready then while true do end end return 'loaded'"
    file:close()
    terminal:enter("package.path = '" .. folder .. "/?.lua'")
    terminal:send "io.write('run', 'ning\\n') require 'slow_module'\r"
    terminal:expect "running\n"
    terminal:send "\3"
    terminal:expect "interrupted\n"
    terminal:expect "> "
    terminal:enter "ready = true"
    assert.equals("loaded\n", terminal:enter "require 'slow_module'")
  end)

  it("makes no home that is not there", function()
    local out, _, code = process.shell(("printf '1\\n' | HOME=%s/none XDG_STATE_HOME= script -qec %s /dev/null"):format(folder, process.program))
    assert.is_truthy(out:find "1")
    assert.is_true(code ~= 127)
    assert.equal(1, (os.execute(("test -e %s/none"):format(folder)) / 256))
  end)

  it("leaves at Ctrl-D, and remembers its lines the next time", function()
    terminal:enter "remembered = 1"
    terminal:send "\4"
    assert.equals(0, terminal:wait())
    terminal = Terminal.start(folder)
    terminal:expect "> "
    terminal:send "\16" -- Ctrl-P: the line before
    terminal:expect "remembered = 1"
    terminal:send "\r"
    terminal:expect "> "
    terminal:send "exit\r"
    assert.equals(0, terminal:wait())
  end)
end)
