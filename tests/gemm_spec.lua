local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local process = require "process_support"
local C, check = lsa.C, require("lsa.raise").check

local function multiply_bf16(c, a, b, m, n, k, c_stride, a_stride, b_stride)
  local workspace = support.workspace(C.lsa_gemm_bf16_workspace(m, n, k))
  check(C.lsa_gemm_bf16_cpu(c, a, b, m, n, k, c_stride, a_stride, b_stride, workspace, nil))
end

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
  check(C.lsa_gemm_cpu(c, a, b, m, n, k, cs, as, bs, transposed, 0, nil))
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

-- Products of small integers, whose sums are exact, by rows that are apart and more of them than are widened at a time; prints
-- how many are wrong. A text, for a process of its own to run it too.
local COUNT_WRONG = ("package.path = %q .. package.path\n"):format(process.root .. "/tests/?.lua;") .. [[
local ffi = require "ffi"
local C = require("lsa.ffi").C
local m, n, k, gap, wrong = 70, 90, 20000, 3, 0
local function integers(rows, period)
  local out = ffi.new("uint16_t[?]", rows * (k + gap))
  for i = 0, rows - 1 do
    for l = 0, k - 1 do out[i * (k + gap) + l] = 0x3f80 + 0x80 * ((i + l) % period) end   -- 1, 2, 4 ..
  end
  return out
end
local a, b, c = integers(m, 2), integers(n, 3), ffi.new("float[?]", m * (n + gap))
local workspace = require("kernel_support").workspace(C.lsa_gemm_bf16_workspace(m, n, k))
assert(C.lsa_gemm_bf16_cpu(c, a, b, m, n, k, n + gap, k + gap, k + gap, workspace, nil) == 0)
for i = 0, m - 1 do
  for j = 0, n - 1 do
    local want = 0
    for l = 0, k - 1 do want = want + 2 ^ ((i + l) % 2 + (j + l) % 3) end
    if c[i * (n + gap) + j] ~= want then wrong = wrong + 1 end
  end
  for j = n, n + gap - 1 do if c[i * (n + gap) + j] ~= 0 then wrong = wrong + 1 end end
end
print(wrong .. " wrong, workspace " .. (C.lsa_gemm_bf16_workspace(m, n, k) > 0LL and "yes" or "no"))
]]

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

  it("gives the same bits each time", function()
    local m, n, k = 150, 200, 300
    local a, b, first = support.normals(m * k, 1), support.normals(k * n, 2), nil
    for _ = 1, 3 do
      local c = support.buffer("float", m * n)
      check(C.lsa_gemm_cpu(c, a, b, m, n, k, n, k, n, 0, 0, nil))
      first = first or c
      assert.is_true(support.same_bits(first, c, m * n * 4))
    end
  end)

  it("takes the second factor transposed, and bf16 factors", function()
    local m, n, k = 33, 20, 70
    local a, b = support.normals(m * k, 1), support.normals(n * k, 2)
    local a16, b16 = support.buffer("uint16_t", m * k), support.buffer("uint16_t", n * k)
    check(C.lsa_convert_cpu(a16, a, m * k, C.LSA_BF16, C.LSA_F32, nil))
    check(C.lsa_convert_cpu(b16, b, n * k, C.LSA_BF16, C.LSA_F32, nil))
    local c, c16 = support.buffer("float", m * n), support.buffer("float", m * n)
    check(C.lsa_gemm_cpu(c, a, b, m, n, k, n, k, k, 0, 1, nil))
    multiply_bf16(c16, a16, b16, m, n, k, n, k, k)
    check(C.lsa_convert_cpu(a, a16, m * k, C.LSA_F32, C.LSA_BF16, nil))
    for i = 0, m - 1 do
      for j = 0, n - 1 do
        local exact = 0
        for l = 0, k - 1 do
          local x = ffi.new("uint32_t[1]", b16[j * k + l] * 65536)
          exact = exact + a[i * k + l] * ffi.cast("float *", x)[0]
        end
        assert.is_true(math.abs(c16[i * n + j] - exact) <= 1e-4)
        assert.is_true(math.abs(c[i * n + j] - exact) <= 0.02 * math.sqrt(k))
      end
    end
  end)

  it("has bf16 products of many sizes, again and again, from wherever the factors are", function()
    for round = 1, 3 do
      for size = 1, 40 do
        local m, n, k = size, 1 + size % 7, 2 + size % 5
        local a, b, c = support.buffer("uint16_t", m * k), support.buffer("uint16_t", n * k), support.buffer("float", m * n)
        for i = 0, m * k - 1 do a[i] = 0x3f80 + 0x80 * ((i + round) % 2) end -- 1 or 2
        for i = 0, n * k - 1 do b[i] = 0x4000 end                              -- 2
        multiply_bf16(c, a, b, m, n, k, n, k, k)
        for i = 0, m - 1 do
          local want = 0
          for l = 0, k - 1 do want = want + 2 * (1 + (i * k + l + round) % 2) end
          for j = 0, n - 1 do assert.equal(want, c[i * n + j]) end
        end
      end
    end
  end)

  it("has bf16 products on processors for which oneDNN has none", function()
    assert.matches("^0 wrong", (process.lsa {"-e", COUNT_WRONG}))
    local avx2 = "require('ffi').cdef 'int dnnl_set_max_cpu_isa(int);' assert(require('lsa.ffi').C.dnnl_set_max_cpu_isa(7) == 0)\n"
    assert.equal("0 wrong, workspace yes\n", (process.lsa {"-e", avx2 .. COUNT_WRONG}))
  end)

  it("writes zeros where nothing is summed, and nothing where there is nothing", function()
    local c = support.normals(6, 1)
    check(C.lsa_gemm_cpu(c, nil, nil, 2, 3, 0, 3, 0, 3, 0, 0, nil))
    for i = 0, 5 do assert.equal(0, c[i]) end
    check(C.lsa_gemm_cpu(nil, nil, nil, 0, 3, 4, 3, 4, 3, 0, 0, nil))
    check(C.lsa_gemm_cpu(nil, nil, nil, 3, 0, 4, 3, 4, 3, 0, 0, nil))
  end)

  it("passes NaN on", function()
    local c = support.buffer("float", 4)
    check(C.lsa_gemm_cpu(c, support.array("float", {1, 0 / 0}), support.array("float", {0, 1}), 2, 2, 1, 2, 1, 2, 0, 0, nil))
    assert.equal(0, c[0])
    assert.equal(1, c[1])
    assert.is_true(c[2] ~= c[2])
    assert.is_true(c[3] ~= c[3])
  end)

  it("refuses negative sizes and strides below a row", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, -1, 1, 1, 1, 1, 1, 0, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 2, 4, 3, 0, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 3, 3, 0, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 1, 3, 1, 0, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_gemm_cpu(nil, nil, nil, 2, 3, 4, 3, 4, 2, 0, 0, nil))
  end)

  it("is broken off by Ctrl-C where it takes long, and not where it does not", function()
    finally(function() C.lsa_interrupt_clear() end)
    local long, n = 2560, 64 -- 34 GFLOP
    local a, c = support.buffer("float", long * long), support.buffer("float", long * long)
    C.lsa_interrupt()
    assert.equal(C.LSA_EINTR, C.lsa_gemm_cpu(c, a, a, long, long, long, long, long, long, 0, 0, nil))
    assert.equal(0, C.lsa_gemm_cpu(c, a, a, n, n, n, n, n, n, 0, 0, nil))
  end)
end)
