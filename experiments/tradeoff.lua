-- Which knob matters when: accuracy, bytes and stalls over τ × budget × granularity × async on a stream of questions and on traced
-- variables, and over evictions (LSA paper, Figure 2, in miniature).
--
--   ./lsa experiments/tradeoff.lua [--help]
local dir = require "pl.dir"
local cjson = require "cjson"
local lsa = require "lsa"
local content = require "lsa.content"
local results_table = require "lsa.prompt.results_table"
local stats = require "lsa.session.stats"

local opt = require "lsa.args" [[
The stream task and the traced task under every combination, live: accuracy depends on them. Evictions change no selection, so their bytes come
from replays of recordings, in which the recorded eviction gives the recorded counts.
  --model (default ruler)     a model's directory, or the name of one in experiments/models
  --taus (list default 8,16,32,64,128,256,512,jaccard,event)   steps between cycles, or schedules
  --budgets (numbers default 0.005,0.01,0.02,0.05)   shares of the chunks
  --select (default lsa_topk)   the policy
  --indexer (default own)     a file; own: the model's
  --page (default 16)         chunks of a page, where pages are the unit
  --granularities (list default chunk,page)
  --asyncs (list default no,yes)   whether a cycle's set is applied one cycle later
  --evictions (list default lru,fifo,lfu,arc,s3fifo,sieve,belady)   none: no recordings
  --reserves (numbers default 1.25,2)   the hot pool holds so many times the budget
  --tokens (default 16384)    length of a context
  --needles (default 64)      statements of the stream, all asked
  --stay (default 4)          questions before the topic moves
  --items (default 8)         traced chains in a context
  --contexts (default 1)      how many contexts of each task
  --device (default cpu)      where the model runs: cpu or cuda
  --text (default bible)      a file; bible is the text of Debian's bible-kjv
  --part (default test)       of the text and words: test or validation
  --seed (default 1)          of contexts
  --plot (default none)       a file that accuracy against tau is drawn into: .png, .svg or .pdf
  -o,--output (default build/tradeoff)   the folder of results and recordings: what is there is not run again
  --share (string default 1/1)   i/n: run every n-th combination of task, granularity, async and tau from the i-th, and stop: n processes share the
                              work, each with a folder of its own; their stream.jsonl and traced.jsonl are joined by cat
]]

local model, report = lsa.model(opt.model, {device = opt.device}), opt.report
assert(dir.makepath(opt.output))
local indexer
if opt.indexer ~= "own" then
  indexer = lsa.indexer{model = model, from = opt.indexer}
