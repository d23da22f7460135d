-- The pages of the manual: their examples run, their tables are of the options that there are, their links lead somewhere.
local lsa = require "lsa"
local files = require "file_support"
local pages = require "lsa.prompt.pages"
local topics = require "lsa.prompt.topics"
local unistd = require "posix.unistd"

-- Calls fn in an empty folder.
local function elsewhere(fn)
  files.with_folder(function(folder)
    local here = unistd.getcwd()
    assert(unistd.chdir(folder))
    local ok, problem = pcall(fn, folder)
    assert(unistd.chdir(here))
    if not ok then error(problem, 0) end
  end)
end

-- What an example says that it prints.
local function promised(text)
  local out = {}
  for line in text:gmatch "[^\n]+" do
    local value = line:match "%-%->%s?(.*)$"
    if value then out[#out + 1] = value end
  end
  return out
end

describe("the pages' examples", function()
  for _, name in ipairs(pages.names()) do
    it("of " .. name .. " run, and print what they say", function()
      elsewhere(function()
        local printed, report = {}, require "lsa.report"
        local written = report.write
        finally(function() report.write = written end)
        function report.write() end
        local function say(...)
          local texts = {}
          for i = 1, select("#", ...) do texts[i] = tostring((select(i, ...))) end
          printed[#printed + 1] = table.concat(texts, "\t")
        end
        local quiet = setmetatable({write = function() end}, {__index = io})
        local environment = setmetatable({lsa = lsa, print = say, io = quiet}, {__index = _G})
        for _, example in ipairs(pages.examples(name)) do
          local chunk = assert(loadstring(("\n"):rep(example.line - 1) .. example.text, "@lua/docs/" .. name .. ".md"))
          local before = #printed
          setfenv(chunk, environment)()
          local at = before
          for _, value in ipairs(promised(example.text)) do
            repeat at = at + 1 until not printed[at] or printed[at] == value
            assert.is_truthy(printed[at], ("%s:%d: %q was not printed, but %s"):format(name, example.line, value, table.concat(printed, " | ", before + 1)))
          end
        end
      end)
    end)
  end
end)

describe("the pages' tables", function()
  for _, topic in ipairs(topics.list) do
    if topic.defaults then
      it("have the options of " .. topic.name .. " with their defaults", function()
        local own, shared, defaults = pages.options(topic.name), pages.options "model:session", topic.defaults()
        assert.is_function(topic.f())
        for option in pairs(own) do
          assert.is_true(defaults[option] ~= nil, option .. " is no option")
        end
        for option, default in pairs(defaults) do
          local row = own[option] or topic.shares and shared[option]
          assert.is_truthy(row, option .. " is in no table")
          local by_test = option == "device" and rawget(_G, "LSA_TEST_DEVICE") -- `lsa test --device cuda` is another default
          if own[option] and not topic.shares and not by_test and default and default ~= true and type(default) ~= "table" then
            local shown = row.default:gsub("`", "")
            assert.equal(tostring(tonumber(shown) or shown), tostring(tonumber(default) or default), option)
          end
        end
      end)
    end
  end
end)

describe("help", function()
  it("has a line on everything that the library offers", function()
    local shown = tostring(lsa)
    for name in pairs(getmetatable(lsa).__names) do
      assert.matches("%f[^\n%z]lsa." .. name .. " +%S", shown .. "\n")
    end
    for _, kind in ipairs {"policies", "evictions", "schedules", "samplers"} do
      for _, rule in ipairs(lsa[kind]:list()) do
        assert.is_true(#rule.about > 10, rule.name)
        for _, option in ipairs(rule:option_list()) do assert.is_string(option.text) end
      end
    end
  end)

  it("finds calls, methods, rules, kernels, options and pages by name", function()
    local help = require "lsa.prompt.help"
    for name, words in pairs {
      ["lsa.batch"] = "requests at once", ["session:fork"] = "shares what is cached", recency = "sliding window", rmsnorm = "kernels/rmsnorm.h",
      granularity = "unit of residency", softmax = "x:softmax%(%)", tensors = "A tensor is a view", ["lsa.accounting.bytes"] = "cached bytes by kind",
      event = "A cycle soon after an event", slru = "Segmented LRU", hard = "negatives", ["lsa.policies"] = "quest_pages", ["lsa.tasks.stream"] = "in which questions about different places", ["lsa.plot"] = "# Pictures",
      cycle = "Owns what a policy is given", ["cycle.scores"] = "Memory Indexer's ensemble", ["cycle.keep"] = "sink and tail",
      matmul = "x:matmul%(y%)", ["lsa.tasks.single"] = "lsa.tasks.single%(given%)",
    } do
      local facts = help.find(name, _G)
      assert.is_table(facts, name)
      assert.matches(words, help.text(facts), 1, false, name)
    end
    assert.is_nil(help.find("no_such_thing", _G))
    assert.matches("return cycle.newest", help.source(help.find("recency", _G)))
  end)
end)

describe("models of the tree", function()
  it("have short names, which a folder of that name does not take over in silence", function()
    local models = require "lsa.model"
    assert.equal("needle", models.names()[1])
    elsewhere(function()
      assert.equal(lsa.root .. "/experiments/models/needle", models.directory "needle")
      files.make_folder "needle"
      assert.error_matches(function() models.directory "needle" end, '"needle" is a model of the tree, and there is a needle here; "./needle" would be')
      assert.equal("./needle", models.directory "./needle")
    end)
  end)
end)

describe("the pages' links", function()
  it("lead to files", function()
    for _, name in ipairs(pages.names()) do
      for to in pages.text(name):gmatch "%]%(([%w_./]+)%)" do
        assert.is_truthy(io.open(pages.folder .. "/" .. to), ("%s.md links to %s"):format(name, to))
      end
      assert.is_truthy(files.read(lsa.root .. "/lua/README.md"):find("docs/" .. name .. ".md", 1, true), name .. " is not in lua/README.md")
    end
  end)

  it("name pages that topics have", function()
    for _, topic in ipairs(topics.list) do assert.is_truthy(pages.text(topic.page), topic.page) end
  end)
end)
