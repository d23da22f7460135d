-- Owns how an experiment's results come out: tables for people, or with --json and --csv rows for programs. Made by lsa.args.
--
--   opt.report:say("%d contexts\n", 3)                 a line for people; nothing with --json and --csv
--   opt.report:table("policies", columns, rows, text)  rows of named values; text: what people see, where it is not the plain table
--   opt.report:done()                                  with --json, one object: experiment, version, options, and each table by its name
--   opt.report.plain                                   whether people read
local cjson = require "cjson"
local grid = require "lsa.prompt.results_table"
local raise = require "lsa.raise"

local Report = {}
Report.__index = Report

local M = {write = function(...) io.write(...) end} -- where all of it goes; replaceable

local reserved = {experiment = true, version = true, options = true}

function Report:say(format, ...)
  if self.plain then M.write(select("#", ...) > 0 and format:format(...) or format, "\n") end
end

function Report:table(name, columns, rows, text)
  if reserved[name] then raise("report: a table cannot be called %s", name) end
  if self.how == "json" then
    self.tables[#self.tables + 1] = {name = name, text = grid.new(rows, columns):json():gsub("\n$", "")}
  elseif self.how == "csv" then
    M.write(self.written and "\n" or "", grid.new(rows, columns):csv())
    self.written = true
  else
    M.write(text or tostring(grid.new(rows, columns)))
  end
  return self
end

local function plain_options(options)
  local out, names = {}, {}
  for name, value in pairs(options) do
    if type(name) == "string" and type(value) ~= "userdata" and type(value) ~= "function" and name ~= "report" then
      names[#names + 1] = name
    end
  end
  table.sort(names)
  for i, name in ipairs(names) do
    local value = options[name]
    local text = type(value) == "number" and grid.number(value) or
      type(value) == "table" and #value == 0 and "[]" or cjson.encode(value)
    out[i] = cjson.encode(name) .. ": " .. text
  end
  return "{" .. table.concat(out, ", ") .. "}"
end

function Report:done()
  if self.how ~= "json" then return end
  local out = {('"experiment": %s'):format(cjson.encode(self.name)), ('"version": %s'):format(cjson.encode(require "lsa.version")),
    '"options": ' .. plain_options(self.options)}
  for _, one in ipairs(self.tables) do out[#out + 1] = cjson.encode(one.name) .. ": " .. one.text end
  M.write("{", table.concat(out, ",\n"), "}\n")
end

-- how: "json", "csv" or nil. options: the script's, which JSON has, too.
function M.new(how, name, options)
  return setmetatable({how = how, plain = how == nil, name = name, options = options, tables = {}}, Report)
end

return M
