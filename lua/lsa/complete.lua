-- Tab completion: what `text`, a name or a path like `lsa.kernels.to` or `x:su`, may become in `environment`.
local M = {}

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in", "local",
  "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

local MAX_CHAIN = 8

local function index(object, key) return object[key] end

-- Adds the string keys of `object` and of what its metatable leads to.
local function add_keys(found, object)
  for _ = 1, MAX_CHAIN do
    if type(object) == "table" then
      for key, value in next, object do
        if type(key) == "string" and found[key] == nil then found[key] = type(value) end
      end
    elseif type(object) == "cdata" then
      object = M.methods(object)
      if object then add_keys(found, object) end
      return
    end
    local meta = debug.getmetatable(object)
    object = type(meta) == "table" and rawget(meta, "__index") or nil
    if type(object) ~= "table" then return end
  end
end

-- The methods of a C object, which LuaJIT keeps to itself: types tell them here by `register`.
local by_type = {}

function M.register(ctype, methods) by_type[tostring(ctype)] = methods end

function M.methods(object)
  local name = tostring(require "ffi".typeof(object))
  return by_type[name] or by_type[name:gsub(" [*&]>$", ">")]
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
