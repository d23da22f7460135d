-- Owns lsa.tasks: what policies are judged by.
--
--   task = lsa.tasks.single{model = model, tokens = 16384}
--   row = task:run{select = "lsa_topk", budget = 0.1}           task:close()
--
-- lsa.tasks.names() lists them: the kinds of lua/lsa/tasks/items.lua, asked as lua/lsa/tasks/asked.lua does, and those that have a file of
-- their own: common_words, frequent_words, mixed, needle, stream, and of the user's files passages, longbench, longmemeval.
local options = require "lsa.options"
local models = require "lsa.model"
local registry = require "lsa.registry"

local M = {}

local counted = {"common_words", "frequent_words"} -- of lua/lsa/tasks/counted.lua
local files = {"mixed", "needle", "stream", "passages", "longbench", "longmemeval"}

function M.names()
  local out = {unpack(require("lsa.tasks.items").names)}
  for _, names in ipairs {counted, files} do
    for _, name in ipairs(names) do out[#out + 1] = name end
  end
  return out
end

-- A task by its name; opt as the task takes them, without the model.
function M.open(name, model, opt)
  options.one_of(name, M.names(), "lsa.tasks: task")
  if require("lsa.tasks.items").kinds[name] then return require("lsa.tasks.asked").kinds(model, opt, {name}, name .. ".task") end
  if name == counted[1] or name == counted[2] then return require "lsa.tasks.counted".task(model, opt, name) end
  return require("lsa.tasks." .. name).task(model, opt)
end

-- A text that changes when what tasks are made of does: results are kept by it.
function M.digest()
  local content, out = require "lsa.content", {}
  for i, name in ipairs {"asked.lua", "counted.lua", "file.lua", "items.lua", "longbench.lua", "longmemeval.lua", "mixed.lua", "needle.lua", "parts.lua", "passages.lua", "phrasings.lua", "stream.lua",
    "held_words.txt"} do
    out[i] = content.file(("%s/tasks/%s"):format(registry.home, name))
  end
  return content.digest(table.concat(out, " "))
end

for _, name in ipairs(M.names()) do
  M[name] = function(given)
    local own = options.copy(given or {})
    local model = models.check(own.model, ("lsa.tasks.%s: model"):format(name))
    own.model = nil
    return M.open(name, model, own)
  end
end

local about = {
  single = "a number behind a key", multikey = "keys that share halves", seven_digits = "longer numbers", words = "words for numbers",
  phrasings = "said in other ways", other_words = "keys of held-out words", multivalue = "all values of a key", multiquery = "several keys at once",
  multiquery_bare = "several keys, named alone", traced = "a variable's way back, each hop at another place", mixed = "all of these in one context",
  needle = "needles at spread depths, answers by single forks", stream = "one long session in which the topic moves",
  common_words = "the words that come most often in a list", frequent_words = "the words that come most often in a coded text",
  passages = "questions about passages, from a file", longbench = "LongBench v2, from its published file", longmemeval = "LongMemEval, from its published files",
}

local function described()
  local rows = {}
  for i, name in ipairs(M.names()) do rows[i] = {name = name, what = about[name]} end
  return require "lsa.prompt.results_table".new(rows, {"name", "what"})
end

require("lsa.arity").functions(M, "lsa.tasks.")

return setmetatable(M, {
  __tostring = function() return (tostring(described()):gsub("\n$", "")) end,
  __mime = function() return described():__mime() end,
})
