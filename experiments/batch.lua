-- Many requests at once: full attention against LSA in the same memory, on the small real model; tokens per second by the number
-- of requests; and the LSA paper's table of concurrent requests beside the architecture's bytes.
--
--   ./lsa experiments/batch.lua [--help]
local lsa = require "lsa"
local accounting = lsa.accounting
local needle = require "lsa.tasks.needle"
local rng = require "lsa.cycle.rng"
local stats = require "lsa.session.stats"
local texts = require "lsa.texts"

local opt = require "lsa.args" [[
Requests at once, throughput and queueing, full against LSA.
  --parts (list default needles,rows,paper)   what to run
  --tokens (default 16384)    length of the longest context
  --contexts (default 4)      how many, of lengths up to that
  --needles (default 6)       requests on each: statements hidden in it, each asked
  --answer (default 64)       tokens each request decodes
  --budget (default 0.135)    chunks that LSA may keep: a share of all, or a count
  --every (default 16)        steps between cycles
  --memory (default 3)        fast memory, as many full requests of the longest context
  --most (default 16)         requests at once
  --model (default needle)    a model's short name (lsa.model) or directory
  --text (default bible)      a file to cut haystacks from; bible is the text of Debian's bible-kjv
  --seed (default 1)          of haystacks and needles
]]

local report = opt.report
local parts = {}
for _, name in ipairs(opt.parts) do parts[name] = true end

---- needles, and rows of a step ----

local function open_model()
  local model = lsa.model(opt.model)
  local trained = model:indexer_file()
  -- By threshold, but no more than was admitted. Without a trained Memory Indexer, the native one of the first CSA layer stands
  -- in, and the budget decides.
  return model, trained and "lsa_threshold" or "lsa_topk", not trained and lsa.indexer{model = model, layers = {0}} or nil
end

-- Prefilled contexts of several lengths: {session =, needles =}.
local function open_contexts(model, indexer)
  local text = texts.open(opt.text)
  local words, out = needle.words(text), {}
  for i = 1, opt.contexts do
    local length = math.floor(opt.tokens * i / opt.contexts)
    local made = needle.build(rng.new(opt.seed * 1000 + i), text, words, length, opt.needles)
    local base = model:session{select = "full", indexer = indexer}
    base:prefill(made.text)
    out[i] = {session = base, needles = made.needles}
  end
  return out
end

