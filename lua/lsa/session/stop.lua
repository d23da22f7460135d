-- Owns what ends a generation: token ids, and texts that are looked for in what was generated, over the borders of tokens.
--
--   stop = stops.new(model, 10)  stops.new(model, "\n")  stops.new(model, {10, "END"})      nil where nothing is given
--   stops.text(model, stop, ids)   the text of what was generated, without the stop that its last token completes; nil where that
--                             completes none
--   stop.c    an lsa_stop (core/session/run.h), which remembers the last bytes generated: one object a generation
local ffi = require "ffi"
local options = require "lsa.options"
local raise = require "lsa.raise"

local M = {}

-- The bytes of all tokens, one behind the other, and where each ends; made once a model.
local function token_bytes(model)
  if model.token_bytes then return model.token_bytes end
  local vocab = tonumber(model.config.vocab)
  local parts, ends, at, longest = {}, ffi.new("int64_t[?]", vocab), 0, 0
  for id = 0, vocab - 1 do
    local text = model:text {id}
    parts[id + 1] = text
    at, longest = at + #text, math.max(longest, #text)
    ends[id] = at
  end
  model.token_bytes = {bytes = table.concat(parts), ends = ends, longest = longest}
  return model.token_bytes
end

function M.new(model, given)
  if not given then return nil end
  local list = type(given) == "table" and given or {given}
  local ids, texts, ends, at, longest = {}, {}, {}, 0, 1
  for i = 1, #list do
    local item = list[i]
    if type(item) == "string" then
      if item == "" then raise "stop: a text is empty, and would stop at once" end
      texts[#texts + 1], at, longest = item, at + #item, math.max(longest, #item)
      ends[#texts] = at
    else
      options.whole(item, 0, "stop")
      ids[#ids + 1] = item
    end
  end
  local self = {list = list, c = ffi.new "lsa_stop", ids = ffi.new("int32_t[?]", #ids, ids), texts = table.concat(texts),
    ends = ffi.new("int64_t[?]", #ends, ends)}
  self.c.ids, self.c.id_count, self.c.text_count = self.ids, #ids, #texts
  if #texts > 0 then
    local tokens = token_bytes(model)
    self.tokens, self.tail = tokens, ffi.new("uint8_t[?]", longest + tokens.longest)
    self.c.texts, self.c.text_ends = ffi.cast("const uint8_t *", self.texts), self.ends
    self.c.token_bytes, self.c.token_ends = ffi.cast("const uint8_t *", tokens.bytes), tokens.ends
    self.c.tail, self.c.tail_room = self.tail, longest + tokens.longest
  end
  return self
end

function M.text(model, stop, ids)
  local last, text = ids[#ids], nil
  for _, item in ipairs(stop and last and stop.list or {}) do
    if item == last then return model:text {unpack(ids, 1, #ids - 1)} end
  end
  local first
  for _, item in ipairs(stop and last and stop.list or {}) do
    if type(item) == "string" then -- one that ends among the last token's bytes; what is behind it in that token goes, too
      text = text or model:text(ids)
      local at = text:find(item, math.max(1, #text - #model:text {last} - #item + 2), true)
      first = at and math.min(at, first or at) or first
    end
  end
  return first and text:sub(1, first - 1)
end

return M
