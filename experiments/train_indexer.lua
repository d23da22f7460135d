-- From nothing to a served Memory Indexer for any model: dump, label, train, evaluate, and the curve of accuracy against resident KV.
-- Trained on some texts, words and phrasings, chosen by others, tested on yet others (lua/lsa/tasks/parts.lua).
--
--   ./lsa experiments/train_indexer.lua MODEL [--help]
local dir = require "pl.dir"
local lsa = require "lsa"
local asked = require "lsa.tasks.asked"
local documents = require "lsa.tasks.documents"
local dump = require "lsa.dump"
local items = require "lsa.tasks.items"
local paired = require "lsa.tasks.paired"
local parts = require "lsa.tasks.parts"
local progress = require "lsa.progress"
local rng = require "lsa.cycle.rng"

local opt = require "lsa.args" [[
Trains a Memory Indexer for a model and measures what it is good for. What is finished is kept in the output folder:
a run that was stopped, or killed, goes on where it is started again.
  <model> (string)             a model's directory, or the name of one in experiments/models
  -o,--output (string default none) the folder of traces, checkpoint, indexer and answers; none: build/train_indexer/ and the model's name
  --traces (default none)     the folder of traces; none: the output folder
  --share (string default 1/1)   i/n: dump every n-th training document from the i-th, and stop: n processes, each with traces of its own,
                              share the work, and the files are moved into one folder
  --documents (default 48)    training documents
  --lengths (numbers default 131072,8192,65536,8192,32768,8192,8192,8192)   their tokens, in turn; as far as the longest, an indexer tells near
                              from far
  --held (default 1)          validation documents, for the retrieval metrics
  --scale (default 1)         documents are so many times as long
  --voters (string default all)   CSA ordinals whose picks make golden labels, as in 0,2; or all
  --by (default attention)    what these picks are weighed by: the attention that they got, or their index scores (the paper's way)
  --least (default 0.1)       of attention: picks that got less do not count
  --top_p (default 1)         the share of a layer's picks, by weight, that is kept
  --min_layers (default 1)    and how many of the voters have to keep a chunk
  --layers (string default 2)   CSA ordinals that the indexer looks from, as in 0,2; or all
  --traced (string default same)   CSA ordinals that traces have, or all; same: those of --layers
  --ensemble (default mean)   of these layers: max or mean
  --looks (default 8)         it asks from so many of the latest tokens where it serves; training is from each alone
  --heads (default 32)        of the Memory Indexer
  --rank (default 256)        of its queries, where it starts as random; else the model's
  --from (default random)     what it starts as: random, or native: the model's Lightning Indexer, beside it random heads that count little
  --window (default 32)       the steps to come whose needs are learnt
  --before (default 64)       steps are trained from so many tokens before an answer to its end; 0: all steps
  --negatives (default 4)     chunks that are not needed, for each that is
  --sampler (default uniform)   of these: uniform, or hard: half are those that score highest
  --loss (default bce)        bce or focal
  --pairwise (default none)   none, hinge or bpr, in addition
  --weights (default none)    of golden chunks: none, or by votes
  --steps (default 10000)     of training
  --batch (default 32)        decode steps in a training step
  --rate (default 0.002)      of AdamW
  --part (default test)       where questions come from: test, or validation, by which options are to be chosen
  --tokens (default 32768)    length of a context of questions
  --contexts (default 16)     how many contexts
  --items (default 2)         items of each kind in a context, all asked
  --kinds (list default all)  of items (lua/lsa/tasks/items.lua)
  --thetas (numbers default 0.02,0.05,0.1,0.2,0.3,0.5,0.7)   thresholds of the curve
  --budgets (numbers default 0.01,0.02,0.05)   shares of the chunks that other rules keep
  --text (default bible)      a file; bible is the text of Debian's bible-kjv
  --seed (default 1)          of documents, training, questions and the random policy
  --draw (default 0)          another seed of training alone; 0: --seed
  --device (default cpu)      where documents are traced, the indexer is trained and questions are answered: cpu, or cuda
  --install                   the indexer becomes the model's default: indexer.safetensors in the model's directory
]]

local C = require("lsa.ffi").C
local began = C.lsa_clock_ns()

local report = opt.report

local function say(format, ...)
  report:say("%s", ("[%5.0f s] "):format(tonumber(C.lsa_clock_ns() - began) / 1e9) .. format:format(...))
  io.stdout:flush()
end

local directory = require "lsa.model".directory(opt.model)
local model = lsa.model(directory)
local serving = opt.device == "cpu" and model or lsa.model(directory, {device = opt.device})
local output = opt.output ~= "none" and opt.output or "build/train_indexer/" .. directory:match "[^/]+/*$":gsub("/*$", "")
local traces = opt.traces ~= "none" and opt.traces or output
assert(dir.makepath(output) and dir.makepath(traces))

local function ordinals(text, name)
  local out = {}
  if text == "all" then
    for l = 0, #model.csa_layers - 1 do out[l + 1] = l end
    return out
  end
  for number in text:gmatch "[^,]+" do
    local l = tonumber(number) or error(("--%s: %q is not a number"):format(name, number), 0)
    if l >= #model.csa_layers then
      error(("--%s: %d; the model's %d CSA layers are 0 to %d"):format(name, l, #model.csa_layers, #model.csa_layers - 1), 0)
    end
    out[#out + 1] = l
  end
  return out
end

local layers, voters = ordinals(opt.layers, "layers"), ordinals(opt.voters, "voters")
if opt.looks > 1 and opt.ensemble == "mean" and #layers > 1 then
  error(("--looks: %d, and --ensemble is the mean of %d layers; one look goes with it, or --ensemble max"):format(opt.looks, #layers), 0)
end
local traced = opt.traced == "same" and layers or ordinals(opt.traced, "traced")
local kinds = opt.kinds[1] == "all" and items.names or opt.kinds

-- ---- dump and label ----

local function made_documents(name, part, n, seed)
  local list, source = {}, parts.open(opt.text, part)
  for i = 1, n do
    local random = rng.new(opt.seed * 1000 + seed + i)
    local length = math.floor(opt.lengths[part == "train" and (i - 1) % #opt.lengths + 1 or #opt.lengths] * opt.scale)
    local text, answers = documents.document(random, source, length, 0.05 + 0.35 * random(), kinds)
    list[i] = {name = ("%s_%03d"):format(name, i), text = text, answers = answers}
  end
  return list
end

local function dumped(list, folder, label)
  local bar = progress(#list, label)
  local paths, there = dump.documents(serving, list, traces .. "/" .. folder, {layers = traced, voters = voters, by = opt.by,
    least = opt.by == "attention" and opt.least or 0, top_p = opt.top_p, min_layers = opt.min_layers},
    function(_, state) if state ~= "begun" then bar:step() end end)
  bar:done()
  say("%s: %d traces in %s/%s, %d of them were there", label, #paths, traces, folder, there)
  return paths
end

local own, shares = opt.share:match "^(%d+)/(%d+)$"
own, shares = tonumber(own), tonumber(shares)
if not own or own < 1 or own > shares then error(("--share: %q is not i/n"):format(opt.share), 0) end
local all_documents = made_documents("train", "train", opt.documents, 0)
local documents_here = {}
for i = own, #all_documents, shares do documents_here[#documents_here + 1] = all_documents[i] end
local train_paths = dumped(documents_here, "train", "training documents")
if shares > 1 then return report:done() end
local held_paths = dumped(made_documents("held", "validation", opt.held, 500), "held", "validation documents")

-- ---- train ----

-- The Lightning Indexer's weights with more heads: the new ones are random, and weigh little. The factor makes up for heads^-0.5.
local function grown_native()
  local tensors = lsa.indexer{model = model, layers = layers}:tensors()
  for i, layer in ipairs(layers) do
    local prefix = ("retrievers.l%d."):format(layer)
    local b, w = tensors[prefix .. "wq_b.weight"], tensors[prefix .. "weights_proj.weight"]
    local had, rank, hidden = w:shape()[1], b:shape()[2], w:shape()[2]
    local more, dim = opt.heads - had, b:shape()[1] / had
    if more < 0 then error(("--heads: %d; the model's indexer has %d"):format(opt.heads, had), 0) end
    w = w:mul(math.sqrt(opt.heads / had))
    if more > 0 then
      local seed = opt.seed * 1000 + i
      b = lsa.cat({b, lsa.randn({more * dim, rank}, seed):mul(b:norm() / math.sqrt(b:count()))}, 0)
      w = lsa.cat({w, lsa.randn({more, hidden}, seed + 500):mul(0.2 * w:norm() / math.sqrt(w:count()))}, 0)
    end
    tensors[prefix .. "wq_b.weight"], tensors[prefix .. "weights_proj.weight"] = b, w
  end
  local start = output .. "/start.safetensors"
  lsa.save(start, tensors)
  return start
end

-- Whether a step is trained, by the number of the document and the position: a table of those before and in answers.
local function near_answers()
  local near = {}
  for i, document in ipairs(all_documents) do
    local last, at = 0, 0
    near[i] = {}
    for _, answer in ipairs(document.answers) do
      if answer[2] <= #document.text then
        local from = at + #model:tokens(document.text:sub(last + 1, answer[1]))
        last, at = answer[2], from + #model:tokens(document.text:sub(answer[1] + 1, answer[2]))
        for position = from - opt.before, at - 1 do near[i][position] = true end
      end
    end
  end
  return function(i, position) return near[i][position] or false end
end

local trainer = lsa.trainer{model = model, traces = train_paths, layers = layers, where = opt.before > 0 and near_answers() or nil, from = opt.from == "native" and grown_native() or "random",
  heads = opt.heads, rank = opt.from == "native" and tonumber(model.config.q_rank) or opt.rank, sampler = opt.sampler,
  steps = opt.steps, batch = opt.batch, rate = opt.rate, warmup = math.min(50, opt.steps), positives = 256, negatives = opt.negatives,
  window = opt.window, loss = opt.loss, pairwise = opt.pairwise, weights = opt.weights, min_layers = opt.min_layers,
  ensemble = opt.ensemble, seed = opt.draw > 0 and opt.draw or opt.seed, checkpoint = output .. "/trainer.safetensors", every = 500,
  device = opt.device}
local left = opt.steps - trainer.steps_done
trainer:run{progress = true}
local indexer, path = trainer:indexer{looks = opt.looks}, output .. "/indexer.safetensors"
indexer:save(path)
say("trained: %d steps, %d of them now; %s", opt.steps, left, tostring(indexer))

-- ---- evaluate: which golden chunks are found ----

local native = lsa.indexer{model = model, from = "native", layers = layers}
local draw = rng.new(opt.seed)
local function random_scores(_, _, n)
  local out = lsa.zeros{n}
  for i = 0, n - 1 do out:set(i, draw()) end
  return out
end

local K = 64
local trained_result = lsa.evaluate{indexer = indexer, traces = held_paths, every = 128, k = K, window = opt.window,
  also = {random = random_scores}}
local native_result = lsa.evaluate{indexer = native, traces = held_paths, every = 128, k = K, window = opt.window}

say "evaluated"
report:say("%s", ("\nGolden chunks outside the recency tail, all chunks of %d validation documents; at theta = 0.5\n"):format(#held_paths))
report:say("%s", ("%-34s %9s %10s %8s %7s %11s %7s"):format("", "selected", "precision", "recall", "F1", "recall@" .. K, "ECE"))
local rows = {{"Memory Indexer, " .. indexer.ensemble, trained_result[indexer.ensemble]}}
for _, l in ipairs(#layers > 1 and layers or {}) do rows[#rows + 1] = {"Memory Indexer, layer " .. l, trained_result["layer " .. l]} end
for _, l in ipairs(layers) do rows[#rows + 1] = {"native indexer, layer " .. l, native_result["layer " .. l]} end
rows[#rows + 1] = {"random", trained_result.random}
local retrieved = {}
for i, row in ipairs(rows) do
  local m = row[2].outside
  retrieved[i] = {rule = row[1], selected = m.selected / m.candidates, precision = m.precision, recall = m.recall, f1 = m.f1,
    recall_at_k = m.recall_at_k, ece = m.ece}
  report:say("%s", ("%-34s %8.2f%% %10.4f %8.4f %7.4f %11.4f %7.4f"):format(row[1], 100 * m.selected / m.candidates, m.precision, m.recall, m.f1,
    m.recall_at_k, m.ece))
end
report:table("retrieval", {"rule", "selected", "precision", "recall", "f1", "recall_at_k", "ece"}, retrieved, "\n")

-- ---- serve: accuracy against resident KV ----

if opt.contexts == 0 then return report:done() end

-- Under test are thresholds without a ceiling, all with one tail; then rules that keep a budget.
local chunks = math.floor(opt.tokens / tonumber(model.config.csa_rate))
local tail = math.floor(0.0025 * chunks)
local function of_serving(from, its, looks)
  return lsa.indexer{model = serving, from = from, layers = its, ensemble = opt.ensemble, looks = looks}
end
local trained = of_serving(path, layers, opt.looks)
local ways = {{label = "full attention", fork = {select = "full"}, indexer = trained}}
for _, theta in ipairs(opt.thetas) do
  ways[#ways + 1] = {label = ("LSA, theta %g"):format(theta), fork = {select = {"lsa_threshold", theta = theta}, budget = 1}, indexer = trained}
end
for _, budget in ipairs(opt.budgets) do
  for _, rule in ipairs {{"LSA, best", "lsa_topk", trained}, {"native indexer, best", "lsa_topk", of_serving("native", layers)},
    {"recency only", "recency"}, {"random", "random"}} do
    ways[#ways + 1] = {label = ("%s %g %%"):format(rule[1], 100 * budget), fork = {select = rule[2], budget = budget}, indexer = rule[3]}
  end
end

local numbers = {}
for i = 1, opt.contexts do numbers[i] = i end

local unrelated = {output = true, share = true, traces = true, contexts = true, install = true, held = true, csv = true, json = true, debug = true, report = true}

-- Everything that an answer depends on.
local function about()
  local names, texts = {}, {require("lsa.tasks.init").digest()}
  for name in pairs(opt) do
    if not unrelated[name] then names[#names + 1] = name end
  end
  table.sort(names)
  for i, name in ipairs(names) do
    local value = opt[name]
    texts[i + 1] = name .. "=" .. (type(value) == "table" and table.concat(value, ",") or tostring(value))
  end
  return table.concat(texts, " ")
end

local task = asked.kinds(serving, {tokens = opt.tokens, kinds = kinds, items = opt.items, part = opt.part, text = opt.text,
  seed = opt.seed * 100, session = {tail = tail}}, kinds, "train_indexer")
local results = lsa.sweep{grid = {context = numbers}, run = function(params) return paired.ask(task, params.context, ways) end,
  label = "answering", results = output .. "/answers.jsonl", about = about()}

local full = paired.joined(results.rows, "full attention")
say "answered"
report:say("%s", ("\n%d questions in %d contexts of %d tokens, of part %s; tail of %d chunks; seed %d\n"):format(full.n, opt.contexts, opt.tokens,
  opt.part, tail, opt.seed))
local head = ("%-24s %9s %17s %9s %9s %7s %7s"):format("", "accuracy", "against full", "of the KV", "evidence", "failed", "clipped")
for _, kind in ipairs(#kinds > 1 and kinds or {}) do head = head .. (" %6s"):format(kind:gsub("_", ""):sub(1, 4) .. kind:sub(-2)) end
report:say("%s", head)
local answered, columns = {}, {"rule", "accuracy", "difference", "width", "resident_pct", "evidence", "failed", "clipped", "n"}
for _, kind in ipairs(#kinds > 1 and kinds or {}) do columns[#columns + 1] = kind end
for i, way in ipairs(ways) do
  local sum = paired.joined(results.rows, way.label)
  local difference, width = paired.against(sum, full)
  local line = ("%-24s %8.2f%% %17s %8.2f%% %8.1f%% %7d %7d"):format(way.label, 100 * sum.accuracy,
    way == ways[1] and "" or ("%+.2f ± %.2f"):format(difference, width), sum.resident_pct, 100 * sum.evidence, sum.failed * sum.n,
    sum.clipped * sum.n)
  answered[i] = {rule = way.label, accuracy = sum.accuracy, difference = difference, width = width, resident_pct = sum.resident_pct,
    evidence = sum.evidence, failed = sum.failed * sum.n, clipped = sum.clipped * sum.n, n = sum.n}
  for _, kind in ipairs(#kinds > 1 and kinds or {}) do
    answered[i][kind] = paired.joined(results.rows, way.label, kind).accuracy
    line = line .. (" %6.1f"):format(100 * answered[i][kind])
  end
  report:say("%s", line)
end
report:table("accuracy", columns, answered, "")

if opt.install then
  indexer:save(directory .. "/indexer.safetensors")
  report:say("%s", ("\n%s is the model's indexer now"):format(path))
end
report:done()