-- A finished batch of every needle of every context, the contexts in turns; and the share of right answers.
local function ask_all(model, contexts, options)
  local b, asked, right = lsa.batch(model, options), {}, 0
  for i = 1, opt.needles do
    for _, context in ipairs(contexts) do
      local one = context.needles[i]
      asked[b:submit{session = context.session, tokens = one.question, n = opt.answer}] = one.answer
    end
  end
  local done = b:run{progress = true}
  for id, answer in pairs(asked) do
    if (b:result(id).text or ""):sub(1, #answer) == answer then right = right + 1 end
  end
  b:close()
  return done, right / (opt.needles * #contexts)
end

local function needles(model, policy, contexts)
  local full = accounting.requests(model.config, {memory = 0, tokens = opt.tokens + 128 + opt.answer}).full_bytes
  local memory = math.ceil(opt.memory * full)
  report:say("%s", ("%d requests on %d contexts of up to %d tokens, %d tokens each; %s of fast memory; budget %s; %s\n"):format(
    opt.needles * opt.contexts, opt.contexts, opt.tokens, opt.answer, stats.bytes(memory), tostring(opt.budget), tostring(model)))
  report:say("%s", ("%-16s %8s %9s %9s %11s %10s %10s %10s %9s"):format("policy", "at once", "accuracy", "tokens/s", "rows/step",
    "wait mean", "wait max", "memory", "fetched"))
  local found = {}
  for i, one in ipairs {{"full attention", "full"}, {"LSA", policy}} do
    local r, accuracy = ask_all(model, contexts, {select = one[2], budget = opt.budget, every = opt.every, memory = memory,
      most = opt.most})
    found[i] = {policy = one[2], at_once = r.at_once, accuracy = accuracy, tokens_per_s = r.tokens_per_s, rows_per_step = r.rows_per_step,
      wait_mean = r.wait_mean, wait_max = r.wait_max, peak_bytes = r.memory.peak, fetched_bytes = r.fetched_bytes, failed = r.failed}
    report:say("%s", ("%-16s %8d %8.1f%% %9.1f %11.2f %8.3f s %8.3f s %10s %9s"):format(one[1], r.at_once, 100 * accuracy, r.tokens_per_s,
      r.rows_per_step, r.wait_mean, r.wait_max, stats.bytes(r.memory.peak), stats.bytes(r.fetched_bytes)))
    if r.failed > 0 then report:say("  %d failed", r.failed) end
  end
  report:table("needles", {"policy", "at_once", "accuracy", "tokens_per_s", "rows_per_step", "wait_mean", "wait_max", "peak_bytes",
    "fetched_bytes", "failed"}, found, "")
end

local function rows(model, policy, contexts)
  report:say "\nTokens per second of decode steps, by requests at once (`./lsa bench batch` has a model that caches do not hold):"
  local one, found = nil, {}
  for _, most in ipairs {1, 2, 4, 8} do
    if most > opt.most then break end
    local r = ask_all(model, contexts, {select = policy, budget = opt.budget, every = opt.every, most = most})
    one = one or r.decode_tokens_per_s
    found[#found + 1] = {at_once = most, tokens_per_s = r.decode_tokens_per_s, ratio = r.decode_tokens_per_s / one}
    report:say("  %2d   %9.1f tokens/s   x%.2f", most, r.decode_tokens_per_s, r.decode_tokens_per_s / one)
  end
  report:table("rows", {"at_once", "tokens_per_s", "ratio"}, found, "")
end

---- the paper's table ----

local flash = accounting.flash
local printed = { -- arXiv 2606.09079, 8 x H20: requests at once and GB a request
  {"256K", 2 ^ 18, 96, full = 47, lsa = 76, full_gb = 0.94, lsa_gb = 0.09},
  {"512K", 2 ^ 19, 192, full = 25, lsa = 60, full_gb = 1.87, lsa_gb = 0.18},
  {"1M", 2 ^ 20, 384, full = 11, lsa = 30, full_gb = 3.73, lsa_gb = 0.37},
}
local PAGE = 64

-- Whether a cost of a + b * context a request and some memory give all three counts n: floor(M / (a + b t)) = n means
-- 1 / (n + 1) < (a + b t) / M <= 1 / n. With contexts of 1, 2 and 4 units, b is bounded by the first two and by the last two.
local function affine(column)
  local low, high = {}, {}
  for i, row in ipairs(printed) do low[i], high[i] = 1 / (row[column] + 1), 1 / row[column] end
  local from = math.max(low[2] - high[1], (low[3] - high[2]) / 2)
  local to = math.min(high[2] - low[1], (high[3] - low[2]) / 2)
  return from < to
end

local function paper()
  report:say("%s", ([[

Requests at once, V4-Flash on 8 H20: the paper's beside the engine's bytes (records of 584 + 132 B, HCA 584 B, f32 window; K pages
of %d chunks resident). Memory is what the paper's full requests take here; LSA is how many fit in it.
]]):format(PAGE))
  report:say("%s", ("%-6s %14s %19s %14s %16s %12s"):format("", "paper", "GB a request", "GB of paper's", "LSA in the same", "paper"))
  report:say("%s", ("%-6s %14s %19s %14s %16s %12s"):format("", "full -> LSA", "full -> LSA", "full, LSA", "memory", "LSA / full"))
  local found = {}
  for i, row in ipairs(printed) do
    local resident = row[3] * PAGE
    local one = accounting.requests(flash, {memory = 0, tokens = row[2], resident = resident})
    local memory = row.full * one.full_bytes
    local fit = accounting.requests(flash, {memory = memory, tokens = row[2], resident = resident})
    found[i] = {context = row[1], paper_full = row.full, paper_lsa = row.lsa, full_bytes = one.full_bytes, lsa_bytes = one.lsa_bytes,
      memory = memory, lsa = fit.lsa}
    report:say("%s", ("%-6s %6d -> %4d %9.3f -> %6.3f %6.1f, %6.1f %10d (x%.1f) %9s"):format(row[1], row.full, row.lsa, one.full_bytes / 1e9,
      one.lsa_bytes / 1e9, memory / 1e9, row.lsa * one.lsa_bytes / 1e9, fit.lsa, fit.lsa / row.full,
      ("x%.1f"):format(row.lsa / row.full)))
  end
  report:table("paper", {"context", "paper_full", "paper_lsa", "full_bytes", "lsa_bytes", "memory", "lsa"}, found, "")
  -- GB that the paper's counts take by its own bytes a request: the least and the most of three.
  local function taken(column)
    local least, most = math.huge, 0
    for _, row in ipairs(printed) do
      local gb = row[column] * row[column .. "_gb"]
      least, most = math.min(least, gb), math.max(most, gb)
    end
    return ("%.1f to %.1f GB"):format(least, most)
  end
  report:say("%s", ([[

What this says:
  full    By the paper's own bytes a request, its full requests take %s: nearly the same memory at each length.
  LSA     Its LSA requests take %s. So it is not their KV cache that bounds them; in the full requests' memory more of
          them fit than it prints. What bounds them is not in the paper (batches that the compute can serve, reserves).
  Both    No memory M and cost a + b * context of a request give the three counts floor(M / cost) of a column: full %s,
          LSA %s. With HCA entries and the f32 window, which stay with LSA, a request shrinks less than the
          paper's %.0f-fold.]]):format(taken "full", taken "lsa", affine "full" and "some may" or "none does",
    affine "lsa" and "some may" or "none does", printed[3].full_gb / printed[3].lsa_gb))
end

if parts.needles or parts.rows then
  local model, policy, indexer = open_model()
  local contexts = open_contexts(model, indexer)
  if parts.needles then needles(model, policy, contexts) end
  if parts.rows then rows(model, policy, contexts) end
end
if parts.paper then paper() end
report:done()
