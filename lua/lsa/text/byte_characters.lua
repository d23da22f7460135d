-- Owns how ByteLevel writes bytes as characters: a byte that is printable as itself, the others as those from U+0100 on.
--
--   byte_characters.of(text)        the bytes of text, written so
--   byte_characters.bytes(token)    the bytes that characters stand for; nil where one stands for none
local M = {}

local function utf8(code)
  if code < 128 then return string.char(code) end
  return string.char(192 + math.floor(code / 64), 128 + code % 64)
end

local byte_of, character_of = {}, {}
do
  local following = 256
  for code = 0, 255 do
    local byte, character = string.char(code), utf8(code)
    if not (code >= 33 and code <= 126 or code >= 161 and code <= 172 or code >= 174) then
      character = utf8(following)
      following = following + 1
    end
    byte_of[character], character_of[byte] = byte, character
  end
end

function M.of(text) return (text:gsub(".", character_of)) end

function M.bytes(token)
  local out = {}
  for character in token:gmatch "[%z\1-\127\194-\244][\128-\191]*" do
    out[#out + 1] = byte_of[character]
    if not byte_of[character] then return nil end
  end
  return table.concat(out)
end

return M
