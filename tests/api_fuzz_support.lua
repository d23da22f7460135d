-- What tests/api_fuzz_spec.lua calls the scripting API with: values of every kind, right calls that are then made wrong in one
-- place, callbacks that misbehave; and what a failure may say.
local ffi = require "ffi"
local lsa = require "lsa"
local rng = require "lsa.cycle.rng"

local M = {}

-- Left out, and why. What is not here is called.
M.EXCLUDED = {
  -- The prompt's and the launcher's.
  ["lsa.root"] = "a string", ["lsa.version"] = "a string", ["lsa.interact"] = "wants a terminal",
  ["lsa.cuda"] = "tests/cuda_spec.lua's",
  -- What prints itself, and is indexed by name.
  ["lsa.policies"] = "rules", ["lsa.evictions"] = "rules", ["lsa.schedules"] = "rules", ["lsa.samplers"] = "rules",
  -- What the loop, its policies and the batch ask of a session; scripts go by cycle and by the session's other methods.
  ["session.position"] = "inner", ["session.set_resident"] = "inner", ["session.prefetch"] = "inner", ["session.drop_absent"] = "inner",
  ["session.coverage"] = "inner", ["session.hidden_states"] = "inner",
  ["session.index_scores"] = "inner", ["session.ensemble_scores"] = "inner", ["session.ensemble_reached"] = "inner", ["session.recent_queries"] = "inner", ["session.decoded_keys"] = "inner",
  ["session.observations"] = "inner", ["session.token_tensor"] = "inner", ["session.last_entropy"] = "inner",
  ["session.reserve"] = "inner",
  ["session.demand_cells"] = "inner", ["session.chunk_bytes"] = "inner", ["session.join"] = "inner", ["session.draw"] = "inner",
  -- Sums that accounting.flops is made of; steps that trainer:step is made of; scoring for sessions and replay.
  ["accounting.constant"] = "inner", ["accounting.scoring"] = "inner", ["accounting.indexer_queries"] = "inner",
  ["trainer.gradients"] = "inner", ["trainer.highest"] = "inner", ["trainer.rate"] = "inner",
  ["indexer.join"] = "inner", ["indexer.query"] = "inner", ["indexer.flops"] = "inner",
}

-- Neither here nor there: numbers that are valid nowhere, or at an edge of a C type. Sizes between a megabyte and what
-- cannot be had are left out, since a machine may well grant them.
local NUMBERS = {0, 1, 2, 3, 7, 64, -1, -2, 0.5, -0.5, 1.5, 0 / 0, math.huge, -math.huge, 2 ^ 31 - 1, 2 ^ 31, 2 ^ 32, 2 ^ 32 + 1, -2 ^ 31,
  -2 ^ 31 - 1, 2 ^ 53 - 1, 2 ^ 53, 2 ^ 61, 2 ^ 62, 2 ^ 63, 2 ^ 64, -2 ^ 63, 1e300, -1e300, 1e-300, 255, 256, 1000}

-- Nothing bounds a process under sanitizers, where what is granted is also written.
if require("lsa.ffi").build:find "sanitize" then
  for i = #NUMBERS, 1, -1 do
    if NUMBERS[i] > 2 ^ 20 and NUMBERS[i] < 2 ^ 45 then table.remove(NUMBERS, i) end
  end
end

local STRINGS = {"", "\0", "max", "mean", "f32", "bf16", "u8", "cuda", "cpu", "a\0b", "%s%d%n", "lru", "recency", "full", "native", "64 MiB",
  "-1 MiB", "1e400 GiB", "999999999999 GiB", "ram", "disk:", "disk:/nonexistent/folder", "/nonexistent/folder/file", "/", ".", "nothing.lua",
  "../x", "\255\254", ("x"):rep(5000), "mpi", "page", "chunk", "sum", "\n"}

local DTYPES = {"f32", "bf16", "f16", "f8_e4m3", "f8_e8m0", "i8", "u8", "i32", "i64", "f64"}
local SHAPES = {{}, {0}, {1}, {4}, {7}, {0, 3}, {3, 0}, {2, 3}, {4, 4}, {1, 64}, {8, 16}, {2, 3, 4}, {2, 4, 64}, {1, 1, 1, 1, 1, 1}, {64}, {300}}
local HUGE_SHAPES = {{2 ^ 62}, {2 ^ 32, 2 ^ 32}, {2 ^ 21, 2 ^ 21, 2 ^ 21, 2 ^ 21}, {2 ^ 53 - 1, 2 ^ 53 - 1}, {0, 2 ^ 62, 4}, {2 ^ 45}}

