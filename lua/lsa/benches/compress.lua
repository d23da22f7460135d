-- Compressors: CSA's and HCA's windows of a prefill, and the one window that a decode step completes.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, lsa.check

return function(bench)
  for _, shape in ipairs {{128, 4, 64, 1}, {128, 4, 32, 1}, {4, 128, 64, 0}, {1, 4, 64, 1}, {1, 128, 64, 0},
                          {128, 4, 512, 1}, {4, 128, 512, 0}, {1, 128, 512, 0}} do
    local n, m, dim, overlap = unpack(shape)
    local width = overlap == 1 and 2 * dim or dim
    local kv, gate = ffi.new("float[?]", n * m * width), ffi.new("float[?]", n * m * width)
    for i = 0, n * m * width - 1 do kv[i], gate[i] = math.random(), math.random() end
    local bias, out = ffi.new("float[?]", m * width), ffi.new("float[?]", n * dim)
    bench:case {
      op = "compress_cpu", shape = ("windows=%d m=%d dim=%d%s"):format(n, m, dim, overlap == 1 and " overlap" or ""),
      bytes = n * m * width * 8 + n * dim * 4, limit = "copy",
      run = function() check(C.lsa_compress_cpu(out, kv, gate, nil, nil, bias, n, m, dim, overlap, nil)) end,
    }
  end
end
