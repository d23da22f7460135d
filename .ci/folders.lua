-- Draws which folder of core, kernels and lua/lsa uses which, from #include and require lines, and fails where a folder
-- uses itself through others. Files at the top of lua/lsa are what scripts name; each is a folder of its own here.
local uses = {} -- folder -> {folder = "file: line that says so"}

local function add(from, to, where)
  if from == to then return end
  uses[from] = uses[from] or {}
  uses[from][to] = uses[from][to] or where
end

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

local function folder(path)
  return path:match "^(.*)/[^/]*$"
end

for path in io.popen "git ls-files core kernels":lines() do
  if path:find "%.[ch]u?$" and path ~= "core/lsa.h" then
    for to in read(path):gmatch '#include "([^"]+)"' do add(folder(path), folder(to), path .. " includes " .. to) end
  end
end

-- Requires at the start of a line load with the module; those inside functions come later, and may go back.
local function room(module)
  local path = "lua/lsa/" .. module:gsub("%.", "/")
  return folder(path) == "lua/lsa" and path or folder(path)
end
for path in io.popen "git ls-files lua/lsa":lines() do
  if path:find "%.lua$" then
    local from = room((path:gsub("^lua/lsa/", ""):gsub("%.lua$", "")))
    for line in read(path):gmatch "[^\n]+" do
      local to = line:match '^local [%w_]+ = require%(? ?"lsa%.([%w_.]+)"'
      if to then add(from, room(to), path .. " requires lsa." .. to) end
    end
  end
end

local names = {}
for name in pairs(uses) do names[#names + 1] = name end
table.sort(names)
for _, name in ipairs(names) do
  local to = {}
  for other in pairs(uses[name]) do to[#to + 1] = other end
  table.sort(to)
  print(name .. " -> " .. table.concat(to, ", "))
end

-- Depth first; a folder met again on the way is a cycle.
local done, failed = {}, false
local function visit(name, way)
  if way[name] then
    failed = true
    local text, at = {}, way[name]
    for i = at, #way do text[#text + 1] = "  " .. uses[way[i]][way[i + 1] or name] end
    print("cycle:\n" .. table.concat(text, "\n"))
    return
  end
  if done[name] then return end
  way[#way + 1], way[name] = name, #way + 1
  for other in pairs(uses[name] or {}) do visit(other, way) end
  way[name], way[#way] = nil, nil
  done[name] = true
end
for _, name in ipairs(names) do visit(name, {}) end
os.exit(failed and 1 or 0)
