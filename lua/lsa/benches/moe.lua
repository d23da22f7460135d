-- The router and the gated activation: DeepSeek-V4-Flash's sizes and a tiny model's.
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

return function(bench)
  for _, shape in ipairs {{1, 256, 6}, {512, 256, 6}, {1, 4, 2}, {512, 4, 2}} do
    local tokens, experts, k = unpack(shape)
    bench:case {
      op = "moe_route", shape = ("%d tokens, %d of %d experts"):format(tokens, k, experts),
      bytes = 4 * tokens * (experts + 2 * k),
      setup = function()
        local s = {}
        s.logits, s.logits_owner = bench:random("float", tokens * experts, 1)
        s.bias, s.bias_owner = bench:random("float", experts, 2)
        s.ids, s.ids_owner = bench:alloc("int32_t", tokens * k)
        s.weights, s.weights_owner = bench:alloc("float", tokens * k)
        return s
      end,
      run = function(s)
        check(C.lsa_moe_route_cpu(s.ids, s.weights, s.logits, s.bias, nil, nil, tokens, experts, k,
          C.LSA_SCORING_SQRTSOFTPLUS, 1.5, nil))
      end,
    }
  end
  for _, n in ipairs {64, 2048, 512 * 2048, 8192 * 2048} do
    bench:case {
      op = "swiglu", shape = ("%d values"):format(n), bytes = 12 * n,
      limit = 12 * n > 4 * C.lsa_cache_bytes() and "copy" or nil,
      setup = function()
        local s = {}
        s.gate, s.gate_owner = bench:random("float", n, 1)
        s.up, s.up_owner = bench:random("float", n, 2)
        s.out, s.out_owner = bench:alloc("float", n)
        return s
      end,
      run = function(s) check(C.lsa_swiglu_cpu(s.out, s.gate, s.up, n, 10, nil)) end,
    }
  end
end
