-- The tasks that policies are judged by: parts that are disjoint, contexts as they say they are, what is measured.
local lsa = require "lsa"
local asked = require "lsa.tasks.asked"
local documents = require "lsa.tasks.documents"
local files = require "file_support"
local items = require "lsa.tasks.items"
local paired = require "lsa.tasks.paired"
local parts = require "lsa.tasks.parts"
local rng = require "lsa.cycle.rng"

local hay = ("The grass is green. The river is near the stone. The clouds are white above. Here we go. There and back. "):rep(60)
local words = {"river", "stone", "cloud", "apple", "night", "paper"}

local function with_hay(f)
  files.with_folder(function(folder)
    files.write(folder .. "/hay.txt", hay)
    f(folder .. "/hay.txt")
  end)
end

describe("parts of texts and words", function()
  it("are disjoint, and all that there is", function()
    files.with_folder(function(folder)
      local lines = {}
      for i = 1, 4000 do lines[i] = ("line %04d aardvark"):format(i) end -- one held-out word; the lines tell places apart
      local whole = table.concat(lines, "\n")
      files.write(folder .. "/text", whole)
      local train, validation, test = parts.open(folder .. "/text", "train"), parts.open(folder .. "/text", "validation"),
        parts.open(folder .. "/text", "test")
      assert.equal(whole, validation.text .. test.text .. train.text)
      assert.equal(math.floor(#whole / 10), #validation.text + #test.text)
      assert.is_true(math.abs(#validation.text - #test.text) <= 1)
      local part_of = {}
      for _, part in ipairs {validation, test, {name = "train", words = parts.open("bible", "train").words}} do
        assert.is_true(#part.words > 1000)
        for _, word in ipairs(part.words) do
          assert.is_nil(part_of[word], word)
          part_of[word] = part.name
        end
      end
      assert.error_matches(function() parts.open(folder .. "/text", "exam") end, 'part is "exam"; it can be: train, validation, test')
      files.write(folder .. "/text", "short")
      assert.error_matches(function() parts.open(folder .. "/text", "test") end, "5 bytes are too few")
    end)
  end)
end)

describe("contexts", function()
  it("of every kind have the length asked for, and the evidence where they say", function()
    for seed = 1, 5 do
      local draw, list = items.draw(rng.new(seed), words), {}
      for i, kind in ipairs(items.names) do
        list[i] = items.kinds[kind](draw)
        list[i].kind = kind
      end
      local made = items.context(rng.new(seed), hay, 4000, list)
      assert.equal(4000, #made.text)
      assert.equal(13, #made.questions)
      local n = 0
      for _, item in ipairs(list) do
        for _, one in ipairs(item.questions) do
          n = n + 1
          local made_of = made.questions[n]
          assert.equal(" " .. one.question, made_of.question)
          assert.equal(#one.of, #made_of.spans)
          local from = -1
          for i, place in ipairs(one.of) do
            local span = made_of.spans[i]
            assert.equal(item.statements[place], made.text:sub(span[1] + 1, span[2]))
            if item.ordered then assert.is_true(span[1] > from) end
            from = span[1]
          end
          -- All that the answer says stands in its evidence.
          local evidence = table.concat(item.statements, "\n")
          for word in one.answer:gmatch "[%w-]+" do assert.is_truthy(evidence:find(word, 1, true)) end
        end
      end
    end
  end)

  it("are the same again from the same seed, and an error where they do not fit", function()
    local function one(seed, length) return items.context(rng.new(seed), hay, length, {items.kinds.traced(items.draw(rng.new(seed), words))}) end
    assert.equal(one(3, 900).text, one(3, 900).text)
    assert.not_equal(one(3, 900).text, one(4, 900).text)
    assert.error_matches(function() one(3, 60) end, "tasks: 4 statements do not fit in 60 bytes")
    assert.error_matches(function() items.draw(rng.new(1), {"one"}) end, "1 words are too few")
  end)

  it("of traced variables lead from place to place", function()
    local item = items.kinds.traced(items.draw(rng.new(2), words))
    local at, value = item.questions[1].question:match "Trace VAR (%u+): ", item.questions[1].answer
    for name in value:gmatch "[%w]+" do
      local found = false
      for _, statement in ipairs(item.statements) do
        found = found or statement:find("VAR " .. at .. " = VAR " .. name .. ".", 1, true) or statement:find("VAR " .. at .. " = " .. name .. ".", 1, true)
      end
      assert.is_truthy(found)
      at = name
    end
    assert.matches("^%d%d%d%d%d$", at)
  end)
end)

describe("training documents", function()
  it("have the length asked for, and every answer behind its statements, in no phrasing of tests", function()
    for seed = 1, 3 do
      local text, answers = documents.document(rng.new(seed), {text = hay, words = {"river", "stone", "cloud", "apple", "night", "paper", "lamp", "door"}}, 6000, 0.5)
      assert.equal(6000, #text)
      assert.is_nil(text:find("magic number", 1, true))
      local traced = 0
      for name, answer in text:gmatch "Trace VAR (%u+): ([%u%d =]+)%." do
        traced = traced + 1
        local first = answer:match "^(%u+)"
        local stated = text:find("VAR " .. name .. " = VAR " .. first .. ".", 1, true)
        assert.is_true(stated ~= nil and stated < text:find("Trace VAR " .. name, 1, true))
      end
      assert.is_true(traced > 0)
      local _, traces = text:gsub("Trace VAR %u+: %u+ = %u+ = %u+ = %d+%.", "")
      local found = 0
      for _, answer in ipairs(answers) do
        if text:sub(answer[1] + 1, answer[2]):find "^%u+ = %u+ = %u+ = %d+$" then found = found + 1 end
      end
      assert.equal(traces, found)
    end
  end)
end)

describe("a task", function()
  local model = lsa.model(lsa.root .. "/experiments/models/needle")

  it("of any kind tells accuracy and evidence, and evidence alone without answers", function()
    with_hay(function(text)
      for _, kind in ipairs {"single", "multivalue", "traced"} do
        local task = lsa.tasks[kind]{model = model, tokens = 1500, items = 2, text = text}
        local full = task:run{select = "full"}
        assert.same({2, 1, 1}, {full.n, full.evidence, full.coverage})
        assert.is_true(full.accuracy_low <= full.accuracy and full.accuracy <= full.accuracy_high)
        local some = task:run{select = "native_topk", budget = 0.2}
        assert.is_true(some.evidence > 0 and some.evidence < 1 and some.cycles >= 1)
        assert.equal(2, #task.questions)
        assert.equal(kind, task.questions[1].kind)
        local none = task:run{select = "none", budget = 0}
        assert.equal(0, none.evidence)
        local silent = lsa.tasks[kind]{model = model, tokens = 1500, items = 2, text = text, generate = false}
        local row = silent:run{select = "full"}
        assert.same({1}, {row.evidence, row.accuracy})
        local uncovered = lsa.tasks[kind]{model = model, tokens = 1500, items = 2, text = text, coverage = false}
        row = uncovered:run{select = "full"}
        assert.same({full.accuracy, 1}, {row.accuracy, row.evidence, row.coverage})
        uncovered:close()
        task:close()
        silent:close()
      end
    end)
  end)

  it("of several kinds tells each, from one prefill a context", function()
    with_hay(function(text)
      local prefills = 0
      local task = lsa.tasks.mixed{model = model, tokens = 2000, kinds = {"single", "multikey"}, items = 1, contexts = 2, text = text,
        generate = false, step = function() prefills = prefills + 1 end}
      local row = task:run{select = "full"}
      assert.same({10, 1, 1}, {row.n, row.single_evidence, row.multikey_evidence})
      assert.equal(12, prefills)                   -- two prefills and ten questions
      task:run{select = "recency", budget = 0.1}
      assert.equal(22, prefills)
      task:close()
      local other = lsa.tasks.mixed{model = model, tokens = 2000, kinds = {"single", "phrasings"}, items = 1, text = text, phrasings = {3}}
      local context, questions = other:context(1, 1)
      assert.matches("^ The pass key of ", questions[1].question)
      assert.matches("^ The pass key of ", questions[2].question)
      assert.matches("The pass key of %S+ is %d+%.", questions[1].context)
      assert.equal(2000, (context:position()))
      other:close()
      assert.error_matches(function() lsa.tasks.mixed{model = model, kinds = {"single"}, phrasings = {9}} end, "phrasing is 9; a whole number from 1 to 8")
      local _, problem = pcall(function() return lsa.tasks.needle{model = model, tokns = 9} end)
      assert.matches("^tests/tasks_spec.lua:%d+: needle.task: no option 'tokns'", problem)
      assert.error_matches(function() lsa.tasks.single{model = model, coverage = 1} end, "coverage")
      assert.error_matches(function() lsa.tasks.mixed{model = model, kinds = {"sudoku"}} end, 'mixed.task: kind is "sudoku"; it can be: single')
      assert.error_matches(function() lsa.tasks.single{model = model, part = "exam", text = text} end, 'part is "exam"')
      assert.error_matches(function() lsa.tasks.single{tokens = 5} end, "a model %(lsa.model%) is wanted")
    end)
  end)

  it("asks the same questions under several ways, and pairs them", function()
    with_hay(function(text)
      local task = asked.kinds(model, {tokens = 1500, items = 1, text = text, seed = 7}, {"single", "words"}, "test")
      local ways = {{label = "full", fork = {select = "full"}}, {label = "none", fork = {select = "none", budget = 0}}}
      local rows = {paired.ask(task, 1, ways), paired.ask(task, 2, ways)}
      assert.same({"single", "words"}, rows[1].kinds)
      local full, none = paired.joined(rows, "full"), paired.joined(rows, "none")
      assert.same({4, 4, 1, 0}, {full.n, none.n, full.evidence, none.evidence})
      assert.equal(2, paired.joined(rows, "full", "words").n)
      assert.equal(100, full.resident_pct)
      local difference, width = paired.against(none, full)
      local _, right = full.right:gsub("1", "")
      local _, kept = none.right:gsub("1", "")
      assert.is_true(math.abs(difference - 25 * (kept - right)) < 1e-9)
      assert.is_true(width > 0)
      local again = asked.kinds(model, {tokens = 1500, items = 1, text = text, seed = 7}, {"single", "words"}, "test")
      local other = paired.ask(again, 1, ways)
      for _, way in ipairs(ways) do rows[1][way.label].transfer_stall_ms, other[way.label].transfer_stall_ms = nil, nil end
      assert.same(rows[1], other)
    end)
  end)
end)
