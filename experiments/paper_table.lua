-- The paper's accuracy table in miniature: tasks × lengths × ways of serving, the same questions under each (LSA paper, Table 1).
--
--   ./lsa experiments/paper_table.lua [--help]
local cjson = require "cjson"
local lsa = require "lsa"
local asked = require "lsa.tasks.asked"
local content = require "lsa.content"
local intervals = require "lsa.intervals"
local items = require "lsa.tasks.items"
local paired = require "lsa.tasks.paired"
local stats = require "lsa.session.stats"

local opt = require "lsa.args" [[
Accuracy, resident KV, evidence, traffic and stalls of full attention, LSA and the baselines, by task and length. Questions are from
test texts and words, and the same for every row; every token of an answer is decoded under the row's policy.
  --model (default ruler)     a model's directory, or the name of one in experiments/models
  --tokens (numbers default 32768,65536,131072)   lengths of contexts
  --contexts (numbers default 8)   how many contexts of each length
  --items (default 2)         items of each kind in a context, all asked
  --kinds (list default all)  of items (lua/lsa/tasks/items.lua)
  --phrasings (numbers default 0)   places (lua/lsa/tasks/phrasings.lua) of those that statements and questions take; 0: the first, and six where a kind has several
  --theta (default 0.5)       LSA's threshold
  --indexer (default own)     a file; own: the model's
  --looks (default 0)         of so many of the latest tokens the indexer asks; 0: as its file says
  --budgets (numbers default 0.05,0.035,0.02)   by length: the share of the chunks that LSA may keep at most, and baselines keep
  --caps (numbers default 0)   by length: the share that LSA may keep at most where that is not the budget; 0: it is
  --policies (list default linked:0.5)   files or names of further policies, as further rows; behind a colon, the share of the budget that they get;
                              none: no further rows
  --every (default 64)        steps between cycles
  --device (default cpu)      where the model runs: cpu or cuda
  --text (default bible)      a file; bible is the text of Debian's bible-kjv
  --part (default test)       of the text and words: test or validation
  --seed (default 1)          of contexts and the random policy
  --results (default none)    a file that finished contexts are added to, and taken from
  --share (string default 1/1)   i/n: answer every n-th context from the i-th, and print nothing: n processes, each with its own results, are
                              joined by cat
  --finished                  only contexts that the results have: of a run that was stopped
]]

local model, report = lsa.model(opt.model, {device = opt.device}), opt.report
local kinds = opt.kinds[1] == "all" and items.names or opt.kinds
local phrased = opt.phrasings[1] ~= 0 and opt.phrasings or nil
local file = opt.indexer ~= "own" and opt.indexer or model:indexer_file()
local trained = file and lsa.indexer{model = model, from = file, looks = opt.looks > 0 and opt.looks or nil}

