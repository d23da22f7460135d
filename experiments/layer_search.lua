-- Which CSA layers' hidden states predict best (LSA paper, Sec. 2.4): an indexer of all layers is trained once – layers do not
-- share weights – and sets of its layers are rated by the golden chunks that they find in held-out documents.
--
--   ./lsa experiments/layer_search.lua TRACES... --held TRACES [--help]
local lsa = require "lsa"
local progress = require "lsa.progress"

local opt = require "lsa.args" [[
Rates sets of target layers by the share of golden chunks outside the recency tail among the best k: every set, where there are few
layers, and in any case greedily, a layer at a time.
  <train> (string)             a folder of traces to train on, such as build/train_indexer/ruler/train
  <held> (string)              a folder of traces to rate with
  --indexer (default none)     an indexer of all layers in question; none: one is trained
  --steps (default 4000)       of training
  --heads (default 16)         of the Memory Indexer
  --rank (default 128)         of its queries
  --batch (default 32)         decode steps in a training step
  --rate (default 0.002)       of AdamW
  --min_layers (default 2)     as the traces were labelled
  --window (default 64)        the steps to come whose golden chunks are wanted
  --k (default 512)            the best k are rated
  --every (default 128)        steps from one that is rated to the next
  --most (default 5)           every set is rated up to so many layers
  --model (default needle)     a model's short name (lsa.model) or directory
  --seed (default 1)           of training
]]

local model = lsa.model(opt.model)

local function traces(folder)
  local list = require("pl.dir").getfiles(folder, "*.safetensors")
  if #list == 0 then error(("%s: no traces in it"):format(folder), 0) end
  table.sort(list)
  return list
end

local function trained()
  local trainer = lsa.trainer{model = model, traces = traces(opt.train), from = "random", heads = opt.heads, rank = opt.rank,
    steps = opt.steps, batch = opt.batch, rate = opt.rate, warmup = math.min(50, opt.steps), positives = 256,
    min_layers = opt.min_layers, window = opt.window, seed = opt.seed}
  trainer:run{progress = true}
  return trainer:indexer()
end

local indexer = opt.indexer == "none" and trained() or lsa.indexer{model = model, from = opt.indexer}
local held = traces(opt.held)

local function name_of(set) return table.concat(set.layers, "+") .. " " .. set.ensemble end

-- What one step's layers say, kept for the sets that are rated by it.
local function logits_at()
  local last, known
  return function(doc, step, n, layer)
    if last ~= step then last, known = step, {} end
    if not known[layer] then
      known[layer] = indexer:logits(layer, doc.hidden[layer]:row(step), doc.keys[layer]:narrow(0, 0, n),
        tonumber(doc.golden.positions[step]))
    end
    return known[layer]
  end
end

local rated = {}

-- Rates a list of sets {layers =, ensemble =} in one pass over the documents.
local function rate(sets)
  local also, logits = {}, logits_at()
  for _, set in ipairs(sets) do
    local joint = lsa.indexer{model = model, from = indexer:tensors(), layers = set.layers, ensemble = set.ensemble}
    also[name_of(set)] = function(doc, step, n)
      local list = {}
      for i, layer in ipairs(set.layers) do list[i] = logits(doc, step, n, layer) end
      return joint:join(list)
    end
  end
  local result = lsa.evaluate{indexer = indexer, traces = held, every = opt.every, k = opt.k, window = opt.window, also = also}
  for _, set in ipairs(sets) do
    set.found = result[name_of(set)].outside
    rated[name_of(set)] = set
  end
end

local function ensembles_of(layers)
  local list = {}
  for _, how in ipairs(#layers > 1 and {"max", "mean"} or {"max"}) do list[#list + 1] = {layers = layers, ensemble = how} end
  return list
end

local function best_of(sets)
  local best
  for _, set in ipairs(sets) do
    set = rated[name_of(set)]
    if not best or set.found.recall_at_k > best.found.recall_at_k then best = set end
  end
  return best
end

local all = indexer.layers

-- Every set of layers.
local function exhaustive()
  local sets = {}
  for mask = 1, 2 ^ #all - 1 do
    local layers, left = {}, mask
    for i = 1, #all do
      if left % 2 == 1 then layers[#layers + 1] = all[i] end
      left = math.floor(left / 2)
    end
    for _, set in ipairs(ensembles_of(layers)) do sets[#sets + 1] = set end
  end
  rate(sets)
  return sets
end

-- The best set of 1, 2, … layers, each the one before and a layer more.
local function greedy()
  local path, chosen, bar = {}, {}, progress(#all, "adding layers")
  for size = 1, #all do
    local sets, unknown = {}, {}
    for _, layer in ipairs(all) do
      local layers, taken = {layer}, false
      for _, other in ipairs(chosen) do
        layers[#layers + 1] = other
        taken = taken or other == layer
      end
      table.sort(layers)
      for _, set in ipairs(taken and {} or ensembles_of(layers)) do
        sets[#sets + 1] = set
        if not rated[name_of(set)] then unknown[#unknown + 1] = set end
      end
    end
    if #unknown > 0 then rate(unknown) end
    path[size] = best_of(sets)
    chosen = path[size].layers
    bar:step()
  end
  bar:done()
  return path
end

local report = opt.report

local function show_sets(name, title, sets)
  local rows = {}
  report:say("%s; golden chunks outside the tail, at theta = 0.5 and among the best %d\n", title, opt.k)
  report:say("%-18s %-8s %10s %9s %9s %9s", "CSA layers", "ensemble", "selected", "precision", "recall", "recall@" .. opt.k)
  for i, set in ipairs(sets) do
    local m = set.found
    rows[i] = {layers = table.concat(set.layers, "+"), ensemble = set.ensemble, selected = m.selected / m.candidates, precision = m.precision,
      recall = m.recall, recall_at_k = m.recall_at_k}
    report:say("%-18s %-8s %10.4f %9.4f %9.4f %9.4f", rows[i].layers, set.ensemble, rows[i].selected, m.precision, m.recall, m.recall_at_k)
  end
  report:table(name, {"layers", "ensemble", "selected", "precision", "recall", "recall_at_k"}, rows, "\n")
end

if #all <= opt.most then
  local sets = exhaustive()
  table.sort(sets, function(a, b) return a.found.recall_at_k > b.found.recall_at_k end)
  show_sets("every", "Every set, the best first", sets)
end
show_sets("greedy", "Greedy, a layer at a time", greedy())
report:done()
