-- Why a Memory Indexer's recipe works: experiments/train_indexer.lua with one thing changed at a time, on validation questions.
--
--   ./lsa experiments/ablate_indexer.lua MODEL [--help]
local cjson = require "cjson"
local dir = require "pl.dir"
local lsa = require "lsa"
local results_table = require "lsa.prompt.results_table"

local opt = require "lsa.args" [[
Trains an indexer for each variation of the recipe and each seed, and rates it on validation questions. A finished one is not run again.
  <model> (string)            as train_indexer.lua has it
  -o,--output (default build/ablate_indexer)   the folder of all runs
  --only (default all)        names of variations, as in base,heads_4: the others are left out of the run, and of the table where they are
                              not finished
  --seeds (numbers default 1) of each variation
  --by (default answers)      what rates it: answers, or recall of what answers need (experiments/recall_curve.lua), which is cheap
  --asked (default none)      options of recall_curve.lua: "--contexts 8 --tokens 16384"
  --looks (default 8)         of so many tokens indexers ask, where recall rates them
  --with (default none)       options for all of them, as they stand behind train_indexer.lua: "--documents 24 --steps 3000"
]]

-- Name, options.
local variations = {
  {"base", ""},
  {"voters_2", "--voters 2"}, {"voters_1", "--voters 1"}, {"voters_0_1_2", "--voters 0,1,2"},
  {"layers_1", "--layers 1"}, {"layers_0_1_2", "--layers 0,1,2 --looks 1"}, {"layers_0_1_2_max", "--layers 0,1,2 --ensemble max"},
  {"layers_all", "--layers all --looks 1"},
  {"by_scores", "--by scores --top_p 0.3"}, {"by_scores_0.6", "--by scores --top_p 0.6"}, {"the_paper", "--by scores --top_p 0.6 " ..
    "--voters all --layers all --min_layers 2 --weights votes --negatives 1 --ensemble max"},
  {"least_0.02", "--least 0.02"}, {"least_0.05", "--least 0.05"},
  {"heads_4", "--heads 4"}, {"heads_64", "--heads 64"}, {"native_start", "--from native"}, {"rank_64", "--rank 64"},
  {"negatives_1", "--negatives 1"}, {"negatives_16", "--negatives 16"},
  {"window_16", "--window 16"}, {"window_64", "--window 64"}, {"window_256", "--window 256"},
  {"before_0", "--before 0"}, {"before_8", "--before 8"}, {"looks_1", "--looks 1"},
  {"lengths_8192", "--lengths 8192 --documents 96"}, {"lengths_32768", "--lengths 4096,8192,16384,32768 --documents 48"},
  {"focal", "--loss focal"}, {"hinge", "--pairwise hinge"},
}

local program = require("posix.unistd").readlink "/proc/self/exe"
local wanted = {}
for name in opt.only:gmatch "[^,]+" do wanted[name] = true end
local with = opt.with ~= "none" and opt.with or ""

local recall = opt.by == "recall"
if not recall and opt.by ~= "answers" then error(("--by: %s; answers or recall"):format(opt.by), 0) end

local function rows_of(path)
  local file = io.open(path)
  if not file then return end
  local found = cjson.decode(file:read "*a")
  file:close()
  return found
end

-- Runs another experiment; its rows are at `path` when it ends.
local function experiment(script, words, path)
  local ok = os.execute(("'%s' '%s/experiments/%s' '%s' %s --json >'%s.part' && mv '%s.part' '%s'"):format(program, lsa.root, script, opt.model,
    words, path, path, path))
  if ok ~= 0 and ok ~= true then error(("%s failed"):format(path), 0) end
end

-- Where only training differs by seed, variations with the same labels share traces.
local function run(name, options, seed)
  local folder = ("%s/%s_seed_%d"):format(opt.output, name, seed)
  local path = folder .. (recall and ("/recall_%d.json"):format(opt.looks) or "/rows.json")
  local found = rows_of(path)
  if found or not (wanted.all or wanted[name]) then return found end
  assert(dir.makepath(folder))
  if recall then
    local labels = (options:find "%-%-voters" or options:find "%-%-by" or options:find "%-%-least" or options:find "%-%-lengths") and name or "base"
    experiment("train_indexer.lua", ("%s %s --contexts 0 --traced all --traces '%s/traces/%s' --draw %d -o '%s'"):format(with, options, opt.output, labels,
      seed, folder), folder .. "/trained.json")
    experiment("recall_curve.lua", ("%s --spans %d --indexers '%s/indexer.safetensors' -o '%s/asked'"):format(opt.asked ~= "none" and opt.asked or "",
      opt.looks, folder, opt.output), path)
  else
    experiment("train_indexer.lua", ("%s %s --part validation --seed %d -o '%s'"):format(with, options, seed, folder), path)
  end
  return rows_of(path)
end

local function print_recall()
  local rows, columns, lines, shown = {}, {"variation", "seeds", "n"}, {}, {"variation", "seeds", "n"}
  for _, variation in ipairs(variations) do
    local sum, seeds = {}, 0
    for _, seed in ipairs(opt.seeds) do
      local found = run(variation[1], variation[2], seed)
      for _, row in ipairs(found and found.recall or {}) do
        if row.kind == "all" then
          row.variation, row.seed, seeds = variation[1], seed, seeds + 1
          rows[#rows + 1] = row
          for name, value in pairs(row) do
            if name:find "_[%d.]+$" then
              sum[name] = sum[name] or {}
              table.insert(sum[name], 100 * value)
            end
          end
          sum.n = row.n
        end
      end
    end
    if seeds > 0 then
      local line = {variation = variation[1], seeds = seeds, n = sum.n}
      for name, values in pairs(sum) do
        if name ~= "n" then
          table.sort(values)
          local mean = 0
          for _, value in ipairs(values) do mean = mean + value / seeds end
          line[name] = seeds > 1 and ("%.1f (%.1f-%.1f)"):format(mean, values[1], values[seeds]) or ("%.1f"):format(mean)
          if name:find "^whole_[%d.]+$" and not shown[name] then
            shown[name], shown[#shown + 1] = true, name
          end
        end
      end
      lines[#lines + 1] = line
    end
  end
  for name in pairs(rows[1] or {}) do columns[#columns + 1] = name:find "_[%d.]+$" and name or nil end
  columns[#columns + 1] = "seed"
  table.sort(columns)
  local names = {unpack(shown, 4)}
  table.sort(names)
  opt.report:table("ablation", columns, rows, tostring(results_table.new(lines, {"variation", "seeds", "n", unpack(names)})))
  opt.report:done()
end

if recall then return print_recall() end

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
