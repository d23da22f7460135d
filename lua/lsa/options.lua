-- Owns how options given by name are checked: an unknown one is an error that lists the valid names.
local raise = require "lsa.raise"

local M = {}

-- A value as messages show it.
local function shown(value)
  return type(value) == "string" and ('"%s"'):format(value) or type(value) == "number" and tostring(value) or raise.kind(value)
end
M.shown = shown


-- `given` joined with `defaults` (name -> default; false stands for nil). `what` names the call in errors,
-- `level` points at the caller's line as in error().
function M.check(given, defaults, what, level)
  level = (level or 1) + 1
  if type(given) ~= "nil" and type(given) ~= "table" then -- a null pointer equals nil
    error(("%s: options are a table {name = value}, this is a %s"):format(what, type(given)), level)
  end
  local out = {}
  for name, value in pairs(defaults) do
    if value ~= false then out[name] = value end
  end
  for name, value in pairs(given or {}) do
    if defaults[name] == nil then
      local names = {}
      for valid in pairs(defaults) do names[#names + 1] = valid end
      table.sort(names)
      error(("%s: no option '%s'; there are: %s"):format(what, tostring(name), table.concat(names, ", ")), level)
    end
    out[name] = value
  end
  return out
end

-- A table's own copy, one level deep.
function M.copy(given)
  local out = {}
  for name, value in pairs(given) do out[name] = value end
  return out
end

-- One of a list of strings.
function M.one_of(value, valid, what, level)
  for _, name in ipairs(valid) do
    if value == name then return value end
  end
  error(("%s is %s; it can be: %s"):format(what, shown(value), table.concat(valid, ", ")), (level or 1) + 1)
end

-- A whole number of at least `least`, and of at most `most` where it is given; never more than doubles count exactly.
function M.whole(value, least, what, level, most)
  if type(value) == "number" and value == math.floor(value) and value >= least and value <= (most or 2 ^ 53 - 1) then return value end
  local range = most and ("from %.0f to %.0f"):format(least, most) or ("of at least %.0f"):format(least)
  error(("%s is %s; a whole number %s is wanted"):format(what, shown(value), range), (level or 1) + 1)
end

-- A finite number of at least `least`.
function M.number(value, least, what, level)
  if type(value) == "number" and value >= least and value < math.huge then return value end
  error(("%s is %s; a number of at least %g is wanted"):format(what, shown(value), least), (level or 1) + 1)
end

function M.boolean(value, what, level)
  if type(value) == "boolean" then return value end
  error(("%s is %s; true or false is wanted"):format(what, shown(value)), (level or 1) + 1)
end

-- A file's name: C ends it at the first zero byte, which would be another file.
function M.path(value, what, level)
  if type(value) == "string" and value ~= "" and not value:find("\0", 1, true) then return value end
  error(("%s is %s; a file's name is wanted"):format(what, type(value) == "string" and ("%q"):format(value) or shown(value)),
    (level or 1) + 1)
end

-- A list with something in it.
function M.list(value, what, level)
  if type(value) == "table" and value[1] ~= nil then return value end
  error(("%s is %s; a list with at least one element is wanted"):format(what, type(value) == "table" and "empty" or shown(value)),
    (level or 1) + 1)
end

local units = {B = 1, KB = 1e3, MB = 1e6, GB = 1e9, KiB = 2 ^ 10, MiB = 2 ^ 20, GiB = 2 ^ 30}

-- Bytes of "64 MiB"; a number stays itself and the second result says that it had no unit.
function M.bytes(value, what, level)
  if type(value) == "number" and value >= 0 and value < 2 ^ 53 then return value, true end
  local number, unit = (type(value) == "string" and value or ""):match "^%s*([%d%.]+)%s*(%a+)%s*$"
  local bytes = tonumber(number) and units[unit] and math.floor(tonumber(number) * units[unit])
  if bytes and bytes < 2 ^ 53 then return bytes end
  error(("%s is %s; bytes are written as in \"64 MiB\" (B, KB, MB, GB, KiB, MiB, GiB)"):format(what, shown(value)),
    (level or 1) + 1)
end

-- The directory of cold = "disk:DIR", or nil for "ram".
function M.cold(value, what, level)
  if value == "ram" then return nil end
  local directory = type(value) == "string" and value:match "^disk:(.+)$"
  if directory then return M.path(directory, (what or "cold") .. "'s directory", (level or 1) + 1) end
  error(('%s is %s; it can be "ram" or "disk:DIR"'):format(what, shown(value)), (level or 1) + 1)
end

return M
