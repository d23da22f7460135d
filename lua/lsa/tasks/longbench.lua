-- Owns the LongBench v2 task (Y. Bai et al., "LongBench v2", 2024): questions of four choices about long texts. path: the published
-- data.json, objects of _id, domain, difficulty, length, question, choice_A .. choice_D, answer, context (or a line of JSON each).
--
--   task = lsa.tasks.longbench{model = model, path = "data.json", tokens = 120000, n = 100}
--
-- An item's kind, of which rows tell the accuracy, is its length: short, medium or long. The model's answer is the likeliest of the four
-- letters after "The correct answer is (", one step under the policy; the benchmark's own script lets the model write 128 tokens and looks
-- for these words. The file does not say where an answer stands, so there is no evidence to tell.
local file = require "lsa.tasks.file"
local raise = require "lsa.raise"

local M = {}

local LETTERS = {"A", "B", "C", "D"}

local function parse(item, where)
  local function get(name) return file.text(item, name, where) end
  local choices = {}
  for i, letter in ipairs(LETTERS) do choices[i] = ("(%s) %s"):format(letter, get("choice_" .. letter)) end
  local answer = get "answer"
  if not answer:find "^[ABCD]$" then raise("%s: answer is %q; one of A, B, C, D is wanted", where, answer) end
  return {text = "Please read the following text and answer the question below.\n\n<text>\n" .. get "context" .. "\n</text>\n",
    question = "\nWhat is the correct answer to this question: " .. get "question" .. "\nChoices:\n" .. table.concat(choices, "\n") ..
      '\n\nFormat your response as follows: "The correct answer is (insert answer here)".\n', lead = "The correct answer is (",
    answer = answer, choices = LETTERS, kind = get "length", id = get "_id"}
end

function M.task(model, opt) return file.task(model, opt, "longbench.task", parse) end

return M
