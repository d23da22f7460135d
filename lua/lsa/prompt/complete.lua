-- Tab completion: what `text`, a name or a path like `lsa.kernels.to` or `x:su`, may become in `environment`.
local M = {}

--
-- Objects whose names cannot be seen from outside tell them: a metatable's `__names` is a table with them as keys, and
-- so is the field `__methods` of a C object.

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
  "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

local MAX_CHAIN = 8

local function index(object, key) return object[key] end

local function add_names(found, names)
  for key, value in next, names do
    if type(key) == "string" and found[key] == nil then found[key] = type(value) end
  end
end

-- Adds the string keys of `object` and of what its metatable leads to.
local function add_keys(found, object)
  if type(object) == "cdata" then
    local ok, methods = pcall(index, object, "__methods")
    object = ok and methods
  end
  for _ = 1, MAX_CHAIN do
    if type(object) == "table" then add_names(found, object) end
    local meta = debug.getmetatable(object)
    if type(meta) ~= "table" then return end
    if type(rawget(meta, "__names")) == "table" then add_names(found, meta.__names) end
    object = rawget(meta, "__index")
    if type(object) ~= "table" then return end
  end
end

-- The sorted completions of `text`, each with the whole path in front.
function M.complete(text, environment)
  local path, separator, prefix = text:match "^(.*)([%.:])([%w_]*)$"
  local found = {}
  if path then
    local object, first = environment, true
    for name in path:gmatch "[^%.:]+" do
      local ok, value = pcall(index, object, name)
      if not ok or value == nil or not name:match "^[%a_][%w_]*$" then return {} end
      object, first = value, false
    end
    if first then return {} end
    add_keys(found, object)
  else
    path, separator, prefix = "", "", text
    add_keys(found, environment)
    add_keys(found, _G)
    for _, word in ipairs(keywords) do found[word] = "keyword" end
  end
  local list = {}
  for name, kind in pairs(found) do
    local fits = name:sub(1, #prefix) == prefix and name:match "^[%a_][%w_]*$"
    local hidden = name:sub(1, 1) == "_" and prefix == "" or separator == ":" and kind ~= "function"
    if fits and not hidden then list[#list + 1] = path .. separator .. name end
  end
  table.sort(list)
  return list
end

return M
