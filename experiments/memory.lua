-- What memory a long context takes, as the operating system counts it: everything resident against a cold tier on disk, each in
-- a process of its own; for the small real model, and for a pool of V4-Flash's shape.
--
--   ./lsa experiments/memory.lua [--help]
--
-- The context is prefilled once and saved on the way, so that a run that was killed goes on where it stopped.
local ffi = require "ffi"
local cjson = require "cjson"
local lib = require "lsa.ffi"
local lsa = require "lsa"
local needle = require "lsa.tasks.needle"
local progress = require "lsa.progress"
local rng = require "lsa.cycle.rng"
local stats = require "lsa.session.stats"
local texts = require "lsa.texts"

local opt = require "lsa.args" [[
Memory of decoding a long context, and of a pool, with the cold tier on disk against in memory.
  --tokens (default 32768)         length of the context
  --steps (default 64)             tokens that are decoded
  --budget (default 0.02)          chunks that stay resident, a share of all
  --every (default 64)             steps between cycles
  --chunks (default 16384)         chunks of the pool, of 21 layers with records of 584 bytes; 0 leaves the pool out
  --hot (default 0.1)              of these, how many have a cell
  --directory (default none)       where files go: saved contexts, which are used again, and cold tiers
  --save-every (default 65536)     tokens prefilled between two saves
  --compute (default f32)          f32 or bf16
  --model (default needle)         a model's short name (lsa.model) or directory
  --text (default bible)           a file to cut the haystack from; bible is the text of Debian's bible-kjv
  --seed (default 1)
  --only (default all)             all; prefill, or what a process of its own measures: resident, ram, disk, pool, pool-disk
PSS is what a process has beside what is shared, at the end; peak is the most that was resident (reading a saved context, or filling
a pool). The time is that of a decoded token, cycles included, or of a fetch into the pool.
]]

local folder = opt.directory
if folder == "none" then
  folder = os.tmpname()
  os.remove(folder)
  os.execute("mkdir " .. folder)
end
local cold = "disk:" .. folder

-- Resident and proportional bytes of this process, and the most that were ever resident.
local function memory()
  collectgarbage()
  collectgarbage()
  lib.C.lsa_memory_give_back()
  local out = {}
  for path, names in pairs {["/proc/self/smaps_rollup"] = {"Rss", "Pss"}, ["/proc/self/status"] = {"VmHWM"}} do
    local file = assert(io.open(path))
    local text = file:read "*a"
    file:close()
    for _, name in ipairs(names) do out[name] = tonumber(text:match("\n?" .. name .. ":%s*(%d+) kB")) * 1024 end
  end
  return out
end

-- What was added since `before`.
local function since(before)
  local now = memory()
  return {rss = now.Rss - before.Rss, pss = now.Pss - before.Pss, peak = now.VmHWM - before.Rss}
end

---- the small model ----

local function open_model()
  return lsa.model(opt.model, {compute = opt.compute})
end

-- A Memory Indexer of one target layer, whose keys alone stay in memory.
local function one_layer(model) return lsa.indexer{model = model, layers = {0}} end

local function build()
  local text = texts.open(opt.text)
  local made = needle.build(rng.new(opt.seed), text, needle.words(text), opt.tokens, 1)
  return made.text, made.needles[1]
end

local saved = ("%s/context-%d-%d-%s.safetensors"):format(folder, opt.tokens, opt.seed, opt.compute)

-- A session that has as much of `tokens` as its file has.
local function begun(model)
  local file = io.open(saved)
  if not file then return model:session{select = "full", indexer = one_layer(model)} end
  file:close()
  return model:restore(saved, {indexer = one_layer(model)})
end

