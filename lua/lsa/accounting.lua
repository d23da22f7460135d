-- Owns the arithmetic of bytes and FLOPs: what a DeepSeek-V4 of given dimensions holds and computes, without running it.
--
--   accounting.bytes(config, {tokens = 2^20, resident = 24576})   cached bytes by kind
--   accounting.flops(config, {tokens = 2^20, resident = 24576})   FLOPs of one decode step by part
--   accounting.requests(config, {memory = 96e9, tokens = 2^20, resident = 24576})   how many requests fit in memory
--
-- config: model.config, or a table with its names (core/model/config.h); accounting.flash is V4-Flash. tokens: the context's.
-- resident: chunks that Level 2 scores and that are in the hot tier; nil: all (plain DeepSeek-V4).
-- A multiplication and an addition are two FLOPs. Counted are products of matrices, index scores, attention and the mixing of streams;
-- norms, rope, softmax, top-k and Sinkhorn rounds are left out.
local ffi = require "ffi"
require "lsa.ffi" -- declares lsa_config
local options = require "lsa.options"
local raise = require "lsa.raise"

local M = {}

M.flash = {vocab = 129280, hidden = 4096, layers = 43, csa_layers = 21, hca_layers = 20, heads = 64, head_dim = 512, rope_dim = 64,
  q_rank = 1024, window = 128, csa_rate = 4, hca_rate = 128, index_heads = 64, index_dim = 128, index_topk = 512, o_groups = 8,
  o_rank = 1024, hc_mult = 4, experts = 256, experts_per_token = 6, shared_experts = 1, moe_hidden = 2048}

local function numbers(config)
  if type(config) ~= "table" and not ffi.istype("lsa_config", config) then
    raise("accounting: config is %s; model.config or a table of its names is wanted", options.shown(config))
  end
  local out = setmetatable({}, {__index = function(_, name) raise("accounting: config has no %s", name) end})
  for name in pairs(M.flash) do
    local value = config[name]
    if value ~= nil then out[name] = options.number(tonumber(value), 0, "accounting: config." .. name) end
  end
  return out
end

local names = {tokens = false, resident = false, record = false, key = false, window = false, attended = false, memory = false,
  weights = false, reserve = false}

-- Numbers by name, those of `needed` among them.
local function amounts(opt, needed)
  opt = options.check(opt, names, "accounting")
  for name, value in pairs(opt) do options.number(value, 0, "accounting: " .. name) end
  for _, name in ipairs(needed) do options.number(opt[name], 0, "accounting: " .. name) end
  return opt
end

-- fp8 records: see kernels/kv_record.h.
local function record_bytes(c)
  local nope = c.head_dim - c.rope_dim
  return math.ceil((nope + 2 * c.rope_dim + math.ceil(nope / 64)) / 8) * 8
end

-- opt.record, opt.key: bytes of a chunk's attention KV and of its index key in one layer; fp8 records when nil. opt.window: bytes of
-- one token's local KV in one layer (f32 when nil).
-- Returns attention, keys, hca, window, and resident: what the hot tier holds of the attention KV.
function M.bytes(config, opt)
  local c = numbers(config)
  opt = amounts(opt, {"tokens"})
  local record, key = opt.record or record_bytes(c), opt.key or c.index_dim + 4
  local chunks = math.floor(opt.tokens / c.csa_rate)
  local out = {
    attention = c.csa_layers * chunks * record,
    keys = c.csa_layers * chunks * key,
    hca = c.hca_layers * math.floor(opt.tokens / c.hca_rate) * record,
    window = c.layers * math.min(opt.tokens, c.window) * (opt.window or 4 * c.head_dim),
  }
  out.resident = c.csa_layers * math.min(chunks, opt.resident or chunks) * record
  return out
end

