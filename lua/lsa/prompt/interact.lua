-- Owns prompts in the middle of things: lsa.interact() at a line of a script, and what is looked at after an error.
--
--   interact.here()                  a prompt with the caller's locals, upvalues and globals; what is assigned there is the caller's
--   interact.capture(message)        frames of the stack as it is: for host.on_error
--   interact.post_mortem(frames)     a prompt with what the innermost frame of a script's had
--   interact.on_error()              from here on an error opens such a prompt before the program ends
--   interact.move(prompt, by)        %up, %down, %where
local host = require "lsa.host"
local lib = require "lsa.ffi"
local screen = require "lsa.prompt.screen"

local M = {}

local MOST_FRAMES = 40

local own = {["prompt/repl.lua"] = true, ["prompt/cli.lua"] = true, ["prompt/interact.lua"] = true, ["prompt/traceback.lua"] = true,
  ["prompt/commands.lua"] = true, ["prompt/compile.lua"] = true, ["raise.lua"] = true}

local function in_library(source) return source:sub(1, #lib.root + 10) == "@" .. lib.root .. "/lua/lsa/" end

-- Whether a frame is of the prompt itself.
local function is_ours(source) return in_library(source) and own[source:sub(#lib.root + 11)] ~= nil end

-- Locals and upvalues of a function on the stack, `level` as the caller of this counts: name -> {value =, place}.
local function variables_at(level)
  local found = {}
  local f = debug.getinfo(level + 1, "f").func
  for i = 1, 200 do
    local name, value = debug.getupvalue(f, i)
    if not name then break end
    if name ~= "" then found[name] = {value = value, upvalue = i} end
  end
  for i = 1, 250 do
    local name, value = debug.getlocal(level + 1, i)
    if not name then break end
    if not name:find "^%(" then found[name] = {value = value, slot = i} end
  end
  return found, f
end

local function place(info) return ("%s:%d"):format(info.short_src, info.currentline) end

-- level: of the innermost frame that may be told.
local function frames_from(level)
  local frames = {}
  while #frames < MOST_FRAMES do
    local info = debug.getinfo(level, "nSl")
    if not info then break end
    if info.what ~= "C" and not is_ours(info.source) then
      local variables, f = variables_at(level)
      frames[#frames + 1] = {place = place(info), name = info.what == "main" and "main chunk" or info.name or "?", source = info.source,
        line = info.currentline, variables = variables, f = f}
    end
    level = level + 1
  end
  return frames
end

function M.capture(message)
  local frames = frames_from(3)
  frames.message = message
  return frames
end

-- The lines around the one where a frame is.
local function listing(frame)
  local path = frame.source:match "^@(.*)"
  local file = path and io.open(path)
  if not file then return "" end
  local out, number = {}, 0
  for line in file:lines() do
    number = number + 1
    if number >= frame.line - 3 and number <= frame.line + 3 then
      out[#out + 1] = ("%s %5d  %s\n"):format(number == frame.line and ">" or " ", number, line)
    end
  end
  file:close()
  return table.concat(out)
end

local function told(frame)
  local names = {}
  for name in pairs(frame.variables) do names[#names + 1] = name end
  table.sort(names)
  return ("%s, in %s\n%s%s"):format(frame.place, frame.name, listing(frame), #names > 0 and "here are: " .. table.concat(names, ", ") or "no locals")
end

-- What a frame sees: its variables, then the globals of its function.
local function scope_of(frame)
  local outer = getfenv(frame.f)
  return setmetatable({}, {
    __names = function()
      local names = {}
      for name in pairs(frame.variables) do names[name] = true end
      for name in next, outer do names[name] = true end
      return names
    end,
    __index = function(_, name)
      local variable = frame.variables[name]
      if variable then return variable.value end
      return outer[name]
    end,
    __newindex = function(_, name, value)
      local variable = frame.variables[name]
      if variable then variable.value, variable.changed = value, true else outer[name] = value end
    end,
  })
end

local function prompt_in(frame)
  local repl = require "lsa.prompt.repl"
  return repl.new(scope_of(frame))
end

function M.move(prompt, by)
  local at = math.max(1, math.min(#prompt.stack, prompt.at + by))
  if by == 0 then
    for i, frame in ipairs(prompt.stack) do print(("%s %s, in %s"):format(i == at and ">" or " ", frame.place, frame.name)) end
    return
  end
  local other = prompt_in(prompt.stack[at])
  prompt.at, prompt.environment, prompt.declare = at, other.environment, other.declare
  require "lsa.prompt.repl".furnish(prompt)
  print(told(prompt.stack[at]))
end

local function opened(frames, first)
  rawset(_G, "lsa", rawget(_G, "lsa") or require "lsa")
  local prompt = prompt_in(frames[first])
  prompt.stack, prompt.at = frames, first
  prompt:loop(told(frames[first]) .. "\nCtrl-D goes on.")
end

function M.post_mortem(frames)
  if not frames[1] then return print "no Lua of a script's was running" end
  local first = 1
  for i, frame in ipairs(frames) do
    if not in_library(frame.source) then
      first = i
      break
    end
  end
  host.call("idle", opened, frames, first)
end

-- Changed variables are written back in this function's frame, so that the caller is at a known level.
function M.here()
  if not screen.is_terminal() then error("lsa.interact: the standard input is no terminal", 2) end
  local frames = frames_from(2)
  if not frames[1] then return end
  host.call("idle", opened, frames, 1)
  local f = debug.getinfo(2, "f").func
  for _, variable in pairs(frames[1].variables) do
    if variable.changed and variable.slot then
      debug.setlocal(2, variable.slot, variable.value)
    elseif variable.changed then
      debug.setupvalue(f, variable.upvalue, variable.value)
    end
  end
end

function M.on_error()
  if not screen.is_terminal() then return end
  function host.on_error(message)
    local frames = M.capture(message)
    io.stderr:write(screen.paint "error" ("lsa: " .. tostring(message)), "\n")
    M.post_mortem(frames)
  end
end

return M
