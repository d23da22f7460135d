-- What the text of a file tells about a function in it: help is read from the comments that are there.
--
--   sources.header(path)       the comment that a file begins with, as lines
--   sources.above(path, line)  the comment that ends right above a line
--   sources.mentions(path, name)   lines of the header about .name or :name
--   sources.parameters(f)      "tokens, opt"
--   sources.text(f)            the function's own text, and its file and first line; nil where it has none
local arity = require "lsa.arity"

local M = {}

local function lines_of(path)
  local file = io.open(path)
  local list = {}
  if not file then return list end
  for line in file:lines() do list[#list + 1] = line end
  file:close()
  return list
end

local function uncommented(line) return line:match "^%s*%-%-%-* ?(.*)$" end

function M.header(path)
  local out = {}
  for i, line in ipairs(lines_of(path)) do
    local text = uncommented(line)
    if not text and not (i == 1 and line:find "^#!") then break end
    out[#out + 1] = text
  end
  return out
end

function M.above(path, line)
  local all, out = lines_of(path), {}
  for i = line - 1, 1, -1 do
    local text = all[i] and uncommented(all[i])
    if not text or text:find "^%-%-%-%-" then break end
    table.insert(out, 1, text)
  end
  return out
end

function M.mentions(path, name)
  local out, more = {}, false
  for _, line in ipairs(M.header(path)) do
    if line:find("[.:]" .. name .. "%f[^%w_]") and line:find "^%s" then
      out[#out + 1], more = line, true
    elseif more and line:find "^%s%s%s%s%s%s%s%s%s%s" then
      out[#out + 1] = line -- a line that goes on
    else
      more = false
    end
  end
  return out
end

function M.parameters(f)
  local names, i = {}, 1
  f = arity.original(f)
  while true do
    local name = debug.getlocal(f, i)
    if not name then break end
    names[i] = name
    i = i + 1
  end
  if debug.getinfo(f, "u").isvararg then names[#names + 1] = "..." end
  return table.concat(names, ", ")
end

function M.text(f)
  local info = debug.getinfo(arity.original(f), "S")
  local path = info.source:match "^@(.*)"
  if not path then return nil end
  local all = lines_of(path)
  if #all < info.lastlinedefined then return nil end
  return table.concat(all, "\n", math.max(info.linedefined, 1), info.lastlinedefined), path, info.linedefined
end

return M
