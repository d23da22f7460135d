-- Sweeps: grids, what is remembered of them, the tables that come out.
local lsa = require "lsa"
local files = require "file_support"
local C = require("lsa.ffi").C

describe("a sweep's results", function()
  it("that cannot be read are named", function()
    files.with_folder(function(folder)
      local function run() return {x = 1} end
      local ok, message = pcall(lsa.sweep, {grid = {a = {1}}, run = run, results = folder})
      assert.is_false(ok)
      assert.matches("results " .. folder:gsub("%p", "%%%0") .. ": Is a directory", message)
    end)
  end)
end)

describe("a sweep", function()
  it("runs every combination once, the first axis slowest, and keeps their order", function()
    local seen = {}
    local t = lsa.sweep{policies = {"a", {"b", w = 3}}, taus = {8, 16}, grid = {tokens = {1, 2}}, run = function(params)
      seen[#seen + 1] = params
      return {score = params.every * 10 + params.tokens}
    end}
    assert.equal(8, #seen)
    assert.same({select = "a", every = 8, tokens = 1}, seen[1])
    assert.same({select = "a", every = 8, tokens = 2}, seen[2])
    assert.same({select = {"b", w = 3}, every = 16, tokens = 2}, seen[8])
    assert.same({81, 82, 161, 162, 81, 82, 161, 162}, t:column "score")
    assert.same({"select", "every", "tokens", "score"}, t.columns)
  end)

  it("resumes where it stopped, appending only", function()
    files.with_folder(function(folder)
      local path, runs = folder .. "/results.jsonl", 0
      local function go(budgets, stop, about)
        return lsa.sweep{policies = {"x", {"y", k = 1 / 3}}, budgets = budgets, results = path, about = about, run = function(params)
          runs = runs + 1
          if runs == stop then error "interrupted" end
          return {value = params.budget / 3, note = "a, \"b\""}
        end}
      end
      local ok, why = pcall(go, {0.1, 0.2}, 3)
      assert.is_false(ok)
      assert.matches("interrupted", why)
      -- A line that was cut off when the machine went down.
      local file = io.open(path, "a")
      file:write '{"key":"half'
      file:close()
      local before = files.read(path)
      local t = go({0.1, 0.2})
      assert.equal(3 + 2, runs)
      assert.equal(before, files.read(path):sub(1, #before))
      assert.same({0.1 / 3, 0.2 / 3, 0.1 / 3, 0.2 / 3}, t:column "value")
      local again = go({0.1, 0.2})
      assert.equal(5, runs)
      assert.equal(t:csv(), again:csv())
      -- More values, and another subject: only what is new runs.
      go({0.2, 0.3})
      assert.equal(7, runs)
      go({0.1, 0.2}, nil, "another model")
      assert.equal(11, runs)
    end)
  end)

  it("returns a table that is text, CSV and markdown", function()
    files.with_folder(function(folder)
      local t = lsa.sweep{policies = {"a|b", {"c", of = {"d", n = 2}}}, run = function(params)
        return {ratio = params.select == "a|b" and 1 / 3 or 12345678, text = 'say "x", y', none = params.select == "a|b" or nil}
      end, columns = {"ratio", "text"}}
      assert.equal('select,ratio,text\na|b,0.33333333333333331,"say ""x"", y"\nc of=d n=2,12345678,"say ""x"", y"\n', t:csv())
      assert.equal('| select | ratio | text |\n|---|---|---|\n| a\\|b | 0.33333 | say "x", y |\n| c of=d n=2 | 12345678 | say "x", y |\n',
        t:markdown())
      assert.equal('select         ratio  text\na|b          0.33333  say "x", y\nc of=d n=2  12345678  say "x", y\n', tostring(t))
      t:write(folder .. "/t.csv"):write(folder .. "/t.md")
      assert.equal(t:csv(), files.read(folder .. "/t.csv"))
      assert.equal(t:markdown(), files.read(folder .. "/t.md"))
      assert.error_matches(function() t:write(folder .. "/t.txt") end, "written as .csv or .md")
      assert.error_matches(function() t:write(folder .. "/no/t.md") end, "No such file")
      files.write(folder .. "/t.csv", "old")
      C.lsa_io_fail_after(2)
      assert.error_matches(function() t:write(folder .. "/t.csv") end, "cannot be")
      C.lsa_io_fail_after(-1)
      assert.equal("old", files.read(folder .. "/t.csv"))
      assert.equal("t.csv t.md", files.names(folder))
    end)
  end)

  it("says what is wrong, and where", function()
    local function none() return {} end
    local function says(pattern, given)
      local ok, why = pcall(function() lsa.sweep(given) end)
      assert.is_false(ok)
      assert.matches(pattern, why)
    end
    says("sweep_spec.lua:%d+: lsa.sweep: there is neither run nor model", {policies = {"a"}})
    says("sweep_spec.lua:%d+: lsa.sweep: no option 'policy'; there are: about, ", {policy = {"a"}, run = none})
    says("sweep_spec.lua:%d+: lsa.sweep: budgets is a number", {budgets = 0.1, run = none})
    says("run returned a number", {run = function() return 1 end})
    says("a function cannot be written to the results", {policies = {print}, run = none, results = "/tmp/never"})
    says("No such file", {run = none, results = "/no/such/place"})
    assert.equal(1, #lsa.sweep{policies = {print}, run = none}.rows)
  end)

  it("of a model asks needles from one prefill a context", function()
    local model, prefills = lsa.model(lsa.root .. "/experiments/models/needle"), 0
    files.with_folder(function(folder)
      local hay = folder .. "/hay.txt"
      local file = io.open(hay, "w")
      file:write(("The grass is green. The river is near the stone. The clouds are white above. Here we go. There and back. "):rep(30))
      file:close()
      local task = {tokens = 1500, needles = 2, contexts = 2, text = hay, seed = 3, step = function() prefills = prefills + 1 end}
      local t = lsa.sweep{model = model, task = task, about = "test", results = folder .. "/r.jsonl",
        policies = {"full", "none", {"native_topk"}}, budgets = {0.2}}
      assert.equal(2 + 3 * 4, prefills)
      local full, none, native = t.rows[1], t.rows[2], t.rows[3]
      assert.same({1, 1, 1, 100}, {full.accuracy, full.evidence, full.coverage, full.resident_pct})
      assert.is_true(none.evidence < 0.5 and none.accuracy < 1)
      assert.is_true(native.coverage > none.coverage and native.resident_pct < 25)
      assert.is_true(native.fetched_bytes > 0 and none.error == nil)
    end)
  end)
end)
