-- Owns where a script's `require` finds the modules that lie beside it. They are found by the script and by one another alone,
-- wherever the current folder is, and after the tree's and the system's: the library never takes a file beside a script, or in
-- the current folder, for a module of its own.
local unistd = require "posix.unistd"

local M = {}

-- The innermost Lua function that called `require`: its chunk's name.
local function caller()
  for level = 4, math.huge do
    local info = debug.getinfo(level, "S")
    if not info then return nil end
    if info.what ~= "C" then return info.source end
  end
end

-- script: its path. The chunk has to be called "@" .. script.
function M.allow(script)
  local shown = script:match "^(.*/)" or ""
  local folder = shown:sub(1, 1) == "/" and shown or unistd.getcwd() .. "/" .. shown
  local own = {["@" .. script] = true}
  table.insert(package.loaders, function(name)
    if not own[caller()] then return nil end
    local tried = {}
    for _, ending in ipairs {".lua", "/init.lua"} do
      local path = name:gsub("%.", "/") .. ending
      local file = io.open(folder .. path)
      if file then
        local text = file:read "*a"
        file:close()
        local chunk, message = loadstring(text, "@" .. shown .. path)
        if not chunk then error(message, 0) end
        own["@" .. shown .. path] = true
        return chunk
      end
      tried[#tried + 1] = "\n\tno file '" .. shown .. path .. "'"
    end
    return table.concat(tried)
  end)
end

return M
