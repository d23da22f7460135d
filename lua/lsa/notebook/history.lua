-- Owns the history of cells, which outlives kernels: a file with a line of JSON a cell, {session, number, code}. A session is a kernel's
-- run; several may write at once. What cells gave is kept as long as the kernel runs.
--
--   history = history.open(path)             path: nil where nothing is kept
--   history:add(number, code)                the cell; its place 4 is for what it gave
--   history:tail(n)  history:search(pattern, n, unique)  history:range(session, start, stop)
--                                            cells {session, number, code, gave}. Session 0 is this one, -1 the one before
local cjson = require "cjson"
local replace = require "lsa.files.replace"

local M = {}

local CELLS = 2000 -- that are kept

local History = {}
History.__index = History

local function is_cell(cell)
  return type(cell) == "table" and type(cell[1]) == "number" and type(cell[2]) == "number" and type(cell[3]) == "string"
end

-- What others wrote: lines that are none of ours, and one that a full disk cut, are left out.
local function read(path)
  local lines, cells, file = {}, {}, io.open(path)
  if not file then return lines, cells end
  for line in file:lines() do
    local ok, cell = pcall(cjson.decode, line)
    if ok and is_cell(cell) then lines[#lines + 1], cells[#cells + 1] = line, cell end
  end
  file:close()
  return lines, cells
end

function M.open(path)
  local lines, cells = {}, {}
  if path then lines, cells = read(path) end
  local session = 1
  for _, cell in ipairs(cells) do session = math.max(session, cell[1] + 1) end
  if #cells > 2 * CELLS then
    local from = #cells - CELLS + 1
    if pcall(replace.write, path, table.concat(lines, "\n", from) .. "\n") then cells = {unpack(cells, from)} end
  end
  return setmetatable({path = path, session = session, cells = cells}, History)
end

-- One write, so that kernels side by side do not write into each other's lines.
local function append(path, line)
  local file = io.open(path, "a")
  if not file then return end
  file:setvbuf("full", #line + 1)
  file:write(line, "\n")
  file:close()
end

function History:add(number, code)
  local cell = {self.session, number, code}
  self.cells[#self.cells + 1] = cell
  if self.path and code:find "%S" then append(self.path, cjson.encode(cell)) end
  return cell
end

local function last(cells, n) return n and n < #cells and {unpack(cells, #cells - math.max(n, 0) + 1)} or cells end

function History:tail(n) return last(self.cells, n) end

-- The shell's patterns: * and ?.
local function glob(pattern)
  return "^" .. pattern:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("[%*%?]", {["*"] = ".*", ["?"] = "."}) .. "$"
end

function History:search(pattern, n, unique)
  local wanted, found, newest = glob(pattern), {}, {}
  for _, cell in ipairs(self.cells) do
    if cell[3]:find(wanted) then
      found[#found + 1] = cell
      newest[cell[3]] = cell
    end
  end
  if not unique then return last(found, n) end
  local kept = {}
  for _, cell in ipairs(found) do
    if newest[cell[3]] == cell then kept[#kept + 1] = cell end
  end
  return last(kept, n)
end

-- Cells start .. stop - 1 of a session, by the numbers that they were shown with.
function History:range(session, start, stop)
  if session <= 0 then session = self.session + session end
  local out = {}
  for _, cell in ipairs(self.cells) do
    if cell[1] == session and cell[2] >= start and cell[2] < stop then out[#out + 1] = cell end
  end
  return out
end

return M
