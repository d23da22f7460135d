-- RMSNorm of hidden states and of query heads.
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

return function(bench)
  for _, shape in ipairs {{512, 128}, {2048, 64}, {1, 128}, {64, 4096}, {4096, 512}, {32768, 512}, {1, 4096}} do
    local rows, n = unpack(shape)
    bench:case {
      op = "rmsnorm", shape = ("%d rows of %d"):format(rows, n), bytes = rows * n * 8, flops = rows * n * 4,
      limit = "copy",
      setup = function()
        local s = {}
        s.x, s.x_owner = bench:random("float", rows * n, 1)
        s.y, s.y_owner = bench:alloc("float", rows * n)
        s.weight, s.weight_owner = bench:random("float", n, 1)
        return s
      end,
      run = function(s) check(C.lsa_rmsnorm_cpu(s.y, s.x, s.weight, rows, n, 1e-6, nil)) end,
    }
  end
end
