-- Owns the kinds of items that contexts hide: statements, what is asked about them, and which of them the answer needs.
--
--   item = items.kinds.single(draw)     {statements = {…}, ordered = whether they stay in this order,
--                                        questions = {{question =, answer =, of = {places of the statements that it needs}}, …}}
--   draw = items.draw(random, words)    what keys and values come from; no key comes twice
--
-- By RULER (C.-P. Hsieh et al., "RULER", 2024), in the phrasings that the models know. What they cannot do is not here: a variable's
-- value without the way to it, the key of a value, all holders of a value. RULER's other kinds are counted.lua's and passages.lua's.
local phrasings = require "lsa.tasks.phrasings"
local raise = require "lsa.raise"

local M = {kinds = {}}

local Draw = {}
Draw.__index = Draw

local TRIES = 1000

-- plain: places (lua/lsa/tasks/phrasings.lua) of the phrasings that most kinds take, the first where it is not given; others: of those
-- that kinds with several take, the six that can stand in running text where it is not given.
function M.draw(random, words, plain, others)
  if #words < 4 then raise("tasks: %d words are too few for keys", #words) end
  return setmetatable({random = random, words = words, taken = {}, of_plain = plain or {1}, of_others = others or {1, 2, 3, 4, 5, 6}}, Draw)
end

