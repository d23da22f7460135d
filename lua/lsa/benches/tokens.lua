-- What a pass begins and ends with: embeddings, entropies, draws; DeepSeek-V4-Flash's sizes and a tiny model's.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local check = require("lsa.raise").check

local function embed(bench, n, hc, hidden, vocab)
  bench:case {
    op = "embed", shape = ("%d tokens, %d streams of %d, bf16"):format(n, hc, hidden), bytes = n * hidden * (2 + 4 * hc),
    limit = "copy",
    setup = function()
      local s = {w = ffi.new "lsa_weight"}
      s.rows, s.owner = bench:random("uint8_t", vocab * hidden * 2, 1)
      s.w.data, s.w.rows, s.w.cols, s.w.dtype = s.rows, vocab, hidden, C.LSA_BF16
      s.tokens, s.tokens_owner = bench:alloc("int32_t", n)
      for i = 0, n - 1 do s.tokens[i] = i * 7919 % vocab end
      s.streams, s.streams_owner = bench:alloc("float", n * hc * hidden)
      return s
    end,
    run = function(s) check(C.lsa_embed_cpu(s.streams, s.tokens, s.w, n, hc, hidden, nil)) end,
  }
end

local function rows(bench, op, n, vocab, temperature, run)
  bench:case {
    op = op, shape = ("%d rows of %d%s"):format(n, vocab, temperature and ", temperature " .. temperature or ""),
    bytes = n * vocab * 4, limit = "read",
    setup = function()
      local s = {}
      s.logits, s.owner = bench:random("float", n * vocab, 1)
      s.out, s.out_owner = bench:alloc("double", n)
      s.tokens, s.tokens_owner = bench:alloc("int32_t", n)
      s.states, s.states_owner = bench:alloc("uint64_t", n)
      s.temperatures, s.temperatures_owner = bench:alloc("double", n)
      for i = 0, n - 1 do s.states[i], s.temperatures[i] = i + 1, temperature or 0 end
      return s
    end,
    run = function(s) run(s, n, vocab) end,
  }
end

local function sample(s, n, vocab)
  check(C.lsa_sample_cpu(s.tokens, s.logits, s.states, s.temperatures, n, vocab, nil))
end

local function entropy(s, n, vocab) check(C.lsa_entropy_cpu(s.out, s.logits, n, vocab, nil)) end

return function(bench)
  for _, shape in ipairs {{1, 4, 4096, 16384}, {512, 4, 4096, 16384}, {512, 4, 128, 512}} do embed(bench, unpack(shape)) end
  for _, shape in ipairs {{1, 129280}, {16, 129280}, {1, 512}} do
    rows(bench, "sample", shape[1], shape[2], 0, sample)
    rows(bench, "sample", shape[1], shape[2], 1, sample)
    rows(bench, "entropy", shape[1], shape[2], nil, entropy)
  end
end
