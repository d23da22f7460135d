-- Owns policies inside policies: what the wrappers among lua/lsa/policies ask.
--
--   inner.ask(cycle, spec, name, room, keep) -> the set, beside keep, that the policy `spec` selects
--
-- spec: as a session's select: a name, {name, option = …}, a file or a function. name: what the inner policy's state is
-- called in cycle.state, and where `spec` stands in messages. room: chunks that it may select beside `keep` (cycle.keep
-- when nil): more is an error.
local cycles = require "lsa.cycle.cycle"
local raise = require "lsa.raise"
local registry = require "lsa.registry"

local M = {}

-- Entries of files, by what they were opened from. A function's entry would keep its own key, and is made quickly.
local opened = setmetatable({}, {__mode = "k"})

-- The outermost cycle for which an entry's file was last looked at: once a cycle is enough.
local looked = setmetatable({}, {__mode = "kv"})

local function entry_of(spec, name, cycle)
  if type(spec) == "nil" then raise("%s is nil; it is the inner policy, as in {\"dilate\", of = \"lsa_topk\"}", name) end
  local entry = opened[spec] or registry.open("policies", spec)
  if entry.path then opened[spec] = entry end
  while rawget(cycle, "outer") do cycle = rawget(cycle, "outer") end
  if looked[entry] ~= cycle then
    looked[entry] = cycle
    entry:refresh()
  end
  return entry
end

function M.ask(cycle, spec, name, room, keep)
  local entry = entry_of(spec, name, cycle)
  keep = keep or cycle.keep
  cycle.state[name] = cycle.state[name] or {}
  local ok, answer = entry:call(cycle.within{keep = keep:copy(), budget = keep:count() + room, room = room, state = cycle.state[name]})
  if not ok then error(answer, 0) end
  local chosen = cycles.as_set(answer, cycle.n):minus(keep)
  if chosen:count() > room then
    raise("%s %s: %d chunks beside what is kept, its share is %d", name, entry.name, chosen:count(), room)
  end
  return chosen
end

return M
