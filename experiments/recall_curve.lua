-- How much of what answers need an indexer ranks first: recall by budget, without an answer decoded. Cheap, so many indexers can be
-- compared by many questions: the model runs once a question, and each indexer scores what it left.
--
--   ./lsa experiments/recall_curve.lua MODEL [--help]
local cjson = require "cjson"
local dir = require "pl.dir"
local lsa = require "lsa"
local asked = require "lsa.tasks.asked"
local intervals = require "lsa.intervals"
local items = require "lsa.tasks.items"

local opt = require "lsa.args" [[
Needed are the chunks of a question's evidence to which a CSA layer gives attention, at least so much, while full attention answers.
A question is whole in a budget when all its needed chunks are among the best so many of an indexer's, or recent. Questions that need
none are left out.
  <model> (string)            a model's directory, or the name of one in experiments/models
  --indexers (list default default)   files; default: the model's; native: its Lightning Indexer, of the layers of --voters
  --spans (numbers default 1,64)   an indexer looks from so many of the latest tokens: a chunk's score is the highest of them
  --voters (string default all)   CSA ordinals whose attention counts, as in 0,2; or all
  --least (default 0.05)      of attention
  --budgets (numbers default 0.005,0.01,0.02,0.035,0.05)   shares of the chunks
  --thetas (numbers default 0.3,0.5,0.7,0.9)   thresholds in their place: how much they keep, and how many questions are whole then
  --tokens (default 32768)    length of a context of questions
  --contexts (default 4)      how many contexts
  --items (default 2)         items of each kind in a context
  --kinds (list default all)  of items (lua/lsa/tasks/items.lua)
  --part (default validation)   of text and words: test or validation
  --text (default bible)      a file; bible is the text of Debian's bible-kjv
  --seed (default 1)          of contexts
  --device (default cpu)      where the model runs: cpu or cuda
  -o,--output (default build/recall_curve)   the folder of what the model left: what is there is not made again
  --share (string default 1/1)   i/n: run every n-th context from the i-th, and stop
  --by_kind                   the table has a line for each kind, too
]]

local directory = require "lsa.model".directory(opt.model)
local model, report = lsa.model(directory, {device = opt.device}), opt.report
local kinds = opt.kinds[1] == "all" and items.names or opt.kinds
local rate, ROWS = tonumber(model.config.csa_rate), 64
local chunks = math.floor(opt.tokens / rate)
local tail = math.floor(0.0025 * chunks)
assert(dir.makepath(opt.output))

-- ---- what the model leaves ----

local voters = {}
if opt.voters == "all" then
  for l = 0, #model.csa_layers - 1 do voters[l + 1] = l end
