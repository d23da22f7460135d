-- Owns what is only for people: colours and the pager, both on a terminal that knows them, and nowhere else.
--
--   screen.colours()        whether standard output shows colours
--   screen.paint(kind)      a function that colours a text: "in", "out", "error", "title"; it changes nothing without colours
--   screen.page(text)       shows a text, through a pager where it is long
local stdlib = require "posix.stdlib"
local unistd = require "posix.unistd"

local M = {}

local codes = {["in"] = "32", out = "31", error = "91", title = "1"}
local LONG = 20 -- lines that every terminal has room for

function M.is_terminal() return unistd.isatty(0) == 1 and unistd.isatty(1) == 1 end

function M.colours()
  local kind = stdlib.getenv "TERM"
  return unistd.isatty(1) == 1 and kind ~= nil and kind ~= "" and kind ~= "dumb"
end

local function plainly(text) return text end

function M.paint(kind)
  if not M.colours() then return plainly end
  return function(text) return ("\27[%sm%s\27[0m"):format(codes[kind], text) end
end

-- The pager that people have chosen, else less, which leaves by itself where a screen is enough.
local function pager()
  local chosen = stdlib.getenv "PAGER"
  if chosen and chosen ~= "" then return chosen end
  return os.execute "command -v less >/dev/null 2>&1" == 0 and "less -FRX" or nil
end

function M.page(text)
  text = text:gsub("\n*$", "\n")
  local _, lines = text:gsub("\n", "")
  local command = lines > LONG and M.is_terminal() and M.colours() and pager()
  local pipe = command and io.popen(command, "w")
  if not pipe then
    io.write(text)
    return
  end
  io.flush()
  pipe:write(text)
  pipe:close()
end

return M
