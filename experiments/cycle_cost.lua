-- What a Level-1 cycle costs at a length, end to end: scoring of all chunks by a Memory Indexer, the policy, who leaves, the transfer of
-- what comes, and the new set in force; and a step of decoding before it. A model of random weights of DeepSeek-V4-Flash's shape, a
-- synthetic context, a set of which a given share is new at each cycle.
--
--   ./lsa experiments/cycle_cost.lua [--help]
local lib = require "lsa.ffi"
local lsa = require "lsa"
local raise = require "lsa.raise"
local stats = require "lsa.session.stats"

local opt = require "lsa.args" [[
Cost of a Level-1 cycle and of a step at V4-Flash's shape, or another's.
  --tokens (default 32768)         the context
  --config (default flash)         the shape: flash, or a model's short name or directory
  --shape (default experts=8)      numbers of it that are others, as lsa.model{…} takes them: experts=16,layers=12
  --budget (default 0.1)           chunks that are resident, a share of all
  --churn (default 0.2)            share of the set that is new at each cycle
  --cycles (default 9)             that are measured, after two that are not
  --every (default 16)             steps between two cycles
  --targets (default 3)            layers of the Memory Indexer
  --heads (default 128)            heads of each
  --rank (default 256)             of its query projection
  --full (default yes)             yes: a fork under full attention decodes as many steps; no leaves it out
  --compute (default bf16)         f32 or bf16
  --device (default cpu)           cpu or cuda
  --seed (default 1)
]]
if not (opt.budget > 0 and opt.budget <= 0.5) then raise("--budget: %s; a share up to 0.5 is wanted", tostring(opt.budget)) end
if not (opt.churn >= 0 and opt.churn <= 1) then raise("--churn: %s; a share is wanted", tostring(opt.churn)) end

local function clock() return tonumber(lib.C.lsa_clock_ns()) / 1e6 end

local function median(values)
  table.sort(values)
  return values[math.ceil(#values / 2)]
end

-- A Memory Indexer of random weights.
local function indexer_of(model)
  local c, seed, tensors, layers = model.config, opt.seed, {}, {}
  local function draw(rows, cols)
    seed = seed + 1
    return lsa.randn({rows, cols}, seed) / math.sqrt(cols)
  end
  for i = 1, opt.targets do
    local ordinal = math.floor((i - 1) * #model.csa_layers / opt.targets)
    local name = ("retrievers.l%d."):format(ordinal)
    layers[i] = ordinal
    tensors[name .. "wq_a.weight"], tensors[name .. "q_norm_weight"] = draw(opt.rank, c.hidden), lsa.full({opt.rank}, 1)
    tensors[name .. "wq_b.weight"], tensors[name .. "weights_proj.weight"] = draw(opt.heads * c.index_dim, opt.rank), draw(opt.heads, c.hidden)
  end
  return lsa.indexer {model = model, from = tensors, layers = layers}
end

-- Sets of `size` of n chunks, scattered, for so many cycles; each shares all but a share `churn` with the one before.
local function sets_of(n, size, count)
  local stride, step, sets = 101159, math.floor(size * opt.churn), {}
  while n % stride == 0 do stride = stride + 2 end
  for i = 1, count do
    local ids = {}
    for j = 0, size - 1 do ids[j + 1] = ((i * step + j) * stride) % n end
    sets[i] = lsa.set(n):add(ids)
  end
  return sets
end

local shape = {config = opt.config, random = opt.seed, compute = opt.compute, device = opt.device, max_positions = 2 * opt.tokens + 2 ^ 16}
for part in tostring(opt.shape):gmatch "[^,]+" do
  local name, value = part:match "^([%w_]+)=(%d+)$"
  if not name then raise("--shape: %s; name=number is wanted", part) end
  shape[name] = tonumber(value)
end
local began = clock()
local model = lsa.model(shape)
local loaded = clock()
local base = model:session {select = "full", indexer = indexer_of(model), tail = 0}
base:fill(opt.tokens, {seed = opt.seed})
local filled = clock()

local n, cycles = #base:keys(0), opt.cycles + 2
local size = math.floor(n * opt.budget)
local sets = sets_of(n, size, cycles)

-- LSA's own question, and then a set whose churn is known.
local function policy(cycle)
  cycle.reached(0.5)
  return sets[cycle.number + 1]:copy():resize(cycle.n)
end

local function steps(s, count)
  local start = clock()
  s:generate {n = count}
  return (clock() - start) / count
end

local full
if opt.full == "yes" then
  local fork = base:fork {}
  steps(fork, opt.every)
  full = steps(fork, opt.every * opt.cycles)
  fork:close()
end
local s = base:fork {select = policy, budget = size + math.ceil(opt.every * cycles / 4) + 64, every = opt.every}
s:generate {n = 2 * opt.every}
local ms = steps(s, opt.every * opt.cycles)

local columns, rows = {stall_ms = {}, policy_ms = {}, transfer_ms = {}}, s:cycles()
for i = 3, #rows do
  for name, values in pairs(columns) do values[#values + 1] = rows[i][name] end
end
local counted, last = s:stats(), rows[#rows]
local found = {tokens = opt.tokens, chunks = n, resident = last.resident, fetched = last.fetched_chunks, bytes = last.fetched_bytes,
  cycle_ms = median(columns.stall_ms), policy_ms = median(columns.policy_ms), transfer_ms = median(columns.transfer_ms), lsa_ms = ms,
  full_ms = full, failed = counted.failed, model_s = (loaded - began) / 1e3, fill_s = (filled - loaded) / 1e3}

local report = opt.report
report:say("%s%s; %d threads; %d x %d heads of Level 1; made in %.1f s, context in %.1f s\n", tostring(model),
  opt.device == "cuda" and "; " .. tostring(lsa.cuda) or "", lib.C.lsa_threads(), opt.targets, opt.heads, found.model_s, found.fill_s)
report:say("%d tokens, %d chunks, %d resident; a cycle fetches %d chunks, %s (medians of %d cycles)", found.tokens, n, found.resident,
  found.fetched, stats.bytes(found.bytes), opt.cycles)
report:say("a cycle   %8.3f ms: scoring and policy %.3f, transfer %.3f", found.cycle_ms, found.policy_ms, found.transfer_ms)
report:say("a step    %8.3f ms under LSA, its share of cycles included%s", found.lsa_ms, full and ("; %.3f ms under full attention"):format(full) or "")
if counted.failed > 0 then report:say("%d cycles failed: %s", counted.failed, tostring(counted.last_error)) end
report:table("cycle", {"tokens", "chunks", "resident", "fetched", "bytes", "cycle_ms", "policy_ms", "transfer_ms", "lsa_ms", "full_ms", "failed",
  "model_s", "fill_s"}, {found}, "")
report:done()
