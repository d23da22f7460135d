-- Owns eviction objects: how one is made from a name, a file or a function, and how another one goes on where it stands.
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
--   data = object:state()       for forks and saved sessions, plain data (lua/lsa/files/plain_data.lua)
--   object:restore(data)        an object just made for the same capacity goes on as the one whose state() this is
--
--   copy = evictions.fork(entry, object, 1000)      another object that goes on as this one does; nil where it has no state() and
--                                                   restore(): then evictions.rebuild(entry, 1000, ids) makes do
--   evictions.resize(object, capacity)      for pools that grow; calls object:resize(capacity) where there is one
--
-- Ids are integers from 0 to 2^31 - 1. Options of a policy that needs a random generator are `seed`.
local plain = require "lsa.files.plain_data"
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

-- Makes the object of an open entry; registry errors and the policy's own name the policy's file.
function M.make(entry, capacity)
  local object = call(entry, entry.fn, capacity, entry.opt)
  if type(object) ~= "table" then
    raise("eviction policy %s: returns a %s, and returns an object with hit, insert, victim, remove", entry.name, type(object))
  end
  for _, method in ipairs(METHODS) do
    if type(object[method]) ~= "function" then
      raise("eviction policy %s: its object has no function '%s'", entry.name, method)
    end
  end
  return object
end

-- The bytes of what an object's state() gives; nil where it has no state() and restore(), and, with why, where that is no plain data.
function M.save(entry, object)
  if type(object.state) ~= "function" or type(object.restore) ~= "function" then return nil end
  local bytes, problem = plain.try(call(entry, object.state, object), "state()")
  return bytes, problem and ("eviction policy %s: %s"):format(entry.name, problem)
end

-- An object that goes on as the one that these bytes are of.
function M.load(entry, capacity, bytes)
  local object, data = M.make(entry, capacity), plain.decode(bytes)
  if type(object.restore) ~= "function" then
    raise("eviction policy %s: its object has no function 'restore'", entry.name)
  end
  call(entry, object.restore, object, data)
  return object
end

function M.fork(entry, object, capacity)
  local bytes, problem = M.save(entry, object)
  if problem then raise("%s", problem) end
  return bytes and M.load(entry, capacity, bytes)
end

-- The object and the entry that it came from.
function M.new(spec, capacity)
  local entry = registry.open("evictions", spec)
  return M.make(entry, capacity), entry
end

-- An object that holds `ids` (a list, oldest first): after entry:refresh() took a new version over, or where a state is not known.
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

return M
