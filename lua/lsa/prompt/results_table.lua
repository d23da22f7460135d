-- Owns tables of results as sweeps return them: rows of named values, in columns.
--
--   t = grid.new(rows, columns, notes, axes, most)  columns: names in their order; values of a row that are not named are not shown;
--                                                axes: those of them that are parameters; most: how many of the columns text and HTML for
--                                                people have, all where it is nil; the others are named below
--   t.rows, t.columns               t:csv() t:markdown() t:json() tostring(t)     text; notes stand below tables that are read
--   t:write "results.csv"           by the file's ending: .csv, .md or .json
--   t:column "accuracy" -> list
--   t:plot{title = …}               the picture that fits (lua/lsa/plot/results.lua); x, y, series: columns' names, to choose another
local cjson = require "cjson"
local display = require "lsa.display"
local options = require "lsa.options"
local raise = require "lsa.raise"
local replace = require "lsa.files.replace"

local M = {}

-- The fewest digits that are this number again.
function M.number(value)
  if value ~= value then return "nan" end
  if value - value ~= 0 then return value > 0 and "inf" or "-inf" end
  if value == math.floor(value) and math.abs(value) < 2 ^ 53 then return ("%.0f"):format(value) end
  for digits = 1, 17 do
    local text = ("%." .. digits .. "g"):format(value)
    if tonumber(text) == value then return text end
  end
end

local Grid = {}
Grid.__index = Grid

-- As text: numbers short, policies as they are written, nothing for nil.
local function shown(value)
  if value == nil then return "" end
  if type(value) == "number" then return value == math.floor(value) and ("%.0f"):format(value) or ("%.5g"):format(value) end
  if type(value) == "function" then return raise.place(value) end
  if type(value) ~= "table" then return tostring(value) end
  local names, parts = {}, {}
  for i, item in ipairs(value) do parts[i] = shown(item) end
  for name in pairs(value) do
    if type(name) == "string" then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do parts[#parts + 1] = name .. "=" .. shown(value[name]) end
  return table.concat(parts, " ")
end

M.shown = shown

local function lines(self, cell, line)
  local out = {}
  for i, row in ipairs(self.rows) do
    local cells = {}
    for j, name in ipairs(self.columns) do cells[j] = cell(row[name]) end
    out[i] = line(cells)
  end
  return table.concat(out, "\n") .. (#out > 0 and "\n" or "")
end

local function noted(self, before)
  local out = {}
  for i, text in ipairs(self.notes) do out[i] = before .. text .. "\n" end
  return table.concat(out)
end

-- Numbers are whole here: what is computed with should not be rounded.
local function csv_cell(value)
  if type(value) == "number" then return M.number(value) end
  local text = shown(value)
  return text:find '[",\n]' and '"' .. text:gsub('"', '""') .. '"' or text
end

function Grid:csv()
  local names = {}
  for i, name in ipairs(self.columns) do names[i] = csv_cell(name) end
  return table.concat(names, ",") .. "\n" .. lines(self, csv_cell, function(cells) return table.concat(cells, ",") end)
end

function Grid:markdown()
  local rule = {}
  for i in ipairs(self.columns) do rule[i] = "---" end
  local function line(cells) return "| " .. table.concat(cells, " | ") .. " |" end
  return line(self.columns) .. "\n|" .. table.concat(rule, "|") .. "|\n" ..
    lines(self, function(value) return (shown(value):gsub("|", "\\|")) end, line) .. noted(self, "\n> ")
end

local function json_of(value)
  local kind = type(value)
  if value == nil or kind == "number" and value - value ~= 0 then return "null" end
  if kind == "number" then return M.number(value) end
  if kind == "boolean" then return tostring(value) end
  return cjson.encode(kind == "string" and value or shown(value))
end

-- A list of rows by column. What JSON has no number for is null.
function Grid:json()
  local out = {}
  for i, row in ipairs(self.rows) do
    local cells = {}
    for j, name in ipairs(self.columns) do cells[j] = cjson.encode(name) .. ": " .. json_of(row[name]) end
    out[i] = "{" .. table.concat(cells, ", ") .. "}"
  end
  return "[" .. table.concat(out, ",\n") .. "]\n"
end

function Grid:write(path)
  options.path(path, "write: path")
  local text = path:find "%.md$" and self:markdown() or path:find "%.csv$" and self:csv() or path:find "%.json$" and self:json()
  if not text then raise("%s: a table is written as .csv, .md or .json", path) end
  replace.write(path, text)
  return self
end

function Grid:column(name)
  local out = {}
  for i, row in ipairs(self.rows) do out[i] = row[name] end
  return out
end

-- The columns that people see, and a note on the others.
local function for_people(self)
  if not self.most or self.most >= #self.columns then return self end
  local notes = {unpack(self.notes)}
  notes[#notes + 1] = "also in its rows, t:csv() and t:json(): " .. table.concat(self.columns, ", ", self.most + 1)
  return {rows = self.rows, columns = {unpack(self.columns, 1, self.most)}, notes = notes}
end

local function text_of(self)
  local width, numeric = {}, {}
  for j, name in ipairs(self.columns) do
    width[j] = #name
    for _, row in ipairs(self.rows) do
      width[j] = math.max(width[j], #shown(row[name]))
      numeric[j] = numeric[j] or type(row[name]) == "number"
    end
  end
  local function line(cells)
    local out = {}
    for j, text in ipairs(cells) do
      local space = (" "):rep(width[j] - #text)
      out[j] = numeric[j] and space .. text or text .. space
    end
    return (table.concat(out, "  "):gsub(" +$", ""))
  end
  return line(self.columns) .. "\n" .. lines(self, shown, line) .. noted(self, "note: ")
end

function Grid:__tostring() return text_of(for_people(self)) end

function Grid:plot(opt) return require("lsa.plot").table(self, opt) end

-- As a notebook shows it.
function Grid:__mime()
  local seen, rows, left = for_people(self), {}, {}
  for j in ipairs(seen.columns) do left[j] = true end
  for i, row in ipairs(seen.rows) do
    rows[i] = {}
    for j, name in ipairs(seen.columns) do
      rows[i][j] = shown(row[name])
      if type(row[name]) == "number" then left[j] = nil end
    end
  end
  local html = display.table {header = seen.columns, rows = rows, left = left, notes = seen.notes}
  return {["text/plain"] = tostring(self), ["text/html"] = html}
end

function M.new(rows, columns, notes, axes, most)
  return setmetatable({rows = rows, columns = columns, notes = notes or {}, axes = axes, most = most}, Grid)
end

require("lsa.arity").methods(Grid, "table:")

return M
