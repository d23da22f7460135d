-- Owns lsa.policies, lsa.evictions, lsa.schedules, lsa.samplers: the rules that are there, as objects that print themselves.
--
--   print(lsa.policies)                a table: name, options with their defaults, what it does
--   lsa.policies.h2o                   one of them; prints its file's header.  .options  .path  .about, its first sentence
--   for _, rule in ipairs(lsa.evictions:list()) do … end
--
-- A rule's file says all of it: the comment that it begins with, `opt.name` in there, and the options that it returns.
local grid = require "lsa.prompt.results_table"
local inspect = require "lsa.prompt.inspect"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local sources = require "lsa.prompt.sources"

local M = {}

local MOST_SHOWN = 92 -- characters of a sentence in a table

local Rule = {}
Rule.__index = Rule

-- Text about each option in the header: what follows opt.name there, less the default, and lines that go on.
local function about_options(header)
  local out, last = {}, nil
  for _, line in ipairs(header) do
    if line:find "^%s*opt%.[%w_]+" then
      for part in line:gsub("opt%.", "\1"):gmatch "\1([^\1]*)" do
        local name, text = part:match "^([%w_]+)%s*(.-)%s*$"
        out[name], last = text:gsub("^default ", ""):gsub("^[%d.]+%f[%s;:%z]", ""):gsub("^[%s;:]+", ""), name
      end
    elseif last and line:find "^%s%s%s%s%s%s" then
      out[last] = out[last] .. " " .. line:match "^%s*(.*)"
    else
      last = nil
    end
  end
  return out
end

local function sentence(header)
  local text = table.concat(header, " "):gsub("%s+", " ")
  text = text:match "^(.-%.)%s" or text
  return #text > MOST_SHOWN and text:sub(1, MOST_SHOWN):gsub("%s+%S*$", "") .. " ..." or text
end

-- Options with their defaults, sorted: {{name =, default =, text =}, …}.
local function option_list(self)
  local list, about = {}, about_options(self.header)
  for name, default in pairs(self.options) do list[#list + 1] = {name = name, default = default, text = about[name] or ""} end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

local function rule(kind, name)
  local path = ("%s/%s/%s.lua"):format(registry.home, kind, name)
  local header = sources.header(path)
  local self = {kind = kind, name = name, path = path, header = header, about = sentence(header), options = registry.options(kind, name) or {}}
  return setmetatable(self, Rule)
end

Rule.option_list = option_list

local uses = {
  policies = "model:session{select = %s}", evictions = "model:session{evict = %s}", schedules = "model:session{every = %s}",
  samplers = "lsa.trainer{sampler = %s, …}",
}

-- How a rule is asked for: by its name, or with its first option.
function Rule:example()
  local first = option_list(self)[1]
  local spec = ('"%s"'):format(self.name)
  local simple = first and (type(first.default) == "number" or type(first.default) == "string")
  if simple then spec = ('{%s, %s = %s}'):format(spec, first.name, inspect.literal(first.default)) end
  return (uses[self.kind] or "%s"):format(spec)
end

function Rule:__tostring()
  local lines = {("%s %s"):format(registry.singular[self.kind] or self.kind:gsub("s$", ""), self.name)}
  for _, line in ipairs(self.header) do lines[#lines + 1] = "  " .. line end
  lines[#lines + 1] = "  " .. self:example()
  return table.concat(lines, "\n")
end

-- All rules of a kind, by name.
local function list(kind)
  local out = {}
  for i, name in ipairs(registry.names(kind)) do out[i] = rule(kind, name) end
  return out
end

local function find(kind, name)
  if type(name) ~= "string" then return nil end
  for _, known in ipairs(registry.names(kind)) do
    if known == name then return rule(kind, name) end
  end
  raise("lsa.%s: there is no '%s'; there are: %s", kind, name, table.concat(registry.names(kind), ", "))
end

local function grid_of(kind)
  local rows = {}
  for i, one in ipairs(list(kind)) do
    local parts = {}
    for j, option in ipairs(one:option_list()) do
      parts[j] = option.name .. (option.default and " = " .. inspect.literal(option.default) or "")
    end
    rows[i] = {name = one.name, options = table.concat(parts, ", "), what = one.about}
  end
  return grid.new(rows, {"name", "options", "what"})
end

for _, kind in ipairs {"policies", "evictions", "schedules", "samplers"} do
  M[kind] = setmetatable({list = function() return list(kind) end}, {
    __index = function(_, name) return find(kind, name) end,
    __tostring = function() return (tostring(grid_of(kind)):gsub("\n$", "")) end,
    __mime = function() return grid_of(kind):__mime() end,
    __names = function() return registry.names(kind) end,
  })
end

M.Rule = Rule

function M.is_rule(value) return getmetatable(value) == Rule end

require("lsa.arity").methods(Rule, "rule:")

return M
