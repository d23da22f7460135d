-- Owns eviction objects: how one is made from a name, a file or a function, and how one is copied for a fork.
-- The policies are lua/lsa/evictions/NAME.lua.
--
--   object, entry = evictions.new("sieve", 1000)          entry: see registry.lua
--   object, entry = evictions.new({"slru", segments = 2}, 1000)
--   object:hit(id)              id is present and was selected: refreshes whatever the policy keeps of it
--   object:insert(id)           id was loaded
--   id = object:victim(allowed, incoming)   who leaves: an id with allowed:has(id) (nil allows all), which the
--                               object has then forgotten; nil when there is none. `incoming` is the id that room
--                               is made for, when it is known: ARC and S3-FIFO remember what they evicted, and
--                               treat an id that comes back as their papers do only when they are told before
--   object:remove(id)           id is gone for another reason; of no effect when it is absent
--   copy = object:clone()       an independent copy, for a fork of a session
--   evictions.resize(object, capacity)      for pools that grow; calls object:resize(capacity) where there is one
--
-- Ids are integers from 0 to 2^31 - 1. Options of a policy that needs a random generator are `seed`.
local ffi = require "ffi"
local raise = require "lsa.raise"
local registry = require "lsa.registry"

local M = {}

local METHODS = {"hit", "insert", "victim", "remove"}

-- f(...), a policy's function; what it raises names the policy's file.
local function call(entry, f, ...)
  local ok, answer = registry.protected(entry.source, f, ...)
  if not ok then error(answer, 0) end
  return answer
end

-- An object that a policy's function gave.
local function checked(entry, object, whose)
  if type(object) ~= "table" then
    raise("eviction policy %s: %sreturns a %s, and returns an object with hit, insert, victim, remove",
      entry.name, whose, type(object))
  end
  for _, method in ipairs(METHODS) do
    if type(object[method]) ~= "function" then
      raise("eviction policy %s: its object has no function '%s'", entry.name, method)
    end
  end
  if object.clone == nil then object.clone = M.copy end
  return object
end

-- Makes the object of an open entry; registry errors and the policy's own name the policy's file.
function M.make(entry, capacity)
  return checked(entry, call(entry, entry.fn, capacity, entry.opt), "")
end

-- The copy of an entry's object that its clone() gives.
function M.fork(entry, object)
  return checked(entry, call(entry, object.clone, object), "clone() ")
end

-- The object and the entry that it came from.
function M.new(spec, capacity)
  local entry = registry.open("evictions", spec)
  return M.make(entry, capacity), entry
end

-- After entry:refresh() took a new version over: an object of that version that holds `ids` (a list, oldest first).
function M.rebuild(entry, capacity, ids)
  local object = M.make(entry, capacity)
  call(entry, function()
    for _, id in ipairs(ids) do object:insert(id) end
  end)
  return object
end

function M.resize(object, capacity)
  if object.resize then object:resize(capacity) end
end

-- The values that all copies share: what loaded modules are and hold.
local function shared_values()
  local shared = {[_G] = true}
  for _, module in pairs(package.loaded) do
    shared[module] = true
    if type(module) == "table" then
      for _, value in pairs(module) do
        if type(value) == "table" or type(value) == "function" then shared[value] = true end
      end
    end
  end
  return shared
end

local SCALARS = {
  ["char"] = true, ["signed char"] = true, ["unsigned char"] = true, ["short"] = true, ["unsigned short"] = true,
  ["int"] = true, ["unsigned int"] = true, ["int64_t"] = true, ["uint64_t"] = true, ["long"] = true,
  ["unsigned long"] = true, ["float"] = true, ["double"] = true, ["bool"] = true,
}

local function copy_cdata(value, path)
  local name = tostring(ffi.typeof(value)):match "^ctype<(.*)>$" or "?"
  local element = name:match "^(.-) ?%[.*%]$"
  if SCALARS[name] or name:find "^enum " then return value end
  if element and SCALARS[element:gsub("^const ", "")] then
    local bytes = ffi.sizeof(value)
    local copy = name:find("[?]", 1, true) and ffi.new(element .. "[?]", bytes / ffi.sizeof(element))
      or ffi.new(ffi.typeof(value))
    ffi.copy(copy, value, bytes)
    return copy
  end
  -- C objects of this library copy themselves.
  for _, method in ipairs{"clone", "copy"} do
    local ok, copy = pcall(function() return value[method](value) end)
    if ok then return copy end
  end
  raise("clone: %s is a cdata '%s', which cannot be copied: keep numbers, tables and arrays of numbers, or give " ..
    "the object a clone method", path, name)
end

local copy_value

local function copy_table(value, state, path)
  local meta = getmetatable(value)
  if value ~= state.root then
    local class = type(meta) == "table" and rawget(meta, "__index")
    local clone = rawget(value, "clone") or type(class) == "table" and class.clone
    if type(clone) == "function" and clone ~= M.copy then
      local copy = clone(value)
      state.done[value] = copy
      return copy
    end
  end
  local copy = {}
  state.done[value] = copy
  for key, item in next, value do
    local name = path .. "." .. tostring(key)
    rawset(copy, copy_value(key, state, name), copy_value(item, state, name))
  end
  -- A metatable that is its own __index is a class: code, which is shared.
  if meta ~= nil and type(meta) ~= "table" then
    raise("clone: %s has a protected metatable; give the object a clone method", path)
  end
  if meta and not state.shared[meta] and rawget(meta, "__index") ~= meta then
    meta = copy_value(meta, state, path .. "'s metatable")
  end
  return setmetatable(copy, meta)
end

-- A closure is its code and its cells. Cells that closures share are shared by the copies too.
local function copy_function(value, state, path)
  local info = debug.getinfo(value, "Su")
  if info.what == "C" or info.nups == 0 then return value end
  local copy = loadstring(string.dump(value), info.source)
  state.done[value] = copy
  setfenv(copy, getfenv(value))
  for i = 1, info.nups do
    local cell = debug.upvalueid(value, i)
    local known = state.cells[cell]
    if known then
      debug.upvaluejoin(copy, i, known.fn, known.i)
    else
      state.cells[cell] = {fn = copy, i = i}
      local name, item = debug.getupvalue(value, i)
      debug.setupvalue(copy, i, copy_value(item, state, path .. ", local " .. name))
    end
  end
  return copy
end

function copy_value(value, state, path)
  local kind = type(value)
  if kind == "nil" or kind == "number" or kind == "string" or kind == "boolean" then return value end
  if state.done[value] ~= nil then return state.done[value] end
  if state.shared[value] then return value end
  local copy
  if kind == "table" then
    return copy_table(value, state, path)
  elseif kind == "function" then
    return copy_function(value, state, path)
  elseif kind == "cdata" then
    if ffi.istype("void *", value) and value == nil then return value end
    copy = copy_cdata(value, path)
  else
    raise("clone: %s is a %s, which cannot be copied; give the object a clone method", path, kind)
  end
  state.done[value] = copy
  return copy
end

-- An independent copy: tables, arrays of numbers and closures with their local variables, each once. Shared are
-- functions without local variables of their own, loaded modules and what they hold, and classes (metatables that
-- are their own __index). Sets, tensors and what has a clone method copy themselves; other C memory is refused, by the
-- path to it from `what`.
function M.copy(object, what)
  local state = {root = object, done = {}, cells = {}, shared = shared_values()}
  return copy_value(object, state, what or "the object")
end

-- object:clone() where the object has one of its own, else a copy.
function M.clone(object)
  if object.clone and object.clone ~= M.copy then return object:clone() end
  return M.copy(object)
end

return M
