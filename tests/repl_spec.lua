-- The prompt: in a terminal, and as a sequence of statements on a pipe.
local files = require "file_support"
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
    local _, lines = text(long):gsub("\n", "")
    assert.is_true(lines < 20) -- numbers stand side by side
    assert.is_truthy(text(long):find("... 760 more", 1, true))
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

  it("are tables where they are lists of records, and functions show what they take", function()
    assert.equals("c  a    b\nx  1    2\ny  3  0.5", text {{a = 1, b = 2, c = "x"}, {a = 3, b = 0.5, c = "y"}})
    assert.equals("{ { a = 1 } }", text {{a = 1}})
    assert.equals("{ f = function(x, y) }", text {f = function(x, y) return x, y end})
    local lsa = require "lsa"
    assert.matches("^single: 1 contexts of 1000 tokens; model needle", text(lsa.tasks.single {model = lsa.model "needle", tokens = 1000}))
    assert.matches("\nlayers +7\n", text(lsa.model "needle".config))
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

describe("completion by place", function()
  local complete = require "lsa.prompt.complete"
  local lsa = require "lsa"
  local environment = {lsa = lsa, s = {select = 1}, model = {session = require "lsa.model".class.session}}
  setmetatable(environment, {__index = _G})

  -- What the text becomes by each completion.
  local function at(text, most)
    local list, from = complete.at(text, environment)
    local out = {}
    for i = 1, math.min(#list, most or #list) do out[i] = text:sub(1, from - 1) .. list[i] end
    return out
  end

  it("knows the options of the call whose braces are open, and those of rules", function()
    assert.same({"model:session{select = "}, at "model:session{sel")
    assert.same({"model:session{budget = 1, evict = "}, at "model:session{budget = 1, evi")
    assert.same({"lsa.batch(model, {memory = "}, at "lsa.batch(model, {mem")
    assert.same({'lsa.model("needle"):session{select = '}, at 'lsa.model("needle"):session{sele')
    assert.same({'model:session{select = {"h2o", recent = '}, at 'model:session{select = {"h2o", re')
    assert.same({'lsa.sweep{policies = {"random", {"lsa_topp", mass = '}, at 'lsa.sweep{policies = {"random", {"lsa_topp", ma')
    assert.same({"f{string.rep", "f{string.reverse"}, at "f{string.re")
    assert.same({"model:session{budget = string.lower"}, at "model:session{budget = string.low")
    assert.same({"x = 1\nmodel:session{\n  strict = "}, at "x = 1\nmodel:session{\n  stri")
    assert.same({}, at "lsa.replay('x', {nothing_of_the_kind")
  end)

  it("knows in strings what the option or the call names, else files", function()
    assert.same({'model:session{select = "h2o', 'model:session{select = "h2o_ema'}, at 'model:session{select = "h2')
    assert.same({"model:session{every = 'jaccard"}, at "model:session{every = 'jac")
    assert.same({'model:session{evict = "s3fifo'}, at 'model:session{evict = "s3')
    assert.same({'model:session{kv = "bf16'}, at 'model:session{kv = "b')
    assert.same({'lsa.sweep{policies = {"recency", "quest_pages'}, at 'lsa.sweep{policies = {"recency", "que')
    assert.same({'lsa.model "needle'}, at 'lsa.model "nee')
    assert.same({('lsa.load "%s/tests/golden/'):format(lsa.root)}, at(('lsa.load "%s/tests/golden'):format(lsa.root), 1))
    assert.same({("%%run %s/experiments/quickstart.lua"):format(lsa.root)}, at(("%%run %s/experiments/quick"):format(lsa.root)))
    assert.same({"%bench"}, at "%ben")
  end)

  it("knows behind ? what has help by its name alone, and what names lead to", function()
    assert.same({"?lsa_threshold", "?lsa_topk", "?lsa_topp"}, at "?lsa_t")
    assert.same({"??s3fifo"}, at "??s3")
    assert.same({"?lsa.policies"}, at "?lsa.pol")
    assert.same({"?model:session"}, at "?model:ses")
    assert.same({"?rmsnorm", "?rmsnorm_gradient"}, at "?rms")
    assert.same({"?argsort"}, at "?args")
    assert.same({"?granularity"}, at "?granu")
    local help = require "lsa.prompt.help"
    for name in pairs(help.names()) do assert.is_truthy(help.find(name, environment), name) end
  end)

  it("knows rules by name", function()
    assert.same({"lsa.policies.quest_pages"}, at "lsa.policies.que")
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

  it("says which name was probably meant", function()
    for line, message in pairs {
      ["lsa.polcies"] = 'prompt:1: lsa has no "polcies"; did you mean policies?\n',
      ["lsa.xyzzy"] = 'prompt:1: lsa has no "xyzzy"\n',
      ["lsa.model 'nedle'"] = 'prompt:1: lsa.model: no folder "nedle", and no model of the tree; there are: needle, ruler; did you mean needle?\n',
      ["lsa.plot.lnie {1}"] = "prompt:1: attempt to call field 'lnie' (a nil value); did you mean line?\n",
      ["('x'):sesion()"] = "prompt:1: attempt to call method 'sesion' (a nil value); did you mean session?\n",
      ["%tiem 1"] = "there is no command %tiem; %magic lists what there is; did you mean time?\n",
    } do
      local out = terminal:enter(line)
      assert.equals(message, out:sub(1, #message))
    end
    assert.is_truthy(terminal:enter "lsa.zeros({1}):session()":find('tensor has no op "session"', 1, true))
    assert.is_truthy(terminal:enter "lsa.cache{pages = {}, capcity = 1}":find("there are: [%w, ]+; did you mean capacity%?\n"))
    assert.is_truthy(terminal:enter "lsa.cache{pages = {1}, capacity = 1, evict = 'lur'}":find("or a function; did you mean lru?\n", 1, true))
  end)

  it("shows the expression that statements end with, unless a ; ends it, and keeps what was", function()
    assert.equals("5\n", terminal:enter "x = 5; x")
    assert.equals("7\n", terminal:enter "local y = 2 y = y + x; y")
    assert.equals("", terminal:enter "x + y;")
    assert.equals("12\t7\t5\n", terminal:enter "_, __, ___")
    assert.equals("x + y;\t5\n", terminal:enter "In[3], Out[1]")
    assert.equals("Out[6]: 6\n", (function()
      terminal:send "3 + 3\r"
      terminal:expect "3 + 3\n"
      return terminal:expect "In[7]> "
    end)())
  end)

  it("has help for values, rules, options and kernels, and their source", function()
    local out = terminal:enter "?h2o"
    assert.is_truthy(out:find('recent  0.5  share of the budget', 1, true), out)
    assert.is_truthy(out:find('model:session{select = {"h2o", recent = 0.5}}', 1, true))
    assert.is_truthy(out:find("lua/lsa/policies/h2o.lua", 1, true))
    assert.is_truthy(terminal:enter "lsa.model?":find("compute +\"f32\""))
    assert.is_truthy(terminal:enter "help 'lru'":find("Least recently used", 1, true))
    assert.is_truthy(terminal:enter "help(lsa.pool)":find("two tiers of chunk records", 1, true))
    assert.is_truthy(terminal:enter "?budget":find("model:session", 1, true))
    assert.is_truthy(terminal:enter "?rmsnorm":find("kernels/rmsnorm.h", 1, true))
    assert.is_truthy(terminal:enter "?sort":find("^x:sort.*descending = true.*lsa%.kernels%.sort\n"))
    assert.is_truthy(terminal:enter "?%bench":find("^%%bench STATEMENT"))
    assert.is_truthy(terminal:enter "??recency":find("return cycle.newest()", 1, true))
    assert.is_truthy(terminal:enter "?no_such_thing":find("there is no help for", 1, true))
    assert.is_truthy(terminal:enter "lsa.evictions":find("\nslru +segments = 4 +Segmented LRU"))
    assert.is_truthy(terminal:enter "lsa":find("\nlsa.zeros +a tensor of zeros"))
  end)

  it("has commands for time, files, the shell and what there is", function()
    terminal:enter "kept = {1, 2}"
    assert.is_truthy(terminal:enter "%time 1 + 1":find "^2\ntook [%d.]+ [mun]?s, ")
    assert.is_truthy(terminal:enter "%bench math.sin(1)":find "median of %d+ runs in %d+ samples; .*; compiled\n$")
    terminal:enter "f = function() return function() end end"
    assert.is_truthy(terminal:enter "%bench f()":find "interpreted: [^\n]*, NYI: ")
    assert.is_truthy(terminal:enter "%who":find("kept +table +{ 1, 2 }"))
    assert.equals("out\n", terminal:enter "!echo out")
    terminal:enter "lines = !printf 'a\\nb\\n'"
    assert.equals('{ "a", "b" }\n', terminal:enter "lines")
    assert.equals("it ended with exit code 3\n", terminal:enter "!exit 3")
    assert.equals("there is no command %no; %magic lists what there is\n", terminal:enter "%no")
    os.execute("mkdir -p " .. folder)
    local script = process.write(folder .. "/go.lua", "made = {...}\nlocal hidden = 1\nos.exit(3)")
    assert.equals("the script left with exit code 3\n", terminal:enter("%run " .. script .. " a b"))
    assert.equals('{ "a", "b" }\tnil\n', terminal:enter "made, hidden")
    terminal:enter("%log " .. folder .. "/log")
    terminal:enter "6 * 7"
    terminal:enter "%log off"
    assert.equals("6 * 7\n-- 42\n%log off\n", files.read(folder .. "/log"))
    terminal:enter "%log /dev/full"
    assert.matches("the log cannot be written: it ends here", terminal:enter "1")
    terminal:enter("%save " .. folder .. "/saved.lua 1")
    assert.equals("kept = {1, 2}\n", files.read(folder .. "/saved.lua"))
  end)

  it("tells where the time goes, and Ctrl-C works as before", function()
    local spin = "f = function(s) local e, x = os.clock() + s, 0; while os.clock() < e do x = x + 1 end end"
    os.execute("mkdir -p " .. folder)
    terminal:enter("%run " .. process.write(folder .. "/spin.lua", spin))
    assert.is_truthy(terminal:enter "%prof f(0.3)":find "%d+%% +spin.lua:1")
    for _, line in ipairs {"while true do end", "%prof f(1e9)", "while true do end"} do
      terminal:send(("io.write('run', 'ning\\n')\r%s\r"):format(line))
      terminal:expect "running\n"
      terminal:expect(line .. "\n")
      terminal:pause(0.2)
      terminal:send "\3"
      terminal:expect "interrupted\n"
      terminal:expect "]> "
    end
  end)

  it("looks into where an error was", function()
    terminal:enter "f = function(a) local b = a * 2; error 'bad' end"
    terminal:enter "g = function() local c = 1; f(20) return c end"
    terminal:enter "g()"
    local out = terminal:enter "%debug"
    assert.is_truthy(out:find "here are: .*a, b", out)
    assert.equals("20\t40\n", terminal:enter "a, b")
    terminal:enter "%up"
    assert.equals("1\tnil\n", terminal:enter "c, b")
    terminal:send "\4"
    terminal:expect "In[5]> "
    assert.equals("nil\n", terminal:enter "b")
  end)

  it("indents lines that go on", function()
    terminal:send "for i = 1, 1 do\r"
    terminal:expect ">>   "
    terminal:send "if i then\r"
    terminal:expect ">>     "
    terminal:send "print(i) end end\r"
    terminal:expect "end end\n"
    assert.equals("1\n", terminal:expect "In[2]> ")
  end)

  it("completes options within braces by the tab key", function()
    terminal:enter "m = {session = lsa.model 'needle'.session}"
    terminal:send "m:session{sele\t'none'}\r"
    terminal:expect "m:session{select = 'none'}\n"
    terminal:expect "In[3]> "
  end)

  it("completes names by the tab key", function()
    terminal:send "string.rev\t('abc')\r"
    terminal:expect "string.reverse('abc')\n"
    assert.equals("Out[1]: cba\n", terminal:expect "In[2]> ")
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

  it("opens in the middle of a script, and changes its locals", function()
    terminal:stop()
    os.execute("mkdir -p " .. folder)
    local script = process.write(folder .. "/go.lua", [[
      local up = 1
      local function f(x)
        local y = x + up
        require "lsa".interact()
        return x + y, up
      end
      print("f is", f(10))]])
    terminal = Terminal.start(folder, {script})
    assert.is_truthy(terminal:expect "In[1]> ":find("> +4 +require \"lsa\".interact"))
    assert.equals("10\t11\t1\n", terminal:enter "x, y, up")
    assert.is_truthy(terminal:enter "%who":find "\nup +number +1\n")
    assert.equals("prompt:1: no\n", terminal:enter "error 'no'")
    terminal:send "while true do end\r"
    terminal:expect "end\n"
    terminal:pause(0.1)
    terminal:send "\3"
    terminal:expect "interrupted\n"
    terminal:expect "In[5]> "
    terminal:enter "y = 100; up = 5"
    terminal:send "\4"
    terminal:expect "f is\t110\t5\n"
    assert.equals(0, terminal:wait())
  end)

  it("opens after a script that was started with -i, with its locals, and where it failed", function()
    terminal:stop()
    os.execute("mkdir -p " .. folder)
    local script = process.write(folder .. "/go.lua", "local a = {...}\nlocal function f(n) error('at ' .. n) end\nif a[1] then f(7) end")
    terminal = Terminal.start(folder, {"-i", script})
    terminal:expect "In[1]> "
    assert.equals("0\tfunction\n", terminal:enter "#a, type(f)")
    terminal:send "\4"
    assert.equals(0, terminal:wait())
    terminal = Terminal.start(folder, {"-i", script, "x"})
    assert.is_truthy(terminal:expect "In[1]> ":find("go.lua:2: at 7", 1, true))
    assert.equals("7\n", terminal:enter "n")
    terminal:send "\4"
    assert.equals(1, terminal:wait())
  end)

  it("opens where a script failed that was given --debug, and only then", function()
    terminal:stop()
    os.execute("mkdir -p " .. folder)
    local script = process.write(folder .. "/go.lua", [[
      local opt = require "lsa.args" "Fails.\n  --n (default 3)  a number"
      local function f(twice) error("no " .. twice) end
      f(2 * opt.n)]])
    terminal = Terminal.start(folder, {script, "--debug", "--n", "4"})
    assert.is_truthy(terminal:expect "In[1]> ":find("go.lua:2: no 8", 1, true))
    assert.equals("8\n", terminal:enter "twice")
    terminal:enter "%up"
    assert.equals("4\n", terminal:enter "opt.n")
    terminal:send "\4"
    assert.equals(1, terminal:wait())
    local _, err, code = process.lsa {script, "--debug"} -- no terminal: nobody to ask
    assert.equals(1, code)
    assert.is_truthy(err:find("no 6", 1, true))
  end)

  it("pages long texts on a terminal", function()
    local stdlib = require "posix.stdlib"
    terminal:send "exit\r"
    terminal:wait()
    stdlib.setenv("PAGER", "sed s/^/paged:/")
    terminal = Terminal.start(folder, nil, "xterm")
    stdlib.setenv("PAGER", nil)
    terminal:expect "In[1]> "
    terminal:send "?policies\r"
    terminal:expect "paged:recency "
    terminal:expect "In[2]> "
    terminal:send "?recency\r" -- short
    terminal:expect "\nThe newest chunks"
  end)

  it("has colours on a terminal that knows them, and none elsewhere", function()
    assert.is_nil(terminal.screen:find("\27", 1, true))
    terminal:send "exit\r"
    terminal:wait()
    terminal = Terminal.start(folder, nil, "xterm")
    terminal:expect "\27[32mIn[1]> \27[0m"
    terminal:send "2 + 2\r"
    terminal:expect "\27[31mOut[1]:\27[0m 4"
    terminal:expect "In[2]> "
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
