-- Owns the evaluation of Memory Indexers on documents that they were not trained on, over all chunks.
--
--   result = lsa.evaluate{indexer = ix, traces = {"held_out.safetensors"}}
--   print(result)                                             a table of what follows
--   result[1].name, result[1].all.recall, result[1].outside.recall_at_k …
--
-- A row for each target layer, for the ensembles max and mean, and for what `also` adds. Precision, recall and F1 are of
-- all (step, chunk) pairs at `theta`; recall_at_k is the mean over steps that have a golden chunk; ece is the expected
-- calibration error, bins its bins {from, to, count, score, golden} (means). `outside` leaves the recency tail out, which is
-- resident whatever the scores.
local ffi = require "ffi"
local documents = require "lsa.train.documents"
local grid = require "lsa.prompt.results_table"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local C = lib.C
local check = raise.check

local M = {}
local Result = {}
Result.__index = Result

local BINS = tonumber(C.LSA_RECALL_BINS)
local MOST = 2 ^ 22        -- logits of a layer that are held at once

local defaults = {
  indexer = false,         -- as lsa.indexer{…} or trainer:indexer() give it
  traces = false,          -- files, or tables of their tensors
  theta = 0.5, strict = false,
  k = 512,
  tail = false,            -- chunks; a quarter of 13.5 % of the candidates, at most 2,048
  every = 64,              -- steps from one evaluated step to the next
  window = 64, first = 1,  -- golden chunks of a step, as in lsa.trainer
  also = false,            -- name -> function(doc, step, n) that gives [n] f32 scores in 0 .. 1
  progress = false,
}

M.defaults = defaults

local function tail_of(opt, n)
  return math.min(n, opt.tail or math.min(2048, math.floor(0.135 * n / 4)))
end

-- ---- scores ----

-- Logits [rows, n] of one layer at the given steps of a document.
local function logits_of(ix, doc, layer, steps, n)
  local rows, c, l = #steps, ix.model.config, ix.weights[layer]
  local hidden = tensor.empty({rows, tonumber(c.hidden)}, "f32")
  local positions = ffi.new("int32_t[?]", rows)
  for i, step in ipairs(steps) do
    hidden:row(i - 1):copy(doc.hidden[layer]:row(step))
    positions[i - 1] = doc.golden.positions[step]
  end
  local q = tensor.empty({rows, tonumber(l.heads * l.dim)}, "f32")
  local w = tensor.empty({rows, tonumber(l.heads)}, "f32")
  check(C.lsa_indexer_queries(q:pointer(), w:pointer(), l, hidden:pointer(), positions, rows, c.hidden,
    ix.model.c.compress_freq, c.rope_dim, c.norm_eps, 1, C.LSA_COMPUTE_F32))
  local out = tensor.empty({rows, n}, "f32")
  local workspace = tensor.empty({tonumber(C.lsa_index_score_workspace(rows, n, l.heads, l.dim, C.LSA_KV_FP8, 0))}, "u8")
  check(C.lsa_index_score_cpu(out:pointer(), q:pointer(), w:pointer(), doc.keys[layer].c.data, rows, n, l.heads, l.dim,
    C.lsa_index_key_bytes(C.LSA_KV_FP8, l.dim), n, C.LSA_KV_FP8, C.LSA_COMPUTE_F32, workspace.c.data, nil))
  return out
end

