local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, lsa.check

-- m, n, k and what the strides exceed the rows by.
local shapes = {{1, 1, 1, 0}, {3, 5, 7, 2}, {16, 33, 8, 0}, {40, 1, 129, 1}, {1, 70, 3, 0}, {64, 128, 96, 5}, {2, 3, 0, 0}, {9, 31, 65, 3},
  {70, 1100, 2, 0}, {5, 520, 130, 1}}

local function stored(rows, cols, gap, seed)
  local stride = cols + gap
  return support.normals(math.max((rows - 1) * stride + cols, 0), seed), stride
end

-- c against sums in double precision; what lies between its rows keeps its values.
local function compare(m, n, k, gap, transposed)
  local a, as = stored(transposed == 1 and k or m, transposed == 1 and m or k, gap, 1)
  local b, bs = stored(k, n, gap, 2)
  local c, cs = stored(m, n, gap, 3)
  local before = support.normals((m - 1) * cs + n, 3)
  for i = 0, m - 1 do for j = 0, n - 1 do c[i * cs + j] = 0 / 0 end end
  check(C.lsa_gemm_cpu(c, a, b, m, n, k, cs, as, bs, transposed, nil))
  local worst = 0
  for at = 0, (m - 1) * cs + n - 1 do
    local i, j = math.floor(at / cs), at % cs
    local want = 0
    if j < n then
      for l = 0, k - 1 do want = want + a[transposed == 1 and l * as + i or i * as + l] * b[l * bs + j] end
    else
      want = before[at]
    end
    local difference = math.abs(c[at] - want)
    if not (difference <= worst) then worst = difference end
  end
  return worst
end

describe("lsa_gemm", function()
  it("is the product, plain and transposed, on every code path", function()
    support.for_each_cpu_level(function()
      for _, shape in ipairs(shapes) do
        for transposed = 0, 1 do
          assert.is_true(compare(shape[1], shape[2], shape[3], shape[4], transposed) <= 1e-5 * math.sqrt(shape[3] + 1))
        end
      end
    end)
  end)

  it("gives an element the same bits whatever the threads and the other rows and columns", function()
    local m, n, k = 150, 200, 300
    local a, b, first = support.normals(m * k, 1), support.normals(k * n, 2), nil
    for threads = 1, 2 do
      C.lsa_threads_set(threads)
      local c = support.buffer("float", m * n)
      check(C.lsa_gemm_cpu(c, a, b, m, n, k, n, k, n, 0, nil))
      first = first or c
      assert.is_true(support.same_bits(first, c, m * n * 4))
    end
    C.lsa_threads_set(0)
    local row = support.buffer("float", 7)
    check(C.lsa_gemm_cpu(row, a + 149 * k, b + 193, 1, 7, k, 7, k, n, 0, nil))
    assert.is_true(support.same_bits(row, first + 149 * n + 193, 28))
  end)

  it("writes zeros where nothing is summed, and nothing where there is nothing", function()
    local c = support.normals(6, 1)
    check(C.lsa_gemm_cpu(c, nil, nil, 2, 3, 0, 3, 0, 3, 0, nil))
    for i = 0, 5 do assert.equal(0, c[i]) end
    check(C.lsa_gemm_cpu(nil, nil, nil, 0, 3, 4, 3, 4, 3, 0, nil))
    check(C.lsa_gemm_cpu(nil, nil, nil, 3, 0, 4, 3, 4, 3, 0, nil))
  end)

  it("passes NaN on", function()
    local c = support.buffer("float", 4)
    check(C.lsa_gemm_cpu(c, support.array("float", {1, 0 / 0}), support.array("float", {0, 1}), 2, 2, 1, 2, 1, 2, 0, nil))
    assert.equal(0, c[0])
    assert.equal(1, c[1])
    assert.is_true(c[2] ~= c[2])
    assert.is_true(c[3] ~= c[3])
  end)

  it("refuses negative sizes and strides below a row", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, -1, 1, 1, 1, 1, 1, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 2, 4, 3, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 3, 3, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 1, 3, 1, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 4, 2, 0, nil))
  end)
end)
