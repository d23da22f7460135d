-- lsa.eval and the tasks of published files: what is asked, what is kept, what is compared.
local lsa = require "lsa"
local cjson = require "cjson"
local files = require "file_support"
local intervals = require "lsa.intervals"
local longbench = require "lsa.tasks.longbench"
local longmemeval = require "lsa.tasks.longmemeval"

local hay = ("The grass is green. The river is near the stone. The clouds are white above. Here we go. There and back. "):rep(40)

local function refused(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok, "accepted")
  assert.matches(pattern, message)
end

-- Items of our own in the published form.
local function bench_items()
  local out = {}
  for i, length in ipairs {"short", "short", "long"} do
    out[i] = {_id = "id" .. i, domain = "d", sub_domain = "s", difficulty = "easy", length = length, question = "Which number " .. i .. "?",
      choice_A = "one", choice_B = "two", choice_C = "three", choice_D = "four", answer = ({"A", "C", "D"})[i], context = hay:sub(1, 900 + 300 * i)}
  end
  return out
end

local function memory_items()
  local function session(topic, answer)
    return {{role = "user", content = "Let us talk about " .. topic .. ". " .. hay:sub(1, 300)}, {role = "assistant", content = "Gladly.", has_answer = false},
      {role = "user", content = answer or "Thank you.", has_answer = answer ~= nil or nil}}
  end
  local function item(id, kind, answer, sessions, answers)
    local ids, dates = {}, {}
    for i in ipairs(sessions) do ids[i], dates[i] = "s" .. i, "2023/05/0" .. i end
    return {question_id = id, question_type = kind, question = "What is my pet called?", answer = answer, question_date = "2023/06/01",
      haystack_session_ids = ids, haystack_dates = dates, haystack_sessions = sessions, answer_session_ids = answers}
  end
  return {item("q1", "single-session-user", "The dog, Rex", {session "tea", session("pets", "My dog is called Rex."), session "rain"}, {"s2"}),
    item("q2", "multi-session", 7, {session "tea", session "rain"}, {"s1"}), item("q3_abs", "multi-session", "Not said.", {session "tea"}, {})}
end

-- Calls f with a model and a file of these items.
local model
local function with_file(items, f)
  model = model or lsa.model(lsa.root .. "/experiments/models/needle")
  files.with_folder(function(folder)
    files.write(folder .. "/items.json", cjson.encode(items))
    files.write(folder .. "/hay.txt", hay)
    f(folder .. "/items.json", folder)
  end)
end