else
  for number in opt.voters:gmatch "[^,]+" do
    voters[#voters + 1] = tonumber(number) or error(("--voters: %q is not a number"):format(number), 0)
  end
end

local names = {}
for i, l in ipairs(voters) do
  local layer = model.csa_layers[l + 1] or error(("--voters: %d; the model has %d CSA layers"):format(l, #model.csa_layers), 0)
  names[i] = {picks = ("layer.%d.index_topk"):format(layer), mass = ("layer.%d.index_topk_mass"):format(layer)}
end

local function said(context)
  return cjson.encode{opt.tokens, opt.items, table.concat(kinds, " "), opt.part, opt.text:match "[^/]+$", opt.seed, context, opt.least,
    table.concat(voters, " "), require("lsa.content").model(model).weights, require("lsa.tasks.init").digest()}
end

-- Evidence chunks with enough attention at the rows from..to - 1 of a trace, ascending.
local function needed_of(trace, from, to, evidence)
  local seen, out = {}, {}
  for _, name in ipairs(names) do
    local picks, mass = trace[name.picks], trace[name.mass]
    local width = picks:shape()[2]
    local id, got = picks:pointer(), mass:pointer()
    for i = from * width, to * width - 1 do
      local chunk = tonumber(id[i])
      if chunk >= 0 and got[i] >= opt.least and evidence[chunk] and not seen[chunk] then
        seen[chunk] = true
        out[#out + 1] = chunk
      end
    end
  end
  table.sort(out)
  return out
end

-- Runs the questions of a context: hidden states of every CSA layer at the last ROWS tokens before a cycle, keys, and what is needed.
local function run_context(task, context, path)
  local base, questions = task:context(task.seed, context)
  local start, tensors, list = base:position(), {}, {}
  local wanted = {}
  for l = 0, #model.csa_layers - 1 do
    tensors["keys." .. l] = base:keys(l)
    wanted[#wanted + 1] = ("layer.%d.attn_input"):format(model.csa_layers[l + 1])
  end
  for _, name in ipairs(names) do wanted[#wanted + 1], wanted[#wanted + 2] = name.picks, name.mass end
  for i, one in ipairs(questions) do
    local fork, tokens, evidence = base:fork{select = "full"}, model:tokens(one.question), {}
    local asked_of, answer = #tokens, model:tokens(one.answer)
    for k = 1, #answer - 1 do tokens[#tokens + 1] = answer[k] end
    for _, chunk in ipairs(asked.chunks(model, one)) do evidence[chunk] = true end
    local _, trace = fork:prefill(tokens, {trace = wanted})
    fork:close()
    local rows = math.min(ROWS, asked_of - 1)      -- a cycle is due when all but the question's last token is known
    for l = 0, #model.csa_layers - 1 do
      tensors[("hidden.%d.%d"):format(l, i)] = trace[wanted[l + 1]]:narrow(0, asked_of - 1 - rows, rows):contiguous()
    end
    list[i] = {kind = one.kind, position = start + asked_of - 1 - rows, rows = rows, needed = needed_of(trace, asked_of - 1, #tokens, evidence)}
  end
  task:close()
  lsa.save(path, tensors, {about = said(context), questions = cjson.encode(list)})
end

local first, step = opt.share:match "^(%d+)/(%d+)$"
first, step = tonumber(first), tonumber(step)
if not first or first < 1 or first > step then error(("--share: %q is not i/n"):format(opt.share), 0) end
local task = asked.kinds(model, {tokens = opt.tokens, kinds = kinds, items = opt.items, part = opt.part, text = opt.text,
  seed = opt.seed * 100, session = {tail = tail}}, kinds, "recall_curve")

local function path_of(context) return ("%s/context_%03d.safetensors"):format(opt.output, context) end

for context = first, opt.contexts, step do
  local file = io.open(path_of(context))
  if file then
    file:close()
    if select(2, lsa.load(path_of(context))).about ~= said(context) then
      error(path_of(context) .. " is of other questions; remove it, or choose another folder", 0)
    end
  else
    run_context(task, context, path_of(context))
  end
end
if step > 1 then return report:done() end

-- ---- what indexers make of it ----

local indexers = {}
for i, name in ipairs(opt.indexers) do
  if name == "native" then
    indexers[i] = lsa.indexer{model = model, from = "native", layers = voters}
  else
    indexers[i] = lsa.indexer{model = model, from = name == "default" and model:indexer_file() or name}
  end
end

-- Scores [n] from the last rows of a question: by span.
local function scores_of(indexer, tensors, number, one)
  local most, best, out = math.max(unpack(opt.spans)), nil, {}
  for span = 1, math.min(most, one.rows) do
    local row, hidden, keys = one.rows - span, {}, {}
    for _, l in ipairs(indexer.layers) do
      hidden[l], keys[l] = tensors[("hidden.%d.%d"):format(l, number)]:row(row), tensors["keys." .. l]
    end
    local scores = indexer:score(hidden, keys, one.position + row)
    best = best and best:maximum(scores) or scores
    for _, wanted in ipairs(opt.spans) do
      if wanted == span or wanted > span and span == one.rows then out[wanted] = best end
    end
  end
  return out
end

local rows, by, without = {}, {}, 0
local function row_of(name, span, kind)
  local key = name .. " " .. span .. " " .. kind
  if not by[key] then
    by[key] = {indexer = name, span = span, kind = kind, n = 0, whole = {}, recall = {}, kept = {}, held = {}}
    for i in ipairs(opt.budgets) do by[key].whole[i], by[key].recall[i] = 0, 0 end
    for i in ipairs(opt.thetas) do by[key].kept[i], by[key].held[i] = 0, 0 end
    rows[#rows + 1] = by[key]
  end
  return by[key]
end

-- The lowest score and how many of the chunks in question beat it: what one question says of an indexer.
local function count(name, span, kind, scores, needed)
  local n, at, list = scores:count(), scores:pointer(), {}
  for _, chunk in ipairs(needed) do
    if chunk < n - tail then list[#list + 1] = {score = at[chunk], above = 0} end
  end
  for i = 0, n - tail - 1 do
    for _, one in ipairs(list) do
      if not (at[i] <= one.score) then one.above = one.above + 1 end
    end
  end
  for _, row in ipairs {row_of(name, span, "all"), row_of(name, span, kind)} do
    row.n = row.n + 1
    for i, budget in ipairs(opt.budgets) do
      local room, there = math.floor(budget * n) - tail, 0
      for _, one in ipairs(list) do
        if one.above < room then there = there + 1 end
      end
      row.recall[i] = row.recall[i] + (#list > 0 and there / #list or 1) -- none: all are recent
      row.whole[i] = row.whole[i] + (there == #list and 1 or 0)
    end
    for i, theta in ipairs(opt.thetas) do
      local kept, held = tail, 1
      for k = 0, n - tail - 1 do
        if at[k] >= theta then kept = kept + 1 end
      end
      for _, one in ipairs(list) do
        if not (one.score >= theta) then held = 0 end
      end
      row.kept[i], row.held[i] = row.kept[i] + kept / n, row.held[i] + held
    end
  end
end

for context = 1, opt.contexts do
  local tensors, metadata = lsa.load(path_of(context))
  for number, one in ipairs(cjson.decode(metadata.questions)) do
    if #one.needed == 0 then without = without + 1 end
    for i, indexer in ipairs(#one.needed > 0 and indexers or {}) do
      local scores = scores_of(indexer, tensors, number, one)
      for _, span in ipairs(opt.spans) do
        count(opt.indexers[i]:gsub("%.safetensors$", ""):match "[^/]*$", span, one.kind, scores[span], one.needed)
      end
    end
  end
end

-- ---- tables ----

local columns, flat, lines = {"indexer", "span", "kind", "n"}, {}, {}
for _, budget in ipairs(opt.budgets) do
  columns[#columns + 1], columns[#columns + 2] = ("whole_%g"):format(budget), ("recall_%g"):format(budget)
end
for _, theta in ipairs(opt.thetas) do
  columns[#columns + 1], columns[#columns + 2] = ("kept_theta_%g"):format(theta), ("whole_theta_%g"):format(theta)
end
local head = ("%-24s %5s %-12s %5s"):format("whole questions, and recall", "span", "", "n")
for _, budget in ipairs(opt.budgets) do head = head .. ("%15s"):format(("%g %%"):format(100 * budget)) end
for _, theta in ipairs(opt.thetas) do head = head .. ("%16s"):format("theta " .. theta) end
lines[1] = head
for i, row in ipairs(rows) do row.place = (row.kind == "all" and 0 or #rows) + i end
table.sort(rows, function(a, b) return a.place < b.place end)
for _, row in ipairs(rows) do
  local out = {indexer = row.indexer, span = row.span, kind = row.kind, n = row.n}
  local line = ("%-27s %5d %-12s %5d"):format(row.indexer, row.span, row.kind:gsub("_", " "):sub(1, 12), row.n)
  for i, budget in ipairs(opt.budgets) do
    local low, high = intervals.wilson(row.whole[i], row.n)
    out[("whole_%g"):format(budget)], out[("recall_%g"):format(budget)] = row.whole[i] / row.n, row.recall[i] / row.n
    line = line .. (" %5.1f±%-3.0f %4.1f"):format(100 * row.whole[i] / row.n, 50 * (high - low), 100 * row.recall[i] / row.n)
  end
  for i, theta in ipairs(opt.thetas) do
    out[("kept_theta_%g"):format(theta)], out[("whole_theta_%g"):format(theta)] = row.kept[i] / row.n, row.held[i] / row.n
    line = line .. (" %5.1f at %5.2f%%"):format(100 * row.held[i] / row.n, 100 * row.kept[i] / row.n)
  end
  flat[#flat + 1] = out
  if row.kind == "all" or opt.by_kind then lines[#lines + 1] = line end
end
report:say("%s", ("%s\n%d contexts of %d tokens, of part %s; needed: attention of at least %g by CSA layer %s; %d questions need none; seed %d\n"):format(
  tostring(model), opt.contexts, opt.tokens, opt.part, opt.least, table.concat(voters, ", "), without, opt.seed))
report:table("recall", columns, flat, table.concat(lines, "\n") .. "\n")
report:done()