function Draw:word() return self.words[1 + self.random(#self.words)] end

-- What `make` gives, once in a context.
function Draw:fresh(make)
  for _ = 1, TRIES do
    local name = make()
    if not self.taken[name] then
      self.taken[name] = true
      return name
    end
  end
  raise("tasks: %d words are too few for so many keys", #self.words)
end

function Draw:key()
  return self:fresh(function() return self:word() .. "-" .. self:word() end)
end

function Draw:letters(alphabet, n)
  local out = {}
  for i = 1, n do
    local at = 1 + self.random(#alphabet)
    out[i] = alphabet:sub(at, at)
  end
  return table.concat(out)
end

function Draw:digits(n) return self:letters("0123456789", n) end

function Draw:variable()
  return self:fresh(function() return self:letters("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 5) end)
end

function Draw:phrasing() return phrasings[self.of_others[1 + self.random(#self.of_others)]] end
function Draw:plain() return phrasings[self.of_plain[1 + self.random(#self.of_plain)]] end

-- One statement, asked with `asked`: the statement's own words where it is not given.
local function one(family, key, value, asked)
  local values = {k = key, v = value}
  return {statements = {phrasings.fill(family.statement, values)},
    questions = {{question = phrasings.question(asked or family.statement, values), answer = value, of = {1}}}}
end

function M.kinds.single(draw) return one(draw:plain(), draw:key(), draw:digits(5)) end
function M.kinds.seven_digits(draw) return one(draw:plain(), draw:key(), draw:digits(7)) end
function M.kinds.words(draw) return one(draw:plain(), draw:key(), draw:word()) end
function M.kinds.phrasings(draw) return one(draw:phrasing(), draw:key(), draw:digits(5)) end

-- Asked in other words than it was stated in.
function M.kinds.other_words(draw)
  local family = draw:phrasing()
  return one(family, draw:key(), draw:digits(5), family.asked[1 + draw.random(#family.asked)])
end

-- Four keys of which each shares a half with others, all asked.
function M.kinds.multikey(draw)
  local keys
  repeat
    local a, b, c, d = draw:word(), draw:word(), draw:word(), draw:word()
    keys = {a .. "-" .. b, a .. "-" .. c, d .. "-" .. b, b .. "-" .. a}
    local seen, good = {}, true
    for _, key in ipairs(keys) do
      good = good and not seen[key] and not draw.taken[key]
      seen[key] = true
    end
  until good
  local out = {statements = {}, questions = {}}
  for i, key in ipairs(keys) do
    draw.taken[key] = true
    local item = one(draw:plain(), key, draw:digits(5))
    out.statements[i] = item.statements[1]
    out.questions[i] = item.questions[1]
    out.questions[i].of = {i}
  end
  return out
end

-- A key with three values, all asked in the order in which they were stated.
function M.kinds.multivalue(draw)
  local family, key, values, out = draw:phrasing(), draw:key(), {}, {statements = {}, ordered = true}
  for i = 1, 3 do
    values[i] = draw:digits(5)
    out.statements[i] = phrasings.fill(family.statement, {k = key, v = values[i]})
  end
  out.questions = {{question = phrasings.question(family.all, {k = key}), answer = table.concat(values, ", "), of = {1, 2, 3}}}
  return out
end

-- Three keys asked in one question. named: the answer says which value is whose.
local function multiquery(draw, named)
  local family, out, pairs_of = draw:phrasing(), {statements = {}}, {}
  for i = 1, 3 do
    pairs_of[i] = {draw:key(), draw:digits(5)}
    out.statements[i] = phrasings.fill(family.statement, {k = pairs_of[i][1], v = pairs_of[i][2]})
  end
  draw.random:shuffle(pairs_of)
  local keys, answer = {}, {}
  for i, pair in ipairs(pairs_of) do
    keys[i], answer[i] = pair[1], named and pair[1] .. ": " .. pair[2] or pair[2]
  end
  keys = table.concat(keys, ", ")
  out.questions = {{question = named and "What are the values of " .. keys .. "? " or "The values of " .. keys .. " are: ",
    answer = table.concat(answer, named and "; " or ", "), of = {1, 2, 3}}}
  return out
end

function M.kinds.multiquery(draw) return multiquery(draw, true) end
function M.kinds.multiquery_bare(draw) return multiquery(draw, false) end

-- Four variables, each but the first set to the one before; asked for the way back to the value, so that each hop needs another
-- place of the context.
function M.kinds.traced(draw)
  local names, value = {}, draw:digits(5)
  for i = 1, 4 do names[i] = draw:variable() end
  local out = {statements = {("VAR %s = %s."):format(names[1], value)}, ordered = true}
  for i = 2, 4 do out.statements[i] = ("VAR %s = VAR %s."):format(names[i], names[i - 1]) end
  out.questions = {{question = ("Trace VAR %s: "):format(names[4]), of = {1, 2, 3, 4},
    answer = ("%s = %s = %s = %s"):format(names[3], names[2], names[1], value)}}
  return out
end

-- All kinds, in the order of tables.
M.names = {"single", "multikey", "seven_digits", "words", "phrasings", "other_words", "multivalue", "multiquery", "multiquery_bare",
  "traced"}

-- A context of exactly `length` bytes: text with the items' statements at depths spread evenly with some chance, and what to ask.
-- Returns {text =, questions = {{question =, answer =, kind =, spans = {{from, to}, …}: bytes, from 0, of the statements that it needs,
-- context = the text}, …}}. Each question is to be appended to the text; the answer is what follows.
function M.context(random, text, length, list)
  local laid, total = {}, 0
  for _, item in ipairs(list) do total = total + #item.statements end
  local slots, size = {}, 0
  for i = 1, total do slots[i] = i end
  random:shuffle(slots)
  local next_slot = 1
  for _, item in ipairs(list) do
    local own = {unpack(slots, next_slot, next_slot + #item.statements - 1)}
    next_slot = next_slot + #item.statements
    if item.ordered then table.sort(own) end
    item.places = {}
    for i, statement in ipairs(item.statements) do
      local place = {text = " " .. statement .. " "}
      size = size + #place.text
      laid[own[i]], item.places[i] = place, place
    end
  end
  local room = length - size
  if room < total then raise("tasks: %d statements do not fit in %d bytes", total, length) end
  while #text < room do text = text .. text end
  local from = random(#text - room + 1)
  local hay, parts, last, at = text:sub(from + 1, from + room), {}, 0, 0
  for i, place in ipairs(laid) do
    local cut = math.floor(room * (i - 1 + random()) / total)
    parts[#parts + 1] = hay:sub(last + 1, cut)
    parts[#parts + 1] = place.text
    at = at + cut - last
    place.from, place.to = at + 1, at + #place.text - 1
    at, last = at + #place.text, cut
  end
  parts[#parts + 1] = hay:sub(last + 1)
  local whole, questions = table.concat(parts), {}
  for _, item in ipairs(list) do
    for _, asked in ipairs(item.questions) do
      local spans = {}
      for i, place in ipairs(asked.of) do spans[i] = {item.places[place].from, item.places[place].to} end
      questions[#questions + 1] = {question = " " .. asked.question, answer = asked.answer, kind = item.kind, spans = spans,
        context = whole}
    end
  end
  return {text = whole, questions = questions}
end

return M
