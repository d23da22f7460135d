-- From nothing to a served Memory Indexer on the small real model: dump, label, train, evaluate, and the curve of accuracy against
-- resident KV. Trained on some texts, keys and phrasings, tested on others.
--
--   ./lsa experiments/train_needle.lua [--help]
local dir = require "pl.dir"
local lsa = require "lsa"
local dump = require "lsa.dump"
local needle = require "lsa.tasks.needle"
local progress = require "lsa.progress"
local recall = require "lsa.tasks.recall"
local rng = require "lsa.cycle.rng"
local texts = require "lsa.texts"

local opt = require "lsa.args" [[
Trains a Memory Indexer for the small real model and measures what it is good for. What is finished is kept in the output folder:
a run that was stopped, or killed, goes on where it is started again.
  -o,--output (default build/train_needle)   the folder of traces, checkpoint, indexer and answers
  --documents (default 48)    training documents, of 8,192, 16,384 and 32,768 tokens in turn
  --held (default 4)          held-out documents for the retrieval metrics
  --scale (default 1)         documents are so many times as long
  --top_p (default 0.6)       golden labels: share of a layer's softmax mass that is kept,
  --min_layers (default 2)    and how many of the CSA layers have to keep a chunk
  --heads (default 16)        of the Memory Indexer
  --rank (default 128)        of its queries
  --steps (default 10000)     of training
  --batch (default 32)        decode steps in a training step
  --rate (default 0.002)      of AdamW
  --ensemble (default mean)   of the layers: max or mean
  --tokens (default 32768)    length of a test context
  --contexts (default 64)     test contexts
  --needles (default 32)      statements in each test context, all asked
  --thetas (numbers default 0.3,0.4,0.5,0.6,0.7,0.8)   thresholds of the curve
  --budget (default 0.135)    the share of the chunks that baselines keep, and lsa_threshold may at most
  --model (default needle)    a model's directory; needle is experiments/models/needle
  --text (default bible)      a file; the first 200 kB (at most a tenth) are for tests. bible is the text of Debian's bible-kjv
  --seed (default 1)          of documents, training and the random policy
  --install                   the indexer becomes the model's default: indexer.safetensors in the model's directory
]]

local C = require("lsa.ffi").C
local began = C.lsa_clock_ns()

local function say(format, ...)
  print(("[%5.0f s] "):format(tonumber(C.lsa_clock_ns() - began) / 1e9) .. format:format(...))
  io.stdout:flush()
end

local model = lsa.model(opt.model == "needle" and lsa.root .. "/experiments/models/needle" or opt.model)
assert(dir.makepath(opt.output))

-- ---- what is trained on, and what is held out ----

