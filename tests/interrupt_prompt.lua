-- What tests/interrupts_spec.lua has done at a prompt: operations that Ctrl-C may break off anywhere, and what has to hold then.
-- A session that went on after interrupts is compared with a twin that was never interrupted.
--
--   local work = dofile "tests/interrupt_prompt.lua" (model directory, folder)
--   work.NAME()              runs until it is interrupted, or ends by itself
--   work.check "NAME"        "sound", or what is wrong
local ffi = require "ffi"
local lsa = require "lsa"

local directory, folder = ...
local model = lsa.model(directory)
local C = require("lsa.ffi").C
local vocabulary = tonumber(model.config.vocab)
local MOST_TOKENS = 6000

local work, checks = {}, {}

local function token(position) return (position * 7919 + 13) % vocabulary end

local function tokens(from, to)
  local out = {}
  for position = from, to - 1 do out[#out + 1] = token(position) end
  return out
end

local function bits(t) return ffi.string(t.c.data, t:bytes()) end

local function file(name, text)
  local path = folder .. "/" .. name
  local out = assert(io.open(path, "w"))
  out:write(text)
  out:close()
  return path
end

-- A rule that remembers, draws, and takes its time in a loop that LuaJIT compiles.
local stateful = file("stateful.lua", [[
return function(cycle)
  local sum, out = 0, {}
  cycle.state.calls = (cycle.state.calls or 0) + 1
  for i = 1, 3e5 do sum = sum + i % 7 end
  for i = 1, cycle.room / 2 do out[i] = cycle.rng(cycle.n) end
  cycle.state.drawn = (cycle.state.drawn or 0) + #out
  return out
end]])

local evicting = file("evicting.lua", [[
return function(capacity)
  local lru = require("lsa.cycle.eviction_objects").new("lru", capacity)
  local out = {}
  for _, name in ipairs {"hit", "insert", "remove", "victim", "state", "restore"} do
    out[name] = function(_, ...)
      for i = 1, 1e4 do out.sum = (out.sum or 0) + i end
      return lru[name](lru, ...)
    end
  end
  return out
end]])

local endless = file("endless.lua", [[
return function()
  while true do
    pcall(function() while true do end end)
  end
end]])

---- a session and its twin ----

local kinds = {
  plain = {select = "lsa_topk", budget = 0.3, every = 8, hot = 300, evict = "s3fifo", coverage = true},
  files = {select = stateful, budget = 0.3, every = 8, hot = 300, evict = evicting, coverage = true},
  h2o = {select = "h2o", budget = 0.2, every = 4, async = true, cold = "disk:" .. folder, coverage = true},
}

local pairs_of = {}

local function opened(kind)
  local pair = pairs_of[kind]
  if pair and pair.live:tokens() < MOST_TOKENS then return pair end
  pair = {}
  for _, who in ipairs {"live", "twin"} do
    local s = model:session(kinds[kind])
    s:prefill(tokens(0, 700))
    pair[who] = s
  end
  pairs_of[kind] = pair
  return pair
end
for kind in pairs(kinds) do opened(kind) end

local function compare(live, twin)
  while twin:tokens() < live:tokens() do twin:decode(token(twin:tokens())) end
  local next_token = token(live:tokens())
  if bits(live:decode(next_token)) ~= bits(twin:decode(next_token)) then return "the logits differ" end
  if not live:resident():equals(twin:resident()) then return "the resident sets differ" end
  local a, b = live:stats(), twin:stats()
  for _, name in ipairs {"tokens", "cycles", "hits", "fetched_chunks", "evicted_chunks", "coverage", "policy_errors", "resident_pct"} do
    if a[name] ~= b[name] then return ("%s is %s, the twin's %s"):format(name, tostring(a[name]), tostring(b[name])) end
  end
  local calls, others = live.loop.state.calls, twin.loop.state.calls
  if calls ~= others then return ("the rule was called %s times, the twin's %s"):format(calls, others) end
  return "sound"
end

for kind in pairs(kinds) do
  work["decode_" .. kind] = function()
    local live = opened(kind).live
    while live:tokens() < MOST_TOKENS do live:decode(token(live:tokens())) end
  end
  checks["decode_" .. kind] = function() return compare(pairs_of[kind].live, pairs_of[kind].twin) end
end

function work.catching() -- what catches errors does not keep Ctrl-C from coming through
  local live = opened "plain".live
  while true do
    if live:tokens() < MOST_TOKENS then pcall(live.decode, live, token(live:tokens())) end
  end
end
checks.catching = checks.decode_plain

function work.fork()
  while true do
    opened "files".live:fork{seed = 3}:close()
    opened "files".live:fork{evict = evicting}:close()
  end
end
checks.fork = checks.decode_files

local sealed = model:session{select = "lsa_topk", budget = 0.3, every = 8}
sealed:prefill(tokens(0, 300))

function work.endless() sealed:fork{select = endless}:decode(1) end
function checks.endless()
  local s = sealed:fork{select = "lsa_topk"}
  local t = sealed:fork{select = "lsa_topk"}
  return compare(s, t)
end

local prefilled

function work.prefill()
  prefilled = nil -- what another interrupt left has had a prefill of its own since
  prefilled = model:session(kinds.plain)
  prefilled:prefill(tokens(0, 5000))
end
function checks.prefill()
  if not prefilled then return "sound" end
  local taken, twin = prefilled:tokens(), model:session(kinds.plain)
  if taken > 0 then twin:prefill(tokens(0, taken)) end
  for _, s in ipairs {prefilled, twin} do s:prefill(tokens(taken, taken + 100)) end
  return compare(prefilled, twin)
end

---- files ----

local function only(...)
  local allowed = {["stateful.lua"] = true, ["evicting.lua"] = true, ["endless.lua"] = true, trace = true, state = true}
  for _, name in ipairs {...} do allowed[name] = true end
  local pipe = io.popen("ls -A '" .. folder .. "'")
  for name in pipe:lines() do
    if not allowed[name] then return false, "left behind: " .. name end
  end
  pipe:close()
  return true
end

local saved = folder .. "/saved.safetensors"
opened "files".live:save(saved)

function work.save()
  while true do opened "files".live:save(saved) end
end
function checks.save()
  local clean, what = only "saved.safetensors"
  if not clean then return what end
  local again = model:restore(saved, {trust = true})
  again:decode(1)
  again:close()
  return checks.decode_files()
end

function work.restore()
  while true do model:restore(saved, {trust = true}):close() end
end
function checks.restore()
  local again = model:restore(saved, {trust = true})
  local text = again:tokens() > 0 and "sound" or "nothing was restored"
  again:close()
  return text
end

---- what C makes ----

local function held()
  pcall(package.loaded["lsa.host"].on_error) -- the last error's locals are kept no longer
  for _ = 1, 3 do collectgarbage() end
  return tonumber(C.lsa_memory_in_use()), #require("posix.dirent").dir "/proc/self/fd"
end

local numbers, lone = {a = lsa.ones {2 ^ 16}, b = lsa.ones {3, 2 ^ 14}}, folder .. "/numbers"
local memory_before, files_before, recorded

-- Whatever was made is somebody's, and goes with whom it was made for.
function work.making()
  memory_before = nil
  memory_before, files_before = held()
  while true do
    for _, kind in ipairs {".npy", ".pt", ".safetensors"} do
      lsa.save(lone .. kind, kind == ".npy" and numbers.a or numbers)
      lsa.load(lone .. kind)
    end
    local x = lsa.zeros {2 ^ 22}
    x:copy()
    lsa.set(2 ^ 25):copy()
    lsa.pool {record = 2 ^ 16, chunks = 64}
    require("lsa.text.regex").compile "[ab]+(?=c)"
    lsa.model(directory)
    recorded = sealed:fork()
    recorded:record(lone .. ".recording")
    recorded:decode(1)
    recorded:close()
    lsa.load(lone .. ".recording")
  end
end
function checks.making()
  if recorded then recorded:close() end -- one that records is kept until then
  recorded = nil
  local memory, files = held()
  for _, kind in ipairs {".npy", ".pt", ".safetensors", ".recording"} do os.remove(lone .. kind) end
  if not memory_before then return "sound" end -- interrupted before it began
  if files > files_before then return ("%d files are open, %d were"):format(files, files_before) end
  return memory <= memory_before and "sound" or ("%d bytes are allocated, %d were"):format(memory, memory_before)
end

---- many requests ----

local batch, expected

local function new_batch()
  batch = lsa.batch(model, {select = stateful, budget = 0.3, every = 8, most = 3, hot = 3000, stagger = false}) -- cycles do not depend on which slot a request gets
  for i = 1, 5 do batch:submit{tokens = tokens(i, 200 + 17 * i), n = 24} end
end

local function results()
  local out = {}
  for id = 0, 4 do out[id + 1] = ("%s: %s"):format(batch:result(id).state, table.concat(batch:result(id).tokens, " ")) end
  return table.concat(out, "\n")
end

new_batch()
batch:run()
expected = results()
batch:close()
new_batch()

function work.batch() batch:run() end
function checks.batch()
  if batch:step() > 0 then return "sound" end
  batch:run()
  local got = results()
  batch:close()
  new_batch()
  return got == expected and "sound" or "requests have ended otherwise: " .. got
end

---- training ----

lsa.dump(model, tokens(0, 400), folder .. "/trace", {layers = {0}})

local function new_trainer(checkpoint)
  return lsa.trainer{model = model, traces = {folder .. "/trace"}, layers = {0}, steps = 4000, batch = 4, rate = 1e-3, from = "random",
    window = 2, checkpoint = checkpoint, every = 20}
end

local trained, undisturbed

local function new_trainers()
  os.remove(folder .. "/state")
  trained, undisturbed = new_trainer(folder .. "/state"), new_trainer()
end
new_trainers()

function work.training() trained:run() end
function checks.training()
  while undisturbed.steps_done < trained.steps_done do undisturbed:step() end
  local others = undisturbed:tensors()
  for name, t in pairs(trained:tensors()) do
    if bits(t) ~= bits(others[name]) then return name .. " has other weights" end
  end
  local clean, what = only("saved.safetensors")
  if trained.steps_done > 3000 then new_trainers() end
  return clean and "sound" or what
end

---- sums ----

local table_of_sweep
local function sweep(path)
  return lsa.sweep{grid = {kind = {"plain", "files"}, n = {1, 2, 3}}, results = path, label = "sweep", run = function(params)
    local s = sealed:fork{seed = params.n}
    s:generate{n = 8}
    return {tokens = s:tokens(), name = params.kind}
  end}
end
table_of_sweep = sweep(folder .. "/rows"):csv()
os.remove(folder .. "/rows")

function work.sweep()
  while true do
    sweep(folder .. "/rows")
    os.remove(folder .. "/rows")
  end
end
function checks.sweep()
  local got = sweep(folder .. "/rows"):csv()
  os.remove(folder .. "/rows")
  return got == table_of_sweep and "sound" or "the table differs"
end

function work.loops() -- loops of files that LuaJIT compiles, in one line and in many
  dofile(file("loop.lua", "local n = 0 while true do n = n + 1 end"))
end
function checks.loops()
  os.remove(folder .. "/loop.lua")
  return "sound"
end

function work.generate()
  local s = sealed:fork()
  while s:tokens() < MOST_TOKENS do s:generate{n = 64} end
end
checks.generate = checks.endless

function work.check(name)
  local _, verdict = pcall(checks[name])
  return "verdict " .. name .. ": " .. tostring(verdict)
end

return work
