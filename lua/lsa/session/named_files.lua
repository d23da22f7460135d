-- Owns what a saved session or a recording may name: such a file is data, and may be anybody's. Rules of the tree it restores by
-- their names. A rule's file is a program, a folder for the cold tier is written to, and an indexer's file is opened: these the
-- caller gives anew, or says that the file is trusted.
local raise = require "lsa.raise"

local M = {}

-- The first string in an option's value, however deep, by which lua/lsa/registry.lua would load a file.
local function rule_file(value)
  if type(value) == "string" then return (value:find("/", 1, true) or value:find "%.lua$") and value end
  if type(value) ~= "table" then return nil end
  for key, item in pairs(value) do
    local found = rule_file(key) or rule_file(item)
    if found then return found end
  end
end

local function inside(path, folder)
  return path:sub(1, #folder + 1) == folder .. "/" and not ("/" .. path .. "/"):find("/../", 1, true)
end

-- named: the options that the file has. given: the caller's, of which those that are there are not looked for in the file.
-- folder: the model's, nil without one. call: how the caller gives them.
function M.check(named, given, folder, call)
  if given.trust then return end
  local wrong, names = {}, {}
  local function refuse(name, value)
    wrong[#wrong + 1], names[#names + 1] = ("%s = %q"):format(name, value), name .. " = …"
  end
  for _, name in ipairs {"select", "every", "evict"} do
    local file = given[name] == nil and rule_file(named[name])
    if file then refuse(name, file) end
  end
  if given.cold == nil and type(named.cold) == "string" and named.cold ~= "ram" then refuse("cold", named.cold) end
  local indexer = given.indexer == nil and named.indexer
  if type(indexer) == "string" and indexer ~= "native" and not (folder and inside(indexer, folder)) then refuse("indexer", indexer) end
  if #wrong == 0 then return end
  raise("it names %s, which a data file does not decide: %s, {%s}), or {trust = true} if the file is yours", table.concat(wrong, ", "), call,
    table.concat(names, ", "))
end

return M
