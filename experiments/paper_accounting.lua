-- The LSA paper's tables of KV bytes and of FLOPs per token, from the architecture's numbers.
--
--   ./lsa experiments/paper_accounting.lua [--help]
local lsa = require "lsa"
local accounting = lsa.accounting

local opt = require "lsa.args" [[
The paper's bytes and FLOPs (arXiv 2606.09079) beside what V4-Flash's dimensions give.
]]

local flash = accounting.flash
local contexts = {{"256K", 2 ^ 18, 96}, {"512K", 2 ^ 19, 192}, {"1M", 2 ^ 20, 384}}
local printed = {
  bytes = {full = {0.94, 1.87, 3.73}, lsa = {0.09, 0.18, 0.37}},
  flops = {full = {50.8, 73.5, 118.9}, lsa = {28.8, 31.0, 35.4}},
}
local PAGE, TAU = 64, 64
local TARGETS, HEADS, DIM, RANK = 3, 128, 128, 2048        -- the released Memory Indexer

local function sum(parts, ...)
  local total = 0
  for _, name in ipairs {...} do total = total + parts[name] end
  return total
end

-- Each assumption: its formula in GB or GFLOP of (tokens, pages), and whether it explains the paper's column.
local rows = {
  {table = "bytes", column = "full", label = "records of 584 + 132 B, HCA 584 B (the engine's)", value = function(t)
    return sum(accounting.bytes(flash, {tokens = t}), "attention", "keys", "hca") / 1e9
  end},
  {table = "bytes", column = "full", label = "512 fp8 + 4 f32 scales = 528 B, keys 132 B, bf16 window", value = function(t)
    return sum(accounting.bytes(flash, {tokens = t, record = 528, window = 1024}), "attention", "keys", "hca", "window") / 1e9
  end},
  {table = "bytes", column = "lsa", label = "K pages of 64 chunks, 584 + 132 B; no HCA, no window", value = function(_, pages)
    local b = accounting.bytes(flash, {tokens = pages * PAGE * flash.csa_rate})
    return (b.attention + b.keys) / 1e9
  end},
  {table = "flops", column = "full", label = "all that the engine counts, HCA's attention too", value = function(t)
    return accounting.flops(flash, {tokens = t}).total / 1e9
  end},
  {table = "flops", column = "full", label = "constant + scoring + attention to the top 512 (576 + 512 wide)", value = function(t)
    local attended = flash.csa_layers * flash.index_topk * flash.heads * 2 * (flash.head_dim + flash.rope_dim + flash.head_dim)
    return (accounting.constant(flash) + accounting.flops(flash, {tokens = t}).scoring + attended) / 1e9
  end},
  {table = "flops", column = "lsa", label = "all that the engine counts", value = function(t, pages)
    local chunks = t / flash.csa_rate
    local memory = TARGETS * (accounting.scoring(chunks, HEADS, DIM) +
      accounting.indexer_queries(flash.hidden, RANK, HEADS, DIM)) / TAU
    return (accounting.flops(flash, {tokens = t, resident = pages * PAGE}).total + memory) / 1e9
  end},
  {table = "flops", column = "lsa", label = "constant + scoring of 2 * 128 a head + Memory Indexer / 64", value = function(t, pages)
    local dots = 2 * DIM * (flash.csa_layers * flash.index_heads * pages * PAGE + TARGETS * HEADS * t / flash.csa_rate / TAU)
    local queries = TARGETS * accounting.indexer_queries(flash.hidden, RANK, HEADS, DIM) / TAU
    return (accounting.constant(flash) + dots + queries) / 1e9
  end},
}

local units, digits = {bytes = "GB", flops = "GFLOP"}, {bytes = 2, flops = 1}

-- A number as the paper prints it.
local function rounded(value, places) return tonumber(("%." .. places .. "f"):format(value)) end

local report, compared = opt.report, {}
for _, row in ipairs(rows) do
  local paper, places = printed[row.table][row.column], digits[row.table]
  report:say("\n%s, %s: %s", units[row.table], row.column == "lsa" and "LSA" or "full", row.label)
  for i, context in ipairs(contexts) do
    local ours = row.value(context[2], context[3])
    local equal = rounded(ours, places) == paper[i]
    compared[#compared + 1] = {table = row.table, column = row.column, context = context[1], paper = paper[i], ours = ours,
      difference = ours - paper[i], equal = equal, assumption = row.label}
    report:say("  %-5s paper %7s   ours %9.4f   difference %+8.4f   %s", context[1], ("%." .. places .. "f"):format(paper[i]), ours,
      ours - paper[i], equal and "equal as printed" or "differs")
  end
end
report:table("compared", {"table", "column", "context", "paper", "ours", "difference", "equal", "assumption"}, compared, "")
report:say("%s", ([[

What this says (other assumptions may give the same digits):
  bytes   The full column comes out of 528-byte records and a bf16 window. The deployed records take 584 bytes for 512
          dimensions (448 fp8, 64 bf16, 7 scales, 1 pad), 3850.25 bytes a token with keys and HCA. The LSA column is the
          deployed records of the K pages alone, without the HCA entries (%.3f GB at 1M) and the window, which stay as well.
  FLOPs   The constant part is %.2f GFLOP. The full column adds scoring at 2 * 128 + 2 a head and chunk, and attention to the
          top 512 chunks; the LSA column leaves that attention out (%.2f GFLOP), though it is the same in both. Neither has the
          attention to HCA entries, which grows with the context: %.1f GFLOP at 1M.]]):format(accounting.bytes(flash, {tokens = 2 ^ 20}).hca / 1e9,
    accounting.constant(flash) / 1e9, flash.csa_layers * flash.index_topk * flash.heads * 4 * flash.head_dim / 1e9,
    flash.hca_layers * 2 ^ 20 / flash.hca_rate * flash.heads * 4 * flash.head_dim / 1e9))
report:done()
