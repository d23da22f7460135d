-- Shows values at the prompt: objects by their own tostring, plain tables with their contents, bounded.
local M = {}

local MAX_DEPTH, MAX_ITEMS, MAX_NUMBERS, MAX_STRING, MAX_RECORDS, WIDTH, SHORT = 3, 40, 240, 200, 1000, 100, 24

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

-- The parts of a plain table: its list first, then its other keys in order. Of a list of numbers more is shown.
local function parts_of(value, depth, seen)
  local parts, n = {}, 0
  local most = type(rawget(value, 1)) == "number" and depth == 0 and MAX_NUMBERS or MAX_ITEMS
  while n < most and rawget(value, n + 1) ~= nil do
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
    if #parts >= most then break end
    parts[#parts + 1] = key_text(key) .. " = " .. show(rawget(value, key), depth + 1, seen)
  end
  if total > #parts then parts[#parts + 1] = ("... %d more"):format(total - #parts) end
  return parts
end

-- Short parts, such as numbers, side by side on lines of the screen's width; others on a line each.
local function on_lines(parts, pad)
  local out, line = {}, nil
  for _, part in ipairs(parts) do
    if #part > SHORT then return table.concat(parts, ",\n" .. pad) end
    if not line then
      line = part
    elseif #pad + #line + 2 + #part < WIDTH then
      line = line .. ", " .. part
    else
      out[#out + 1], line = line, part
    end
  end
  out[#out + 1] = line
  return table.concat(out, ",\n" .. pad)
end

-- A function by its parameters, which tell more than where it lies.
local function function_text(f)
  if debug.getinfo(f, "S").what == "C" then return tostring(f) end
  return ("function(%s)"):format(require "lsa.prompt.sources".parameters(f))
end

function show(value, depth, seen)
  if type(value) == "string" then return quoted(value) end
  if type(value) == "function" then return function_text(value) end
  if not is_plain(value) then
    local text = tostring(value)
    local first = depth > 0 and text:match "^([^\n]*)\n"
    return first and first .. " ..." or text
  end
  if seen[value] then return "<above>" end
  if next(value) == nil then return "{}" end
  if depth >= MAX_DEPTH then return "{...}" end
  seen[value] = true
  local parts = parts_of(value, depth, seen)
  seen[value] = nil
  local line = "{ " .. table.concat(parts, ", ") .. " }"
  if #line <= WIDTH and not line:find("\n", 1, true) then return line end
  local pad = ("  "):rep(depth + 1)
  return "{\n" .. pad .. on_lines(parts, pad) .. "\n" .. ("  "):rep(depth) .. "}"
end

-- A list of records – tables of the same few names with simple values – as a table of results (results_table.lua), texts in the first
-- columns; nil where it is none.
function M.records(list)
  if type(list) ~= "table" or getmetatable(list) ~= nil or #list == 0 or #list > MAX_RECORDS then return nil end
  local columns, known, count = {}, {}, 0
  for key in next, list do
    if type(key) ~= "number" then return nil end
    count = count + 1
  end
  if count ~= #list then return nil end
  for _, row in ipairs(list) do
    if type(row) ~= "table" or getmetatable(row) ~= nil or next(row) == nil then return nil end
    for name, value in next, row do
      if type(name) ~= "string" or type(value) == "table" or type(value) == "function" or type(value) == "cdata" then return nil end
      if not known[name] then columns[#columns + 1], known[name] = name, true end
    end
  end
  table.sort(columns, function(a, b)
    local text_a, text_b = type(list[1][a]) == "string", type(list[1][b]) == "string"
    if text_a ~= text_b then return text_a end
    return a < b
  end)
  return require "lsa.prompt.results_table".new(list, columns)
end

-- As lines, where there are more than a pair of values in each.
local function records_text(list)
  local found = M.records(list)
  return found and #found.columns > 2 and tostring(found):gsub("\n$", "") or nil
end

-- The text for one value. Strings are quoted inside tables, and bare by themselves.
function M.text(value)
  if type(value) == "string" then return value end
  return records_text(value) or show(value, 0, {})
end

-- As it is written in Lua, where it can be.
function M.literal(value) return show(value, 0, {}) end

-- The texts of several values.
function M.joined(...)
  local texts = {}
  for i = 1, select("#", ...) do texts[i] = M.text((select(i, ...))) end
  return table.concat(texts, "\t")
end

-- Prints the values, if there are any.
function M.print(...)
  if select("#", ...) > 0 then print(M.joined(...)) end
end

return M
