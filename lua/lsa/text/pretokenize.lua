-- Owns how a tokenizer.json's "pre_tokenizer" and "normalizer" cut and change text before byte-pair encoding.
--
--   split = pretokenize.splitter(description)      split(list of texts, first) -> list of texts, none empty; `first`: the
--                                                  list is one text, the beginning of all; nil stands for no description
--   change = pretokenize.normalizer(description)   change(text) -> text
--   pretokenize.replaced(text, old, new)           text with every `old` as `new`
--   pretokenize.uses_bytes(description)            whether a ByteLevel part is in it: its pieces are bytes, not characters
-- Kinds that are not built are errors that name them.
local json = require "cjson"
local byte_characters = require "lsa.text.byte_characters"
local raise = require "lsa.raise"
local regex = require "lsa.text.regex"
local utf8 = require "lsa.text.utf8"

local M = {}

local function unsupported(what, kind) raise("%s %s is not supported", what, tostring(kind)) end

-- An optional part of a description: JSON's null is nil.
local function given(value)
  if value ~= json.null then return value end
end

-- A pattern's next match in text from `at`: first and last byte.
local function finder(pattern)
  local plain = given(pattern.String)
  if plain then return function(text, at) return text:find(plain, at, true) end end
  if not given(pattern.Regex) then unsupported("a pattern of", next(pattern)) end
  local re = regex.compile(pattern.Regex)
  return function(text, at) return re:find(text, at) end
end

-- Calls piece(from, to, matched) for every part of text, matched or between matches. An empty match is a part, too, but not
-- where the match before it ends: there the search goes on a character later.
local function parts(find, text, piece)
  local at, search, last = 1, 1, nil
  while search <= #text + 1 do
    local from, to = find(text, search)
    if not from then break end
    if to < from and from == last then
      search = utf8.following(text, search)
    else
      if from > at then piece(at, from - 1, false) end
      piece(from, to, true)
      at, search, last = to + 1, to + 1, to + 1
    end
  end
  if at <= #text then piece(at, #text, false) end
end

-- What becomes of matched and unmatched parts, by the name of the behaviour: each gets text, a list of {from, to, matched},
-- and appends to out.
local behaviours = {}

