-- The kernel of Jupyter notebooks, through Jupyter's own client in Python. Pending where that is not installed (./lsa --with-jupyter).
local process = require "process_support"

local python = "/usr/bin/python3"
local available = os.execute(python .. " -c 'import jupyter_kernel_test, nbclient' 2>/dev/null") == 0

describe("the notebook kernel", function()
  local it = available and it or pending
  local data

  setup(function()
    data = process.shell "mktemp -d":match "%S+"
  end)

  teardown(function()
    process.shell("rm -r " .. data)
  end)

  local function jupyter(command)
    return process.shell(("JUPYTER_DATA_DIR=%s XDG_STATE_HOME=%s/state timeout 300 %s %s/tests/notebook/%s 2>&1"):format(data, data, python, process.root, command))
  end

  -- The executable of this build, not the launcher.
  local function install()
    local out, err, code = process.shell(("JUPYTER_DATA_DIR=%s %s kernel --install"):format(data, process.program))
    assert.equals("", err)
    assert.equals(0, code)
    assert.is_truthy(out:find(data .. "/kernels/lsa", 1, true))
    local path = data .. "/kernels/lsa/kernel.json"
    local file = assert(io.open(path))
    local text = file:read "*a"
    file:close()
    local program = (process.root .. "/lsa"):gsub("/", "\\/")
    assert.is_truthy(text:find(program, 1, true))
    local from, to = text:find(program, 1, true)
    process.write(path, text:sub(1, from - 1) .. process.program .. text:sub(to + 1))
  end

  it("passes jupyter_kernel_test and answers as the protocol says", function()
    install()
    local out, _, code = jupyter "kernel_tests.py"
    assert.equals(0, code, out)
    assert.is_truthy(out:find("\nOK (skipped=1)", 1, true), out) -- jupyter_kernel_test's test of a pager
    assert.is_true(tonumber(out:match "Ran (%d+) tests") >= 36)
  end)

  -- What each shows at least.
  for name, shown in pairs {
    first_policy = {["image/png"] = 1, ["text/html"] = 2, stream = 3},
    eviction_study = {["image/png"] = 3, ["text/html"] = 2, stream = 1},
    traces_to_indexer = {["image/png"] = 3, ["text/html"] = 6},
  } do
    it(("runs experiments/notebooks/%s.ipynb"):format(name), function()
      install()
      local out, _, code = jupyter(("run_notebook.py %s/experiments/notebooks/%s.ipynb"):format(process.root, name))
      assert.equals(0, code, out)
      for kind, least in pairs(shown) do
        local count = tonumber((" " .. out):match("[ \n]" .. kind .. "=(%d+)"))
        assert.is_true(count ~= nil and count >= least, out)
      end
    end)
  end

  it("keeps the newest cells, and leaves out lines that are none", function()
    local history = require "lsa.notebook.history"
    local cjson = require "cjson"
    local path, lines = os.tmpname(), {}
    for i = 1, 5000 do lines[i] = cjson.encode {i <= 2500 and 1 or 2, i, "x" .. i} end
    process.write(path, table.concat(lines, "\n") .. '\n[1, 2\nnot ours\n{"a": 1}\n[1, "2", "x"]\n')
    local opened = history.open(path)
    assert.same({3, 2000, "x3001"}, {opened.session, #opened.cells, opened.cells[1][3]})
    opened:add(1, 'print "é\n"')
    opened:add(2, "  \n")
    local again = history.open(path)
    assert.same({4, 2001}, {again.session, #again.cells})
    assert.same({{3, 1, 'print "é\n"'}}, again:range(-1, 1, 9))
    assert.same({{2, 5000, "x5000"}, {3, 1, 'print "é\n"'}}, again:tail(2))
    assert.same({}, history.open(path .. "/none/there"):tail(3))
    local nowhere = history.open(nil)
    nowhere:add(1, "a.b")
    nowhere:add(2, "aab")
    nowhere:add(3, "a.b")
    assert.same({1, 3}, {nowhere:search("a.b", nil)[1][2], nowhere:search("a.b", nil)[2][2]})
    assert.same({{1, 3, "a.b"}}, nowhere:search("a.?", nil, true))
    os.remove(path)
  end)

  it("says what is wrong with a connection file", function()
    local path = os.tmpname()
    for text, message in pairs {
      ["{"] = "no connection file of Jupyter's",
      ['{"transport": "tcp"}'] = "has no ip",
      ['{"transport": "tcp", "ip": "127.0.0.1", "key": "k", "signature_scheme": "hmac-md5", "shell_port": 1, "iopub_port": 2,' ..
        '"stdin_port": 3, "control_port": 4, "hb_port": 5}'] = "signatures by hmac%-md5",
    } do
      process.write(path, text)
      local _, err, code = process.lsa {"kernel", path}
      assert.equals(1, code)
      assert.is_truthy(err:find(path, 1, true) and err:find(message), err)
    end
    os.remove(path)
    local _, err, code = process.lsa {"kernel"}
    assert.equals(2, code)
    assert.is_truthy(err:find "^usage: lsa kernel")
  end)
end)

describe("lsa.display", function()
  it("prints where there is no notebook", function()
    local out, err, code = process.lsa {"-e", "lsa.display({1, 2}, 'x'):update(3) lsa.display.clear()"}
    assert.equals("", err)
    assert.equals("{ 1, 2 }\nx\n3\n", out)
    assert.equals(0, code)
  end)

  it("takes representations from __mime, and the text from what prints", function()
    local display = require "lsa.display"
    local object = setmetatable({}, {__mime = function() return {["text/html"] = "<b>1</b>"} end, __tostring = function() return "one" end})
    assert.same({["text/plain"] = "one", ["text/html"] = "<b>1</b>"}, display.representations(object))
    assert.same({["text/plain"] = "5"}, display.representations(5))
    assert.same({["text/plain"] = "x"}, display.representations "x")
    assert.is_nil(display.representations {1, 2} ["text/html"])
    assert.is_nil(display.representations {{1}} ["text/html"])
    local rows = display.representations {{n = 1, evict = "lru"}, {n = 2.5}} ["text/html"]
    assert.is_truthy(rows:find('<th style="text-align:left">evict</th><th>n</th>', 1, true))
    assert.is_truthy(rows:find('<td style="text-align:left"></td><td>2.5</td>', 1, true))
  end)

  it("shows tensors as tables, the first and the last places of many", function()
    local lsa = require "lsa"
    local html = lsa.arange(40):reshape {2, 20}:__mime()["text/html"]
    assert.is_truthy(html:find("<th></th><th>0</th><th>1</th><th>2</th><th>3</th><th>4</th><th>5</th><th>…</th><th>14</th>", 1, true))
    assert.is_truthy(html:find("<th>1</th><td>20</td>", 1, true) and html:find("<td>39</td></tr>", 1, true))
    assert.is_nil(html:find("<td>6</td>", 1, true))
    html = lsa.arange(24):reshape {2, 3, 4}:__mime()["text/html"]
    assert.is_truthy(html:find("<th>0, 2</th><td>8</td>", 1, true))
    assert.is_truthy(lsa.arange(3):__mime()["text/html"]:find("<td>0</td><td>1</td><td>2</td>", 1, true))
    assert.is_nil(lsa.tensor(5):__mime()["text/html"])
    assert.is_nil(lsa.zeros {0, 3}:__mime()["text/html"])
  end)

  it("shows tables of results, with texts that are no HTML", function()
    local grid = require "lsa.prompt.results_table"
    local html = grid.new({{name = "<a>", n = 3}}, {"name", "n"}, {"a note"}):__mime()["text/html"]
    assert.is_truthy(html:find('<td style="text-align:left">&lt;a&gt;</td><td>3</td>', 1, true))
    assert.is_truthy(html:find("a note", 1, true))
    for _, list in ipairs {"policies", "evictions", "tasks"} do
      assert.is_truthy(require "lsa.display".representations(require "lsa"[list])["text/html"]:find("<th[^>]*>what</th>"))
    end
  end)
end)