-- How many requests of `tokens` tokens fit in `memory` bytes beside `weights` bytes: with all of their KV and keys there, and with
-- LSA, of which `resident` chunks (newborn ones included), their index keys, HCA entries and window are there, and once the
-- `reserve` chunks that all requests share. opt.record, opt.key, opt.window as in bytes(). What a step computes with is part of `weights`.
-- Returns {full =, lsa =, full_bytes =, lsa_bytes =, reserve_bytes =}: counts, and bytes of one request.
function M.requests(config, opt)
  local c = numbers(config)
  opt = amounts(opt, {"tokens", "memory"})
  local b = M.bytes(config, opt)
  local chunk = (opt.record or record_bytes(c)) + (opt.key or c.index_dim + 4)
  local out = {full_bytes = b.attention + b.keys + b.hca + b.window, reserve_bytes = c.csa_layers * (opt.reserve or 0) * chunk}
  local resident = math.min(math.floor(opt.tokens / c.csa_rate), opt.resident or math.huge)
  out.lsa_bytes = c.csa_layers * resident * chunk + b.hca + b.window
  local room = opt.memory - (opt.weights or 0)
  out.full = math.max(0, math.floor(room / out.full_bytes))
  out.lsa = math.max(0, math.floor((room - out.reserve_bytes) / out.lsa_bytes))
  return out
end

-- FLOPs of scoring n keys by one query of `heads` heads: a product of `dim`, ReLU's weight and the sum.
function M.scoring(n, heads, dim)
  return n * heads * (2 * dim + 2)
end

-- FLOPs of a Memory Indexer's queries of one layer (LSA paper, Eq. 1-3).
function M.indexer_queries(hidden, rank, heads, dim)
  return 2 * (hidden * rank + rank * heads * dim + hidden * heads)
end

-- Linear maps of one token, by part.
local function dense(c)
  local D, kv = c.hidden, c.head_dim
  local q = D * c.q_rank + c.q_rank * c.heads * kv
  local o = c.o_rank * c.heads * kv + c.o_groups * c.o_rank * D      -- each group has a block of o_a
  local expert = 3 * D * c.moe_hidden
  local csa = 2 * D * 2 * kv                                         -- kv and gate, two series
  local indexer = 2 * D * 2 * c.index_dim + c.q_rank * c.index_heads * c.index_dim + D * c.index_heads
  local streams = c.hc_mult * D
  local hc = (2 + c.hc_mult) * c.hc_mult * streams + (2 + c.hc_mult) * streams    -- the projection; collapse, post, comb
  return {
    projections = 2 * c.layers * (q + D * kv + o),
    experts = 2 * c.layers * ((c.experts_per_token + c.shared_experts) * expert + D * c.experts),
    compressors = 2 * (c.csa_layers * csa + c.hca_layers * 2 * D * kv),
    indexer = 2 * c.csa_layers * indexer,
    hyper_connections = 2 * (c.layers * 2 * hc + c.hc_mult * streams + streams),
    head = 2 * c.vocab * D,
  }
end

-- By part: projections, experts, compressors, indexer, hyper_connections and head, which do not depend on the context; scoring
-- (Level 2), attention; total. opt.attended: FLOPs of one head on one key, 4 * head_dim (q . k and the value) when nil.
function M.flops(config, opt)
  local c = numbers(config)
  opt = amounts(opt, {"tokens"})
  local out = dense(c)
  local chunks = math.floor(opt.tokens / c.csa_rate)
  local scored = math.min(chunks, opt.resident or chunks)
  local own = math.min(opt.tokens, c.window)
  local keys = c.layers * own + c.csa_layers * math.min(scored, c.index_topk) + c.hca_layers * math.floor(opt.tokens / c.hca_rate)
  out.scoring = c.csa_layers * M.scoring(scored, c.index_heads, c.index_dim)
  out.attention = keys * c.heads * (opt.attended or 4 * c.head_dim)
  out.total = 0
  for name, value in pairs(out) do
    if name ~= "total" then out.total = out.total + value end
  end
  return out
end

-- The part of flops() that does not depend on the context.
function M.constant(config)
  local sum = 0
  for _, value in pairs(dense(numbers(config))) do sum = sum + value end
  return sum
end

require("lsa.arity").functions(M, "lsa.accounting.")

return M
