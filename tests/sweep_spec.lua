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
    assert.same({"select", "select.w", "every", "tokens", "score"}, t.columns)
  end)

  it("calls rules by the names that they are given by, and functions by their places", function()
    local function mine() return 1 end
    local function other() return 2 end
    local t = lsa.sweep{policies = {"none", other, mine = mine, best = {"h2o", recent = 0.5}}, evictions = {"lru", none = "fifo"},
      run = function(params) return {rule = type(params.select), evict_was = params.evict} end}
    local place = ("function at %s:%d"):format(debug.getinfo(other, "S").short_src, debug.getinfo(other, "S").linedefined)
    local names, kinds, evicts = {}, {}, {}
    for i, row in ipairs(t.rows) do
      if i % 2 == 1 then
        names[#names + 1], kinds[#kinds + 1] = row.select == place and "other" or row.select, row.rule
      end
      evicts[i] = row.evict .. " " .. row.evict_was
    end
    assert.same({"none", "other", "best", "mine"}, names)
    assert.same({"string", "function", "table", "function"}, kinds)
    assert.same({"lru lru", "none fifo"}, {evicts[1], evicts[2]})
    assert.is_truthy(tostring(t):find(place, 1, true) and t:csv():find(place, 1, true) and t:json():find "function at")
    assert.error_matches(function() lsa.sweep{policies = {a = mine, b = mine}, run = mine} end, "policies has one rule as a and as b")
    assert.error_matches(function() lsa.sweep{budgets = {0.1, half = 0.5}, run = mine} end, "budgets has half; a list of values is wanted")
    assert.error_matches(function() lsa.sweep{grid = {x = {y = 1}}, run = mine} end, "grid.x has y; a list of values is wanted")
  end)

  it("shows people of a task what is compared, and names the rest", function()
    local t = lsa.sweep{model = lsa.model "needle", task = {"single", tokens = 1500, items = 2, text = lsa.root .. "/README.md"}, policies = {"full", "none"}, budgets = {0.1}}
    assert.same({"select", "budget", "n", "accuracy", "accuracy_low", "accuracy_high", "evidence", "coverage", "resident_pct", "fetched_bytes", "cycles"},
      {unpack(t.columns, 1, 11)})
    local header, note = tostring(t):match "^([^\n]*)\n", tostring(t):match "note: also in its rows, t:csv%(%) and t:json%(%): ([^\n]*)\n$"
    assert.is_truthy(header:find "ms_per_token$")
    assert.is_truthy(note:find "digits_low" and not header:find "digits" and t:csv():find "digits_low")
    assert.is_nil(t:__mime()["text/html"]:find("<th>digits_low", 1, true))
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
      assert.equal('select,select.of,ratio,text\na|b,,0.3333333333333333,"say ""x"", y"\nc,d n=2,12345678,"say ""x"", y"\n', t:csv())
      assert.equal('| select | select.of | ratio | text |\n|---|---|---|---|\n| a\\|b |  | 0.33333 | say "x", y |\n| c | d n=2 | 12345678 | say "x", y |\n',
        t:markdown())
      assert.equal('select  select.of     ratio  text\na|b                 0.33333  say "x", y\nc       d n=2      12345678  say "x", y\n', tostring(t))
      t:write(folder .. "/t.csv"):write(folder .. "/t.md")
      assert.equal(t:csv(), files.read(folder .. "/t.csv"))
      assert.equal(t:markdown(), files.read(folder .. "/t.md"))
      assert.error_matches(function() t:write(folder .. "/t.txt") end, "written as .csv, .md or .json")
      assert.error_matches(function() t:write(folder .. "/no/t.md") end, "No such file")
      files.write(folder .. "/t.csv", "old")
      C.lsa_io_fail_after(2)
      assert.error_matches(function() t:write(folder .. "/t.csv") end, "cannot be")
      C.lsa_io_fail_after(-1)
      assert.equal("old", files.read(folder .. "/t.csv"))
      assert.equal("t.csv t.md", files.names(folder))
    end)
  end)

  it("gives new rows when a rule or what it requires is edited", function()
    files.with_folder(function(folder)
      local runs, path = 0, package.path
      local function run()
        runs = runs + 1
        return {x = runs}
      end
      local function go()
        return lsa.sweep{policies = {folder .. "/rule.lua"}, run = run, results = folder .. "/r.jsonl"}:column "x"[1]
      end
      package.path = folder .. "/?.lua;" .. path
      local ok, why = pcall(function()
        files.write(folder .. "/part_of_rule.lua", "return 1")
        files.write(folder .. "/rule.lua", "local x = require 'part_of_rule' return function() return {x} end")
        assert.equal(1, go())
        assert.equal(1, go())
        files.write(folder .. "/part_of_rule.lua", "return 2")
        assert.equal(2, go())
        files.write(folder .. "/rule.lua", "local x = require 'part_of_rule' return function() return {x, 0} end")
        assert.equal(3, go())
        assert.equal(3, go())
      end)
      package.path = path
      if not ok then error(why, 0) end
    end)
  end)

  it("has strict rows, and a resumed table is the first one", function()
    files.with_folder(function(folder)
      local path = folder .. "/r.jsonl"
      local function go(run)
        return lsa.sweep{grid = {a = {0.05, 1 / 0}}, results = path, run = run}
      end
      local runs = 0
      local function run(params)
        runs = runs + 1
        return {list = {3, 1, 2}, none = {}, odd = {1, 2, x = 3}, nan = 0 / 0, low = -params.a, yes = false}
      end
      local first, again = go(run), go(run)
      assert.equal(2, runs)
      assert.equal(first:csv(), again:csv())
      for i = 1, 2 do
        assert.is_true(again.rows[i].nan ~= again.rows[i].nan)
        again.rows[i].nan, first.rows[i].nan = nil, nil
      end
      assert.same(first.rows, again.rows)
      local text = files.read(path)
      assert.truthy(text:find('"list":[3,1,2]', 1, true))
      assert.truthy(text:find('"low":-0.05', 1, true))
      assert.is_nil(text:find ":%-?nan" or text:find ":%-?inf")
      local json = require("cjson").decode(first:json())
      assert.equal(0.05, json[1].a)
      assert.equal("3 1 2", json[1].list)
    end)
  end)

  it("says when an axis changed nothing, and when there was one cycle", function()
    local t = lsa.sweep{taus = {8, 16}, grid = {a = {1, 2}}, run = function(params) return {x = params.a, cycles = 1, ms_per_token = params.every} end}
    assert.same({"every run had one cycle at most: schedules, evictions and what policies remember cannot show here",
      "every changed nothing"}, t.notes)
    assert.truthy(tostring(t):find("note: every changed nothing", 1, true))
    t = lsa.sweep{taus = {8, 16}, run = function(params) return {x = params.every, cycles = 2} end}
    assert.same({}, t.notes)
  end)

  it("names rules of the tree as they are, and others with what they say", function()
    local content = require "lsa.content"
    assert.equal("lsa_topk", content.named("policies", "lsa_topk"))
    files.with_folder(function(folder)
      local path, named = folder .. "/mine.lua", {}
      for i, back in ipairs {1, 2, 1} do
        files.write(path, ("return function(cycle) return {cycle.n - %d} end"):format(back))
        named[i] = content.named("policies", path)
      end
      assert.is_true(named[1] ~= named[2] and named[1] == named[3])
      assert.equal(path, named[1]:sub(1, #path))
    end)
  end)

  it("calls a rule that is a function by its place", function()
    local function mine() end
    local t = lsa.sweep{policies = {mine, {mine}}, run = function() return {x = 1} end}
    local place = ("function at tests/sweep_spec.lua:%d"):format(debug.getinfo(mine, "S").linedefined)
    assert.same({place, place}, {t.rows[1].select, t.rows[2].select})
  end)

  it("has intervals of Wilson and of the bootstrap", function()
    local intervals = require "lsa.intervals"
    local low, high = intervals.wilson(8, 8)
    assert.is_true(math.abs(low - 0.6755923) < 1e-6 and high == 1)
    low, high = intervals.wilson(5, 10)
    assert.is_true(math.abs(low - 0.2365931) < 1e-6 and math.abs(high - 0.7634069) < 1e-6)
    low, high = intervals.bootstrap {0, 1, 0, 1, 0, 1, 0, 1}
    assert.is_true(low >= 0.125 and low <= 0.25 and high >= 0.75 and high <= 0.875)
    assert.same({3, 3}, {intervals.bootstrap {3, 3, 3}})
  end)

  it("has no interval without width where a few questions all came out the same", function()
    local intervals = require "lsa.intervals"
    assert.same({intervals.wilson(8, 8)}, {intervals.shares {1, 1, 1, 1, 1, 1, 1, 1}})
    assert.same({intervals.wilson(0.5, 2)}, {intervals.shares {0.25, 0.25}})
    local varied = {0, 1, 0.5, 0.25}
    assert.same({intervals.bootstrap(varied)}, {intervals.shares(varied)})
    assert.same({intervals.bootstrap(varied)}, {intervals.changes(varied)})
    -- Eight pairs without a difference: 1.96 sqrt(1) / 10.
    local low, high = intervals.changes {0, 0, 0, 0, 0, 0, 0, 0}
    assert.is_true(math.abs(high - 0.1959964) < 1e-6 and low == -high)
    low, high = intervals.changes {1, 1, 1, 1, 1, 1, 1, 1} -- 8 + 1 - 64 / 10
    assert.is_true(math.abs(low - (1 - 1.959964 * math.sqrt(2.6) / 10)) < 1e-6 and high == 1)
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
      assert.equal(4, full.n)
      assert.is_true(math.abs(full.accuracy_low - 0.5101092) < 1e-6 and full.accuracy_high == 1)
      prefills = 0
      assert.error_matches(function()
        lsa.sweep{model = model, task = task, policies = {"full", {"lsa_topp", mas = 1}}}
      end, "policy lsa_topp: no option 'mas'; there are: mass")
      assert.equal(0, prefills)
      task.needles, task.contexts = 1, 1
      local needles = {}
      local given = require("lsa.tasks.needle").task(model, task)
      for seed = 1, 2 do
        given:run {select = "none", seed = seed}
        needles[seed] = given:questions_of(seed, 1)
      end
      assert.not_equal(needles[1].text, needles[2].text)
      assert.not_equal(needles[1].questions[1].key, needles[2].questions[1].key)
      assert.not_equal(needles[1].questions[1].at, needles[2].questions[1].at)
    end)
  end)
end)
