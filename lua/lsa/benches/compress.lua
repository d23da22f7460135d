-- Compressors: CSA's and HCA's windows of a prefill, and the one window that a decode step completes.
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

return function(bench)
  for _, shape in ipairs {{128, 4, 64, 1}, {128, 4, 32, 1}, {4, 128, 64, 0}, {1, 4, 64, 1}, {1, 128, 64, 0},
                          {128, 4, 512, 1}, {4, 128, 512, 0}, {1, 128, 512, 0}} do
    local n, m, dim, overlap = unpack(shape)
    local width = overlap == 1 and 2 * dim or dim
    bench:case {
      op = "compress", shape = ("%d windows of %d, %d channels%s"):format(n, m, dim, overlap == 1 and ", overlap" or ""),
      bytes = n * m * width * 8 + n * dim * 4, limit = "read",
      setup = function()
        local s = {}
        s.kv, s.kv_owner = bench:random("float", n * m * width, 1)
        s.gate, s.gate_owner = bench:random("float", n * m * width, 1)
        s.bias, s.bias_owner = bench:random("float", m * width, 1)
        s.out, s.out_owner = bench:alloc("float", n * dim)
        return s
      end,
      run = function(s) check(C.lsa_compress_cpu(s.out, s.kv, s.gate, nil, nil, s.bias, n, m, dim, overlap, nil)) end,
    }
  end
end
