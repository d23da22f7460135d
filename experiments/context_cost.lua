-- What a token costs by the length of its context: prefill, a step of full attention, a step of LSA in steady state and how much of
-- that its cycles are, and the memory of the process.
--
--   ./lsa experiments/context_cost.lua [--help]
--
-- One session grows from length to length, so that the longest is prefilled once; at each, forks decode. With --fill 1 each length is a
-- synthetic context (s:fill) but for its last tokens, which are prefilled: a million tokens take seconds, and what a prefilled token
-- costs is what it costs there, not from the beginning on.
local lib = require "lsa.ffi"
local lsa = require "lsa"
local progress = require "lsa.progress"
local raise = require "lsa.raise"
local stats = require "lsa.session.stats"
local texts = require "lsa.texts"

local opt = require "lsa.args" [[
Cost of a token by the length of its context.
  --tokens (default 8192,32768,131072)     lengths, shortest first
  --every (default 64)                     steps between two cycles of LSA
  --cycles (default 2)                     cycles that LSA's steps last, after the first one
  --budget (default 0.135)                 chunks that LSA may keep: a share of all, or a count
  --requests (default 0)                   of a batch, each of the context: its steps are measured, too; 0 leaves it out
  --compute (default f32)                  f32 or bf16
  --device (default cpu)                   cpu or cuda
  --piece (default 0)                      tokens that a prefill runs at once; 0 is the device's own number
  --fill (default 0)                       1: synthetic contexts, of which the last 1,024 tokens are prefilled
  --model (default needle)                 a model's short name (lsa.model) or directory
  --text (default bible)                   a file whose text is the context, as often as it takes; bible is the text of Debian's bible-kjv
]]

