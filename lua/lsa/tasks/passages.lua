-- Owns questions about passages that the user has, by RULER's QA (C.-P. Hsieh et al., "RULER", 2024): each is asked of a context in which its
-- passage stands somewhere among the other items'. path: JSON, a list of objects, or one on each line, of passage, question and answer.
--
--   task = lsa.tasks.passages{model = model, path = "qa.json", tokens = 32768, n = 50}
--
-- Evidence is the passage. Right is a line that has the answer's words in their order (file.says). An item's kind is its kind, where it
-- has one.
local file = require "lsa.tasks.file"
local raise = require "lsa.raise"

local M = {}

local HEAD, MOST = "Passages:\n", 64

local function parse(item, where, random, task)
  local own, answer = file.text(item, "passage", where), file.text(item, "answer", where)
  local one = {question = "\nQuestion: " .. file.text(item, "question", where), lead = "Answer:", answer = answer, id = item.id, kind = item.kind, most = MOST,
    score = function(said) return file.says(said, answer) end}
  if not random then return one end
  -- Others in a drawn order as long as there is room, each text once; the passage at a drawn place among them.
  local function told(passage) return "\n" .. passage .. "\n" end
  local room = task.tokens - #task.model:tokens(HEAD .. told(own))
  if room < 0 then raise("%s: passage has more than %d tokens", where, task.tokens) end
  local others, seen, left = {}, {[own] = true}, {}
  for i in ipairs(task.items) do left[i] = i end
  while #left > 0 do
    local place = table.remove(left, 1 + random(#left))
    local passage = file.text(task.items[place].item, "passage", task.items[place].where)
    local size = #task.model:tokens(told(passage))
    if not seen[passage] and size <= room then
      others[#others + 1], room, seen[passage] = told(passage), room - size, true
    end
  end
  local at = random(#others + 1)
  local before = HEAD .. table.concat(others, "", 1, at)
  one.text = before .. told(own) .. table.concat(others, "", at + 1)
  one.spans = {{#before + 1, #before + 1 + #own}}
  return one
end

function M.task(model, opt) return file.task(model, opt, "passages.task", parse) end

return M
