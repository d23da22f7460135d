-- Owns the pages of the manual, lua/docs/*.md: where they are, and what help takes from them.
--
--   pages.names()                  sorted;  pages.path "session";  pages.text "session"
--   pages.options("lsa.model")     name -> {default =, text =} of the table whose first cell is `lsa.model`, in whatever page
--   pages.mentions "softmax"       lines of examples that call it
--   pages.examples "session"       the page's Lua code, a list of {text =, line =}; what is marked `lua` and nothing else
local files = require "posix.dirent"
local root = require("lsa.ffi").root

local M = {folder = root .. "/lua/docs"}

function M.path(name) return ("%s/%s.md"):format(M.folder, name) end

function M.text(name)
  local file = io.open(M.path(name))
  if not file then return nil end
  local text = file:read "*a"
  file:close()
  return text
end

function M.names()
  local names = {}
  local there, list = pcall(files.dir, M.folder)
  for _, file in ipairs(there and list or {}) do names[#names + 1] = file:match "^([%w_]+)%.md$" end
  table.sort(names)
  return names
end

local function bare(cell) return (cell:gsub("^%s+", ""):gsub("%s+$", "")) end

local function cells_of(line)
  local cells = {}
  for cell in line:gsub("\\|", "\1"):gmatch "|([^|\n]*)" do cells[#cells + 1] = bare((cell:gsub("\1", "|"))) end
  return cells
end

-- Tables of options by the call that takes them.
local tables
local function read_tables()
  tables = {}
  for _, name in ipairs(M.names()) do
    local current
    for line in (M.text(name) .. "\n"):gmatch "(.-)\n" do
      local cells = line:sub(1, 1) == "|" and cells_of(line)
      local call = cells and cells[1]:match "^`(%l+[.:][%w_.]+)`$"
      if not cells then
        current = nil
      elseif call and cells[2] == "default" then
        current = {}
        tables[call] = current
      elseif current and cells[1]:find "^`" then
        current[cells[1]:match "^`([^`]+)`"] = {default = cells[2], text = cells[3] or ""}
      end
    end
  end
end

function M.options(call)
  if not tables then read_tables() end
  return tables[call] or {}
end

function M.examples(name)
  local list, current, at = {}, nil, 0
  for line in ((M.text(name) or "") .. "\n"):gmatch "(.-)\n" do
    at = at + 1
    if current and line:find "^```%s*$" then
      current.text = table.concat(current, "\n")
      list[#list + 1], current = current, nil
    elseif current then
      current[#current + 1] = line
    elseif line:find "^```lua%s*$" then
      current = {line = at + 1}
    end
  end
  return list
end

-- Lines of examples that call .name or :name, each with its page.
function M.mentions(name)
  local out = {}
  for _, page in ipairs(M.names()) do
    for _, example in ipairs(M.examples(page)) do
      for line in example.text:gmatch "[^\n]+" do
        if line:find("[.:]" .. name .. "%f[^%w_]%s*[%({\"']") then out[#out + 1] = ("  %s   (lua/docs/%s.md)"):format(line, page) end
      end
    end
  end
  return out
end

return M
