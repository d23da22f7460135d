-- Owns the tasks whose answers are counted all over the context, by RULER's common and frequent words (C.-P. Hsieh et al., "RULER", 2024):
--
--   task = lsa.tasks.common_words{model = model, tokens = 16384}       a numbered list of words, ten of which come ten times as often
--   task = lsa.tasks.frequent_words{model = model, tokens = 16384}     made-up words, the k-th of which comes 1 / k^2 as often as the first
--
-- Evidence are all places of the words that are asked for. Right is a line that has all of them. The shipped models cannot do these; of
-- them, as of others, evidence is told without answers (generate = false). contexts and the rest: lua/lsa/tasks/asked.lua.
local asked = require "lsa.tasks.asked"
local raise = require "lsa.raise"

local M = {}

local COMMON, OFTEN, SELDOM = 10, 30, 3 -- words asked for, times that they come, and that others do
local SHORT, TIMES = 4096, 3            -- up to so many tokens they come a third as often
local FREQUENT, CODED, LETTERS = 3, 100, 6
local MOST = 160                        -- tokens of an answer

local function shuffle(random, list)
  for i = #list, 2, -1 do
    local j = 1 + random(i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

-- Whether a line names all of these words.
local function scorer(words)
  return function(said)
    local there = {}
    for word in said:lower():gmatch "%a+" do there[word] = true end
    for _, word in ipairs(words) do
      if not there[word] then return false end
    end
    return true
  end
end

-- Entries of a list as text, until it has `tokens` of the model's; spans: where those of `wanted` are. form(i, word) -> an entry.
local function told(head, list, wanted, form)
  local parts, size, spans = {head}, #head, {}
  for i, word in ipairs(list) do
    local entry = form(i, word)
    local at = entry:find(word, 1, true)
    if wanted[word] then spans[#spans + 1] = {size + at - 1, size + at - 1 + #word} end
    parts[#parts + 1], size = entry, size + #entry
  end
  return table.concat(parts), spans
end

local function question_of(text, spans, question, words)
  table.sort(words)
  return {text = text, questions = {{question = question, answer = table.concat(words, ", "), context = text, spans = spans, score = scorer(words), most = MOST}}}
end

local function as_set(words)
  local set = {}
  for _, word in ipairs(words) do set[word] = true end
  return set
end

-- The largest n whose text is no longer than the task's tokens, from what make(n) gives.
local function fitting(task, least, most, make, what)
  local function fits(n) return #task.model:tokens((make(n))) <= task.tokens end
  if not fits(least) then raise("%s: %d tokens are too few", what, task.tokens) end
  local low, high = least, most
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if fits(middle) then low = middle else high = middle - 1 end
  end
  return low
end

local function common(random, task)
  local divide = task.tokens <= SHORT and TIMES or 1
  local words = shuffle(random, {unpack(task.words)})
  local wanted = {unpack(words, 1, COMMON)}
  local single = #words
  for i = single + 1, COMMON + math.ceil(task.tokens * divide / SELDOM / 10) do -- pairs, where there are not enough
    words[i] = words[COMMON + 1 + random(single - COMMON)] .. "-" .. words[COMMON + 1 + random(single - COMMON)]
  end
  local set = as_set(wanted)
  local function list_of(others)
    local list = {}
    for i = 1, math.min(#words, COMMON + others) do
      for _ = 1, (i <= COMMON and OFTEN or SELDOM) / divide do list[#list + 1] = words[i] end
    end
    return list
  end
  local head = "A numbered list of words. Some of them come more often than the others.\n"
  local function entry(i, word) return ("%d. %s\n"):format(i, word) end
  local n = fitting(task, 1, #words - COMMON, function(others) return told(head, list_of(others), set, entry) end, "common_words")
  local text, spans = told(head, shuffle(random, list_of(n)), set, entry)
  return question_of(text, spans, ("\nWhich %d words come most often in the list?\nAnswer: the words that come most often are"):format(COMMON), wanted)
end

local function made_up(random)
  local out = {}
  for i = 1, LETTERS do out[i] = string.char(97 + random(26)) end
  return table.concat(out)
end

local function frequent(random, task)
  local words, taken = {}, {}
  while #words < CODED do
    local word = made_up(random)
    if not taken[word] then words[#words + 1], taken[word] = word, true end
  end
  local wanted = {unpack(words, 1, FREQUENT)}
  local set = as_set(wanted)
  local function list_of(first)
    local list = {}
    for k = 1, CODED do
      for _ = 1, math.floor(first / k ^ 2) do list[#list + 1] = words[k] end
    end
    return list
  end
  local head = "A text in code. Some of its words come more often than the others.\n"
  local function entry(_, word) return word .. " " end
  local n = fitting(task, FREQUENT ^ 2, math.max(FREQUENT ^ 2, task.tokens), function(first) return told(head, list_of(first), set, entry) end, "frequent_words")
  local text, spans = told(head, shuffle(random, list_of(n)), set, entry)
  return question_of(text, spans, ("\nWhich %d words come most often in the text?\nAnswer: the words that come most often are"):format(FREQUENT), wanted)
end

M.kinds = {common_words = common, frequent_words = frequent}

function M.task(model, opt, kind) return asked.task(model, opt, {}, kind .. ".task", M.kinds[kind]) end

return M
