-- Owns the needle-in-a-haystack task: statements hidden in real text, each asked again at the end, as RULER's
-- "niah" tasks have it (C.-P. Hsieh et al., "RULER", 2024).
local asked = require "lsa.tasks.asked"
local raise = require "lsa.raise"

local M = {}

M.statement = "The magic number for %s is: %s."
M.question = "The magic number for %s is: "

M.words = require("lsa.tasks.parts").words
M.pose, M.answer, M.ask = asked.pose, asked.answer, asked.ask

local function digits(random, n)
  local out = {}
  for i = 1, n do out[i] = string.char(48 + random(10)) end
  return table.concat(out)
end

-- random: a generator (lua/lsa/cycle/rng.lua). A context of exactly `length` bytes with `n` needles at depths spread evenly with some chance, and what to ask.
--   text: where the haystack is cut from (repeated when too short)     words: for two-word keys
-- Returns {text =, needles = {{key =, value =, question =, answer =, statement =, at = its byte offset, spans = {{from, to}}: bytes of the
-- statement without the spaces around it, context = the text}, …}}.
-- Each question is to be appended to the text; the answer is what follows.
function M.build(random, text, words, length, n, value_digits)
  if #words * #words < 2 * n then raise("needle: %d words are too few for the keys of %d needles", #words, n) end
  local needles, taken, total = {}, {}, 0
  for i = 1, n do
    local key
    repeat key = words[1 + random(#words)] .. "-" .. words[1 + random(#words)] until not taken[key]
    taken[key] = true
    local value = digits(random, value_digits or 5)
    local statement = " " .. M.statement:format(key, value) .. " "
    total = total + #statement
    needles[i] = {key = key, value = value, statement = statement, question = " " .. M.question:format(key),
      answer = value}
  end
  local room = length - total
  if room < n then raise("needle: %d needles do not fit in %d bytes", n, length) end
  while #text < room do text = text .. text end
  local from = random(#text - room + 1)
  local hay, parts, last = text:sub(from + 1, from + room), {}, 0
  local at = 0
  for i, needle in ipairs(needles) do
    local cut = math.floor(room * (i - 1 + random()) / n)
    parts[#parts + 1] = hay:sub(last + 1, cut)
    at = at + cut - last
    needle.at, needle.spans = at, {{at + 1, at + #needle.statement - 1}}
    parts[#parts + 1] = needle.statement
    at = at + #needle.statement
    last = cut
  end
  parts[#parts + 1] = hay:sub(last + 1)
  local whole = table.concat(parts)
  for _, needle in ipairs(needles) do needle.context = whole end
  return {text = whole, needles = needles}
end

-- The chunks whose entries hold a part of a needle's statement, in a session whose context begins with the haystack: from .. to - 1.
function M.chunks(model, needle)
  local ids = asked.chunks(model, needle)
  return ids[1], ids[#ids] + 1
end

local function make(random, task)
  local made = M.build(random, task.text, task.words, task.tokens, task.needles)
  return {text = made.text, questions = made.needles}
end

-- A task as lua/lsa/tasks/asked.lua has them.   needles: of each context
function M.task(model, opt)
  return asked.task(model, opt, {needles = 4}, "needle.task", make)
end

return M
