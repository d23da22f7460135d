-- Shows values at the prompt: objects by their own tostring, plain tables with their contents, bounded.
local M = {}

local MAX_DEPTH, MAX_ITEMS, MAX_STRING, WIDTH = 3, 40, 200, 100

local keywords = {}
for word in ("and break do else elseif end false for function goto if in local nil not or repeat return then true until while")
  :gmatch "%a+" do keywords[word] = true end

local function quoted(text)
  local shown = #text > MAX_STRING and text:sub(1, MAX_STRING) or text
  shown = ("%q"):format(shown):gsub("\\\n", "\\n"):gsub("\r", "\\r"):gsub("%z", "\\0")
  if #text > MAX_STRING then shown = ("%s... (%d bytes)"):format(shown, #text) end
  return shown
end

local function is_plain(value)
  if type(value) ~= "table" then return false end
  local meta = getmetatable(value)
  return meta == nil or type(meta) == "table" and not meta.__tostring
end

local function order(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return ta == "number" or ta < tb and tb ~= "number" end
  if ta == "number" or ta == "string" then return a < b end
  return tostring(a) < tostring(b)
end

local function key_text(key)
  if type(key) == "string" then
    if key:match "^[%a_][%w_]*$" and not keywords[key] then return key end
    return "[" .. quoted(key) .. "]"
  end
  return "[" .. tostring(key) .. "]"
end

local show

-- The parts of a plain table: its list first, then its other keys in order.
local function parts_of(value, depth, seen)
  local parts, n = {}, 0
  while n < MAX_ITEMS and rawget(value, n + 1) ~= nil do
    n = n + 1
    parts[n] = show(rawget(value, n), depth + 1, seen)
  end
  local keys, total = {}, 0
  for key in next, value do
    total = total + 1
    local listed = type(key) == "number" and key >= 1 and key <= n and key % 1 == 0
    if not listed then keys[#keys + 1] = key end
  end
  table.sort(keys, order)
  for _, key in ipairs(keys) do
    if #parts >= MAX_ITEMS then break end
    parts[#parts + 1] = key_text(key) .. " = " .. show(rawget(value, key), depth + 1, seen)
  end
  if total > #parts then parts[#parts + 1] = ("... %d more"):format(total - #parts) end
  return parts
end

function show(value, depth, seen)
  if type(value) == "string" then return quoted(value) end
  if not is_plain(value) then return tostring(value) end
  if seen[value] then return "<above>" end
  if next(value) == nil then return "{}" end
  if depth >= MAX_DEPTH then return "{...}" end
  seen[value] = true
  local parts = parts_of(value, depth, seen)
  seen[value] = nil
  local line = "{ " .. table.concat(parts, ", ") .. " }"
  if #line <= WIDTH and not line:find("\n", 1, true) then return line end
  local pad = ("  "):rep(depth + 1)
  return "{\n" .. pad .. table.concat(parts, ",\n" .. pad) .. "\n" .. ("  "):rep(depth) .. "}"
end

-- The text for one value. Strings are quoted inside tables, and bare by themselves.
function M.text(value)
  if type(value) == "string" then return value end
  return show(value, 0, {})
end

-- Prints the values, if there are any.
function M.print(...)
  local n = select("#", ...)
  if n == 0 then return end
  local texts = {}
  for i = 1, n do texts[i] = M.text((select(i, ...))) end
  print(table.concat(texts, "\t"))
end

return M
