-- Owns where real text comes from: the user's file, or a book that a Debian package installs. No text is part of this tree.
local raise = require "lsa.raise"

local M = {}

-- The King James Bible by the bible-kjv package: running text, without chapter heads and verse numbers.
function M.bible()
  local pipe = io.popen("bible -l99999 gen1:1-rev22:21 2>/dev/null", "r")
  local raw = pipe and pipe:read "*a" or ""
  if pipe then pipe:close() end
  local verses = {}
  for verse in raw:gmatch "\n%s+%d+ ([^\n]+)" do verses[#verses + 1] = verse end
  if #verses == 0 then
    raise "no text: the program 'bible' (Debian package bible-kjv) is missing; install it, or give a file"
  end
  return table.concat(verses, "\n") .. "\n"
end

-- A file's text.
function M.file(path)
  local file, why = io.open(path, "rb")
  if not file then raise("no text: " .. why) end
  local text = file:read "*a"
  file:close()
  return text
end

-- "bible", or a file's path.
function M.open(name)
  return name == "bible" and M.bible() or M.file(name)
end

return M