local lengths = {}
for length in tostring(opt.tokens):gmatch "[^,]+" do
  local n = tonumber(length)
  if not n or n < 1 or n % 1 ~= 0 or n <= (lengths[#lengths] or 0) then
    raise("--tokens: %s is no length, or not longer than the one before", length)
  end
  lengths[#lengths + 1] = n
end

local PIECE, FILLED_PREFILL = 8192, 1024
if opt.fill ~= 0 and opt.fill ~= 1 then raise("--fill is %s; 0 or 1 is wanted", tostring(opt.fill)) end
if opt.fill == 1 and lengths[1] <= FILLED_PREFILL then
  raise("--tokens: of a synthetic context %d tokens are prefilled; %d is not longer", FILLED_PREFILL, lengths[1])
end

local model = lsa.model(opt.model, {compute = opt.compute, device = opt.device, piece = opt.piece})
local ids = model:tokens(texts.open(opt.text))

-- Tokens from .. from + n - 1 of the text, over and over.
local function tokens_of(from, n)
  local out = {}
  for i = 1, n do out[i] = ids[(from + i - 1) % #ids + 1] end
  return out
end

local function resident_bytes()
  collectgarbage()
  collectgarbage()
  for line in io.lines "/proc/self/status" do
    local kilobytes = line:match "^VmRSS:%s*(%d+) kB"
    if kilobytes then return tonumber(kilobytes) * 1024 end
  end
end

-- ms a step of n steps.
local function step_ms(s, n)
  local start = lib.C.lsa_clock_ns()
  s:generate{n = n}
  return tonumber(lib.C.lsa_clock_ns() - start) / 1e6 / n
end

local function full_ms(base)
  local fork = base:fork{select = "full"}
  fork:generate{n = opt.every}
  local ms = step_ms(fork, opt.every)
  fork:close()
  return ms
end

-- How LSA decodes: thresholds where the model has an indexer to give them.
local function lsa_options()
  return {select = model:indexer_file() and "lsa_threshold" or "lsa_topk", every = opt.every, budget = opt.budget}
end

-- Tokens a second of a batch of forks of `base`.
local function batch_rate(base, options)
  options.most = opt.requests
  local batch, n = lsa.batch(model, options), (opt.cycles + 1) * opt.every
  local requests = {}
  for i = 1, opt.requests do requests[i] = batch:submit{session = base, tokens = tokens_of(base:tokens(), 1), n = n} end
  local function count()
    local all = 0
    for _, id in ipairs(requests) do all = all + #(batch:result(id).tokens or {}) end
    return all
  end
  batch:step()
  local before, start = count(), lib.C.lsa_clock_ns()
  batch:run()
  local seconds = tonumber(lib.C.lsa_clock_ns() - start) / 1e9
  local tokens = count()
  for _, id in ipairs(requests) do
    local result = batch:result(id)
    if result.state ~= "done" then raise("a request of the batch is %s: %s", result.state, tostring(result.error)) end
  end
  batch:close()
  return (tokens - before) / seconds
end

-- ms a step, ms of a cycle, once the first cycle is over, and how many cycles failed or were clipped.
local function lsa_ms(base)
  local fork = base:fork(lsa_options())
  fork:generate{n = opt.every}
  local ms, rows, stall = step_ms(fork, opt.cycles * opt.every), fork:cycles(), 0
  for i = 2, #rows do stall = stall + rows[i].stall_ms end
  local counted = fork:stats()
  fork:close()
  return ms, stall / (#rows - 1), counted.failed, counted.clipped
end

local base, rows = model:session{select = "full"}, {}
local bar = progress(opt.fill == 1 and #lengths or math.ceil(lengths[#lengths] / PIECE), opt.fill == 1 and "lengths" or "prefilling")

-- Brings the session to a length; ms of prefill in all, nil where only the end was prefilled, and us a token.
local function grow(length)
  if opt.fill == 1 then
    base:close()
    base = model:session{select = "full"}
    base:fill(length - FILLED_PREFILL)
    local before = base:stats().prefill_ms
    base:prefill(tokens_of(base:tokens(), FILLED_PREFILL))
    bar:step()
    return nil, (base:stats().prefill_ms - before) * 1e3 / FILLED_PREFILL
  end
  while base:tokens() < length do
    base:prefill(tokens_of(base:tokens(), math.min(PIECE, length - base:tokens())))
    bar:step()
  end
  local all = base:stats().prefill_ms
  return all, all * 1e3 / length
end

for i, length in ipairs(lengths) do
  local prefill_ms, prefill_us = grow(length)
  local full = full_ms(base)
  local steady, cycle, failed, clipped = lsa_ms(base)
  rows[i] = {tokens = length, prefill_s = prefill_ms and prefill_ms / 1e3, prefill_us = prefill_us, full_ms = full,
    lsa_ms = steady, cycle_ms = cycle, cycle_pct = 100 * cycle / (steady * opt.every), rss = resident_bytes(), failed = failed, clipped = clipped}
  if opt.requests > 0 then
    rows[i].full_batch = batch_rate(base, {select = "full"})
    rows[i].lsa_batch = batch_rate(base, lsa_options())
  end
end
bar:done()

local report = opt.report
report:say("%s%s; %d threads; a cycle every %d steps, budget %s%s\n", tostring(model), opt.device == "cuda" and ("; " .. tostring(lsa.cuda)) or "", lib.C.lsa_threads(), opt.every, tostring(opt.budget),
  opt.fill == 1 and ("; synthetic contexts, of which the last %d tokens are prefilled"):format(FILLED_PREFILL) or "")
report:say("%9s %10s %12s %10s %10s %10s %8s %10s", "tokens", "prefill", "a token", "full", "LSA", "a cycle", "of LSA", "RSS")
for _, row in ipairs(rows) do
  report:say("%9d %10s %9.1f us %7.3f ms %7.3f ms %7.2f ms %6.1f %% %10s", row.tokens, row.prefill_s and ("%.2f s"):format(row.prefill_s) or "", row.prefill_us, row.full_ms,
    row.lsa_ms, row.cycle_ms, row.cycle_pct, stats.bytes(row.rss))
  if row.failed + row.clipped > 0 then report:say("%9s %d cycles of LSA failed, %d were clipped", "", row.failed, row.clipped) end
end
if opt.requests > 0 then
  report:say("\n%d requests of such a context together:", opt.requests)
  report:say("%9s %15s %8s %15s %8s", "tokens", "full", "of one's", "LSA", "of one's")
  for _, row in ipairs(rows) do
    report:say("%9d %7.0f tokens/s %7.1f x %7.0f tokens/s %7.1f x", row.tokens, row.full_batch, row.full_batch * row.full_ms / 1e3,
      row.lsa_batch, row.lsa_batch * row.lsa_ms / 1e3)
  end
end
report:table("contexts", {"tokens", "prefill_s", "prefill_us", "full_ms", "lsa_ms", "cycle_ms", "cycle_pct", "rss", "failed", "clipped", "full_batch", "lsa_batch"}, rows, "")
report:done()
