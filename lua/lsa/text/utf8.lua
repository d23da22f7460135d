-- Owns where the characters of a string begin and end, and which of its bytes are no UTF-8.
--
--   utf8.invalid(text, at)     the place of the first byte from `at` that is not UTF-8; nil where there is none
--   utf8.following(text, at)   the place of the character after the one at `at`
--   utf8.before(text, at)      the place of the character that ends before `at`
local M = {}

-- The bytes of a character that starts with `first`, and the least and the greatest of its second byte; nil where none does.
local function shape(first)
  if first < 0x80 then return 1 end
  if first < 0xC2 or first > 0xF4 then return nil end
  if first < 0xE0 then return 2, 0x80, 0xBF end
  if first < 0xF0 then return 3, first == 0xE0 and 0xA0 or 0x80, first == 0xED and 0x9F or 0xBF end
  return 4, first == 0xF0 and 0x90 or 0x80, first == 0xF4 and 0x8F or 0xBF
end

local function continues(byte, least, greatest) return byte ~= nil and byte >= least and byte <= greatest end

function M.invalid(text, at)
  at = text:find("[\128-\255]", at)
  while at and at <= #text do
    local bytes, least, greatest = shape(text:byte(at))
    if not bytes then return at end
    if bytes > 1 and not continues(text:byte(at + 1), least, greatest) then return at end
    if bytes > 2 and not continues(text:byte(at + 2), 0x80, 0xBF) then return at end
    if bytes > 3 and not continues(text:byte(at + 3), 0x80, 0xBF) then return at end
    at = at + bytes
  end
  return nil
end

function M.following(text, at) return text:find("[^\128-\191]", at + 1) or math.max(at, #text) + 1 end

function M.before(text, at)
  repeat at = at - 1 until at <= 1 or not continues(text:byte(at), 0x80, 0xBF)
  return at
end

return M
