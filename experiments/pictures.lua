-- What lsa.plot makes of a session, a recording, a trace of pages and an indexer of the small real model, in one go.
--
--   ./lsa experiments/pictures.lua [--help]
local lsa = require "lsa"
local asked = require "lsa.tasks.asked"

local opt = require "lsa.args" [[
Pictures of one session that answers questions far apart, and of what was recorded of it.
  --policy (default snap_window)  what the session selects by
  --budget (default 0.05)         of the chunks
  --every (default 16)            steps between cycles
  --tokens (default 8192)         length of the context
  --items (default 12)            statements hidden in it, all asked
  --model (default needle)        a model's directory or short name
  --form (default png)            png, svg or pdf
  --into (default .)              a folder
]]

local model = lsa.model(opt.model)
local pictures = {}
-- shown: what of cycles it has, where it is of a session's: cycles, failed, clipped.
local function save(plot, name, shown)
  local path = ("%s/%s.%s"):format(opt.into, name, opt.form)
  plot:save(path)
  shown = shown or {}
  pictures[#pictures + 1] = {picture = name, file = path, cycles = shown.cycles, failed = shown.policy_errors, clipped = shown.clipped}
end

-- One session answers all questions, each as its own text goes on; what it does is recorded.
local task = lsa.tasks.single{model = model, tokens = opt.tokens, items = opt.items}
local made = task:questions_of(1, 1)
local s = model:session{select = opt.policy, budget = opt.budget, every = opt.every}
local recording = os.tmpname()
s:prefill(made.text)
s:record(recording)
local evidence = {}
for i, one in ipairs(made.questions) do
  for _, token in ipairs(model:tokens(one.question .. one.answer .. ".")) do s:decode(token) end
  local chunks = asked.chunks(model, one)
  evidence[i] = {chunks[1], chunks[#chunks] + 1}
end
s:record(false)
local title = ("%d questions, %d tokens, %s: "):format(opt.items, opt.tokens, opt.policy)
save(lsa.plot.residency(recording, {evidence = evidence, replay = {trust = true}, title = title .. "what is resident"}), "residency", s:stats())
save(lsa.plot.traffic({{s, label = opt.policy}, {lsa.replay(recording, {select = "native_topk"}), label = "native_topk"}}, {title = title .. "transfers"}), "traffic",
  s:stats())

-- What the cycles ask of a cache that holds less than all of it.
local pages = {}
lsa.replay(recording, {trust = true, watch = function(_, _, resident)
  for page in resident:pages(16):each() do pages[#pages + 1] = page end
end})
os.remove(recording)
local seen, distinct, capacities = {}, 0, {}
for _, page in ipairs(pages) do
  if not seen[page] then seen[page], distinct = true, distinct + 1 end
end
for i = 1, 8 do capacities[i] = math.max(1, math.floor(distinct * i / 8)) end
local t = lsa.sweep{evictions = {"belady", "lru", "fifo", "sieve", "arc", "s3fifo", "wtinylfu"}, grid = {capacity = capacities}, run = function(params)
  return lsa.cache{pages = pages, capacity = params.capacity, evict = params.evict}
end}
save(t:plot{title = title .. "misses of pages"}, "misses", s:stats())
s:close()

-- Accuracy by depth and length, from the questions of an evaluation.
local lengths = {}
for i, tokens in ipairs {math.floor(opt.tokens / 2), opt.tokens, 2 * opt.tokens} do
  lengths[i] = {"single", tokens = tokens, items = opt.items, contexts = 2}
end
local results = lsa.eval{model = model, tasks = lengths, policies = {"full", "recency"}, budgets = {4 * opt.budget}}
save(results:plot{title = ("Recall with %g %% of the KV cache"):format(400 * opt.budget)}, "recall")

-- Whether a score of 0.5 is a chance of a half.
if model:indexer_file() then
  local trace = os.tmpname()
  lsa.dump(model, model:tokens(made.text:sub(1, 8192)), trace)
  local evaluated = lsa.evaluate{indexer = lsa.indexer{model = model, from = model:indexer_file()}, traces = {trace}}
  os.remove(trace)
  save(lsa.plot.calibration(evaluated, {title = "Calibration of the Memory Indexer"}), "calibration")
end
opt.report:table("pictures", {"picture", "file", "cycles", "failed", "clipped"}, pictures)
opt.report:done()
