-- Owns where prompt and notebooks keep what they remember: $XDG_STATE_HOME/lsa, made when missing; nil where there is no home, which is
-- not made.
local stat = require "posix.sys.stat"

local OWN = stat.S_IRWXU -- for its user alone

local function is_folder(path)
  local found = stat.stat(path)
  return found ~= nil and stat.S_ISDIR(found.st_mode) ~= 0
end

return function()
  local state = os.getenv "XDG_STATE_HOME"
  if not state or state == "" then
    local home = os.getenv "HOME"
    if not home or not is_folder(home) then return nil end
    state = home .. "/.local/state"
  end
  local folder = state .. "/lsa"
  for at in (folder .. "/"):gmatch "()/" do
    if at > 1 then stat.mkdir(folder:sub(1, at - 1), OWN) end
  end
  return is_folder(folder) and folder or nil
end
