-- Needle-in-a-haystack recall on a small real model: full attention, LSA, recency only and random at one budget.
--
--   ./lsa experiments/quickstart.lua [--help]
local lsa = require "lsa"
local needle = require "lsa.tasks.needle"
local parts = require "lsa.tasks.parts"
local progress = require "lsa.progress"
local rng = require "lsa.cycle.rng"
local stats = require "lsa.session.stats"

local opt = require "lsa.args" [[
Needle recall of a small real model under four policies at one budget.
  --tokens (default 32768)    length of a context
  --needles (default 12)      statements hidden in each context, all asked
  --contexts (default 2)      how many contexts
  --budget (default 0.135)    chunks that a policy may keep: a share of all, or a count
  --model (default ruler)     a model's short name (lsa.model) or directory
  --device (default cpu)      where the model runs: cpu or cuda
  --text (default bible)      a file to cut haystacks from; bible is the text of Debian's bible-kjv
  --seed (default 1)          of haystacks, needles and the random policy
]]

local model = lsa.model(opt.model, {device = opt.device})
local part = parts.open(opt.text, "test")
-- A trained Memory Indexer beside the model decides by threshold. Without one, the native Lightning Indexer of the first CSA
-- layer stands in: its scores are not calibrated, so the budget decides.
local trained = model:indexer_file()
local lsa_policy = trained and "lsa_threshold" or "lsa_topk"
local indexer = not trained and lsa.indexer{model = model, layers = {0}} or nil
local policies = {
  {label = "full attention", select = "full"},
  {label = "LSA", select = lsa_policy},
  {label = "recency only", select = "recency"},
  {label = "random", select = "random"},
}
local total = {}
for i, policy in ipairs(policies) do
  total[i] = {policy = policy, right = 0, asked = 0, resident = 0, pct = 0, fetched = 0, cycles = 0, ms = 0, stall = 0, steps = 0, failed = 0, clipped = 0}
end

-- One needle asked of a fork; its cost joins the policy's sums.
local function ask(base, policy, one, sum)
  local fork = base:fork{select = policy.select, budget = opt.budget, seed = opt.seed}
  local exact = needle.ask(fork, one)
  local s = fork:stats()
  fork:close()
  sum.right = sum.right + (exact and 1 or 0)
  sum.asked = sum.asked + 1
  sum.resident, sum.pct = sum.resident + s.resident_bytes, sum.pct + s.resident_pct
  sum.fetched, sum.cycles = sum.fetched + s.fetched_bytes, sum.cycles + s.cycles
  sum.failed, sum.clipped = sum.failed + s.failed, sum.clipped + s.clipped
  sum.ms, sum.stall, sum.steps = sum.ms + s.ms_per_token * s.steps, sum.stall + s.stall_ms, sum.steps + s.steps
end

local bar = progress(opt.contexts * (1 + opt.needles * #policies), "asking")
for context = 1, opt.contexts do
  local made = needle.build(rng.new(opt.seed * 1000 + context), part.text, part.words, opt.tokens, opt.needles)
  local base = model:session{select = "full", indexer = indexer}
  base:prefill(made.text)
  bar:step()
  for _, one in ipairs(made.needles) do
    for i, policy in ipairs(policies) do
      ask(base, policy, one, total[i])
      bar:step()
    end
  end
  base:close()
end
bar:done()

local report, rows = opt.report, {}
report:say("%d contexts of %d tokens, %d needles each; budget %s; %s\n", opt.contexts, opt.tokens, opt.needles, tostring(opt.budget), tostring(model))
report:say("%-16s %9s %14s %8s %12s %7s %7s %8s %9s %10s", "policy", "accuracy", "KV resident", "of full", "fetched", "cycles", "failed", "clipped",
  "ms/token", "in cycles")
for i, sum in ipairs(total) do
  local n = sum.asked
  local row = {policy = sum.policy.select, accuracy = sum.right / n, resident_bytes = sum.resident / n, resident_pct = sum.pct / n,
    fetched_bytes = sum.fetched / n, cycles = sum.cycles / n, failed = sum.failed, clipped = sum.clipped, ms_per_token = sum.ms / sum.steps,
    cycle_pct = 100 * sum.stall / sum.ms}
  rows[i] = row
  report:say("%-16s %8.1f%% %14s %7.1f%% %12s %7.1f %7d %8d %9.3f %9.1f%%", sum.policy.label, 100 * row.accuracy, stats.bytes(row.resident_bytes),
    row.resident_pct, stats.bytes(row.fetched_bytes), row.cycles, row.failed, row.clipped, row.ms_per_token, row.cycle_pct)
end
report:table("policies", {"policy", "accuracy", "resident_bytes", "resident_pct", "fetched_bytes", "cycles", "failed", "clipped", "ms_per_token", "cycle_pct"},
  rows, "")
report:done()
