-- Hyper-connections around a block: open, close, and the head.
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

return function(bench)
  for _, model in ipairs {{512, 2, 128, 4}, {1, 2, 128, 4}, {64, 4, 4096, 20}, {1, 4, 4096, 20}, {512, 4, 4096, 20}} do
    local tokens, hc, dim, iters = unpack(model)
    local size, shape = tokens * hc * dim, ("%d tokens, %d streams of %d"):format(tokens, hc, dim)
    local limit = "copy"
    local function setup()
      local s = {}
      s.streams, s.streams_owner = bench:random("float", size, 1)
      s.mix, s.mix_owner = bench:random("float", tokens * (2 + hc) * hc, 1)
      s.base, s.base_owner = bench:random("float", (2 + hc) * hc, 1)
      s.scale, s.scale_owner = bench:random("float", 3, 1)
      s.x, s.x_owner = bench:random("float", tokens * dim, 1)
      s.post, s.post_owner = bench:alloc("float", tokens * hc)
      s.comb, s.comb_owner = bench:alloc("float", tokens * hc * hc)
      for i = 0, tokens * hc - 1 do s.post[i] = 0 end             -- so that many closings neither grow nor vanish
      for i = 0, tokens * hc * hc - 1 do s.comb[i] = 1 / hc end
      return s
    end
    bench:case {
      op = "hc_open", shape = shape, bytes = size * 4 + tokens * dim * 4, flops = 4 * size, limit = limit, setup = setup,
      run = function(s)
        check(C.lsa_hc_open_cpu(s.x, s.post, s.comb, s.streams, s.mix, s.base, s.scale, tokens, hc, dim, iters, 1e-6, 1e-6, nil))
      end,
    }
    bench:case {
      op = "hc_close", shape = shape, bytes = size * 8 + tokens * dim * 4, flops = 2 * size * (hc + 1), limit = "update",
      span = size * 8 + tokens * dim * 4, setup = setup,
      run = function(s) check(C.lsa_hc_close_cpu(s.streams, s.x, s.post, s.comb, tokens, hc, dim, nil)) end,
    }
    bench:case {
      op = "hc_head", shape = shape, bytes = size * 4 + tokens * dim * 4, flops = 4 * size, limit = limit, setup = setup,
      run = function(s)
        check(C.lsa_hc_head_cpu(s.x, s.streams, s.mix, s.base, s.scale, tokens, hc, dim, 1e-6, 1e-6, nil))
      end,
    }
  end
end
