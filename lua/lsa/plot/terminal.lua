-- Owns pictures on terminals: whether the one that is standard output shows them, and how they are sent.
--
--   terminal.kind()            "kitty", "sixel" or nil. The terminal is asked, once; it answers in time or shows none
--   terminal.show(kind, bytes)
local poll = require "posix.poll"
local termio = require "posix.termio"
local unistd = require "posix.unistd"

local M = {}

local PATIENCE_MS = 300

-- Kitty's protocol has a question for it; the terminal's attributes, which all terminals tell, have a 4 where sixel is known. The answer
-- to the second comes last.
local QUESTION = "\27_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\27\\\27[c"

local function answer()
  local before = termio.tcgetattr(0)
  local raw = termio.tcgetattr(0)
  raw.lflag = require("bit").band(raw.lflag, require("bit").bnot(termio.ICANON + termio.ECHO))
  raw.cc[termio.VMIN], raw.cc[termio.VTIME] = 0, 0
  termio.tcsetattr(0, termio.TCSANOW, raw)
  local ok, text = pcall(function()
    unistd.write(1, QUESTION)
    local got = ""
    while not got:find "\27%[%?[%d;]*c" and poll.rpoll(0, PATIENCE_MS) == 1 do
      local part = unistd.read(0, 1024)
      if not part or part == "" then break end
      got = got .. part
    end
    return got
  end)
  termio.tcsetattr(0, termio.TCSANOW, before)
  if not ok then error(text, 0) end
  return text
end

function M.kind()
  if M.known ~= nil then return M.known or nil end
  if unistd.isatty(0) ~= 1 or unistd.isatty(1) ~= 1 then return nil end
  if poll.rpoll(0, 0) == 1 then return nil end -- keys that were typed ahead would be taken for the answer
  io.stdout:flush()
  local text = answer()
  local attributes = ";" .. (text:match "\27%[%?([%d;]*)c" or "") .. ";"
  M.known = text:find "\27_Gi=31;OK" and "kitty" or attributes:find(";4;", 1, true) and "sixel" or false
  return M.known or nil
end

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

function M.base64(bytes)
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local n = a * 65536 + (b or 0) * 256 + (c or 0)
    for j = 0, 3 do
      local digit = math.floor(n / 64 ^ (3 - j)) % 64
      out[#out + 1] = (j == 2 and not b or j == 3 and not c) and "=" or ALPHABET:sub(digit + 1, digit + 1)
    end
  end
  return table.concat(out)
end

local PIECE = 4096 -- that kitty takes at once

function M.show(kind, bytes)
  if kind == "kitty" then
    local text = M.base64(bytes)
    for at = 1, #text, PIECE do
      io.stdout:write("\27_G", at == 1 and "f=100,a=T," or "", "m=", at + PIECE <= #text and 1 or 0, ";", text:sub(at, at + PIECE - 1), "\27\\")
    end
  else
    io.stdout:write(bytes)
  end
  io.stdout:write "\n"
  io.stdout:flush()
end

return M
