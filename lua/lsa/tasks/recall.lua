-- Owns documents that Memory Indexers are trained on: statements in real text, most of them made again later in the same
-- words, so that many steps need chunks from far back. The phrasings are not those of the needle task.
local M = {}

M.phrasings = {"The pass key of %s is %s. ", "My %s is %s. ", "Remember that %s costs %s. ", "The code for %s was %s. ",
  "%s = %s; ", "%s: %s\n"}

local function pick(random, list) return list[1 + random(#list)] end

local function key(random, words)
  return random() < 0.4 and pick(random, words) or pick(random, words) .. "-" .. pick(random, words)
end

local function value(random, words)
  if random() < 0.2 then return pick(random, words) end
  local out = {}
  for i = 1, 4 + random(4) do out[i] = string.char(48 + random(10)) end
  return table.concat(out)
end

-- random: a generator (lua/lsa/cycle/rng.lua). A document of exactly `length` bytes. Running text is cut from `text`, keys are made of
-- `words`. share: of the bytes, about, that is running text.
function M.document(random, text, words, length, share)
  local parts, size, said, known, running = {}, 0, {}, {}, 0
  local function add(part)
    parts[#parts + 1] = part
    size = size + #part
  end
  while size < length do
    if running <= share * size then
      local n = 40 + random(400)
      local from = 1 + random(math.max(1, #text - n))
      add(text:sub(from, from + n - 1) .. " ")
      running = running + n
    elseif #said > 0 and random() < 0.6 then
      add(pick(random, said))
    else
      local name = key(random, words)
      if not known[name] then
        known[name] = true
        said[#said + 1] = pick(random, M.phrasings):format(name, value(random, words))
        add(said[#said])
      end
    end
  end
  return table.concat(parts):sub(1, length)
end

return M