describe("the LongBench v2 task", function()
  it("asks each item's question after its text, and takes the likeliest of the four letters", function()
    with_file(bench_items(), function(path)
      local task = lsa.tasks.longbench{model = model, path = path}
      local made = task:questions_of(1, 2)
      assert.equal("Please read the following text and answer the question below.\n\n<text>\n" .. hay:sub(1, 1500) .. "\n</text>\n", made.text)
      local one = made.questions[1]
      assert.matches("^\nWhat is the correct answer to this question: Which number 2%?\nChoices:\n%(A%) one\n%(B%) two\n%(C%) three\n%(D%) four\n\n", one.question)
      assert.matches("\nThe correct answer is %($", one.question)
      assert.same({"C", "short", "id2"}, {one.answer, one.kind, one.id})
      local row = task:run{select = "full"}
      assert.equal(3, row.n)
      assert.is_nil(row.evidence)
      assert.is_nil(row.digits)
      assert.is_nil(row.cut)
      -- The same by hand: the four letters' logits.
      local right, kinds = 0, {short = 0, long = 0}
      for i = 1, 3 do
        local its = task:questions_of(1, i)
        local logits, best = model:session{select = "full"}:prefill(its.text .. its.questions[1].question), nil
        for letter in ("ABCD"):gmatch "." do
          if not best or logits:get(letter:byte()) > logits:get(best:byte()) then best = letter end
        end
        assert.equal(best, task.questions[i].said)
        right = right + (best == its.questions[1].answer and 1 or 0)
        kinds[its.questions[1].kind] = kinds[its.questions[1].kind] + (best == its.questions[1].answer and 1 or 0)
      end
      assert.equal(right / 3, row.accuracy)
      assert.same({kinds.short / 2, kinds.long}, {row.short_accuracy, row.long_accuracy})
      task:close()
    end)
  end)

  it("leaves the middle of longer texts out and says so, and takes kinds, n and wrapping texts", function()
    with_file(bench_items(), function(path)
      local task = lsa.tasks.longbench{model = model, path = path, tokens = 1400, wrap = {"<user>", "<assistant>"}}
      local whole = lsa.tasks.longbench{model = model, path = path, wrap = {"<user>", ""}}:questions_of(1, 3).text
      local text = task:questions_of(1, 3).text
      assert.equal(whole:sub(1, 700) .. whole:sub(-700), text)
      assert.matches("%.\n<assistant>The correct answer is %($", (task:questions_of(1, 3).questions[1].question:gsub('%(insert answer here%)"', "")))
      assert.equal(2, task:run{select = "recency", budget = 0.2}.cut)
      assert.equal(3, #task.questions)
      task:close()
      assert.equal(2, lsa.tasks.longbench{model = model, path = path, only = {"short"}, n = 5}.contexts)
      assert.equal(1, lsa.tasks.longbench{model = model, path = path, n = 1}:run{select = "none", budget = 0}.n)
    end)
  end)

  it("reads a line of JSON each, too, and names what is wrong with an item", function()
    with_file(bench_items(), function(path, folder)
      local lines, items = {}, bench_items()
      for i, item in ipairs(items) do lines[i] = cjson.encode(item) end
      files.write(folder .. "/items.jsonl", table.concat(lines, "\n") .. "\n")
      assert.equal(3, longbench.task(model, {path = folder .. "/items.jsonl"}).contexts)
      items[2].answer = "E"
      files.write(path, cjson.encode(items))
      refused('item 2: answer is "E"; one of A, B, C, D', function() longbench.task(model, {path = path}):questions_of(1, 2) end)
      items[2].choice_B = nil
      files.write(path, cjson.encode(items))
      refused("items.json: item 2: choice_B is nil; a text is wanted", function() longbench.task(model, {path = path}):questions_of(1, 2) end)
      files.write(path, "not JSON")
      refused("items.json is neither a list of objects in JSON nor has one on each line", longbench.task, model, {path = path})
      files.write(path, "[]")
      refused("items.json has no items", longbench.task, model, {path = path})
      refused("longbench.task: path is nil; a file's name is wanted", longbench.task, model, {})
      refused("No such file", longbench.task, model, {path = folder .. "/none"})
      refused("no item of the kinds medium", function()
        files.write(path, cjson.encode(bench_items()))
        longbench.task(model, {path = path, only = {"medium"}})
      end)
    end)
  end)
end)

describe("the LongMemEval task", function()
  it("has the turns with the answer as evidence, or the sessions, and none of an abstention", function()
    with_file(memory_items(), function(path)
      local task = lsa.tasks.longmemeval{model = model, path = path}
      local function evidence(i)
        local made, out = task:questions_of(1, i), {}
        for j, span in ipairs(made.questions[1].spans) do out[j] = made.text:sub(span[1] + 1, span[2]) end
        return out
      end
      assert.same({"My dog is called Rex."}, evidence(1))
      assert.equal(1, #evidence(2))
      assert.matches("^\n### Session 1:\nSession Date: 2023/05/01\nSession Content:\n\nuser: Let us talk about tea.*assistant: Gladly%.\n\nuser: Thank you%.\n$", evidence(2)[1])
      assert.same({}, evidence(3))
      assert.equal("\nCurrent Date: 2023/06/01\nQuestion: What is my pet called?\nAnswer:", task:questions_of(1, 1).questions[1].question)
      assert.same({"single-session-user", "abstention"}, {task:questions_of(1, 1).questions[1].kind, task:questions_of(1, 3).questions[1].kind})
    end)
  end)

  it("tells the chats by their dates, in whatever order the file has them", function()
    local items = memory_items()
    with_file(items, function(path)
      local task = longmemeval.task(model, {path = path})
      local one = items[1]
      one.haystack_sessions[2][3].content = "\n My dog is called Rex.\n\n"
      for _, name in ipairs {"haystack_sessions", "haystack_dates", "haystack_session_ids"} do
        one[name][1], one[name][3] = one[name][3], one[name][1]
      end
      files.write(path, cjson.encode(items))
      local turned = longmemeval.task(model, {path = path})
      local a, b = task:questions_of(1, 1), turned:questions_of(1, 1)
      assert.equal(a.text, b.text)
      assert.same(a.questions[1].spans, b.questions[1].spans)
    end)
  end)

  it("takes an answer for right whose words stand in the line, and of an abstention that it is not known", function()
    with_file(memory_items(), function(path)
      local task = lsa.tasks.longmemeval{model = model, path = path}
      local function score(i, said) return task:questions_of(1, i).questions[1].score(said) end
      assert.same({true, true, false, false}, {score(1, " It's a DOG, Rex!"), score(1, "the dog Rex, I think"), score(1, "dogs Rex"), score(1, "Rex")})
      assert.same({true, false, false}, {score(2, "You have 7 of them."), score(2, "17"), score(2, "seven")})
      assert.same({true, true, false}, {score(3, "I don't know."), score(3, "That was not mentioned."), score(3, "Rex")})
    end)
  end)

  it("lets the model write a line, and scores evidence with and without it", function()
    with_file(memory_items(), function(path)
      local task = lsa.tasks.longmemeval{model = model, path = path, only = {"single-session-user", "multi-session"}}
      local full = task:run{select = "full"}
      assert.same({2, 1}, {full.n, full.evidence})
      for i, question in ipairs(task.questions) do
        assert.equal("q" .. i, question.id)
        assert.is_true(#question.said > 0 and #question.said <= 64)
        assert.is_true(question.depth > 0 and question.depth < 1)
      end
      task:close()
      local silent = lsa.tasks.longmemeval{model = model, path = path, generate = false, n = 1}
      local row = silent:run{select = "recency", budget = 0.1}
      assert.is_true(row.evidence < 1 and row.accuracy == nil and row.n == 1)
      local all = lsa.tasks.longmemeval{model = model, path = path, generate = false}:run{select = "full"}
      assert.same({1, 2, 3}, {all.evidence, all.evidence_n, all.n}) -- an abstention has none
      silent:close()
    end)
  end)

  it("names what is wrong with an item", function()
    local items = memory_items()
    table.remove(items[1].haystack_dates)
    items[2].haystack_sessions[1][2].content = nil
    items[3].question_type, items[3].question_id = nil, "q3"
    with_file(items, function(path)
      local task = longmemeval.task(model, {path = path})
      refused("item 1: 3 haystack_sessions, 2 haystack_dates, 3 haystack_session_ids", task.questions_of, task, 1, 1)
      refused("item 2: session 1, turn 2: content is nil", task.questions_of, task, 1, 2)
      refused("item 3: question_type is nil", task.questions_of, task, 1, 3)
    end)
  end)
end)

describe("lsa.eval", function()
  local function task_of(folder, name, more)
    local out = {name, tokens = 1500, items = 2, text = folder .. "/hay.txt"}
    for key, value in pairs(more or {}) do out[key] = value end
    return out
  end

  it("asks policies the same questions, and gives what lsa.sweep gives of each task", function()
    with_file(bench_items(), function(path, folder)
      local given = {model = model, tasks = {task_of(folder, "single"), {"longbench", path = path}}, policies = {"full", "native_topk", "none"}, budgets = {0.1, 0.3}}
      local t = lsa.eval(given)
      assert.equal(12, #t.rows)
      assert.same({"task", "select", "budget", "n", "accuracy", "accuracy_low", "accuracy_high", "change", "change_low", "change_high"},
        {unpack(t.columns, 1, 10)})
      local alone = lsa.sweep{model = model, task = task_of(folder, "single"), policies = given.policies, budgets = given.budgets}
      for i, row in ipairs(alone.rows) do
        local mine = t.rows[i]
        assert.equal("single", mine.task)
        for _, name in ipairs {"select", "budget", "n", "accuracy", "accuracy_low", "evidence", "fetched_bytes", "resident_pct", "failed", "clipped"} do
          assert.equal(row[name], mine[name], name)
        end
      end
      -- By hand: differences from full attention at the same budget.
      for i, row in ipairs(t.rows) do
        local base = t.rows[i - (i - 1) % 6 + (i - 1) % 2]
        assert.equal("full", base.select)
        if row.select == "full" then
          assert.is_nil(row.change)
        else
          local differences, sum = {}, 0
          for j, question in ipairs(row.questions) do
            differences[j] = question.accuracy - base.questions[j].accuracy
            sum = sum + differences[j]
          end
          assert.equal(sum / row.n, row.change)
          assert.same({intervals.changes(differences)}, {row.change_low, row.change_high})
        end
      end
      -- Questions: a row each, of all tasks.
      assert.equal(6 * 2 + 6 * 3, #t.questions.rows)
      assert.same({"task", "select", "budget", "question", "context"}, {unpack(t.questions.columns, 1, 5)})
      assert.matches("^task,select,budget,question,context,id,", t.questions:csv())
      assert.matches("change is the difference from full, question by question", tostring(t))
      assert.same({"single", "longbench"}, {t:plot().panels[1].title, t:plot().panels[2].title})
    end)
  end)

  it("goes on where it stopped, in the middle of a task", function()
    with_file(bench_items(), function(path, folder)
      local asked, stop = 0, 8
      local function go()
        return lsa.eval{model = model, results = folder .. "/r.jsonl", policies = {"full", "native_topk", "none"}, budgets = {0.2}, tasks = {
          task_of(folder, "single", {contexts = 3, step = function()
            asked = asked + 1
            if asked == stop then error("killed", 0) end
          end}), {"longbench", path = path, n = 2}}}
      end
      refused("killed", go)
      stop = nil
      local before = files.read(folder .. "/r.jsonl")
      assert.equal(3, select(2, before:gsub("\n", "\n"))) -- of the first context, all three; a prefill and six questions
      asked = 0
      local t = go()
      assert.equal(2 * 7, asked)
      assert.equal(before, files.read(folder .. "/r.jsonl"):sub(1, #before))
      asked = 0
      local again = go()
      assert.equal(0, asked)
      assert.equal(t:csv(), again:csv())
      assert.equal(t.questions:csv(), again.questions:csv())
      local fresh = lsa.eval{model = model, policies = {"full", "native_topk", "none"}, budgets = {0.2}, tasks = {task_of(folder, "single", {contexts = 3})}}
      for i, row in ipairs(fresh.rows) do
        for _, name in ipairs {"accuracy", "evidence", "coverage", "fetched_bytes"} do assert.equal(row[name], t.rows[i][name], name) end
      end
      assert.equal(2, t.rows[4].n)
    end)
  end)

  it("asks n questions of each task, and tells tasks of one name apart", function()
    with_file(bench_items(), function(path, folder)
      local t = lsa.eval{model = model, n = 3, policies = {"recency", "none"}, against = "none", budgets = {0.2}, tasks = {task_of(folder, "single", {contexts = 3}),
        task_of(folder, "single", {tokens = 2500, contexts = 3}), {"longbench", path = path, n = 1}}}
      assert.same({3, 3, 3, 3, 1, 1}, t:column "n")
      assert.same({"single", "single", "single", "single", "longbench", "longbench"}, t:column "task")
      assert.same({1500, 1500, 2500, 2500}, t:column "tokens")
      assert.same({"task", "tokens", "select"}, {unpack(t.columns, 1, 3)})
      local recall = lsa.plot.recall({rows = {unpack(t.rows, 1, 4)}, axes = t.axes})
      assert.same({2, "none"}, {#recall.panels, recall.panels[2].title})
      assert.same({"1500", "2500"}, recall.panels[1].x.names)
      local items = lsa.eval{model = model, policies = {"none"}, budgets = {0}, tasks = {task_of(folder, "single", {items = 1, generate = false}),
        task_of(folder, "single", {items = 2, generate = false})}}
      assert.same({"single items=1", "single items=2"}, items:column "task")
      refused("lsa.eval: tasks has single 1500 twice", lsa.eval, {model = model, policies = {"none"}, tasks = {task_of(folder, "single"), task_of(folder, "single")}})
      assert.is_true(t.rows[1].change ~= nil and t.rows[2].change == nil)
    end)
  end)

  it("says what is wrong", function()
    model = model or lsa.model(lsa.root .. "/experiments/models/needle")
    refused("lsa.eval: model is nil", lsa.eval, {tasks = {"single"}, policies = {"full"}})
    refused('lsa.eval: task is "sudoku"; it can be: single', lsa.eval, {model = model, tasks = {"sudoku"}, policies = {"full"}})
    refused("lsa.eval: tasks is nil", lsa.eval, {model = model, policies = {"full"}})
    refused("lsa.eval: policies is nil", lsa.eval, {model = model, tasks = {"single"}})
    refused("lsa.eval: n is 0", lsa.eval, {model = model, tasks = {"single"}, policies = {"full"}, n = 0})
    refused("no policy 'fifo'", lsa.eval, {model = model, tasks = {"single"}, policies = {"fifo"}})
    refused("lsa.eval: no option 'policy'", lsa.eval, {model = model, tasks = {"single"}, policy = {"full"}})
  end)
end)
