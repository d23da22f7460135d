-- Owns how options given by name are checked: an unknown one is an error that lists the valid names.
local raise = require "lsa.raise"

local M = {}

-- A value as messages show it.
local function shown(value)
  return type(value) == "string" and ('"%s"'):format(value) or type(value) == "number" and tostring(value) or raise.kind(value)
end
M.shown = shown


-- `given` joined with `defaults` (name -> default; false stands for nil). `what` names the call in errors.
function M.check(given, defaults, what)
  if type(given) ~= "nil" and type(given) ~= "table" then -- a null pointer equals nil
    raise("%s: options are a table {name = value}, this is a %s", what, type(given))
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
      local known = #names > 0 and "there are: " .. table.concat(names, ", ") or "it takes none"
      raise("%s: no option '%s'; %s%s", what, tostring(name), known, require "lsa.nearest".hint(tostring(name), defaults))
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
function M.one_of(value, valid, what)
  for _, name in ipairs(valid) do
    if value == name then return value end
  end
  local names = {}
  for _, name in ipairs(valid) do names[tostring(name)] = true end
  raise("%s is %s; it can be: %s%s", what, shown(value), table.concat(valid, ", "), require "lsa.nearest".hint(tostring(value), names))
end

-- A whole number of at least `least`, and of at most `most` where it is given; never more than doubles count exactly.
function M.whole(value, least, what, most)
  if type(value) == "number" and value == math.floor(value) and value >= least and value <= (most or 2 ^ 53 - 1) then return value end
  local large = type(value) == "number" and value >= 2 ^ 53
  local range = (most or large) and ("from %.0f to %.0f"):format(least, most or 2 ^ 53 - 1) or ("of at least %.0f"):format(least)
  raise("%s is %s; a whole number %s is wanted", what, large and ("%.17g"):format(value) or shown(value), range)
end

-- A finite number of at least `least`.
function M.number(value, least, what)
  if type(value) == "number" and value >= least and value < math.huge then return value end
  raise("%s is %s; a number of at least %g is wanted", what, shown(value), least)
end

function M.boolean(value, what)
  if type(value) == "boolean" then return value end
  raise("%s is %s; true or false is wanted", what, shown(value))
end

-- A file's name: C ends it at the first zero byte, which would be another file.
function M.path(value, what)
  if type(value) == "string" and value ~= "" and not value:find("\0", 1, true) then return value end
  raise("%s is %s; a file's name is wanted", what, type(value) == "string" and ("%q"):format(value) or shown(value))
end

-- A list with something in it.
function M.list(value, what)
  if type(value) == "table" and value[1] ~= nil then return value end
  raise("%s is %s; a list with at least one element is wanted", what, type(value) == "table" and "empty" or shown(value))
end

local units = {B = 1, KB = 1e3, MB = 1e6, GB = 1e9, KiB = 2 ^ 10, MiB = 2 ^ 20, GiB = 2 ^ 30}

-- Bytes of "64 MiB"; a number stays itself and the second result says that it had no unit.
function M.bytes(value, what)
  if type(value) == "number" and value >= 0 and value < 2 ^ 53 then return value, true end
  local number, unit = (type(value) == "string" and value or ""):match "^%s*([%d%.]+)%s*(%a+)%s*$"
  local bytes = tonumber(number) and units[unit] and math.floor(tonumber(number) * units[unit])
  if bytes and bytes < 2 ^ 53 then return bytes end
  raise("%s is %s; bytes are written as in \"64 MiB\" (B, KB, MB, GB, KiB, MiB, GiB)", what, shown(value))
end

-- The directory of cold = "disk:DIR", or nil for "ram".
function M.cold(value, what)
  if value == "ram" then return nil end
  local directory = type(value) == "string" and value:match "^disk:(.+)$"
  if directory then return M.path(directory, (what or "cold") .. "'s directory") end
  raise('%s is %s; it can be "ram" or "disk:DIR"', what, shown(value))
end

return M
