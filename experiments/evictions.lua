-- Miss rates of every eviction policy against Belady's optimum, on page traces of real sessions and on synthetic ones.
--
--   ./lsa experiments/evictions.lua [--help]
local lsa = require "lsa"
local grid = require "lsa.prompt.results_table"
local registry = require "lsa.registry"
local rng = require "lsa.cycle.rng"
local texts = require "lsa.texts"

local opt = require "lsa.args" [[
Eviction policies on page traces. A trace of a session is what its cycles select, page by page, each page once a cycle; the
session reads on in a text, so what it selects moves with what it reads.
  --evictions (list default all)                  which; all is every file in lua/lsa/evictions
  --selections (list default lsa_page_max,quest_pages,snap_window,native_topk)   selection policies of the sessions
  --reserves (numbers default 0.1,0.4)            the pool holds what the largest cycle selects, and these shares of the
                                                  trace's other pages (of a synthetic trace: of all)
  --tokens (default 16384)                        prefilled in a session
  --steps (default 2048)                          decoded after that
  --every (default 16)                            steps between cycles
  --budget (default 0.1)                          what a cycle selects
  --page (default 16)                             chunks a page
  --model (default needle)                        a model's short name (lsa.model) or directory
  --text (default bible)                          a file; bible is the text of Debian's bible-kjv
  --seed (default 1)                              where in the text, and of the synthetic traces
  --plot (default none)                           a file that misses against capacity are drawn into: .png, .svg or .pdf
]]

local traces = {}

---- of sessions ----

-- Pages that the cycles of a session select, in order; and the most that one selects.
local function session_trace(base, ids, selection)
  local entry, pages, most = registry.open("policies", selection), {}, 0
  local fork = base:fork{budget = opt.budget, every = opt.every, select = function(cycle)
    local chosen = require("lsa.cycle.cycle").as_set(entry.fn(cycle, entry.opt), cycle.n)
    local before = #pages
    for page in chosen:union(cycle.keep):pages(opt.page):each() do pages[#pages + 1] = page end
    most = math.max(most, #pages - before)
    return chosen
  end}
  for i = opt.tokens + 1, opt.tokens + opt.steps do fork:decode(ids[i]) end
  local errors = fork:stats().policy_errors
  fork:close()
  if errors > 0 then error(("%s failed in %d cycles"):format(selection, errors), 0) end
  return pages, most
end

local model = lsa.model(opt.model)
local text = texts.open(opt.text)
local from = rng.new(opt.seed)(#text - opt.tokens - opt.steps)
local ids = model:tokens(text:sub(from + 1, from + opt.tokens + opt.steps))
local base = model:session{select = "full", page = opt.page, every = opt.every}
base:prefill({unpack(ids, 1, math.min(opt.tokens, 4000))})
for at = 4001, opt.tokens, 4000 do base:prefill({unpack(ids, at, math.min(at + 3999, opt.tokens))}) end
for _, selection in ipairs(opt.selections) do
  local pages, most = session_trace(base, ids, selection)
  traces[#traces + 1] = {name = selection, pages = pages, most = most}
end
base:close()

---- synthetic ----

local PAGES, ACCESSES = 256, 40000

local function synthetic(name, next_page)
  local random, pages = rng.new(opt.seed), {}
  for i = 1, ACCESSES do pages[i] = next_page(random, i) end
  traces[#traces + 1] = {name = name, pages = pages, most = 0}
end

-- Page p with a probability in proportion to 1 / (p + 1).
local harmonic = {[0] = 1}
for p = 1, PAGES - 1 do harmonic[p] = harmonic[p - 1] + 1 / (p + 1) end
local function zipf(random)
  local u, low, high = random() * harmonic[PAGES - 1], 0, PAGES - 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if harmonic[middle] < u then low = middle + 1 else high = middle end
  end
  return low
end

synthetic("zipf", zipf)
synthetic("loop", function(_, i) return i % (PAGES * 3 / 4) end)
-- A working set of a sixteenth of the pages, which wanders.
synthetic("drift", function(random, i) return (math.floor(i / 400) + random(PAGES / 16)) % PAGES end)
-- Popular pages, and every so often a scan of all.
synthetic("zipf and scans", function(random, i) return i % 2000 < PAGES and i % 2000 or zipf(random) end)

---- the table ----

local names = {}
for _, name in ipairs(opt.evictions[1] == "all" and registry.names "evictions" or opt.evictions) do
  if name ~= "belady" then names[#names + 1] = name end
end
table.insert(names, 1, "belady")

local function distinct(pages)
  local seen, n = {}, 0
  for _, page in ipairs(pages) do
    if not seen[page] then seen[page], n = true, n + 1 end
  end
  return n
end

local rows, counted, columns = {}, {}, {"trace", "accesses", "pages", "capacity"}
for _, name in ipairs(names) do columns[#columns + 1] = name end
local bar = require "lsa.progress"(#traces * #opt.reserves * #names, "evictions")
for _, trace in ipairs(traces) do
  local n = distinct(trace.pages)
  for _, share in ipairs(opt.reserves) do
    local capacity = math.max(1, trace.most + math.floor(share * (n - trace.most)))
    local row = {trace = trace.name, accesses = #trace.pages, pages = n, capacity = capacity}
    for _, name in ipairs(names) do
      local misses = lsa.cache{pages = trace.pages, capacity = capacity, evict = name}.misses
      row[name] = misses / #trace.pages
      counted[#counted + 1] = {trace = trace.name, evict = name, capacity = capacity, misses = misses, accesses = #trace.pages}
      bar:step()
    end
    rows[#rows + 1] = row
  end
end
bar:done()
local readable = {}
for i, row in ipairs(rows) do
  readable[i] = {trace = row.trace, accesses = row.accesses, pages = row.pages, capacity = row.capacity}
  for _, name in ipairs(names) do readable[i][name] = ("%.1f%%"):format(100 * row[name]) end
end
opt.report:say "Misses, of all accesses; belady knows the future and is the least possible.\n"
opt.report:table("misses", columns, rows, tostring(grid.new(readable, columns)))
opt.report:done()
if opt.plot ~= "none" then lsa.plot.misses(counted, {title = "Misses of page traces"}):save(opt.plot) end