local Random = {}
Random.__index = Random

-- random(n): 0 .. n-1; random:pick(list); random:chance(p).
function M.random(seed)
  local draw = rng.new(seed)
  return setmetatable({draw = draw}, {__index = Random, __call = function(_, n) return draw(n) end})
end

function Random:pick(list) return list[1 + self.draw(#list)] end
function Random:chance(p) return self.draw() < p end

---- values ----

local function tensor(random)
  local t = lsa.zeros(random:pick(SHAPES), random:pick(DTYPES))
  local n, shape = t:count(), t:shape()
  if n > 0 and t:dtype() == "f32" then
    for _ = 1, 3 do t:reshape {n}:set(random(n), random:pick(NUMBERS)) end
  elseif n > 0 then
    t:fill(random(3))
  end
  if #shape >= 2 and shape[2] > 1 and random:chance(0.5) then t = t:narrow(1, 0, shape[2] - 1) end -- not contiguous
  return t
end

local function set(random)
  local n = random:pick {0, 1, 5, 32, 63, 64, 65, 500}
  local s = lsa.set(n)
  for _ = 1, math.min(n, 5) do s:add(random(n)) end
  return s
end

-- A function that misbehaves each time in some way. world: what it can call back into.
function M.callback(random, world, value)
  return function(...)
    local what = random(12)
    world.threw = world.threw or what <= 2
    if what == 0 then error(M.value(random, world, 1)) end
    if what == 1 then error() end
    if what == 2 then error({[1] = "a table"}, 0) end
    if what <= 4 and world.reenter then world.reenter(random) end
    if what == 5 then collectgarbage() end
    if what == 6 then return ... end
    if what == 7 then return end
    if what <= 9 and value then return value(...) end
    return M.value(random, world, 1)
  end
end

local function list_of_values(random, world, depth)
  local t = {}
  for i = 1, random(5) do t[i] = M.value(random, world, depth + 1) end
  return t
end

local function table_value(random, world, depth)
  local what = random(11)
  if what == 0 or depth > 2 then return {} end
  if what == 1 then
    local t = {1, 2}
    t[3], t.self = t, t
    return t
  end
  if what == 2 then return {{1, 2}, {3}} end
  if what == 3 then return random:pick(HUGE_SHAPES) end
  if what == 4 then return {random:pick(NUMBERS)} end
  if what == 5 then return {random:pick(NUMBERS), random:pick(NUMBERS)} end
  if what == 6 then return setmetatable({}, {__index = function() error "no such field" end}) end
  if what == 7 then return {[M.value(random, world, depth + 1) or 1] = M.value(random, world, depth + 1)} end
  if what == 8 then return {random:pick(STRINGS), theta = M.value(random, world, depth + 1)} end
  if what == 9 then return {n = random:pick(NUMBERS), ids = random:pick(NUMBERS), tokens = random:pick(NUMBERS)} end
  return list_of_values(random, world, depth)
end

-- Any value. NaN cannot be a key, and is not made where one is wanted.
function M.value(random, world, depth)
  depth = depth or 0
  local what = random(20)
  if what == 0 then return nil end
  if what == 1 then return random:chance(0.5) end
  if what <= 6 then return random:pick(NUMBERS) end
  if what <= 8 then return random:pick(STRINGS) end
  if what <= 11 then
    local ok, t = pcall(table_value, random, world, depth)
    return ok and t or {}
  end
  if what == 12 then return M.callback(random, world) end
  if what == 13 then return tensor(random) end
  if what == 14 then return set(random) end
  if what == 15 then return coroutine.create(function() end) end
  if what == 16 then
    return random:pick {io.stdout, ffi.new("int64_t", -1), ffi.new "void *", ffi.new("int32_t[4]"), ffi.typeof "int", lsa, print}
  end
  local objects = world.objects or {}
  if #objects > 0 then return random:pick(objects) end
  return random:pick(NUMBERS)
end

---- calls ----

local function copy(t)
  local out = {}
  for key, value in pairs(t) do out[key] = value end
  return out
end

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  return keys
end

local function is_plain(value) return type(value) == "table" and getmetatable(value) == nil end

-- A table of options or a list with one thing wrong in it.
local function spoil_table(random, world, given)
  local out, keys = copy(given), sorted_keys(given)
  local what = random(8)
  if what == 0 then out["no such option"] = M.value(random, world)
  elseif what == 1 and #keys > 0 then out[random:pick(keys)] = nil
  elseif #keys > 0 then
    local key = random:pick(keys)
    if is_plain(out[key]) and random:chance(0.5) then out[key] = spoil_table(random, world, out[key])
    else out[key] = M.value(random, world) end
  end
  return out
end

-- Arguments {n = count, ...}: a right call's with something wrong, or anything at all.
function M.arguments(random, world, right)
  local args = {n = random(4)}
  if not right or random:chance(0.15) then
    for i = 1, args.n do args[i] = M.value(random, world) end
    return args
  end
  for i = 1, #right do args[i] = right[i] end
  args.n = #right
  if random:chance(0.1) then return args end -- right as it is
  if args.n == 0 or random:chance(0.08) then
    args.n = args.n + 1
    args[args.n] = M.value(random, world)
    return args
  end
  local at = 1 + random(args.n)
  if is_plain(args[at]) and random:chance(0.75) then args[at] = spoil_table(random, world, args[at])
  elseif random:chance(0.1) then args.n = at - 1
  else args[at] = M.value(random, world) end
  return args
end

---- discovery ----

-- The functions of an object, by name: its own fields and what its metatables lead to.
function M.methods(object)
  local found = {}
  if type(object) == "cdata" then object = object.__methods end
  for _ = 1, 8 do
    if type(object) ~= "table" then break end
    for name, value in next, object do
      if type(name) == "string" and type(value) == "function" and name:sub(1, 2) ~= "__" then found[name] = value end
    end
    local meta = debug.getmetatable(object)
    object = type(meta) == "table" and rawget(meta, "__index")
  end
  return found
end

---- messages ----

-- What LuaJIT or a library says when nobody checked an argument.
local INTERNAL = {"attempt to ", "bad argument #", "cannot convert", "'%?'", "stack overflow", "not enough memory", "invalid value %(",
  "table index is", "assertion failed", "invalid key to", "has no member named", "number expected", "string expected",
  "initial value must be", "wrong number of type", "size of C type is unknown", "too many initializers", "table overflow",
  "unfinished ", "malformed ", "invalid order function", "Cannot serialise", "excessive", "result too large", "nil %(a nil"}

local RULES = {policies = true, evictions = true, schedules = true, samplers = true, tasks = true}

-- Why a message is no good, or nil. own: the file of the calls.
function M.fault(message, own)
  if type(message) ~= "string" then return "the error is a " .. type(message) end
  if #message == 0 then return "the message is empty" end
  if #message > 20000 then return ("the message has %d bytes"):format(#message) end
  local folder = message:match "lua/lsa/(%l+)/[%w_]+%.lua:%d+: "
  if RULES[folder] then return nil end -- a policy's line is a script's
  for _, pattern in ipairs(INTERNAL) do
    if message:find(pattern) then return "the message is an internal one" end
  end
  local place, text = message:match "^([^\n]-):%d+: (.*)$"
  if place and place:find "lua/lsa/[%w_/]+%.lua$" then return "the message points into the library" end
  if place and place:find(own, 1, true) then message = text end
  if not message:find "%a%a" then return "the message says nothing" end
end

local function shown(value, depth)
  local kind = type(value)
  if kind == "string" then return #value > 40 and ("a string of %d"):format(#value) or ("%q"):format(value):gsub("\n", "n") end
  if kind == "table" and getmetatable(value) == nil and depth < 3 then
    local parts = {}
    for _, key in ipairs(sorted_keys(value)) do
      if #parts < 30 then parts[#parts + 1] = ("[%s] = %s"):format(shown(key, depth + 1), shown(value[key], depth + 1)) end
    end
    return "{" .. table.concat(parts, ", ") .. "}"
  end
  local ok, text = pcall(tostring, value)
  return ok and (text:match "^[^\n]*"):sub(1, 60) or "a " .. kind
end

-- A call as text, for whoever has to repeat it.
function M.call_text(name, args)
  local parts = {}
  for i = 1, args.n do parts[i] = shown(args[i], 0) end
  return ("%s(%s)"):format(name, table.concat(parts, ", "))
end

return M
