-- Owns tasks of published benchmarks, read from the files that the user has: one context and one question an item, in the file's order.
--
--   tokens     the longest context; of a longer one the middle is left out, as these benchmarks do it, and its question counts as `cut`.
--              The model's most positions, less 1,024, where it is not given
--   wrap       {before, after}: texts around context and question, as a chat model wants them
--   only       kinds of items to ask, a list; all where it is not given
--
-- n, session, step, generate: as lua/lsa/tasks/asked.lua has them.
local cjson = require "cjson"
local asked = require "lsa.tasks.asked"
local content = require "lsa.content"
local options = require "lsa.options"
local raise = require "lsa.raise"
local texts = require "lsa.texts"

local M = {}

local defaults = {path = false, tokens = false, wrap = false, only = false, contexts = false, seed = 1}

local APART = 1024 -- tokens that question and answer may take

-- Items of a file: a list of objects in JSON, or a line each.
local function read(path, what)
  local raw = texts.file(path)
  local ok, list = pcall(cjson.decode, raw)
  if not ok or type(list) ~= "table" or list[1] == nil then
    list = {}
    for line in raw:gmatch "[^\r\n]+" do
      local good, item = pcall(cjson.decode, line)
      if not good or type(item) ~= "table" or item[1] ~= nil then raise("%s: %s is neither a list of objects in JSON nor has one on each line", what, path) end
      list[#list + 1] = next(item) and item
    end
  end
  if #list == 0 then raise("%s: %s has no items", what, path) end
  return list, content.digest(raw)
end

-- A text of an item, which has to be there.
function M.text(item, name, where)
  local value = item[name]
  if type(value) == "number" then return ("%.14g"):format(value) end
  if type(value) ~= "string" then raise("%s: %s is %s; a text is wanted", where, name, options.shown(value)) end
  return value
end

-- The text with its middle left out, so that it is `most` tokens, and where what was behind the gap is now: a function of bytes' places
-- that gives nil for those in the gap. cut: whether anything was left out.
local function shortened(model, text, most)
  local tokens = model:tokens(text)
  if #tokens <= most then return text, function(at) return at end, false end
  local half = math.floor(most / 2)
  local head, tail = model:text {unpack(tokens, 1, half)}, {}
  for i = #tokens - (most - half) + 1, #tokens do tail[#tail + 1] = tokens[i] end
  tail = model:text(tail)
  local gap = #text - #head - #tail
  return head .. tail, function(at)
    if at <= #head then return at end
    return at >= #head + gap and at - gap or nil
  end, true
end

-- Words in a row, each with a space before and after; without case, articles and punctuation.
function M.words(text)
  local out = {}
  for word in text:lower():gsub("'", ""):gmatch "[%w\128-\255]+" do
    if word ~= "a" and word ~= "an" and word ~= "the" then out[#out + 1] = word end
  end
  return " " .. table.concat(out, " ") .. " "
end

-- Whether a text has the answer's words in their order.
function M.says(text, answer) return M.words(text):find(M.words(answer), 1, true) ~= nil end

-- parse(item, where, random, task), the latter two where an item is asked -> {text =, question =, lead = how the answer begins, answer =, kind =, id =, spans =, choices =, score =, most =}
function M.task(model, opt, what, parse)
  local self = asked.task(model, opt, defaults, what, function(random, task, i)
    local item = task.items[i]
    local one = parse(item.item, item.where, random, task)
    local before, after = task.wrap and task.wrap[1] or "", task.wrap and task.wrap[2] or "\n"
    local text, moved, cut = shortened(model, before .. one.text, task.tokens)
    local spans = {}
    for _, span in ipairs(one.spans or {}) do
      local from, to = moved(span[1] + #before), moved(span[2] + #before)
      if from and to then spans[#spans + 1] = {from, to} end
    end
    one.question, one.context, one.spans, one.cut = one.question .. after .. one.lead, text, spans, cut or nil
    return {text = text, questions = {one}}
  end)
  options.path(self.path, what .. ": path")
  self.tokens = self.tokens or math.max(1, tonumber(model.config.max_positions) - APART)
  if self.wrap then
    options.list(self.wrap, what .. ": wrap")
    for i = 1, 2 do
      if type(self.wrap[i]) ~= "string" then raise("%s: wrap[%d] is %s; a text is wanted", what, i, options.shown(self.wrap[i])) end
    end
  end
  local only = {}
  for _, kind in ipairs(self.only and options.list(self.only, what .. ": only") or {}) do only[kind] = true end
  local list, digest = read(self.path, what)
  self.items, self.text, self.each = {}, digest, 1
  for i, item in ipairs(list) do
    local where = ("%s: %s: item %d"):format(what, self.path, i)
    if not self.only or only[parse(item, where).kind] then self.items[#self.items + 1] = {item = item, where = where} end
  end
  if #self.items == 0 then raise("%s: %s has no item of the kinds %s", what, self.path, table.concat(self.only or {}, ", ")) end
  self.contexts = math.min(self.n or math.huge, self.contexts or math.huge, #self.items)
  return self
end

return M
