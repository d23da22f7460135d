-- Every selection policy on the small real model at a few budgets, from one prefill a context.
--
--   ./lsa experiments/policies.lua [--help]
local lsa = require "lsa"
local grid = require "lsa.prompt.results_table"
local needle = require "lsa.tasks.needle"
local registry = require "lsa.registry"
local stats = require "lsa.session.stats"

local opt = require "lsa.args" [[
Needle recall, coverage and traffic of every selection policy.
  --policies (list default all)             which; all is every file in lua/lsa/policies, and on_demand: a hot pool of that
                                            budget that is filled by what Level 2 picks among all chunks
  --budgets (numbers default 0.02,0.05,0.135)   shares of the chunks, or counts
  --tokens (default 32768)                  length of a context
  --needles (default 8)                     statements hidden in each context, all asked
  --contexts (default 1)                    how many contexts
  --every (default 64)                      steps between cycles
  --model (default needle)                  a model's short name (lsa.model) or directory
  --text (default bible)                    a file to cut haystacks from; bible is the text of Debian's bible-kjv
  --seed (default 1)                        of haystacks, needles and the random policy
  --results (default none)                  a file that finished rows are added to, and taken from
  --plot (default none)                     a file that accuracy against resident KV is drawn into: .png, .svg or .pdf
]]

local model = lsa.model(opt.model)

local warn = registry.warn
registry.warn = function() end           -- what failed is told below the table

-- Golden chunks are labels of recordings; questions have none.
local left_out = {oracle_golden = true, lsa_cap = true} -- of all; lsa_cap is lsa_threshold
local policies = {}
if opt.policies[1] == "all" then
  for _, name in ipairs(registry.names "policies") do
    if not left_out[name] then policies[#policies + 1] = name end
  end
  policies[#policies + 1] = "on_demand"
else
  for i, name in ipairs(opt.policies) do
    if name == "oracle_golden" then error("oracle_golden wants the labels of a recording; questions have none", 0) end
    policies[i] = name
  end
end

-- What the native top-k picks in the steps of an answer, from a recording of it under full attention.
local function future_of(base, one)
  local path, future = os.tmpname(), nil
  local fork = base:fork{select = "full"}
  fork:record(path)
  needle.ask(fork, one)
  fork:record(false)
  fork:close()
  lsa.replay(path, {select = function(cycle)
    future = cycle.future
    return {}
  end, every = #one.answer + 1})
  os.remove(path)
  return future
end

-- Oracles know how the answer goes; each question has a policy of its own.
local futures = {}
local function oracle(name, budget)
  local entry = registry.open("policies", name)
  return function(base, one)
    futures[one] = futures[one] or future_of(base, one)
    return {budget = budget, every = opt.every, select = function(cycle, options)
      cycle.future = futures[one]
      return entry.fn(cycle, options)
    end}
  end
end

-- Without a trained Memory Indexer, the native one of the first CSA layer stands in.
local task = needle.task(model, {tokens = opt.tokens, needles = opt.needles, contexts = opt.contexts, seed = opt.seed,
  session = {indexer = not model:indexer_file() and lsa.indexer{model = model, layers = {0}} or nil},
  text = opt.text})

local columns = {"accuracy", "digits", "coverage", "evidence", "fetched_bytes", "resident_bytes", "resident_pct", "cycles", "failed",
  "clipped", "error"}
local results = lsa.sweep{
  policies = policies, budgets = opt.budgets, columns = columns, label = "policies",
  results = opt.results ~= "none" and opt.results or nil,
  about = ("%s, %d tokens, %d contexts of %d needles, every %d, seed %d, %s"):format(opt.model, opt.tokens, opt.contexts,
    opt.needles, opt.every, opt.seed, opt.text),
  run = function(params)
    if params.select:find "^oracle_" then return task:run(oracle(params.select, params.budget)) end
    if params.select == "on_demand" then return task:run{on_demand = true, budget = params.budget} end
    return task:run{select = params.select, budget = params.budget, every = opt.every, seed = opt.seed}
  end,
}

registry.warn = warn

local function percent(share) return ("%.1f%%"):format(100 * share) end

-- The table to read: with units.
local function readable()
  local rows, failed = {}, {}
  for i, row in ipairs(results.rows) do
    rows[i] = {policy = row.select .. (row.error and " *" or ""), budget = row.budget, accuracy = percent(row.accuracy),
      digits = percent(row.digits), coverage = percent(row.coverage), evidence = percent(row.evidence),
      fetched = stats.bytes(row.fetched_bytes), ["KV resident"] = stats.bytes(row.resident_bytes),
      ["of full"] = percent(row.resident_pct / 100), failed = percent(row.failed / math.max(row.cycles, 1e-9)),
      clipped = percent(row.clipped / math.max(row.cycles, 1e-9))}
    failed[row.select] = failed[row.select] or row.error
  end
  local text = tostring(grid.new(rows, {"policy", "budget", "accuracy", "digits", "coverage", "evidence", "fetched", "KV resident",
    "of full", "failed", "clipped"}))
  if next(failed) then text = text .. "\n* failed; sink and tail alone were resident:\n" end
  for name, why in pairs(failed) do text = text .. ("  %s: %s\n"):format(name, why) end
  return text
end

opt.report:say("%d contexts of %d tokens, %d needles each; %s\n", opt.contexts, opt.tokens, opt.needles, tostring(model))
opt.report:table("policies", results.columns, results.rows, readable())
opt.report:done()
if opt.plot ~= "none" then
  lsa.plot.accuracy(results, {title = ("Needles in %d tokens: accuracy against the KV cache that is resident"):format(opt.tokens)}):save(opt.plot)
end
