-- Hyper-connections around a block: open, close, and the head.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, lsa.check

local function floats(n)
  local out = ffi.new("float[?]", n)
  for i = 0, n - 1 do out[i] = math.random() - 0.5 end
  return out
end

return function(bench)
  for _, model in ipairs {{512, 2, 128, 4}, {1, 2, 128, 4}, {64, 4, 4096, 20}, {1, 4, 4096, 20}} do
    local tokens, hc, dim, iters = unpack(model)
    local streams, mix, y = floats(tokens * hc * dim), floats(tokens * (2 + hc) * hc), floats(tokens * dim)
    local base, scale = floats((2 + hc) * hc), floats(3)
    local x, post, comb = floats(tokens * dim), floats(tokens * hc), floats(tokens * hc * hc)
    for i = 0, tokens * hc * hc - 1 do comb[i] = 1 / hc end
    for i = 0, tokens * hc - 1 do post[i] = 0 end
    local shape = ("tokens=%d hc=%d dim=%d iters=%d"):format(tokens, hc, dim, iters)
    local size = tokens * hc * dim
    bench:case {
      op = "hc_close_cpu", shape = shape, bytes = size * 8 + tokens * dim * 4, flops = 2 * size * (hc + 1), limit = "copy",
      run = function() check(C.lsa_hc_close_cpu(streams, y, post, comb, tokens, hc, dim, nil)) end,
    }
    local post_out, comb_out = floats(tokens * hc), floats(tokens * hc * hc)
    bench:case {
      op = "hc_open_cpu", shape = shape, bytes = size * 4 + tokens * dim * 4, flops = 4 * size, limit = "copy",
      run = function()
        check(C.lsa_hc_open_cpu(x, post_out, comb_out, streams, mix, base, scale, tokens, hc, dim, iters, 1e-6, 1e-6, nil))
      end,
    }
    bench:case {
      op = "hc_head_cpu", shape = shape, bytes = size * 4 + tokens * dim * 4, flops = 4 * size, limit = "copy",
      run = function() check(C.lsa_hc_head_cpu(x, streams, mix, base, scale, tokens, hc, dim, 1e-6, 1e-6, nil)) end,
    }
  end
end