local whole = texts.open(opt.text)
local cut = math.min(200000, math.floor(#whole / 10))
local held_text, train_text = whole:sub(1, cut), whole:sub(cut + 1)
local train_words, held_words = {}, {}
for i, word in ipairs(needle.words(whole)) do
  local list = i % 10 == 0 and held_words or train_words
  list[#list + 1] = word
end

local function training_documents()
  local list = {}
  for i = 1, opt.documents do
    local random = rng.new(opt.seed * 1000 + i)
    local length = math.floor(({8192, 16384, 32768})[(i - 1) % 3 + 1] * opt.scale)
    list[i] = {name = ("train_%03d"):format(i), text = recall.document(random, train_text, train_words, length,
      0.3 + 0.6 * random())}
  end
  return list
end

-- Needle contexts, every statement made again at the end.
local function held_documents()
  local list = {}
  for i = 1, opt.held do
    local made = needle.build(rng.new(opt.seed * 1000 + 500 + i), held_text, held_words, math.floor(30720 * opt.scale),
      math.ceil(24 * opt.scale))
    local parts = {made.text}
    for j, one in ipairs(made.needles) do parts[j + 1] = one.statement end
    list[i] = {name = ("held_%03d"):format(i), text = table.concat(parts)}
  end
  return list
end

-- ---- dump and label ----

local function dumped(list, folder, label)
  local bar = progress(#list, label)
  local paths, there = dump.documents(model, list, opt.output .. "/" .. folder, {top_p = opt.top_p, min_layers = opt.min_layers},
    function(_, state) if state ~= "begun" then bar:step() end end)
  bar:done()
  say("%s: %d traces in %s/%s, %d of them were there", label, #paths, opt.output, folder, there)
  return paths
end

local train_paths = dumped(training_documents(), "train", "training documents")
local held_paths = dumped(held_documents(), "held", "held-out documents")

-- ---- train ----

local trainer = lsa.trainer{model = model, traces = train_paths, from = "random", heads = opt.heads, rank = opt.rank,
  steps = opt.steps, batch = opt.batch, rate = opt.rate, warmup = math.min(50, opt.steps), positives = 256,
  min_layers = opt.min_layers, ensemble = opt.ensemble, seed = opt.seed, checkpoint = opt.output .. "/trainer.safetensors",
  every = 500}
local left = opt.steps - trainer.steps_done
trainer:run{progress = true}
local indexer, path = trainer:indexer(), opt.output .. "/indexer.safetensors"
indexer:save(path)
say("trained: %d steps, %d of them now; %s", opt.steps, left, tostring(indexer))

-- ---- evaluate: which golden chunks are found ----

local native = lsa.indexer{model = model, from = "native"}
local top = tonumber(model.config.index_topk)

-- The chunks that Level 2 picks in any layer at the step itself.
local function native_topk(doc, step, n)
  local picked = lsa.set(n)
  for _, layer in ipairs(native.layers) do
    local logits = native:logits(layer, doc.hidden[layer]:row(step), doc.keys[layer]:narrow(0, 0, n),
      tonumber(doc.golden.positions[step]))
    picked = picked:union(logits:topk(math.min(top, n)))
  end
  return lsa.zeros{n}:where(picked:invert(), 1)
end

local draw = rng.new(opt.seed)
local function random_scores(_, _, n)
  local out = lsa.zeros{n}
  for i = 0, n - 1 do out:set(i, draw()) end
  return out
end

local trained_result = lsa.evaluate{indexer = indexer, traces = held_paths, every = 128,
  also = {["native top-k"] = native_topk, random = random_scores}}
local native_result = lsa.evaluate{indexer = native, traces = held_paths, every = 128}

local function best_layer(result)
  local best
  for _, layer in ipairs(indexer.layers) do
    local row = result["layer " .. layer]
    if not best or row.outside.recall_at_k > best.outside.recall_at_k then best = row end
  end
  return best
end

say "evaluated"
print(("\nGolden chunks outside the recency tail, all chunks of %d held-out documents; at theta = 0.5 (native top-k: its %d a layer)\n")
  :format(#held_paths, top))
print(("%-34s %9s %10s %8s %7s %11s"):format("", "selected", "precision", "recall", "F1", "recall@512"))
local best = best_layer(native_result)
for _, row in ipairs{
  {"Memory Indexer, " .. indexer.ensemble, trained_result[indexer.ensemble]},
  {"Memory Indexer, its best layer", best_layer(trained_result)},
  {"native indexer as it is, max", native_result.max},
  {"native indexer as it is, " .. best.name, best},
  {"native top-k of the last step", trained_result["native top-k"], true},
  {"random", trained_result.random},
} do
  local m = row[2].outside
  print(("%-34s %8.2f%% %10.4f %8.4f %7.4f %11s"):format(row[1], 100 * m.selected / m.candidates, m.precision, m.recall, m.f1,
    row[3] and "" or ("%.4f"):format(m.recall_at_k)))
end
print ""

-- ---- serve: accuracy against resident KV ----

-- Under test are thresholds without a ceiling, all with the tail that the budget gives; then rules that keep the budget.
local chunks = math.floor(opt.tokens / tonumber(model.config.csa_rate))
local tail = math.floor(opt.budget * chunks / 4)
local served = {{label = "full attention", fork = {select = "full"}}}
for _, theta in ipairs(opt.thetas) do
  served[#served + 1] = {label = ("LSA, theta %g"):format(theta), fork = {select = {"lsa_threshold", theta = theta}, budget = 1},
    indexer = indexer}
end
for _, rule in ipairs{{"LSA, best of the budget", "lsa_topk", indexer}, {"native indexer, all layers", "lsa_topk", native},
  {"native indexer, " .. best.name, "lsa_topk", lsa.indexer{model = model, layers = {tonumber(best.name:match "%d+")}}}, {"recency only", "recency", indexer}, {"random", "random", indexer}} do
  served[#served + 1] = {label = rule[1], fork = {select = rule[2], budget = opt.budget}, indexer = rule[3]}
end

-- Answers of one context: by label, which questions came out ("1") and sums over questions.
local function answers(params)
  local made = needle.build(rng.new(opt.seed * 100000 + params.context), held_text, held_words, opt.tokens, opt.needles)
  local base, out = model:session{select = "full", tail = tail}, {}
  base:prefill(made.text)
  for _, one in ipairs(made.needles) do
    local posed = base:fork()
    needle.pose(posed, one)
    for _, way in ipairs(served) do
      local sum = out[way.label] or {right = "", resident = 0, pct = 0, evidence = 0, cycles = 0, failed = 0, clipped = 0}
      posed.indexer = way.indexer or indexer
      local fork = posed:fork(way.fork)
      local exact, _, quality = needle.answer(fork, one)
      local stats = fork:stats()
      fork:close()
      for _, name in ipairs {"cycles", "failed", "clipped"} do sum[name] = sum[name] + stats[name] end
      sum.right, sum.evidence = sum.right .. (exact and 1 or 0), sum.evidence + quality.evidence
      sum.resident, sum.pct = sum.resident + stats.resident_bytes, sum.pct + stats.resident_pct
      out[way.label] = sum
    end
    posed:close()
  end
  base:close()
  return out
end

local numbers = {}
for i = 1, opt.contexts do numbers[i] = i end

-- Everything that an answer depends on.
local function about()
  local names, parts = {}, {"failed and clipped cycles"}
  for name in pairs(opt) do
    if name ~= "output" and name ~= "contexts" and name ~= "install" then names[#names + 1] = name end
  end
  table.sort(names)
  for i, name in ipairs(names) do
    local value = opt[name]
    parts[i + 1] = name .. "=" .. (type(value) == "table" and table.concat(value, ",") or tostring(value))
  end
  return table.concat(parts, " ")
end

local results = lsa.sweep{grid = {context = numbers}, run = answers, label = "answering", results = opt.output .. "/answers.jsonl",
  about = about()}

local function joined(label)
  local sum = {right = {}, resident = 0, pct = 0, evidence = 0, cycles = 0, failed = 0, clipped = 0}
  for i, row in ipairs(results.rows) do
    local one = row[label]
    sum.right[i] = one.right
    for _, name in ipairs{"resident", "pct", "evidence", "cycles", "failed", "clipped"} do sum[name] = sum[name] + one[name] end
  end
  sum.right = table.concat(sum.right)
  return sum
end

-- Paired: the mean difference in points, and the half width of its 95 % interval: half a question is added to each of
-- the four outcomes (A. Agresti, Y. Min, "Simple improved confidence intervals for comparing matched proportions", 2005), so that few
-- questions without a difference are not taken for certainty.
local function against(right, other)
  local n, gained, lost = #right, 0, 0
  for i = 1, n do
    local a, b = right:byte(i), other:byte(i)
    if a > b then gained = gained + 1 elseif a < b then lost = lost + 1 end
  end
  local difference = (gained - lost) / n
  return 100 * difference, 196 * math.sqrt(gained + lost + 1 - (gained - lost) ^ 2 / (n + 2)) / (n + 2)
end

local full = joined "full attention"
local asked = #full.right
say "answered"
print(("\n%d questions in %d contexts of %d tokens; tail of %d chunks\n"):format(asked, opt.contexts, opt.tokens, tail))
print(("%-36s %9s %18s %9s %9s %7s %7s %8s"):format("", "accuracy", "against full", "of the KV", "evidence", "cycles", "failed",
  "clipped"))
for _, way in ipairs(served) do
  local sum = joined(way.label)
  local _, right = sum.right:gsub("1", "")
  local difference, width = against(sum.right, full.right)
  print(("%-36s %8.2f%% %18s %8.2f%% %8.1f%% %7d %7d %8d"):format(way.label, 100 * right / asked,
    way == served[1] and "" or ("%+.2f ± %.2f"):format(difference, width), sum.pct / asked, 100 * sum.evidence / asked,
    sum.cycles, sum.failed, sum.clipped))
end

if opt.install then
  indexer:save(model.directory .. "/indexer.safetensors")
  print(("\n%s is the model's indexer now"):format(path))
end
