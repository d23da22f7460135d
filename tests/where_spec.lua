local C = require("lsa.ffi").C
local ffi = require "ffi"
local lsa = require "lsa"
local support = require "kernel_support"

-- A set's words of exact size, and its members as a table.
local function random_bits(n, seed)
  local u, bits, has = support.uniform(seed), support.buffer("uint64_t", math.ceil(n / 64)), {}
  for i = 0, n - 1 do
    has[i] = u() < 0.5
    local w = math.floor(i / 64)
    if has[i] then bits[w] = bit.bor(bits[w], bit.lshift(1ULL, i % 64)) end
  end
  return bits, has
end

describe("where", function()
  it("takes each element from one side, bit for bit, on every code path", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {0, 1, 15, 16, 17, 63, 64, 65, 127, 130, 1003} do
        local a, b = support.normals(n, n + 1), support.normals(n, n + 2)
        if n > 2 then a[0], a[1], b[0], b[1] = 0 / 0, -0.0, math.huge, -0.0 end
        local bits, has = random_bits(n, n + 3)
        local out = support.buffer("float", n)
        for _, step in ipairs {1, 0} do
          local other = step == 1 and b or support.array("float", {-math.huge})
          assert.equal(0, C.lsa_where_cpu(out, bits, a, other, n, step, nil))
          for i = 0, n - 1 do
            local want = has[i] and a + i or other + i * step
            assert.is_true(support.same_bits(out + i, want, 4), ("element %d of %d"):format(i, n))
          end
        end
      end
    end)
  end)

  it("may write over either row", function()
    local bits, has = random_bits(100, 5)
    for side = 1, 2 do
      local a, b = support.normals(100, 1), support.normals(100, 2)
      local a0, b0 = support.normals(100, 1), support.normals(100, 2)
      local out = side == 1 and a or b
      assert.equal(0, C.lsa_where_cpu(out, bits, a, b, 100, 1, nil))
      for i = 0, 99 do assert.equal(has[i] and a0[i] or b0[i], out[i]) end
    end
  end)

  it("refuses other steps and sizes", function()
    assert.equal(C.LSA_EARG, C.lsa_where_cpu(nil, nil, nil, nil, 4, 2, nil))
    assert.equal("where: b_step is 2, 0 or 1 is possible", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, C.lsa_where_cpu(nil, nil, nil, nil, -1, 1, nil))
  end)

  it("is a method of tensors and a kernel, checked", function()
    local x, s = lsa.tensor {1, 2, 3}, lsa.set(3):add {0, 2}
    assert.same({1, 9, 3}, x:where(s, 9):totable())
    assert.same({1, 5, 3}, x:where(s, lsa.tensor {4, 5, 6}):totable())
    assert.same({1, 5, 3}, lsa.kernels.where(x, s, lsa.tensor {4, 5, 6}):totable())
    assert.same({1, 7, 3}, lsa.kernels.where(x, s, lsa.tensor {7}):totable())
    assert.has_error(function() x:where(lsa.set(4), 1) end, "where: the set is over 4 ids, the tensor has shape [3]")
    assert.has_error(function() x:where(s, lsa.tensor {1, 2}) end, "where: y has shape [2], x has [3]: 2 meets 3 in dimension 0")
    assert.has_error(function() x:where({0}, 1) end, "where: set is a table, a set or a mask of u8 is wanted")
    assert.has_error(function() lsa.kernels.where(x, s, lsa.tensor {1, 2}) end,
      "where: y has 2 elements, x has 3: as many or one")
  end)
end)
