-- Owns how plain data (numbers, strings, booleans, tables of them) becomes bytes and comes back, exactly; equal data gives
-- equal bytes. plain.encode(value) -> string; plain.decode(string) -> value.
local ffi = require "ffi"
local raise = require "lsa.raise"

local M = {}

local function number(x) return ffi.string(ffi.new("double[1]", x), 8) end

local function compare(a, b)
  if type(a) ~= type(b) then return type(a) < type(b) end
  return a < b
end

local function put(out, value, depth)
  local kind = type(value)
  if depth > 64 then raise "plain data nested deeper than 64" end
  if kind == "number" then
    out[#out + 1] = "n" .. number(value)
  elseif kind == "string" then
    out[#out + 1] = "s" .. number(#value)
    out[#out + 1] = value
  elseif kind == "boolean" then
    out[#out + 1] = value and "y" or "z"
  elseif kind == "table" then
    local keys = {}
    for key in pairs(value) do
      if type(key) ~= "number" and type(key) ~= "string" then
        raise("a key is a %s; numbers and strings are plain data", type(key))
      end
      keys[#keys + 1] = key
    end
    table.sort(keys, compare)
    out[#out + 1] = "t" .. number(#keys)
    for _, key in ipairs(keys) do
      put(out, key, depth + 1)
      put(out, value[key], depth + 1)
    end
  else
    raise("a %s is no plain data", kind)
  end
end

function M.encode(value)
  local out = {}
  put(out, value, 0)
  return table.concat(out)
end

local function take(text, at, depth)
  local kind, from = text:sub(at, at), at + 1
  if kind == "y" or kind == "z" then return kind == "y", from end
  if #text < from + 7 or depth > 64 then raise "damaged plain data" end
  local x = ffi.new "double[1]"
  ffi.copy(x, text:sub(from, from + 7), 8)
  x, from = x[0], from + 8
  if kind == "n" then return x, from end
  if kind == "s" and x >= 0 and from + x - 1 <= #text then return text:sub(from, from + x - 1), from + x end
  if kind ~= "t" or not (x >= 0 and x <= #text) then raise "damaged plain data" end
  local out = {}
  for _ = 1, x do
    local key, value
    key, from = take(text, from, depth + 1)
    value, from = take(text, from, depth + 1)
    if key ~= key or type(key) == "table" then raise "damaged plain data" end
    out[key] = value
  end
  return out, from
end

function M.decode(text)
  local value, at = take(text, 1, 0)
  if at ~= #text + 1 then raise "damaged plain data" end
  return value
end

return M
