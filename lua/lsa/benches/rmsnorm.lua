-- RMSNorm of hidden states and of query heads.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, lsa.check

return function(bench)
  for _, shape in ipairs {{512, 128}, {2048, 64}, {1, 128}, {64, 4096}, {4096, 512}, {1, 4096}} do
    local rows, n = unpack(shape)
    local x, y, weight = ffi.new("float[?]", rows * n, 1), ffi.new("float[?]", rows * n), ffi.new("float[?]", n, 1)
    bench:case {
      op = "rmsnorm_cpu", shape = ("rows=%d n=%d"):format(rows, n), bytes = rows * n * 8, flops = rows * n * 4, limit = "copy",
      run = function() check(C.lsa_rmsnorm_cpu(y, x, weight, rows, n, 1e-6, nil)) end,
    }
  end
end
