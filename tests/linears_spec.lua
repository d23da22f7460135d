local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C = lsa.C

local F32, BF16 = C.LSA_COMPUTE_F32, C.LSA_COMPUTE_BF16
local linears = support.over_spans "linears"
local EPS = 1e-6
local bits = ffi.new "union { float f; uint32_t u; }"

local function floats(n, seed) return support.span_copy("float", support.normals(n, seed), n) end

-- A weight [rows, cols] in f32 or bf16, and its values.
local function weight(rows, cols, dtype, seed, keep)
  local w, values = ffi.new "lsa_weight", support.normals(math.max(1, rows * cols), seed, 0.2)
  w.rows, w.cols, w.block_rows, w.block_cols = rows, cols, 1, 1
  if dtype == "f32" then
    local stored = support.span_copy("float", values, rows * cols)
    w.dtype, w.data = C.LSA_F32, stored
    keep[#keep + 1] = stored
  else
    local stored = support.span_buffer("uint16_t", rows * cols)
    for i = 0, rows * cols - 1 do
      bits.f = values[i]
      stored[i] = bit.rshift(bits.u, 16)
      bits.u = bit.lshift(stored[i], 16)
      values[i] = bits.f
    end
    w.dtype, w.data = C.LSA_BF16, stored
    keep[#keep + 1] = stored
  end
  keep[#keep + 1] = w
  return {c = w, values = values}
end

local outputs = setmetatable({}, {__mode = "k"})

local function product(x, x_stride, w, row_from, rows, y_stride, tokens)
  local p, y = ffi.new "lsa_product", support.span_buffer("float", math.max(1, tokens * y_stride))
  outputs[p] = y -- lives as long as the product
  p.y, p.x, p.w = y, x, w.c
  p.row_from, p.rows, p.x_stride, p.y_stride = row_from, rows, x_stride, y_stride
  return p
end

local function bf16(v)
  bits.f = v
  bits.u = bits.u + 0x7fff + bit.band(bit.rshift(bits.u, 16), 1)
  bits.u = bit.lshift(bit.rshift(bits.u, 16), 16)
  return bits.f
end

-- Row t of x as the products take it.
local function taken(x, t, stride, cols, norm, compute)
  local out, scale = {}, 1
  if norm then
    local sum = 0
    for c = 0, cols - 1 do sum = sum + x[t * stride + c] ^ 2 end
    scale = 1 / math.sqrt(sum / cols + EPS)
  end
  for c = 0, cols - 1 do
    local v = x[t * stride + c] * scale * (norm and norm[c] or 1)
    out[c] = compute == BF16 and bf16(v) or v
  end
  return out
end

local function expect(p, w, rows_of_x, t, bound, what)
  for r = 0, tonumber(p.rows) - 1 do
    local sum, most = 0, 1
    for c = 0, tonumber(w.c.cols) - 1 do
      local term = rows_of_x[c] * w.values[(p.row_from + r) * w.c.cols + c]
      sum, most = sum + term, most + math.abs(term)
    end
    local got = p.y[t * p.y_stride + r]
    assert.is_true(math.abs(got - sum) <= bound * most, ("%s: row %d of token %d is %g, not %g"):format(what, r, t, got, sum))
  end
end

local function run(products, tokens, norm, compute)
  local list, bytes = ffi.new("lsa_product[?]", #products), 64
  for i, p in ipairs(products) do
    list[i - 1] = p
    bytes = math.max(bytes, tonumber(C.lsa_linear_workspace(p.w, tokens, p.rows, compute)))
  end
  local workspace = support.span_buffer("uint8_t", math.max(bytes, support.device == "cuda" and 256 * 2 ^ 20 or 0))
  return linears(list, #products, tokens, norm, EPS, compute, workspace, nil)
end

describe("linears", function()
  it("gives the products of a naive oracle, of several weights at once", function()
    for _, tokens in ipairs {1, 2, 9, 130} do
      for _, cols in ipairs {8, 128, 264, 1025, 2048} do
        for _, compute in ipairs {F32, BF16} do
          local keep = {}
          local x = floats(tokens * (cols + 8), cols)
          local a, b, c = weight(5, cols, "bf16", 1, keep), weight(33, cols, "f32", 2, keep), weight(16, cols, "bf16", 3, keep)
          local products = {product(x, cols + 8, a, 0, 5, 5, tokens), product(x, cols + 8, b, 7, 20, 22, tokens),
            product(x + 8, cols + 8, c, 0, 16, 16, tokens), product(x, cols + 8, a, 2, 0, 1, tokens)}
          assert.equal(0, run(products, tokens, nil, compute))
          for t = 0, tokens - 1, math.max(1, math.floor(tokens / 5)) do
            local whole = compute == F32 and 1e-6 or 5e-3 -- of bf16, f32 weights are rounded, too
            expect(products[1], a, taken(x, t, cols + 8, cols, nil, compute), t, 1e-6, "bf16")
            expect(products[2], b, taken(x, t, cols + 8, cols, nil, compute), t, whole, "f32")
            expect(products[3], c, taken(x + 8, t, cols + 8, cols, nil, compute), t, 1e-6, "another x")
          end
        end
      end
    end
  end)

  it("norms x first where it is asked to", function()
    for _, tokens in ipairs {1, 3, 40} do
      for _, cols in ipairs {16, 64, 1536} do
        local keep = {}
        local values, norm = support.normals(tokens * cols, 7), floats(cols, 9)
        local x = support.span_copy("float", values, tokens * cols)
        local a, b = weight(12, cols, "bf16", 4, keep), weight(7, cols, "f32", 5, keep)
        local products = {product(x, cols, a, 0, 12, 12, tokens), product(x, cols, b, 0, 7, 7, tokens)}
        assert.equal(0, run(products, tokens, norm, F32))
        for t = 0, tokens - 1 do
          expect(products[1], a, taken(values, t, cols, cols, norm, F32), t, 2e-6, "a")
          expect(products[2], b, taken(values, t, cols, cols, norm, F32), t, 2e-6, "b")
        end
      end
    end
  end)

  it("gives a token the same bits among few others as alone", function()
    local keep, cols = {}, 256
    local x, w = floats(20 * cols, 3), weight(24, cols, "bf16", 6, keep)
    if support.device == "cpu" then return end -- there they follow from the number of tokens, as linear's do
    local all = product(x, cols, w, 0, 24, 24, 20)
    assert.equal(0, run({all}, 20, nil, F32))
    for t = 0, 19 do
      local one = product(x + t * cols, cols, w, 0, 24, 24, 1)
      assert.equal(0, run({one}, 1, nil, F32))
      assert.is_true(support.same_bits(one.y, all.y + t * 24, 4 * 24), "token " .. t)
    end
  end)

  it("refuses too many products, another x beside one that is normed, and what linear refuses", function()
    local keep, x, y = {}, floats(64, 1), floats(64, 2)
    local w = weight(4, 8, "f32", 1, keep)
    local many = {}
    for i = 1, C.LSA_LINEARS_MOST + 1 do many[i] = product(x, 8, w, 0, 4, 4, 1) end
    assert.equal(C.LSA_EARG, run(many, 1, nil, F32))
    assert.equal("linears: 9 products, 0 to 8 are possible", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_EARG, run({product(x, 8, w, 0, 4, 4, 1), product(y, 8, w, 0, 4, 4, 1)}, 1, x, F32))
    assert.equal("linears: product 1 is of another x than the one that is normed", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, run({product(x, 8, w, 2, 3, 4, 1)}, 1, nil, F32))
    assert.equal(0, run({}, 1, nil, F32))
  end)
end)
