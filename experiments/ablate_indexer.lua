-- Why a Memory Indexer's recipe works: experiments/train_indexer.lua with one thing changed at a time, on validation questions.
--
--   ./lsa experiments/ablate_indexer.lua MODEL [--help]
local cjson = require "cjson"
local dir = require "pl.dir"
local lsa = require "lsa"
local results_table = require "lsa.prompt.results_table"

local opt = require "lsa.args" [[
Trains an indexer for each variation of the recipe and each seed, and asks validation questions of it. A finished one is not run again.
  <model> (string)            as train_indexer.lua has it
  -o,--output (default build/ablate_indexer)   the folder of all runs
  --only (default all)        names of variations, as in base,heads_4: the others are left out of the run, and of the table where they are
                              not finished
  --seeds (numbers default 1) of each variation
  --with (default none)       options for all of them, as they stand behind train_indexer.lua: "--documents 24 --steps 3000"
]]

-- Name, options.
local variations = {
  {"base", ""},
  {"voters_all", "--voters all"}, {"voters_1", "--voters 1"}, {"voters_0_1_2", "--voters 0,1,2"},
  {"layers_1", "--layers 1"}, {"layers_0_1_2", "--layers 0,1,2"}, {"layers_0_1_2_max", "--layers 0,1,2 --ensemble max"},
  {"layers_all", "--layers all"},
  {"by_scores", "--by scores --top_p 0.3"}, {"by_scores_0.6", "--by scores --top_p 0.6"}, {"the_paper", "--by scores --top_p 0.6 " ..
    "--voters all --layers all --min_layers 2 --weights votes --negatives 1 --ensemble max"},
  {"least_0.02", "--least 0.02"}, {"least_0.1", "--least 0.1"},
  {"heads_4", "--heads 4"}, {"heads_64", "--heads 64"}, {"native_start", "--from native"}, {"rank_64", "--rank 64"},
  {"negatives_1", "--negatives 1"}, {"negatives_16", "--negatives 16"},
  {"window_16", "--window 16"}, {"window_256", "--window 256"},
  {"focal", "--loss focal"}, {"hinge", "--pairwise hinge"},
}

local program = require("posix.unistd").readlink "/proc/self/exe"
local wanted = {}
for name in opt.only:gmatch "[^,]+" do wanted[name] = true end
local with = opt.with ~= "none" and opt.with or ""

local function run(name, options, seed)
  local folder = ("%s/%s_seed_%d"):format(opt.output, name, seed)
  local file = io.open(folder .. "/rows.json")
  if not file and (wanted.all or wanted[name]) then
    assert(dir.makepath(folder))
    local ok = os.execute(("'%s' '%s/experiments/train_indexer.lua' '%s' %s %s --part validation --seed %d -o '%s' --json >'%s/rows.part' && mv '%s/rows.part' '%s/rows.json'")
      :format(program, lsa.root, opt.model, with, options, seed, folder, folder, folder, folder))
    if ok ~= 0 and ok ~= true then error(("%s failed"):format(name), 0) end
    file = assert(io.open(folder .. "/rows.json"))
  end
  if not file then return end
  local found = cjson.decode(file:read "*a")
  file:close()
  return found
end

local rows = {}
for _, variation in ipairs(variations) do
  for _, seed in ipairs(opt.seeds) do
    local found = run(variation[1], variation[2], seed)
    for _, row in ipairs(found and found.accuracy or {}) do
      rows[#rows + 1] = {variation = variation[1], seed = seed, rule = row.rule, n = row.n, accuracy = row.accuracy,
        resident_pct = row.resident_pct, evidence = row.evidence, recall = found.retrieval[1].recall_at_k, ece = found.retrieval[1].ece}
    end
  end
end

-- For people, a line a variation and seed: what LSA keeps and gets right by threshold and budget.
local lines, columns, by = {}, {"variation", "seed", "recall@64"}, {}
for _, row in ipairs(rows) do
  if row.rule:find "^LSA" then
    local key = row.variation .. row.seed
    if not by[key] then
      by[key] = {variation = row.variation, seed = row.seed, ["recall@64"] = ("%.3f"):format(row.recall)}
      lines[#lines + 1] = by[key]
    end
    local column = row.rule:gsub("LSA, ", "")
    if not by[column] then
      by[column] = true
      columns[#columns + 1] = column
    end
    by[key][column] = ("%.1f%% of %d at %.2f%%"):format(100 * row.accuracy, row.n, row.resident_pct)
  end
end
opt.report:table("ablation", {"variation", "seed", "rule", "n", "accuracy", "resident_pct", "evidence", "recall", "ece"}, rows,
  tostring(results_table.new(lines, columns)))
opt.report:done()