-- Without a trained Memory Indexer the native one of CSA ordinal 2, or the last that there is, stands in: its scores are no
-- probabilities, so the budget decides.
local ordinal = math.min(2, #model.csa_layers - 1)
local native = lsa.indexer{model = model, layers = {ordinal}}
local lsa_label = trained and ("LSA, theta %g"):format(opt.theta) or ("LSA, native indexer of CSA layer %d"):format(ordinal)

local further = opt.policies[1] == "none" and {} or opt.policies

local function ways_of(budget, cap)
  local own = trained and {"lsa_threshold", theta = opt.theta} or "lsa_topk"
  local ways = {{label = "full attention", fork = {select = "full"}, indexer = trained},
    {label = lsa_label, fork = {select = own, budget = cap, every = opt.every}, indexer = not trained and native or nil}}
  for _, policy in ipairs(further) do
    local name, share = policy:match "^(.*):([%d.]+)$"
    name, share = name or policy, tonumber(share or 1)
    ways[#ways + 1] = {label = ("%s, %g of the budget"):format(name:match "[^/]+$":gsub("%.lua$", ""), share), fork = {select = name,
      budget = share * budget, every = opt.every}}
  end
  for _, rule in ipairs {{"native top-B of the last step", "native_topk"}, {"recency only", "recency"}, {"random", "random"}} do
    ways[#ways + 1] = {label = rule[1], fork = {select = rule[2], budget = budget, every = opt.every}}
  end
  ways[#ways + 1] = {label = "on demand", fork = {on_demand = true, budget = budget}}
  return ways
end

-- ---- answers ----

local first, step = opt.share:match "^(%d+)/(%d+)$"
first, step = tonumber(first), tonumber(step)
if not first or first < 1 or first > step then error(("--share: %q is not i/n"):format(opt.share), 0) end

-- What makes a result, beside its context. The device is not in it: a CPU and a GPU differ by the rounding of sums.
local identity = content.model(model)
identity.device = nil
local named, indexer = {}, opt.indexer:match "[^/]+$"
for i, policy in ipairs(opt.policies) do
  local name, share = policy:match "^(.-)(:?[%d.]*)$"
  named[i] = content.named("policies", name) .. share
end
if opt.indexer ~= "own" then indexer = indexer .. " " .. content.file(opt.indexer) end

local function about(tokens, budget, cap)
  return cjson.encode{("%s %s %s %s"):format(identity.config, identity.weights, identity.compute, identity.indexer), tokens, budget, cap, opt.items,
    table.concat(kinds, " "), opt.theta, indexer, opt.looks, table.concat(named, " "), opt.every, opt.text:match "[^/]+$", opt.part, opt.seed,
    table.concat(opt.phrasings, " "), require("lsa.tasks.init").digest()}
end

-- The contexts of a length that the results have.
local function finished(said)
  local out, seen = {}, {}
  for line in io.lines(opt.results) do
    local ok, item = pcall(cjson.decode, line)
    local key = ok and type(item) == "table" and item.key and cjson.decode(item.key)
    if key and key.about == said and not seen[key.params.context] then
      seen[key.params.context] = true
      out[#out + 1] = key.params.context
    end
  end
  table.sort(out)
  return out
end

local by_length = {}
for i, tokens in ipairs(opt.tokens) do
  local budget, cap = opt.budgets[math.min(i, #opt.budgets)], opt.caps[math.min(i, #opt.caps)]
  cap = cap > 0 and cap or budget
  local chunks = math.floor(tokens / tonumber(model.config.csa_rate))
  local ways, numbers = ways_of(budget, cap), {}
  for number = first, opt.contexts[math.min(i, #opt.contexts)], step do numbers[#numbers + 1] = number end
  if opt.finished then numbers = finished(about(tokens, budget, cap)) end
  local task = asked.kinds(model, {tokens = tokens, kinds = kinds, items = opt.items, part = opt.part, text = opt.text,
    phrasings = phrased, seed = opt.seed, session = {tail = math.floor(0.0025 * chunks)}}, kinds, "paper_table")
  local results = #numbers > 0 and lsa.sweep{grid = {context = numbers}, label = ("%d tokens"):format(tokens),
    run = function(params) return paired.ask(task, params.context, ways) end,
    results = opt.results ~= "none" and opt.results or nil,
    about = about(tokens, budget, cap)}
  if #numbers > 0 then
    by_length[#by_length + 1] = {tokens = tokens, budget = budget, cap = cap, ways = ways, rows = results.rows}
  elseif opt.finished then
    report:say("%s", ("%s has no context of %d tokens of what is asked for here\n"):format(opt.results, tokens))
  end
end
if step > 1 then return end
if #by_length == 0 then error(("%s: no finished contexts of what is asked for here"):format(opt.results), 0) end

-- ---- what they show ----

-- The rows to keep: every way, length and kind, and all kinds together.
local all = {}
for _, length in ipairs(by_length) do
  for _, way in ipairs(length.ways) do
    for _, kind in ipairs {false, unpack(kinds)} do
      local sum = paired.joined(length.rows, way.label, kind or nil)
      local full = paired.joined(length.rows, "full attention", kind or nil)
      local difference, width = paired.against(sum, full)
      all[#all + 1] = {policy = way.label, tokens = length.tokens, task = kind or "all", n = sum.n, accuracy = sum.accuracy, low = sum.low,
        high = sum.high, against_full = difference, against_full_95 = width, kv_pct = sum.resident_pct, kv_bytes = sum.resident_bytes,
        evidence = sum.evidence, fetched_bytes = sum.fetched_bytes, stall_ms = sum.transfer_stall_ms, cycles = sum.cycles,
        failed = sum.failed * sum.n, clipped = sum.clipped * sum.n}
    end
  end
end
local columns = {"policy", "tokens", "task", "n", "accuracy", "low", "high", "against_full", "against_full_95", "kv_pct", "kv_bytes",
  "evidence", "fetched_bytes", "stall_ms", "cycles", "failed", "clipped"}
local lines = {}
local function out(line) lines[#lines + 1] = line end

-- The width that a column of texts takes on screen.
local function padded(text, width) return text .. (" "):rep(width - #text) end

local short = {single = "single", multikey = "halves", seven_digits = "7 dig.", words = "words", phrasings = "phras.",
  other_words = "reword", multivalue = "values", multiquery = "query", multiquery_bare = "bare", traced = "traced"}

local function print_length(length)
  local asked_here = paired.joined(length.rows, "full attention").n
  out(("%d tokens: %d questions in %d contexts; %g %% of the chunks, LSA at most %g %%, tau %d, seed %d"):format(length.tokens, asked_here,
    #length.rows, 100 * length.budget, 100 * length.cap, opt.every, opt.seed))
  local head = padded("", 32) .. " accuracy   against full    of KV  evidence    fetched  stall ms  fail/clip "
  for _, kind in ipairs(kinds) do head = head .. ("%7s"):format(short[kind] or kind) end
  out(head)
  for _, way in ipairs(length.ways) do
    local sum, full = paired.joined(length.rows, way.label), paired.joined(length.rows, "full attention")
    local difference, width = paired.against(sum, full)
    local line = padded(way.label, 32) .. ("%8.2f%%  %s %7.2f%%   %6.1f%% %10s  %8.3f  %9s "):format(100 * sum.accuracy,
      way.label == "full attention" and padded("", 14) or ("%+6.2f ± %-5.2f"):format(difference, width), sum.resident_pct, 100 * sum.evidence,
      stats.bytes(sum.fetched_bytes), sum.transfer_stall_ms, ("%d/%d"):format(sum.failed * sum.n, sum.clipped * sum.n))
    for _, kind in ipairs(kinds) do line = line .. ("%7.1f"):format(100 * paired.joined(length.rows, way.label, kind).accuracy) end
    out(line)
  end
  out ""
end

out(tostring(model) .. "\n")
for _, length in ipairs(by_length) do print_length(length) end

-- All lengths, beside the paper's.
local paper = {["full attention"] = 76.9, [lsa_label] = 77.5, ["recency only"] = 33.3, random = 38.7}
out(padded("all lengths", 32) .. "        n  accuracy   95 %           against full   the paper, 13.5 % of the KV")
for _, way in ipairs(by_length[1].ways) do
  local right, full = {}, {}
  for _, length in ipairs(by_length) do
    right[#right + 1] = paired.joined(length.rows, way.label).right
    full[#full + 1] = paired.joined(length.rows, "full attention").right
  end
  right, full = table.concat(right), table.concat(full)
  local _, good = right:gsub("1", "")
  local low, high = intervals.wilson(good, #right)
  local difference, width = paired.against({right = right, n = #right}, {right = full})
  out(padded(way.label, 32) .. (" %8d  %7.2f%%   %5.2f to %6.2f  %s   %s"):format(#right, 100 * good / #right, 100 * low, 100 * high,
    way.label == "full attention" and padded("", 13) or ("%+6.2f ± %-4.2f"):format(difference, width), paper[way.label] or ""))
  if way.label == lsa_label then
    way.verdict = difference - width > 0 and "LSA is above full attention" or difference + width < 0 and "LSA is below full attention" or
      "no difference between LSA and full attention is seen"
  end
end
-- Further policies beside LSA, by the same questions: whether one is as good with less, or better with as much.
local function joined_of(way, field)
  local right, sum, n = {}, 0, 0
  for _, length in ipairs(by_length) do
    local one = paired.joined(length.rows, way.label)
    right[#right + 1], sum, n = one.right, sum + one[field] * one.n, n + one.n
  end
  return {right = table.concat(right), n = n}, sum
end

local versus = {}
for place = 3, 2 + #further do
  local way, lsa_way = by_length[1].ways[place], by_length[1].ways[2]
  local sum, kept = joined_of(way, "resident_bytes")
  local other, kept_there = joined_of(lsa_way, "resident_bytes")
  local _, fetched = joined_of(way, "fetched_bytes")
  local _, fetched_there = joined_of(lsa_way, "fetched_bytes")
  local difference, width = paired.against(sum, other)
  versus[#versus + 1] = {policy = way.label, n = sum.n, against_lsa = difference, against_lsa_95 = width, kv = kept / kept_there,
    fetched = fetched / fetched_there}
  if place == 3 then out "\nbeside LSA, all lengths               points, 95 %     of its KV   of its bytes fetched" end
  local one = versus[#versus]
  out(padded(way.label, 32) .. ("     %+6.2f ± %-5.2f  %8.1f%%   %8.1f%%"):format(one.against_lsa, one.against_lsa_95, 100 * one.kv, 100 * one.fetched))
end
out(("\nOf the paper's claim that leaving chunks out denoises: %s (95 %%)."):format(by_length[1].ways[2].verdict))
report:table("accuracy", columns, all, table.concat(lines, "\n") .. "\n")
report:table("beside_lsa", {"policy", "n", "against_lsa", "against_lsa_95", "kv", "fetched"}, versus, "")
report:done()
