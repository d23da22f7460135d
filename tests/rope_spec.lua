local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

-- At positions start, start + step, ...
local function table_of(freq, n, half, start, step)
  local t, positions = support.buffer("float", n * half * 2), ffi.new("int32_t[?]", n)
  for i = 0, n - 1 do positions[i] = start + i * step end
  check(C.lsa_rope_table_cpu(t, freq, positions, n, half, nil))
  return t
end

local function rotated(x, t, rows, heads, dim, rope_dim, inverse)
  local y = support.buffer("float", rows * heads * dim)
  ffi.copy(y, x, rows * heads * dim * 4)
  check(C.lsa_rope_cpu(y, t, rows, heads, dim, rope_dim, inverse, nil))
  return y
end

local function oracle(x, t, rows, heads, dim, rope_dim, sign)
  local y = ffi.new("double[?]", rows * heads * dim)
  for i = 0, rows * heads * dim - 1 do y[i] = x[i] end
  for row = 0, rows * heads - 1 do
    for i = 0, rope_dim / 2 - 1 do
      local at = row * dim + dim - rope_dim + 2 * i
      local pair = (math.floor(row / heads) * rope_dim / 2 + i) * 2
      local c, s = t[pair], t[pair + 1] * sign
      y[at], y[at + 1] = x[at] * c - x[at + 1] * s, x[at + 1] * c + x[at] * s
    end
  end
  return y
end

local shapes = {{1, 1, 2, 2}, {3, 2, 40, 8}, {5, 4, 64, 16}, {2, 3, 50, 50}, {130, 5, 96, 64}, {2, 2, 7, 6}, {2, 3, 5, 0}}

describe("rope_table", function()
  it("holds cosine and sine of the f32 angle to an ulp, up to a million radians", function()
    local product = ffi.new "float[1]"
    for _, case in ipairs {{0, 1, 40}, {65536 * 3, 4, 33}, {1048576, 128, 17}, {999983, 1, 9}, {7, -1, 16}} do
      local start, step, n = case[1], case[2], case[3]
      local half = 5
      local freq = support.array("float", {1, 0.31622776, 0.1, 1 / 3, 1e-5})
      local t = table_of(freq, n, half, start, step)
      for i = 0, n - 1 do
        for j = 0, half - 1 do
          product[0] = (start + i * step) * freq[j]
          local c, s = t[(i * half + j) * 2], t[(i * half + j) * 2 + 1]
          local at = tonumber(product[0])
          assert.is_true(math.abs(c - math.cos(at)) <= 2 ^ -24)
          assert.is_true(math.abs(s - math.sin(at)) <= 2 ^ -24)
        end
      end
    end
  end)

  it("gives a position the same bits wherever it stands", function()
    local freq, half = support.normals(7, 3), 7
    local positions = support.array("int32_t", {9, 2 ^ 31 - 1, 9, 0, 131072, 5})
    local t = support.buffer("float", 6 * half * 2)
    check(C.lsa_rope_table_cpu(t, freq, positions, 6, half, nil))
    for i = 0, 5 do
      local alone = table_of(freq, 1, half, positions[i], 0)
      assert.is_true(support.same_bits(alone, t + i * half * 2, half * 8), "position " .. positions[i])
    end
    assert.equal(1, t[3 * half * 2])
  end)

  it("takes no positions", function()
    assert.equal(0, C.lsa_rope_table_cpu(nil, nil, nil, 0, 4, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_rope_table_cpu(nil, nil, nil, -1, 4, nil))
  end)
end)

describe("rope", function()
  it("rotates the trailing pairs of every head by its row's angles", function()
    support.for_each_cpu_level(function(_, name)
      for _, shape in ipairs(shapes) do
        local rows, heads, dim, rope_dim = unpack(shape)
        local freq = support.normals(rope_dim / 2, 3)
        local t = table_of(freq, rows, rope_dim / 2, 100, 7)
        local x, n = support.normals(rows * heads * dim, dim), rows * heads * dim
        for inverse, sign in pairs {[0] = 1, [1] = -1} do
          local y = rotated(x, t, rows, heads, dim, rope_dim, inverse)
          local err = support.max_error(y, oracle(x, t, rows, heads, dim, rope_dim, sign), n, 1)
          assert.is_true(err <= 3e-7, ("%s dim %d: %g"):format(name, dim, err))
        end
      end
    end)
  end)

  it("is undone by the inverse, and leaves the leading values alone", function()
    local rows, heads, dim, rope_dim = 6, 3, 40, 24
    local freq = support.normals(rope_dim / 2, 5)
    local t = table_of(freq, rows, rope_dim / 2, 5000, 1)
    local x = support.normals(rows * heads * dim, 9)
    local y = rotated(x, t, rows, heads, dim, rope_dim, 0)
    for row = 0, rows * heads - 1 do
      assert.is_true(support.same_bits(x + row * dim, y + row * dim, (dim - rope_dim) * 4))
    end
    local back = rotated(y, t, rows, heads, dim, rope_dim, 1)
    assert.is_true(support.max_error(back, x, rows * heads * dim, 1) <= 5e-7)
  end)

  it("gives the same bits on every code path, and for a row alone", function()
    local rows, heads, dim, rope_dim = 200, 5, 70, 54
    local freq = support.normals(rope_dim / 2, 5)
    local t = table_of(freq, rows, rope_dim / 2, 5000, 1)
    local x, want = support.normals(rows * heads * dim, 9), nil
    support.for_each_cpu_level(function(_, name)
      local y = rotated(x, t, rows, heads, dim, rope_dim, 0)
      want = want or y
      assert.is_true(support.same_bits(want, y, rows * heads * dim * 4), name)
      local alone = rotated(x + 77 * heads * dim, t + 77 * rope_dim, 1, heads, dim, rope_dim, 0)
      assert.is_true(support.same_bits(want + 77 * heads * dim, alone, heads * dim * 4), name)
    end)
  end)

  it("keeps NaN in its pair", function()
    support.for_each_cpu_level(function()
      local freq = support.normals(16, 5)
      local t = table_of(freq, 1, 16, 3, 1)
      local x = support.normals(40, 9)
      x[8 + 5] = 0 / 0
      local y = rotated(x, t, 1, 1, 40, 32, 0)
      for i = 0, 39 do assert.equal(i == 12 or i == 13, y[i] ~= y[i]) end
    end)
  end)

  it("refuses odd or too many rotated values", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_rope_cpu(nil, nil, 1, 1, 8, 3, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_rope_cpu(nil, nil, 1, 1, 8, 10, 0, nil))
    assert.equal(0, C.lsa_rope_cpu(nil, nil, 0, 4, 8, 8, 0, nil))
  end)
end)
