-- Owns documents that Memory Indexers are trained on: items of all kinds in running text (lua/lsa/tasks/items.lua), each asked and
-- answered somewhere behind its statements, so that many steps need chunks from far back.
local items = require "lsa.tasks.items"

local M = {}

-- Tests state and ask most things by the first phrasing, and others by the second: training sees neither.
M.phrasings = {3, 4, 5, 6, 7, 8}

-- random: a generator (lua/lsa/cycle/rng.lua). part: as lua/lsa/tasks/parts.lua has it. A document of exactly `length` bytes, about `share` of
-- which are statements, questions and answers, and where answers are: {{from, to}, …}, bytes from 0. kinds: of items, all where not given.
function M.document(random, part, length, share, kinds)
  local draw, events, size = items.draw(random, part.words, M.phrasings, M.phrasings), {}, 0
  kinds = kinds or items.names
  local function add(at, text, from)
    events[#events + 1] = {at = at, number = #events, text = " " .. text .. " ", from = from}
    size = size + #text + 2
  end
  while size < share * length do
    local item = items.kinds[kinds[1 + random(#kinds)]](draw)
    local depths, last = {}, 0
    for i = 1, #item.statements do depths[i] = 0.95 * random() end
    if item.ordered then table.sort(depths) end
    for i, statement in ipairs(item.statements) do
      add(depths[i], statement)
      last = math.max(last, depths[i])
    end
    for _, asked in ipairs(item.questions) do add(last + (1 - last) * random(), asked.question .. asked.answer .. ".", #asked.question) end
  end
  table.sort(events, function(a, b) return a.at < b.at or a.at == b.at and a.number < b.number end)
  local room, text = math.max(0, length - size), part.text
  while #text < room do text = text .. text end
  local from, out, last, written, answers = random(#text - room + 1), {}, 0, 0, {}
  for _, event in ipairs(events) do
    local cut = math.floor(math.min(event.at, 1) * room)
    out[#out + 1] = text:sub(from + last + 1, from + cut)
    out[#out + 1] = event.text
    written = written + cut - last + #event.text
    if event.from then answers[#answers + 1] = {written - #event.text + 1 + event.from, written - 2} end
    last = cut
  end
  out[#out + 1] = text:sub(from + last + 1, from + room)
  return table.concat(out):sub(1, length), answers
end

return M
