-- Owns how options given by name are checked: an unknown one is an error that lists the valid names.
local M = {}

-- `given` joined with `defaults` (name -> default; false stands for nil). `what` names the call in errors,
-- `level` points at the caller's line as in error().
function M.check(given, defaults, what, level)
  level = (level or 1) + 1
  if given ~= nil and type(given) ~= "table" then
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
  error(("%s is %s; it can be: %s"):format(what, type(value) == "string" and '"' .. value .. '"' or tostring(value),
    table.concat(valid, ", ")), (level or 1) + 1)
end

-- A whole number of at least `least`.
function M.whole(value, least, what, level)
  if type(value) ~= "number" or value ~= math.floor(value) or value < least then
    error(("%s is %s; a whole number of at least %d is wanted"):format(what, tostring(value), least), (level or 1) + 1)
  end
  return value
end

local units = {B = 1, KB = 1e3, MB = 1e6, GB = 1e9, KiB = 2 ^ 10, MiB = 2 ^ 20, GiB = 2 ^ 30}

-- Bytes of "64 MiB"; a number stays itself and the second result says that it had no unit.
function M.bytes(value, what, level)
  if type(value) == "number" and value >= 0 then return value, true end
  local number, unit = tostring(value):match "^%s*([%d%.]+)%s*(%a+)%s*$"
  if tonumber(number) and units[unit] then return math.floor(tonumber(number) * units[unit]) end
  error(("%s is %s; bytes are written as in \"64 MiB\" (B, KB, MB, GB, KiB, MiB, GiB)"):format(what, tostring(value)),
    (level or 1) + 1)
end

-- The directory of cold = "disk:DIR", or nil for "ram".
function M.cold(value, what, level)
  if value == "ram" then return nil end
  local directory = type(value) == "string" and value:match "^disk:(.+)$"
  if directory then return directory end
  error(('%s is %s; it can be "ram" or "disk:DIR"'):format(what, type(value) == "string" and '"' .. value .. '"' or
    tostring(value)), (level or 1) + 1)
end

return M
