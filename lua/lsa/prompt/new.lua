-- `lsa new KIND NAME`: a commented start of a policy, an eviction policy, a schedule or an experiment, and a spec that it passes.
-- The starts are lua/lsa/templates/KIND.lua and KIND_spec.lua, where NAME stands for the name.
local lib = require "lsa.ffi"
local replace = require "lsa.files.replace"

local M = {}

local BAD_USAGE = 2

local usage = [[
usage: lsa new policy|eviction|schedule|experiment NAME

Writes NAME.lua and NAME_spec.lua into the current folder, or where NAME says (a/b). Both run as they are:

  lsa new policy mine && lsa test mine_spec.lua
]]

local kinds = {policy = "model:session{select = \"%s\"}", eviction = "model:session{evict = \"%s\"}",
  schedule = "model:session{every = \"%s\"}", experiment = "lsa %s"}

local function refuse(text)
  io.stderr:write("lsa new: ", text, "\n")
  return BAD_USAGE
end

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

local function exists(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

function M.main(arguments)
  local kind, given = arguments[1], arguments[2]
  if kind == "--help" or kind == "-h" then
    io.write(usage)
    return 0
  end
  if not kinds[kind] or not given or arguments[3] then
    io.stderr:write(usage)
    return BAD_USAGE
  end
  local path = given:gsub("%.lua$", "")
  local folder, name = path:match "^(.-)([^/]*)$"
  if not name:find "^[%a_][%w_%-]*$" then return refuse(("%q is no name: letters, digits, _ and - make one"):format(name)) end
  for _, ending in ipairs {".lua", "_spec.lua"} do
    if exists(folder .. name .. ending) then return refuse(folder .. name .. ending .. " is there already") end
  end
  for _, ending in ipairs {".lua", "_spec.lua"} do
    local text = read(("%s/lua/lsa/templates/%s%s"):format(lib.root, kind, ending)):gsub("NAME", name)
    local ok, why = pcall(replace.write, folder .. name .. ending, text)
    if not ok then return refuse(why) end
  end
  print(("%s%s.lua is a start that runs, %s%s_spec.lua its tests:"):format(folder, name, folder, name))
  print("  lsa test " .. folder .. name .. "_spec.lua")
  print("  " .. kinds[kind]:format(folder .. name .. ".lua"))
  return 0
end

return M
