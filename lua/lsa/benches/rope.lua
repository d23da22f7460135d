-- Rotary tables and rotations, of a prefill's queries and of one token's.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

return function(bench)
  for _, shape in ipairs {{512, 4, 64, 16}, {1, 4, 64, 16}, {64, 64, 512, 64}, {1, 64, 512, 64}} do
    local rows, heads, dim, rope_dim = unpack(shape)
    local half = rope_dim / 2
    local function setup()
      local s = {}
      s.freq, s.freq_owner = bench:alloc("float", half)
      for i = 0, half - 1 do s.freq[i] = 10000 ^ (-i / half) end
      s.angles, s.angles_owner = bench:alloc("float", rows * rope_dim)
      s.positions = ffi.new("int32_t[?]", rows)
      for i = 0, rows - 1 do s.positions[i] = 700000 + i end
      check(C.lsa_rope_table_cpu(s.angles, s.freq, s.positions, rows, half, nil))
      s.x, s.x_owner = bench:random("float", rows * heads * dim, 1)
      return s
    end
    bench:case {
      op = "rope_table", shape = ("%d positions, %d frequencies"):format(rows, half), bytes = rows * half * 8, limit = "copy",
      setup = setup,
      run = function(s) check(C.lsa_rope_table_cpu(s.angles, s.freq, s.positions, rows, half, nil)) end,
    }
    bench:case {
      op = "rope", shape = ("%d rows, %d heads of %d, %d rotated"):format(rows, heads, dim, rope_dim),
      bytes = rows * heads * rope_dim * 8, flops = rows * heads * rope_dim * 3, limit = "update", setup = setup,
      run = function(s) check(C.lsa_rope_cpu(s.x, s.angles, rows, heads, dim, rope_dim, 0, nil)) end,
    }
  end
end
