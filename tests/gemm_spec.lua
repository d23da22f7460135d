local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, lsa.check

-- m, n, k and what the strides exceed the rows by.
local shapes = {{1, 1, 1, 0}, {3, 5, 7, 2}, {16, 33, 8, 0}, {40, 1, 129, 1}, {1, 70, 3, 0}, {64, 128, 96, 5}, {2, 3, 0, 0}}

local function stored(rows, cols, gap, transposed, seed)
  if transposed then rows, cols = cols, rows end
  local stride = cols + gap
  return support.normals(math.max((rows - 1) * stride + cols, 0), seed), stride
end

local function at(x, stride, transposed, i, j)
  return transposed == 1 and x[j * stride + i] or x[i * stride + j]
end

describe("lsa_gemm", function()
  it("is the product, for each transposition, with and without what was there", function()
    for _, shape in ipairs(shapes) do
      local m, n, k, gap = unpack(shape)
      for ta = 0, 1 do
        for tb = 0, 1 do
          for accumulate = 0, 1 do
            local a, as = stored(m, k, gap, ta == 1, 1)
            local b, bs = stored(k, n, gap, tb == 1, 2)
            local c, cs = stored(m, n, gap, false, 3)
            local before = support.normals((m - 1) * cs + n, 3)
            if accumulate == 0 then for i = 0, m - 1 do for j = 0, n - 1 do c[i * cs + j] = 0 / 0 end end end
            check(C.lsa_gemm_cpu(c, a, b, m, n, k, cs, as, bs, ta, tb, accumulate, nil))
            for i = 0, m - 1 do
              for j = 0, cs - 1 do
                if i * cs + j < (m - 1) * cs + n then
                  local want = (accumulate == 1 or j >= n) and before[i * cs + j] or 0
                  if j < n then
                    for l = 0, k - 1 do want = want + at(a, as, ta, i, l) * at(b, bs, tb, l, j) end
                  end
                  assert.is_true(math.abs(c[i * cs + j] - want) <= 2e-5 * math.sqrt(k + 1))
                end
              end
            end
          end
        end
      end
    end
  end)

  it("gives the same bits again", function()
    local a, b, c = support.normals(64 * 96, 1), support.normals(96 * 128, 2), support.buffer("float", 64 * 128)
    local first
    for _ = 1, 5 do
      check(C.lsa_gemm_cpu(c, a, b, 64, 128, 96, 128, 96, 128, 0, 0, 0, nil))
      first = first or ffi.string(c, 64 * 128 * 4)
      assert.is_true(first == ffi.string(c, 64 * 128 * 4))
    end
  end)

  it("refuses negative sizes and strides below a row", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, -1, 1, 1, 1, 1, 1, 0, 0, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 2, 4, 3, 0, 0, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 3, 3, 0, 0, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 4, 3, 0, 1, 0, nil))
    assert.equal(0, C.lsa_gemm_cpu(nil, nil, nil, 0, 3, 4, 3, 4, 3, 0, 0, 0, nil))
  end)
end)