elseif not model:indexer_file() then
  indexer = lsa.indexer{model = model, layers = {math.min(2, #model.csa_layers - 1)}}
end

local taus = {}
for i, tau in ipairs(opt.taus) do taus[i] = tonumber(tau) or tau end

-- ---- live ----

local tasks = {}

-- A task's contexts are prefilled once for each granularity and way of applying sets: a fork cannot change these.
local function task_of(name, granularity, async)
  local key = ("%s %s %s"):format(name, granularity, async)
  if not tasks[key] then
    for old, task in pairs(tasks) do
      task:close()
      tasks[old] = nil
    end
    local settings = {coverage = false, model = model, tokens = opt.tokens, contexts = opt.contexts, text = opt.text, part = opt.part, seed = opt.seed,
      session = {granularity = granularity, page = opt.page, async = async == "yes", indexer = indexer}}
    if name == "stream" then
      settings.needles, settings.stay = opt.needles, opt.stay
    else
      settings.items = opt.items
    end
    tasks[key] = lsa.tasks[name](settings)
  end
  return tasks[key]
end

local about = cjson.encode{content.model(model), opt.tokens, opt.needles, opt.stay, opt.items, opt.contexts, opt.text:match "[^/]+$",
  opt.part, opt.seed, opt.page, opt.indexer:match "[^/]+$" .. (opt.indexer ~= "own" and content.file(opt.indexer) or ""), require("lsa.tasks.init").digest()}

local function live_with(name, granularity, async, tau)
  return lsa.sweep{policies = {opt.select}, budgets = opt.budgets, taus = {tau}, label = ("%s, %s, async %s, tau %s"):format(name, granularity, async, tau),
    about = ("%s %s %s %s"):format(about, name, granularity, async), results = ("%s/%s.jsonl"):format(opt.output, name),
    run = function(params)
      local row = task_of(name, granularity, async):run{select = params.select, budget = params.budget, every = params.every}
      return {accuracy = row.accuracy, low = row.accuracy_low, high = row.accuracy_high, n = row.n, evidence = row.evidence,
        fetched_bytes = row.fetched_bytes, cycles = row.cycles, resident_pct = row.resident_pct, stall_ms = row.transfer_stall_ms,
        moved = row.at_0_accuracy, stayed = row[("at_%d_accuracy"):format(opt.stay - 1)], steps = row.steps,
        failed = row.failed or row.policy_errors, clipped = row.clipped}
    end}.rows
end

local first, step = opt.share:match "^(%d+)/(%d+)$"
first, step = tonumber(first), tonumber(step)
if not first or first < 1 or first > step then error(("--share: %q is not i/n"):format(opt.share), 0) end
local place = 0

local function live(name)
  local rows = {}
  for _, granularity in ipairs(opt.granularities) do
    for _, async in ipairs(opt.asyncs) do
      for _, tau in ipairs(taus) do
        place = place + 1
        for _, row in ipairs(place % step == first % step and live_with(name, granularity, async, tau) or {}) do
          row.async, row.granularity = async, granularity
          rows[#rows + 1] = row
        end
      end
    end
  end
  return {rows = rows}
end

local found = {stream = live "stream", traced = live "traced"}
if step > 1 then return report:done() end

-- ---- evictions, replayed ----

local function evictions()
  local out, budget = {}, opt.budgets[#opt.budgets]
  local task = task_of("stream", "chunk", "no")
  for _, tau in ipairs {16, 64} do
    local path = ("%s/stream_%d_%s.safetensors"):format(opt.output, tau, content.digest(about .. content.named("policies", opt.select) .. budget))
    if not io.open(path) then
      task.opened = function(fork) fork:record(path .. ".part") end
      task.contexts = 1
      task:run{select = opt.select, budget = budget, every = tau}
      task.opened = nil
      os.rename(path .. ".part", path)
    end
    for _, reserve in ipairs(opt.reserves) do
      for _, evict in ipairs(opt.evictions) do
        local chunks = math.floor(opt.tokens / tonumber(model.config.csa_rate))
        local s = lsa.replay(path, {trust = true, evict = evict, hot = math.ceil(reserve * budget * chunks) + math.ceil(tau / 4) + 2}):stats()
        out[#out + 1] = {every = tau, reserve = reserve, evict = evict, budget = budget, fetched_chunks = s.fetched_chunks, hits = s.hits,
          fetched_bytes = s.fetched_bytes, misses = s.fetched_chunks / (s.fetched_chunks + s.hits)}
      end
    end
  end
  return out
end

local replayed = opt.evictions[1] ~= "none" and evictions() or {}

-- ---- tables ----

local function percent(x) return x and ("%.1f%%"):format(100 * x) or "" end

local function pick(rows, wanted)
  for _, row in ipairs(rows) do
    local good = true
    for name, value in pairs(wanted) do good = good and row[name] == value end
    if good then return row end
  end
end

local texts = {}
local function out(text) texts[#texts + 1] = text end

out(("%s\n%d contexts of %d tokens, of part %s; %s; seed %d\n"):format(tostring(model), opt.contexts, opt.tokens, opt.part, opt.select, opt.seed))
for _, name in ipairs {"stream", "traced"} do
  local rows = found[name].rows
  out(("%s: accuracy of %d questions, and bytes fetched a question, by tau and budget; chunks, sets applied at once\n"):format(name,
    rows[1].n))
  local columns, lines = {"tau"}, {}
  for _, budget in ipairs(opt.budgets) do columns[#columns + 1] = ("%g %%"):format(100 * budget) end
  for _, tau in ipairs(taus) do
    local line = {tau = tau}
    for _, budget in ipairs(opt.budgets) do
      local row = pick(rows, {every = tau, budget = budget, async = opt.asyncs[1], granularity = opt.granularities[1]})
      line[("%g %%"):format(100 * budget)] = ("%s %s"):format(percent(row.accuracy), stats.bytes(row.fetched_bytes))
    end
    lines[#lines + 1] = line
  end
  out(tostring(results_table.new(lines, columns)))
end

-- What a knob does on average: for each of its values the mean over all combinations of the others.
local knobs = {{"every", "tau"}, {"budget", "budget"}, {"granularity", "granularity"}, {"async", "async"}}
out "The map: means over all combinations of the other knobs; spread is the largest less the smallest\n"
local lines = {}
for _, name in ipairs {"stream", "traced"} do
  for _, knob in ipairs(knobs) do
    local by, order = {}, {}
    for _, row in ipairs(found[name].rows) do
      local key = tostring(row[knob[1]])
      if not by[key] then
        by[key] = {n = 0, accuracy = 0, fetched_bytes = 0, cycles = 0}
        order[#order + 1] = key
      end
      local sum = by[key]
      sum.n = sum.n + 1
      for _, what in ipairs {"accuracy", "fetched_bytes", "cycles"} do sum[what] = sum[what] + row[what] end
    end
    local low, high = math.huge, -math.huge
    for _, key in ipairs(order) do
      low, high = math.min(low, by[key].accuracy / by[key].n), math.max(high, by[key].accuracy / by[key].n)
    end
    for _, key in ipairs(order) do
      local sum = by[key]
      lines[#lines + 1] = {task = name, knob = knob[2], value = key, accuracy = percent(sum.accuracy / sum.n),
        fetched = stats.bytes(sum.fetched_bytes / sum.n), cycles = ("%.1f"):format(sum.cycles / sum.n), spread = percent(high - low)}
    end
  end
end
out(tostring(results_table.new(lines, {"task", "knob", "value", "accuracy", "fetched", "cycles", "spread"})))

out(("What a set costs that is stale when the topic moves: the first question behind a move against the %d-th\n"):format(opt.stay))
lines = {}
for _, async in ipairs(opt.asyncs) do
  for _, tau in ipairs(taus) do
    local row = pick(found.stream.rows, {every = tau, budget = opt.budgets[#opt.budgets], async = async,
      granularity = opt.granularities[1]})
    lines[#lines + 1] = {async = async, tau = tau, moved = percent(row.moved), stayed = percent(row.stayed), all = percent(row.accuracy),
      fetched = stats.bytes(row.fetched_bytes), cycles = ("%.0f"):format(row.cycles), steps = row.steps, stalls = ("%.2f ms"):format(row.stall_ms)}
  end
end
out(tostring(results_table.new(lines, {"async", "tau", "moved", "stayed", "all", "fetched", "cycles", "steps", "stalls"})))

if #replayed > 0 then
  out "Evictions, from replays of the stream: chunks fetched, of all that cycles selected\n"
  local shown = {}
  for i, row in ipairs(replayed) do
    shown[i] = {tau = row.every, reserve = row.reserve, evict = row.evict, fetched = row.fetched_chunks, hits = row.hits, misses = percent(row.misses)}
  end
  out(tostring(results_table.new(shown, {"tau", "reserve", "evict", "fetched", "hits", "misses"})))
end

-- Accuracy against tau, a line a budget, a panel a task.
local function draw(path)
  local panels = {}
  for i, name in ipairs {"stream", "traced"} do
    panels[i] = {title = ("%s: accuracy of %d questions"):format(name, found[name].rows[1].n), xlabel = "tau, steps between cycles", xlog = true,
      ylabel = "accuracy", yunit = "%", yrange = {0, 103}}
    for k, budget in ipairs(opt.budgets) do
      local line = {x = {}, y = {}, low = {}, high = {}, label = ("%g %% of the chunks"):format(100 * budget)}
      for _, tau in ipairs(taus) do
        local row = type(tau) == "number" and pick(found[name].rows, {every = tau, budget = budget, async = opt.asyncs[1],
          granularity = opt.granularities[1]})
        if row then
          table.insert(line.x, tau)
          for column, value in pairs {y = row.accuracy, low = row.low, high = row.high} do table.insert(line[column], 100 * value) end
        end
      end
      panels[i][k] = line
    end
    panels[i] = lsa.plot.line(panels[i])
  end
  lsa.plot.stack(panels):save(path)
end

if opt.plot ~= "none" then draw(opt.plot) end

local columns = {"select", "every", "budget", "granularity", "async", "n", "accuracy", "low", "high", "evidence", "resident_pct",
  "fetched_bytes", "stall_ms", "cycles", "steps", "moved", "stayed", "failed", "clipped"}
report:table("stream", columns, found.stream.rows, table.concat(texts, "\n") .. "\n")
report:table("traced", columns, found.traced.rows, "")
report:table("evictions", {"every", "reserve", "evict", "budget", "fetched_chunks", "hits", "misses"}, replayed, "")
report:done()