-- What is evaluated: a list of {name, scores, ranks} of [rows, n].
local function series_of(opt, doc, steps, n)
  local ix, list, highest, mean = opt.indexer, {}, nil, nil
  for _, layer in ipairs(ix.layers) do
    local logits = logits_of(ix, doc, layer, steps, n)
    local scores = logits:sigmoid()
    list[#list + 1] = {"layer " .. layer, scores, logits}
    highest = highest and highest:maximum(logits) or logits
    mean = mean and mean:add(scores) or scores
  end
  list[#list + 1] = {"max", highest:sigmoid(), highest}
  mean = mean:mul(1 / #ix.layers)
  list[#list + 1] = {"mean", mean, mean}
  for _, name in ipairs(opt.names) do
    local scores = tensor.zeros({#steps, n}, "f32")
    for i, step in ipairs(steps) do
      local count = doc:candidates(step)
      local given = opt.also[name](doc, step, count)
      if not tensor.is(given) or given:count() ~= count then
        raise("lsa.evaluate: also.%s gave %s; a tensor [%d] is wanted", name, tensor.is(given) and ("one of %d"):format(given:count())
          or options.shown(given), count)
      end
      scores:row(i - 1):narrow(0, 0, count):copy(given)
    end
    list[#list + 1] = {name, scores, scores}
  end
  return list
end

-- ---- counts ----

local function add(opt, result, doc, steps, n)
  local rows = #steps
  local at, all, outside = ffi.new("int64_t[?]", rows), ffi.new("int64_t[?]", rows), ffi.new("int64_t[?]", rows)
  for i, step in ipairs(steps) do
    local candidates = doc:candidates(step)
    at[i - 1], all[i - 1], outside[i - 1] = step, candidates, candidates - tail_of(opt, candidates)
  end
  for i, series in ipairs(series_of(opt, doc, steps, n)) do
    local row = result[i]
    if not row then
      row = {name = series[1], counts = {ffi.new "lsa_recall_counts", ffi.new "lsa_recall_counts"}}
      result[i] = row
    end
    for j, limits in ipairs{all, outside} do
      check(C.lsa_recall_add(row.counts[j], series[2]:pointer(), series[3]:pointer(), doc.golden, doc.horizon, at, limits,
        rows, n, opt.theta, opt.strict and 1 or 0, opt.k))
    end
  end
end

local function share(a, b) return b > 0 and a / b or 0 / 0 end

local function metrics(c)
  local n = {}
  for _, name in ipairs{"steps", "golden_steps", "candidates", "golden", "selected", "right", "recall_at_k"} do
    n[name] = tonumber(c[name])
  end
  local out = {steps = n.steps, candidates = n.candidates, golden = n.golden, selected = n.selected,
    precision = share(n.right, n.selected), recall = share(n.right, n.golden), f1 = share(2 * n.right, n.selected + n.golden),
    recall_at_k = share(n.recall_at_k, n.golden_steps), bins = {}, ece = 0}
  local binned = 0
  for i = 0, BINS - 1 do
    local count = tonumber(c.bin_count[i])
    local score, golden = share(tonumber(c.bin_score[i]), count), share(tonumber(c.bin_golden[i]), count)
    out.bins[i + 1] = {from = i / BINS, to = (i + 1) / BINS, count = count, score = score, golden = golden}
    if count > 0 then out.ece = out.ece + count * math.abs(score - golden) end
    binned = binned + count
  end
  out.ece = share(out.ece, binned)
  return out
end

-- ---- the whole ----

local function evaluate_document(opt, result, doc, bar)
  local steps, most = {}, math.max(1, math.min(64, math.floor(MOST / math.max(doc.chunks, 1))))
  local function flush()
    if #steps > 0 then add(opt, result, doc, steps, doc:candidates(steps[#steps])) end
    steps = {}
  end
  for step = 0, doc.steps - 1, opt.every do
    if doc:candidates(step) > 0 then steps[#steps + 1] = step end
    if #steps == most then flush() end
  end
  flush()
  if bar then bar:step() end
end

function M.run(opt)
  opt = options.check(opt, defaults, "lsa.evaluate")
  if type(opt.indexer) ~= "table" or not opt.indexer.weights then
    raise("lsa.evaluate: indexer is %s; one that lsa.indexer or trainer:indexer() gives is wanted",
      options.shown(opt.indexer))
  end
  options.list(opt.traces, "lsa.evaluate: traces")
  options.number(opt.theta, 0, "lsa.evaluate: theta")
  options.whole(opt.first, 0, "lsa.evaluate: first")
  options.boolean(opt.strict or false, "lsa.evaluate: strict")
  if opt.tail then options.whole(opt.tail, 0, "lsa.evaluate: tail") end
  if opt.also and type(opt.also) ~= "table" then
    raise("lsa.evaluate: also is %s; functions by name are wanted", options.shown(opt.also))
  end
  for _, name in ipairs{"k", "every", "window"} do options.whole(opt[name], 1, "lsa.evaluate: " .. name) end
  opt.names = {}
  for name, f in pairs(opt.also or {}) do
    if type(name) ~= "string" or type(f) ~= "function" then
      raise("lsa.evaluate: also[%s] is %s; functions by name are wanted", options.shown(name), options.shown(f))
    end
    opt.names[#opt.names + 1] = name
  end
  table.sort(opt.names)
  local ix = opt.indexer
  local horizon = documents.horizon(ix.model, opt.window, opt.first)
  local result = setmetatable({theta = opt.theta, k = opt.k}, Result)
  local bar = opt.progress and require "lsa.progress"(#opt.traces, "evaluating")
  for _, trace in ipairs(opt.traces) do
    evaluate_document(opt, result, documents.open(trace, ix.layers, ix.model, horizon), bar)
  end
  if bar then bar:done() end
  for _, row in ipairs(result) do
    row.all, row.outside, row.counts = metrics(row.counts[1]), metrics(row.counts[2]), nil
    result[row.name] = row
  end
  return result
end

local COLUMNS = {{"precision", "precision"}, {"recall", "recall"}, {"f1", "F1"}, {"recall_at_k", "recall@"}, {"ece", "ECE"}}

function Result:__tostring()
  local head = {("%-10s %-8s %8s"):format("", "chunks", "selected")}
  for _, column in ipairs(COLUMNS) do
    head[#head + 1] = ("%10s"):format(column[1] == "recall_at_k" and column[2] .. self.k or column[2])
  end
  local lines = {("at theta = %g"):format(self.theta), table.concat(head, " ")}
  for _, row in ipairs(self) do
    for _, part in ipairs{"all", "outside"} do
      local m = row[part]
      local line = {("%-10s %-8s %7.2f%%"):format(row.name, part, 100 * share(m.selected, m.candidates))}
      for _, column in ipairs(COLUMNS) do line[#line + 1] = ("%10.4f"):format(m[column[1]]) end
      lines[#lines + 1] = table.concat(line, " ")
    end
  end
  return table.concat(lines, "\n")
end

-- As a notebook shows it.
function Result:__mime()
  local recall_at_k, rows = "recall@" .. self.k, {}
  for _, row in ipairs(self) do
    for _, part in ipairs{"all", "outside"} do
      local m = row[part]
      rows[#rows + 1] = {name = row.name, chunks = part, selected = share(m.selected, m.candidates), precision = m.precision,
        recall = m.recall, F1 = m.f1, [recall_at_k] = m.recall_at_k, ECE = m.ece}
    end
  end
  local found = grid.new(rows, {"name", "chunks", "selected", "precision", "recall", "F1", recall_at_k, "ECE"},
    {("at theta = %g"):format(self.theta)}):__mime()
  return {["text/plain"] = tostring(self), ["text/html"] = found["text/html"]}
end

return M
