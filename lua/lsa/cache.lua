-- Owns lsa.cache: an eviction policy on a trace of page accesses, with no model and no bytes.
--
--   lsa.cache{pages = ids, capacity = 1000, evict = "sieve"} -> {hits =, misses =, evicted =}      (M.new)
--
-- pages: a list of ids, an i32 tensor, or {ids = int32_t *, n = n}. Every access is a hit or a miss; a miss loads
-- the page at once, and evicts first when `capacity` pages are present. evict: as in a session; default lru. The
-- policy's option `future` is the trace itself unless it is given.
local ffi = require "ffi"
local evictions = require "lsa.cycle.eviction_objects"
local lists = require "lsa.cycle.slot_lists"
local options = require "lsa.options"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local sequence = require "lsa.cycle.id_sequence"

-- Presence of the pages 0 .. most: a byte each while that is small, else by a map of those present.
local Flags, Map = {}, {}
Flags.__index, Map.__index = Flags, Map

-- A policy may ask for any number.
function Flags:has(id) return id >= 0 and id <= self.most and self.flags[id] == 1 end
function Flags:add(id) self.flags[id] = 1 end
function Flags:remove(id) self.flags[id] = 0 end

function Map:has(id) return self.ids:find(id) ~= 0 end
function Map:add(id) self.ids:add(id) end
function Map:remove(id) self.ids:drop(self.ids:find(id)) end

local FLAGS = 2 ^ 26

local function presence(most, capacity)
  if most < FLAGS then return setmetatable({flags = ffi.new("uint8_t[?]", most + 1), most = most}, Flags) end
  return setmetatable({ids = lists.new(0, math.min(capacity, 1024))}, Map)
end

-- The loop. Each policy runs a copy of its own, so that the JIT specialises it and does not chain policies' traces.
local LOOP = [[
local pages, n, capacity, object, present, complain = ...
local hits, count, evicted = 0, 0, 0
for i = 0, n - 1 do
  local id = pages[i]
  if present:has(id) then
    hits = hits + 1
    object:hit(id)
  elseif capacity > 0 then
    if count == capacity then
      local victim = object:victim(present, id)
      if type(victim) ~= "number" or victim % 1 ~= 0 or not present:has(victim) then complain(victim, i) end
      present:remove(victim)
      evicted = evicted + 1
    else
      count = count + 1
    end
    object:insert(id)
    present:add(id)
  end
end
return hits, evicted
]]
local loops = {}

local function loop_of(entry, kind)
  local key = entry.name .. kind
  if not loops[key] then loops[key] = loadstring(LOOP, "=lsa.cache") end
  return loops[key]
end

local M = {options = {pages = false, capacity = false, evict = "lru"}}

function M.new(arg)
  if type(arg) ~= "table" or arg.pages == nil then
    raise "lsa.cache: pages is nil, and is the trace: lsa.cache{pages = ids, capacity = n}"
  end
  arg = options.check(arg, M.options, "lsa.cache")
  local capacity = arg.capacity
  if type(capacity) ~= "number" or capacity < 0 or capacity ~= math.floor(capacity) then
    raise("lsa.cache: capacity is %s, and is a count of pages from 0", tostring(capacity))
  end
  local pages, n = sequence.of(arg.pages, "lsa.cache: pages")
  local most = 0
  for i = 0, n - 1 do
    if pages[i] > most then most = pages[i] end
  end
  local entry = registry.open("evictions", arg.evict)
  if entry.opt.future == nil then entry.opt.future = {ids = pages, n = n} end
  local object = evictions.make(entry, math.min(capacity, n)) -- as many never leave
  local present = presence(most, math.min(capacity, n))
  local function complain(victim, i)
    raise("lsa.cache: eviction policy %s: victim() returned %s at access %d, which is not present",
      entry.name, tostring(victim), i)
  end
  local run = loop_of(entry, getmetatable(present) == Flags and "" or " map")
  local ok, hits, evicted = registry.protected(entry.source, run,
    pages, n, capacity, object, present, complain)
  if not ok then error(hits, 0) end
  return {hits = hits, misses = n - hits, evicted = evicted}
end

return M
