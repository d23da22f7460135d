-- Runs what the user wrote, and reports its errors without the frames that only we know.
local host = require "lsa.host"

local M = {}

local FAILED, INTERRUPTED = 1, 130

local own = {"cli", "commands", "compile", "interact", "repl", "traceback"}

-- Whether a frame is the command line's or the prompt's.
local function ours(frame)
  for _, name in ipairs(own) do
    if frame:find("/lua/lsa/prompt/" .. name .. ".lua:", 1, true) then return true end
  end
  return frame:find "^%s*%[C%]: at " ~= nil
end

-- A method's or a function's name that nothing has, with the library's that is close: LuaJIT's own message names no others.
local function hinted(head)
  local kind, name = head:match "attempt to call (%a+) '([%w_]+)' %(a nil value%)"
  if kind ~= "method" and kind ~= "field" then return head end
  local names = {}
  for _, topic in ipairs(require "lsa.prompt.topics".list) do names[topic.name:match "[%w_]+$"] = true end
  for _, module in ipairs {"model", "session", "batch", "trainer", "plot", "tasks.init"} do
    local loaded = package.loaded["lsa." .. module] or {}
    for method in pairs(loaded.class or loaded) do names[method] = true end
  end
  return head .. require "lsa.nearest".hint(name, names)
end

-- The message with its traceback as far as the first frame that is ours; what is beyond is ours, or the script in whose middle a prompt is.
function M.trim(message)
  local head, frames = message:match "^(.*)\nstack traceback:\n(.*)$"
  if not head then return message end
  head = hinted(head)
  local list = {}
  for frame in frames:gmatch "[^\n]+" do
    if ours(frame) then break end
    list[#list + 1] = frame
  end
  while list[1] and list[#list]:find "^%s*%[C%]: in function 'call'" do list[#list] = nil end
  if list[1] and list[1]:find "^%s*%[C%]: in function 'error'" then table.remove(list, 1) end
  if #list < 2 then return head end -- the message has that line
  return head .. "\nstack traceback:\n" .. table.concat(list, "\n")
end

-- Calls `f(...)` with Ctrl-C as `how` says (core/host/interrupt.h): the exit code and f's first result.
function M.run(how, f, ...)
  local ok, message, interrupted = host.call(how, f, ...)
  host.flush()
  if ok then return 0, message end
  io.stderr:write("lsa: ", M.trim(message), "\n")
  return interrupted and INTERRUPTED or FAILED
end

return M
