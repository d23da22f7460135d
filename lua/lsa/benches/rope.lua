-- Rotary tables and rotations, of a prefill's queries and of one token's.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, lsa.check

return function(bench)
  for _, shape in ipairs {{512, 4, 64, 16}, {1, 4, 64, 16}, {64, 64, 512, 64}, {1, 64, 512, 64}} do
    local rows, heads, dim, rope_dim = unpack(shape)
    local half = rope_dim / 2
    local freq, angles = ffi.new("float[?]", half), ffi.new("float[?]", rows * rope_dim)
    for i = 0, half - 1 do freq[i] = 10000 ^ (-i / half) end
    local x = ffi.new("float[?]", rows * heads * dim, 1)
    bench:case {
      op = "rope_table_cpu", shape = ("n=%d half=%d"):format(rows, half), bytes = rows * half * 8, limit = "copy",
      run = function() check(C.lsa_rope_table_cpu(angles, freq, rows, half, 700000, 1, nil)) end,
    }
    bench:case {
      op = "rope_cpu", shape = ("rows=%d heads=%d dim=%d rope=%d"):format(rows, heads, dim, rope_dim),
      bytes = rows * heads * rope_dim * 8, flops = rows * heads * rope_dim * 3, limit = "copy",
      run = function() check(C.lsa_rope_cpu(x, angles, rows, heads, dim, rope_dim, 0, nil)) end,
    }
  end
end
