-- The router, the gated activation and a layer's experts: DeepSeek-V4-Flash's sizes (of experts, some) and a tiny model's.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

-- Experts in bf16, of one weight: an expert's three, and those of every expert, are equally large.
local function layer(bench, tokens, count, k, hidden, inner)
  local bytes = inner * hidden * 2
  bench:case {
    op = "experts", shape = ("%d tokens, %d of %d and one more, [%d, %d] bf16"):format(tokens, k, count, inner, hidden),
    bytes = 3 * bytes * (math.min(count, tokens * k) + 1), flops = 6 * tokens * (k + 1) * hidden * inner, limit = {"read", "f32"},
    setup = function()
      local s = {}
      s.data, s.data_owner = bench:random("uint8_t", 3 * (count + 1) * bytes, 1)
      for i = 1, 3 * (count + 1) * bytes - 1, 2 do s.data[i] = 0x3c + s.data[i] % 2 * 0x80 end
      s.all = ffi.new("lsa_expert_weights[?]", count + 1)
      for e = 0, count do
        for i, part in ipairs {"gate", "up", "down"} do
          local w = s.all[e][part]
          w.data, w.dtype = s.data + (3 * e + i - 1) * bytes, C.LSA_BF16
          w.rows, w.cols = i < 3 and inner or hidden, i < 3 and hidden or inner
        end
      end
      s.x, s.x_owner = bench:random("float", tokens * hidden, 2)
      s.y, s.y_owner = bench:alloc("float", tokens * hidden)
      s.weights, s.weights_owner = bench:random("float", tokens * k, 3)
      s.ids, s.ids_owner = bench:alloc("int32_t", tokens * k)
      for i = 0, tokens * k - 1 do s.ids[i] = (i + math.floor(i / k) * 5) % count end
      local need = C.lsa_experts_workspace(s.all, s.all + count, tokens, hidden, count, k, C.LSA_COMPUTE_F32)
      s.work, s.work_owner = bench:alloc("uint8_t", tonumber(need))
      return s
    end,
    run = function(s)
      check(C.lsa_experts_cpu(s.y, s.x, s.ids, s.weights, s.all, s.all + count, tokens, hidden, count, k, 10,
        C.LSA_COMPUTE_F32, s.work, nil))
    end,
  }
end

return function(bench)
  for _, shape in ipairs {{1, 256, 6}, {512, 256, 6}, {1, 4, 2}, {512, 4, 2}} do
    local tokens, experts, k = unpack(shape)
    bench:case {
      op = "moe_route", shape = ("%d tokens, %d of %d experts"):format(tokens, k, experts),
      bytes = 4 * tokens * (experts + 2 * k), limit = "read",
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
      limit = "copy",
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
  for _, shape in ipairs {{1, 16, 6, 4096, 2048}, {512, 16, 6, 1024, 512}, {1, 4, 2, 128, 64}, {512, 4, 2, 128, 64}} do
    layer(bench, unpack(shape))
  end
end
