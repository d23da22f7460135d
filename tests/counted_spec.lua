-- The tasks whose answers are counted all over the context, and those about the user's passages.
local lsa = require "lsa"
local cjson = require "cjson"
local files = require "file_support"

local model = lsa.model(lsa.root .. "/experiments/models/needle")

-- How often each word of a text comes, after its first line.
local function counts(text, pattern)
  local out = {}
  for word in text:match "\n(.*)":gmatch(pattern) do out[word] = (out[word] or 0) + 1 end
  return out
end

local function task_of(name, options)
  options.model = model
  return lsa.tasks[name](options)
end

describe("common and frequent words", function()
  for _, case in ipairs {{"common_words", 3000, 10, 10, 1}, {"common_words", 9000, 10, 30, 3}, {"common_words", 60000, 10, 30, 3}} do
    it(("has words that come ten times as often, %d tokens"):format(case[2]), function()
      local task = task_of(case[1], {tokens = case[2]})
      local made = task:questions_of(1, 1)
      local size = #model:tokens(made.text)
      assert.is_true(size <= case[2] and size > 0.97 * case[2], size)
      local question, often = made.questions[1], {}
      for word, n in pairs(counts(made.text, "%d+%. ([%a-]+)\n")) do
        if n == case[4] then often[#often + 1] = word else assert.equal(0, n % case[5], word) end
      end
      table.sort(often)
      assert.equal(table.concat(often, ", "), question.answer)
      assert.equal(case[3], #often)
    end)
  end

  it("has made-up words by the square of their rank", function()
    local made = task_of("frequent_words", {tokens = 4000}):questions_of(1, 1)
    local by_count = {}
    for word, n in pairs(counts(made.text, "%a+")) do by_count[#by_count + 1] = {word, n} end
    table.sort(by_count, function(a, b) return a[2] > b[2] end)
    local first = by_count[1][2]
    for k = 1, 6 do assert.equal(math.floor(first / k ^ 2), by_count[k][2]) end
    local three = {by_count[1][1], by_count[2][1], by_count[3][1]}
    table.sort(three)
    assert.equal(table.concat(three, ", "), made.questions[1].answer)
    assert.is_true(#model:tokens(made.text) <= 4000 and #model:tokens(made.text) > 3900)
  end)

  it("has all their places as evidence, which is told without answers, and scores a line", function()
    for _, name in ipairs {"common_words", "frequent_words"} do
      local task = task_of(name, {tokens = 2500, generate = false, contexts = 2})
      local made = task:questions_of(1, 1)
      local question, wanted, n = made.questions[1], {}, 0
      for word in question.answer:gmatch "%a+" do wanted[word] = true end
      for _, span in ipairs(question.spans) do assert.is_true(wanted[made.text:sub(span[1] + 1, span[2])]) end
      for word, count in pairs(counts(made.text, "%f[%a-][%a-]+")) do n = n + (wanted[word] and count or 0) end
      assert.equal(n, #question.spans)
      local full, some = task:run{select = "full"}, task:run{select = "recency", budget = 0.2}
      assert.same({1, 2}, {full.evidence, full.n})
      assert.is_true(some.evidence > 0.05 and some.evidence < 0.6)
      assert.is_true(question.score(" " .. question.answer:upper() .. "."))
      assert.is_false(question.score((question.answer:gsub("^%a+, ", ""))))
      task:close()
    end
    assert.error_matches(function() task_of("common_words", {tokens = 100}):questions_of(1, 1) end, "common_words: 100 tokens are too few")
  end)

  it("has the chunks of many spans that it has of a few, whatever a token is", function()
    local asked = require "lsa.tasks.asked"
    local threes = {config = {csa_rate = 4}} -- a token is up to three bytes
    function threes.tokens(_, text)
      local out = {}
      for piece in text:gmatch "..?.?" do out[#out + 1] = piece end
      return out
    end
    function threes.text(_, tokens) return table.concat(tokens) end
    local context, spans, expected, given = ("abcdefg"):rep(400), {}, {}, {}
    for i = 1, 100 do spans[i] = {23 * i, 23 * i + i % 9 + 1} end
    for _, span in ipairs(spans) do
      for _, chunk in ipairs(asked.chunks(threes, {context = context, spans = {span}})) do expected[chunk] = true end
    end
    for _, chunk in ipairs(asked.chunks(threes, {context = context, spans = spans})) do given[chunk] = true end
    assert.same(expected, given)
    assert.is_truthy(next(given))
  end)

  it("is another for another seed and context, and the same for the same", function()
    local task = task_of("frequent_words", {tokens = 1500})
    assert.equal(task:questions_of(3, 1).text, task_of("frequent_words", {tokens = 1500}):questions_of(3, 1).text)
    assert.are_not.equal(task:questions_of(3, 1).text, task:questions_of(3, 2).text)
    assert.are_not.equal(task:questions_of(3, 1).text, task:questions_of(4, 1).text)
  end)
end)

describe("questions about passages", function()
  local items = {}
  for i = 1, 12 do
    items[i] = {id = "p" .. i, kind = i % 2 == 0 and "even" or "odd", passage = ("Town %d lies by the river %s. "):format(i, ("x"):rep(i)) .. ("It is old. "):rep(10),
      question = ("By which river lies town %d?"):format(i), answer = "the river " .. ("x"):rep(i)}
  end
  items[13] = items[2] -- another question about the same passage

  local function with_file(f)
    files.with_folder(function(folder)
      files.write(folder .. "/qa.json", cjson.encode(items))
      f(folder .. "/qa.json", folder)
    end)
  end

  it("stand somewhere among the others' passages, each once, as many as there is room for", function()
    with_file(function(path)
      local task, places = task_of("passages", {path = path, tokens = 900, coverage = false}), {}
      for i, item in ipairs(items) do
        local made = task:questions_of(1, i)
        local size, span, n = #model:tokens(made.text), made.questions[1].spans[1], 0
        assert.is_true(size <= 900 and size > 700, size)
        assert.equal(item.passage, made.text:sub(span[1] + 1, span[2]))
        for _, other in ipairs(items) do
          local _, there = made.text:gsub(other.passage, "")
          assert.is_true(there <= 1)
          n = n + there
        end
        assert.is_true(n >= 5)
        places[span[1]] = true
        assert.equal("\nQuestion: " .. item.question .. "\nAnswer:", made.questions[1].question)
      end
      local distinct = 0
      for _ in pairs(places) do distinct = distinct + 1 end
      assert.is_true(distinct >= 3)
      local score = task:questions_of(1, 3).questions[1].score
      assert.same({true, false}, {score " It lies by the River xxx.", score " river xx"})
      local row = task_of("passages", {path = path, tokens = 900, n = 3, only = {"odd"}}):run{select = "full"}
      assert.same({3, 1}, {row.n, row.evidence})
    end)
  end)

  it("names what is wrong with an item", function()
    with_file(function(path, folder)
      assert.error_matches(function() task_of("passages", {path = path, tokens = 50}):questions_of(1, 2) end, "item 2: passage has more than 50 tokens")
      files.write(folder .. "/bad.json", cjson.encode {{passage = "a", question = 1}})
      assert.error_matches(function() task_of("passages", {path = folder .. "/bad.json"}):questions_of(1, 1) end, "item 1: answer is nil; a text is wanted")
    end)
  end)
end)
