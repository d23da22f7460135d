-- Owns what is trained on, what options are chosen by, and what is reported: three disjoint parts of texts and words. Every script and
-- task takes its haystacks and words from here.
--
--   part = parts.open("bible", "test")     part.text, part.words (sorted), part.name
--
-- Of a text, the first 200,000 bytes, at most a tenth, are held out: their first half is "validation", their second "test", all
-- that follows is "train". Of words, those in held_words.txt are held out – experiments/models/ruler, too, was trained without them
-- as keys and values – every other one, from the first, is "validation", the rest "test"; "train" are the words of 4 to 8 letters
-- in the text's training part that are not held out.
local options = require "lsa.options"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local texts = require "lsa.texts"

local M = {}

M.names = {"train", "validation", "test"}

local HELD = 200000

-- Lower-case words of 4 to 8 letters in a text, each once, sorted.
function M.words(text)
  local seen, words = {}, {}
  for word in text:gmatch "%f[%a]%l+%f[%A]" do
    if #word >= 4 and #word <= 8 and not seen[word] then
      seen[word] = true
      words[#words + 1] = word
    end
  end
  table.sort(words)
  return words
end

local function held_words()
  local all = M.words(texts.file(registry.home .. "/tasks/held_words.txt"))
  local out, is_held = {validation = {}, test = {}}, {}
  for i, word in ipairs(all) do
    is_held[word] = true
    table.insert(i % 2 == 1 and out.validation or out.test, word)
  end
  return out, is_held
end

-- name: as lsa.texts has it, "bible" or a file.
function M.open(name, part)
  options.one_of(part, M.names, "parts: part")
  local whole, held, is_held = texts.open(name), held_words()
  local cut = math.min(HELD, math.floor(#whole / 10))
  local half = math.floor(cut / 2)
  if half == 0 then raise("%s: %d bytes are too few for three parts", name, #whole) end
  if part == "validation" then return {name = part, text = whole:sub(1, half), words = held.validation} end
  if part == "test" then return {name = part, text = whole:sub(half + 1, cut), words = held.test} end
  local text, words = whole:sub(cut + 1), {}
  for _, word in ipairs(M.words(text)) do
    if not is_held[word] then words[#words + 1] = word end
  end
  return {name = part, text = text, words = words}
end

return M
