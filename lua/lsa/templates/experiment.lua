-- NAME: what this experiment asks, and how.
--
--   ./lsa NAME.lua [--help]
local lsa = require "lsa"
local progress = require "lsa.progress"

-- The usage text is the declaration of the options; --json, --csv and --debug are there by themselves.
local opt = require "lsa.args" [[
How well policies find needles, by budget.
  --model (default needle)                   a model's short name or folder
  --policies (list default recency,lsa_topk) names of lsa.policies, or files
  --budgets (numbers default 0.05,0.135)     shares of all chunks
  --tokens (default 2048)                    length of a context
  --needles (default 4)                      questions in it
  --seed (default 1)                         of the haystack and its needles
]]

local model = lsa.model(opt.model)
local task = lsa.tasks.needle{model = model, tokens = opt.tokens, needles = opt.needles, seed = opt.seed}
local rows = {}
local bar = progress(#opt.policies * #opt.budgets, "asking")
for _, policy in ipairs(opt.policies) do
  for _, budget in ipairs(opt.budgets) do
    local row = task:run{select = policy, budget = budget}
    rows[#rows + 1] = {policy = policy, budget = budget, accuracy = row.accuracy, n = row.n, resident_pct = row.resident_pct}
    bar:step()
  end
end
bar:done()

-- A table for people, or rows by --json and --csv.
opt.report:say("%d tokens, %d needles; %s\n", opt.tokens, opt.needles, tostring(model))
opt.report:table("needles", {"policy", "budget", "accuracy", "n", "resident_pct"}, rows)
opt.report:done()