-- The context and the question but for its last token are prefilled, and saved.
local function prefill()
  local model = open_model()
  local text, one = build()
  local tokens = model:tokens(text .. one.question)
  table.remove(tokens)
  local ids = lsa.tensor(tokens, "i32")
  local s = begun(model)
  local bar, started = progress(math.ceil(#tokens / opt.save_every), "prefilling"), os.time()
  for _ = 1, math.floor(s:tokens() / opt.save_every) do bar:step() end
  while s:tokens() < #tokens do
    local from = s:tokens()
    local n = math.min(opt.save_every, #tokens - from)
    s:prefill(ids:narrow(0, from, n))
    s:save(saved)
    bar:step()
  end
  bar:done()
  local out = {prefill_ms = s:stats().prefill_ms, seconds = os.time() - started, tokens = s:tokens()}
  s:close()
  return out
end

-- Decodes the answer, then on, from the saved context.
local function decode(options)
  local model = open_model()
  local _, one = build()
  local question, expected = model:tokens(one.question), model:tokens(one.answer)
  options.indexer = one_layer(model)
  local before = memory()
  local s = model:restore(saved, options)
  local token, right = question[#question], true
  for i = 1, math.max(opt.steps, #expected) do
    token = s:decode(token):argmax()
    if expected[i] and expected[i] ~= token then right = false end
  end
  local out, now = since(before), s:stats()
  out.right, out.ms, out.fetched = right, now.decode_ms / now.steps, now.fetched_bytes
  out.stall_ms = now.ms_per_token - out.ms
  return out
end

---- a pool of V4-Flash's shape ----

local LAYERS, RECORD, AT_ONCE = 21, 584, 1024

local function fill(pool)
  local random = rng.new(opt.seed)
  for from = 0, opt.chunks - 1, AT_ONCE do
    local ids = {}
    for i = 1, math.min(AT_ONCE, opt.chunks - from) do ids[i] = from + i - 1 end
    local bytes = lsa.zeros({#ids, RECORD}, "u8")
    local words = ffi.cast("uint32_t *", bytes.c.data)
    for layer = 0, LAYERS - 1 do
      for i = 0, bytes:bytes() / 4 - 1, 16 do words[i] = random(2 ^ 31) end
      pool:write(layer, ids, bytes)
    end
  end
end

-- Fetches a share of all chunks at random, then others in their place.
local function run_pool(where)
  local before = memory()
  local cells = math.floor(opt.chunks * opt.hot)
  local pool = lsa.pool{layers = LAYERS, record = RECORD, chunks = opt.chunks, cold = where, hot = cells}
  fill(pool)
  local random = rng.new(opt.seed)
  for _ = 1, 3 do
    local wanted = lsa.set(opt.chunks)
    while wanted:count() < cells do wanted:add(random(opt.chunks)) end
    pool:fetch(wanted)
  end
  local out, now = since(before), pool:stats()
  out.ms, out.fetched = now.transfer_ms / 3, now.fetched_bytes
  return out
end

---- processes ----

local runs = {
  prefill = prefill,
  resident = function() return decode{select = "full"} end,
  ram = function() return decode{select = "lsa_topk", budget = opt.budget, every = opt.every} end,
  disk = function() return decode{select = "lsa_topk", budget = opt.budget, every = opt.every, cold = cold} end,
  pool = function() return run_pool "ram" end,
  ["pool-disk"] = function() return run_pool(cold) end,
}

local function quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

-- The result of one of the runs, in a process of its own.
local function run(name)
  local words = {lsa.root .. "/" .. lib.build .. "/bin/lsa", lsa.root .. "/experiments/memory.lua", "--only", name, "--directory", folder}
  for _, option in ipairs {"tokens", "steps", "budget", "every", "chunks", "hot", "compute", "model", "text", "seed"} do
    words[#words + 1] = "--" .. option
    words[#words + 1] = tostring(opt[option])
  end
  words[#words + 1] = "--save-every"
  words[#words + 1] = tostring(opt.save_every)
  for i, word in ipairs(words) do words[i] = quoted(word) end
  local pipe = assert(io.popen(table.concat(words, " ")))
  local text = pipe:read "*a"
  local line = text:match "({[^\n]*})\n?$"
  pipe:close()
  if not line then error(("memory.lua: the run %s failed"):format(name), 0) end
  return cjson.decode(line)
end

if opt.only ~= "all" then
  if not runs[opt.only] then error(("--only is %s; it can be: all, prefill, resident, ram, disk, pool, pool-disk"):format(opt.only), 0) end
  print(cjson.encode(runs[opt.only]()))
  return
end

local rows = {}
local prefilled = run "prefill"
rows[1] = {"context; everything resident", run "resident"}
rows[2] = {"context; cold tier in memory", run "ram"} -- what the disk costs: the same policy without it
rows[3] = {"context; cold tier on disk", run "disk"}
if opt.chunks > 0 then
  rows[4] = {"pool; in memory", run "pool"}
  rows[5] = {"pool; on disk", run "pool-disk"}
end
if opt.directory == "none" then os.execute("rm -rf " .. folder) end

local report, measured = opt.report, {}
report:say("%d tokens (prefilled in %.0f s of computing), %d of which decoded under a budget of %s; a pool of %d chunks, %s of them hot\n",
  prefilled.tokens + opt.steps, prefilled.prefill_ms / 1e3, opt.steps, tostring(opt.budget), opt.chunks, tostring(opt.hot))
report:say("%-30s %10s %8s %10s %12s %12s  %s", "above a loaded model", "PSS", "of that", "peak", "time", "fetched", "needle")
for i, row in ipairs(rows) do
  local name, r = unpack(row)
  local whole = rows[i < 4 and 1 or 4][2]
  local answered = r.right == nil and "" or r.right and "found" or "missed"
  measured[i] = {run = name, rss_bytes = r.rss, pss_bytes = r.pss, peak_bytes = r.peak, share = r.pss / whole.pss, ms = r.ms,
    fetched_bytes = r.fetched, answered = answered}
  report:say("%-30s %10s %7.1f%% %10s %9.3f ms %12s  %s", name, stats.bytes(r.pss), 100 * r.pss / whole.pss, stats.bytes(r.peak),
    r.ms + (r.stall_ms or 0), stats.bytes(r.fetched), answered)
end
report:table("memory", {"run", "rss_bytes", "pss_bytes", "peak_bytes", "share", "ms", "fetched_bytes", "answered"}, measured, "")
report:done()