function behaviours.Isolated(text, list, out)
  for _, p in ipairs(list) do out[#out + 1] = text:sub(p[1], p[2]) end
end

function behaviours.Removed(text, list, out)
  for _, p in ipairs(list) do
    if not p[3] then out[#out + 1] = text:sub(p[1], p[2]) end
  end
end

-- Joins part i to the one before where join(before, part) says so.
local function joined(join)
  return function(text, list, out)
    local from
    for i, p in ipairs(list) do
      from = from or p[1]
      if not (list[i + 1] and join(p, list[i + 1])) then
        out[#out + 1] = text:sub(from, p[2])
        from = nil
      end
    end
  end
end

behaviours.Contiguous = joined(function(a, b) return a[3] == b[3] end)
behaviours.MergedWithPrevious = joined(function(a, b) return b[3] and not a[3] end)
behaviours.MergedWithNext = joined(function(a, b) return a[3] and not b[3] end)

-- A splitter that cuts each text at the matches of `find`.
local function cutter(find, behaviour, invert)
  return function(texts)
    local out = {}
    for _, text in ipairs(texts) do
      local list, pieces = {}, {}
      parts(find, text, function(from, to, matched) list[#list + 1] = {from, to, matched ~= invert} end)
      behaviour(text, list, pieces)
      for _, piece in ipairs(pieces) do
        if piece ~= "" then out[#out + 1] = piece end
      end
    end
    return out
  end
end

local GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]

local splitters = {}

function splitters.Split(d)
  local behaviour = behaviours[d.behavior] or unsupported("Split's behavior", d.behavior)
  return cutter(finder(d.pattern), behaviour, d.invert == true)
end

function splitters.Digits(d)
  return cutter(finder {Regex = "\\p{N}"}, d.individual_digits and behaviours.Isolated or behaviours.Contiguous, false)
end

function splitters.ByteLevel(d)
  local cut = d.use_regex ~= false and cutter(finder {Regex = GPT2}, behaviours.Isolated, false)
  return function(texts)
    if d.add_prefix_space then
      for i, text in ipairs(texts) do
        if text:sub(1, 1) ~= " " then texts[i] = " " .. text end
      end
    end
    return cut and cut(texts) or texts
  end
end

-- The classes \w and \s of this kind are Unicode's own, wider than those of a Split.
function splitters.Whitespace()
  local word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}"
  local pattern = ("[%s]+|[^%s\\p{White_Space}]+"):format(word, word)
  return cutter(finder {Regex = pattern}, behaviours.Removed, true)
end

function splitters.WhitespaceSplit()
  return cutter(finder {Regex = "\\p{White_Space}"}, behaviours.Removed, false)
end

-- text with each `old` in it as `new`, neither of them a pattern.
function M.replaced(text, old, new)
  return (text:gsub(old:gsub("%p", "%%%0"), (new:gsub("%%", "%%%%"))))
end

-- When a Metaspace puts its mark before a text; older files have add_prefix_space instead.
local function mark_before(d)
  local scheme = given(d.prepend_scheme) or d.add_prefix_space == false and "never" or "always"
  if scheme == "always" then return function() return true end end
  if scheme == "never" then return function() return false end end
  if scheme == "first" then return function(first) return first end end
  unsupported("Metaspace's prepend_scheme", scheme)
end

function splitters.Metaspace(d)
  local mark, before = d.replacement, mark_before(d)
  local cut = d.split ~= false and cutter(finder {String = mark}, behaviours.MergedWithNext, false)
  return function(texts, first)
    for i, text in ipairs(texts) do
      text = M.replaced(text, " ", mark)
      if before(first and i == 1) and text:sub(1, #mark) ~= mark then text = mark .. text end
      texts[i] = text
    end
    return cut and cut(texts) or texts
  end
end

local function each(texts, change)
  for i, text in ipairs(texts) do texts[i] = change(text) end
end

-- What comes after a ByteLevel sees the characters that stand for bytes.
function splitters.Sequence(d)
  local list, as_characters = {}, nil
  for i, part in ipairs(d.pretokenizers) do
    if i > 1 and part.prepend_scheme == "first" then unsupported("after another pre-tokenizer, prepend_scheme", "first") end
    if as_characters and M.uses_bytes(part) then unsupported("after ByteLevel, pre-tokenizer", part.type) end
    if M.uses_bytes(part) then as_characters = i + 1 end
    list[i] = M.splitter(part)
  end
  return function(texts, first)
    for i, split in ipairs(list) do
      if i == as_characters then each(texts, byte_characters.of) end
      texts = split(texts, first and i == 1)
    end
    if as_characters and as_characters <= #list then each(texts, byte_characters.bytes) end
    return texts
  end
end

function M.splitter(description)
  description = given(description)
  if not description then return function(texts) return texts end end
  local make = splitters[description.type] or unsupported("pre-tokenizer", description.type)
  return make(description)
end

function M.uses_bytes(description)
  description = given(description)
  if not description then return false end
  for _, part in ipairs(given(description.pretokenizers) or {}) do
    if M.uses_bytes(part) then return true end
  end
  return description.type == "ByteLevel"
end

local normalizers = {}

function normalizers.Prepend(d)
  return function(text) return text ~= "" and d.prepend .. text or text end
end

function normalizers.Replace(d)
  local find = finder(d.pattern)
  return function(text)
    local out = {}
    parts(find, text, function(from, to, matched) out[#out + 1] = matched and d.content or text:sub(from, to) end)
    return table.concat(out)
  end
end

function normalizers.Sequence(d)
  local list = {}
  for i, part in ipairs(d.normalizers) do list[i] = M.normalizer(part) end
  return function(text)
    for _, change in ipairs(list) do text = change(text) end
    return text
  end
end

function M.normalizer(description)
  description = given(description)
  if not description then return function(text) return text end end
  local make = normalizers[description.type] or unsupported("normalizer", description.type)
  return make(description)
end

return M
