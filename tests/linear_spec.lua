local ffi = require "ffi"
local bit = require "bit"
local abs, floor = math.abs, math.floor   -- a spec's globals are behind busted's, which costs in loops
local support = require "kernel_support"
local binding = require "lsa.ffi"
local C, check = binding.C, require("lsa.raise").check

local DTYPES = {f32 = C.LSA_F32, bf16 = C.LSA_BF16, f16 = C.LSA_F16, f8 = C.LSA_F8_E4M3, f4 = C.LSA_F4_E2M1}
local F32, BF16 = C.LSA_COMPUTE_F32, C.LSA_COMPUTE_BF16
local FP4 = {[0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6}
local inf, nan = math.huge, 0 / 0

local view = ffi.new "union { float f; uint32_t u; }"

-- Round to nearest, ties to even, on a bf16.
local function bf16(x)
  view.f = x
  local u = tonumber(view.u)
  if x ~= x then return x end
  local low = u % 65536
  u = u - low
  if low > 32768 or (low == 32768 and bit.band(u / 65536, 1) == 1) then u = u + 65536 end
  view.u = u
  return view.f
end

local function small_float(code, exponent_bits, mantissa_bits, bias)
  local sign = code >= 2 ^ (exponent_bits + mantissa_bits) and -1 or 1
  local magnitude = code % 2 ^ (exponent_bits + mantissa_bits)
  local e, m = floor(magnitude / 2 ^ mantissa_bits), magnitude % 2 ^ mantissa_bits
  if e == 0 then return sign * m * 2 ^ (1 - bias - mantissa_bits) end
  return sign * (1 + m / 2 ^ mantissa_bits) * 2 ^ (e - bias)
end

local function e4m3(code)
  if code % 128 == 127 then return nan end
  return small_float(code, 4, 3, 7)
end

local function e2m1(code) return (code >= 8 and -1 or 1) * FP4[code % 8] end

-- A weight of random stored numbers, with what they mean: {c, values [rows, cols], ...}. scale: nil, "f32" or "e8m0".
local function weight(o)
  local u = support.uniform(o.seed or 7)
  local n = o.rows * o.cols
  local w = ffi.new "lsa_weight"
  local data, number
  if o.dtype == "f32" then
    data = support.buffer("float", n)
    for i = 0, n - 1 do data[i] = u(-1, 1) end
    number = function(i) return data[i] end
  elseif o.dtype == "bf16" then
    data = support.buffer("uint16_t", n)
    for i = 0, n - 1 do view.f = u(-1, 1) data[i] = bit.rshift(view.u, 16) end
    number = function(i) view.u = data[i] * 65536 return view.f end
  elseif o.dtype == "f16" then
    data = support.buffer("uint16_t", n)
    for i = 0, n - 1 do data[i] = floor(u(0, 2)) * 32768 + floor(u(0, 0x3c00)) end
    number = function(i) return small_float(data[i], 5, 10, 15) end
  elseif o.dtype == "f8" then
    data = support.buffer("uint8_t", n)
    for i = 0, n - 1 do data[i] = floor(u(0, 2)) * 128 + floor(u(0, 127)) end
    number = function(i) return e4m3(data[i]) end
  else
    data = support.buffer("uint8_t", n / 2)
    for i = 0, n / 2 - 1 do data[i] = floor(u(0, 256)) end
    number = function(i)
      return e2m1(i % 2 == 0 and data[i / 2] % 16 or floor(data[(i - 1) / 2] / 16))
    end
  end
  w.data, w.rows, w.cols, w.dtype = data, o.rows, o.cols, DTYPES[o.dtype]
  local scales, scale = nil, function() return 1 end
  if o.scale then
    local br, bc = o.block[1], o.block[2]
    local across = math.ceil(o.cols / bc)
    local count = math.ceil(o.rows / br) * across
    scales = support.buffer(o.scale == "f32" and "float" or "uint8_t", count)
    for i = 0, count - 1 do
      scales[i] = o.scale == "f32" and u(0.01, 2) or floor(u(117, 137))
    end
    scale = function(r, c)
      local s = scales[floor(r / br) * across + floor(c / bc)]
      return o.scale == "f32" and s or 2 ^ (s - 127)
    end
    w.scale, w.block_rows, w.block_cols = scales, br, bc
    w.scale_dtype = o.scale == "f32" and C.LSA_F32 or C.LSA_F8_E8M0
  end
  local values = ffi.new("float[?]", n)
  for r = 0, o.rows - 1 do
    for c = 0, o.cols - 1 do values[r * o.cols + c] = number(r * o.cols + c) * scale(r, c) end
  end
  return {c = w, values = values, data = data, scales = scales}
end

local function run(y, x, w, tokens, row_from, rows, x_stride, y_stride, compute)
  local workspace = support.workspace(C.lsa_linear_workspace(w.c, tokens, rows, compute))
  return C.lsa_linear_cpu(y, x, w.c, tokens, row_from, rows, x_stride, y_stride, compute, workspace, nil)
end

local function rounded(from, n, compute)
  local out = ffi.new("double[?]", n)
  for i = 0, n - 1 do out[i] = compute == BF16 and bf16(from[i]) or from[i] end
  return out
end

-- The largest |y - exact| / sum |x| |w|, the sums in double.
local function error_of(y, x, w, tokens, row_from, rows, x_stride, y_stride, compute)
  local cols, worst = tonumber(w.c.cols), 0
  local values = rounded(w.values + row_from * cols, rows * cols, compute)
  for t = 0, tokens - 1 do
    local xt = rounded(x + t * x_stride, cols, compute)
    for r = 0, rows - 1 do
      local sum, size = 0, 1e-30
      for c = 0, cols - 1 do
        local product = xt[c] * values[r * cols + c]
        sum, size = sum + product, size + abs(product)
      end
      local e = abs(y[t * y_stride + r] - sum) / size
      if not (e <= worst) then worst = e end
    end
  end
  return worst
end

local function measured(o)
  local w = weight(o)
  local tokens, rows = o.tokens, o.take or o.rows
  local row_from = o.from or 0
  local x_stride, y_stride = o.cols + (o.x_extra or 0), rows + (o.y_extra or 0)
  local x = support.normals(math.max((tokens - 1) * x_stride + o.cols, 0), 3)
  local y = support.buffer("float", (tokens - 1) * y_stride + rows)
  for i = 0, (tokens - 1) * y_stride + rows - 1 do y[i] = -77 end
  check(run(y, x, w, tokens, row_from, rows, x_stride, y_stride, o.compute))
  for t = 0, tokens - 2 do
    for i = rows, y_stride - 1 do assert.are.equal(-77, y[t * y_stride + i]) end
  end
  return error_of(y, x, w, tokens, row_from, rows, x_stride, y_stride, o.compute)
end

local function merged(a, b)
  local out = {}
  for k, v in pairs(a) do out[k] = v end
  for k, v in pairs(b) do out[k] = v end
  return out
end

local FORMATS = {
  {dtype = "f32"}, {dtype = "bf16"}, {dtype = "f16"}, {dtype = "f8"}, {dtype = "f4"},
  {dtype = "f8", scale = "e8m0", block = {128, 128}}, {dtype = "f8", scale = "f32", block = {128, 128}},
  {dtype = "f8", scale = "f32", block = {3, 64}}, {dtype = "f8", scale = "e8m0", block = {2, 7}},
  {dtype = "f4", scale = "e8m0", block = {1, 32}}, {dtype = "f4", scale = "f32", block = {1, 32}},
  {dtype = "f4", scale = "f32", block = {5, 6}}, {dtype = "f4", scale = "f32", block = {2, 128}},
  {dtype = "bf16", scale = "f32", block = {4, 64}}, {dtype = "f16", scale = "f32", block = {4, 96}},
  {dtype = "f32", scale = "f32", block = {4, 10}},
}

local function each_format(fn)
  for _, format in ipairs(FORMATS) do
    for _, compute in ipairs {F32, BF16} do
      local what = ("%s scale %s %s compute %d"):format(format.dtype, format.scale,
        format.block and table.concat(format.block, "x"), compute)
      fn(merged(format, {compute = compute}), what)
    end
  end
end

describe("linear", function()
  it("multiplies every format on ragged shapes by one token", function()
    support.for_each_cpu_level(function(_, level)
      each_format(function(format, what)
        for _, shape in ipairs {{1, 2}, {3, 64}, {5, 130}, {17, 30}, {6, 514}, {9, 384}} do
          local e = measured(merged(format, {rows = shape[1], cols = shape[2], tokens = 1}))
          assert.is_true(e <= 1e-6, ("%s %s [%d, %d]: %g"):format(level, what, shape[1], shape[2], e))
        end
      end)
    end)
  end)

  it("multiplies every format by any number of tokens", function()
    support.for_each_cpu_level(function(_, level)
      each_format(function(format, what)
        for _, cols in ipairs {192, 194} do
          for _, tokens in ipairs {2, 3, 4, 5, 6, 7, 8, 9, 17, 50, 101} do
            local e = measured(merged(format, {rows = 11, cols = cols, tokens = tokens, x_extra = 5, y_extra = 3}))
            assert.is_true(e <= 1e-6, ("%s %s %d columns, %d tokens: %g"):format(level, what, cols, tokens, e))
          end
        end
      end)
    end)
  end)

  it("multiplies small numbers of more columns than a tile has", function()
    support.for_each_cpu_level(function(_, level)
      each_format(function(format, what)
        if format.dtype ~= "f8" and format.dtype ~= "f4" then return end
        for _, tokens in ipairs {5, 50} do
          local e = measured(merged(format, {rows = 14, cols = 704, tokens = tokens, x_extra = 5, y_extra = 3}))
          assert.is_true(e <= 1e-6, ("%s %s %d tokens: %g"):format(level, what, tokens, e))
        end
      end)
    end)
  end)

  it("gives a token the same bits among any few others", function()
    support.for_each_cpu_level(function(_, level)
      each_format(function(format, what)
        if format.dtype ~= "f8" and format.dtype ~= "f4" then return end
        local rows, cols, most = 101, 640, 45
        if cols % (format.block and format.block[2] or 32) ~= 0 or format.block and format.block[2] % 32 ~= 0 then return end
        local w = weight(merged(format, {rows = rows, cols = cols}))
        local x = support.normals(cols * most, 5)
        local all, some = support.buffer("float", rows * most), support.buffer("float", rows * most)
        check(run(all, x, w, most, 0, rows, cols, rows, format.compute))
        for _, tokens in ipairs {5, 6, 8, 23} do
          check(run(some, x + (most - tokens) * cols, w, tokens, 0, rows, cols, rows, format.compute))
          assert.is_true(support.same_bits(all + (most - tokens) * rows, some, 4 * rows * tokens), level .. " " .. what)
        end
      end)
    end)
  end)

  it("multiplies by scales up to the largest", function()
    support.for_each_cpu_level(function(_, level)
      for _, tokens in ipairs {1, 6, 101} do
        for _, compute in ipairs {F32, BF16} do
          local w = weight{dtype = "f8", scale = "e8m0", block = {4, 64}, rows = 4, cols = 64}
          for i = 0, 255 do w.data[i] = i % 64 == 21 and 8 or 0 end      -- 2^-6
          w.scales[0] = 254
          local x, y = support.buffer("float", 64 * tokens), support.buffer("float", 4 * tokens)
          for i = 0, 64 * tokens - 1 do x[i] = 1 end
          check(run(y, x, w, tokens, 0, 4, 64, 4, compute))
          for i = 0, 4 * tokens - 1 do assert.are.equal(2 ^ 121, y[i], level) end
        end
      end
    end)
  end)

  it("takes odd columns where the format can", function()
    support.for_each_cpu_level(function(_, level)
      for _, dtype in ipairs {"f32", "bf16", "f16", "f8"} do
        for _, compute in ipairs {F32, BF16} do
          for _, cols in ipairs {1, 15, 33, 63, 129} do
            for _, tokens in ipairs {1, 3, 101} do
              local e = measured{dtype = dtype, rows = 5, cols = cols, tokens = tokens, compute = compute}
              assert.is_true(e <= 1e-6, ("%s %s %d columns, %d tokens: %g"):format(level, dtype, cols, tokens, e))
            end
          end
        end
      end
    end)
  end)

  it("takes a range of rows that starts within a block of scales", function()
    support.for_each_cpu_level(function(_, level)
      each_format(function(format, what)
        for _, cols in ipairs {160, 192} do
          for _, tokens in ipairs {1, 4, 101} do
            local o = {rows = 200, cols = cols, from = 115, take = 21, tokens = tokens, y_extra = 2}
            local e = measured(merged(format, o))
            assert.is_true(e <= 1e-6, ("%s %s %d columns, %d tokens: %g"):format(level, what, cols, tokens, e))
          end
        end
      end)
    end)
  end)

  it("decodes every code of fp8 and fp4 exactly", function()
    support.for_each_cpu_level(function(_, level)
      for _, compute in ipairs {F32, BF16} do
        for _, tokens in ipairs {1, 6, 101} do
          local w = weight{dtype = "f8", rows = 256, cols = 64}
          for r = 0, 255 do for c = 0, 63 do w.data[r * 64 + c] = c == 19 and r or 0 end end
          local x, y = support.buffer("float", 64 * tokens), support.buffer("float", 256 * tokens)
          for i = 0, tokens - 1 do x[i * 64 + 19] = 1 end
          check(run(y, x, w, tokens, 0, 256, 64, 256, compute))
          for t = 0, tokens - 1 do
            for r = 0, 255 do
              local want, got = e4m3(r), y[t * 256 + r]
              assert.is_true(want == got or (want ~= want and got ~= got), ("%s: code %d gives %g"):format(level, r, got))
            end
          end
          w = weight{dtype = "f4", rows = 256, cols = 2}
          for r = 0, 255 do w.data[r] = r end
          for i = 0, 2 * tokens - 1 do x[i] = i % 2 == 0 and 1 or 16 end
          check(run(y, x, w, tokens, 0, 256, 2, 256, compute))
          for r = 0, 255 do assert.are.equal(e2m1(r % 16) + 16 * e2m1(floor(r / 16)), y[r], level) end
        end
      end
    end)
  end)

  it("keeps NaN and infinity in their own row and token", function()
    support.for_each_cpu_level(function()
      for _, dtype in ipairs {"f32", "bf16", "f16"} do
        for _, tokens in ipairs {1, 3, 101} do
          for _, compute in ipairs {F32, BF16} do
            local w = weight{dtype = dtype, rows = 6, cols = 70}
            local codes = {f32 = {nan, inf}, bf16 = {0x7fc0, 0x7f80}, f16 = {0x7e00, 0x7c00}}
            w.data[1 * 70 + 69], w.data[4 * 70 + 3] = codes[dtype][1], codes[dtype][2]
            local x, y = support.buffer("float", tokens * 70), support.buffer("float", tokens * 6)
            for i = 0, tokens * 70 - 1 do x[i] = 0.5 end
            x[(tokens - 1) * 70 + 11] = tokens > 1 and nan or 0.5
            check(run(y, x, w, tokens, 0, 6, 70, 6, compute))
            for t = 0, tokens - 1 do
              for r = 0, 5 do
                local got, bad = y[t * 6 + r], tokens > 1 and t == tokens - 1
                if r == 1 or bad then assert.is_true(got ~= got)
                elseif r == 4 then assert.are.equal(inf, got)
                else assert.is_true(abs(got) < 100) end
              end
            end
          end
        end
      end
    end)
  end)

  it("gives zeros for no columns and nothing for no tokens or rows", function()
    support.for_each_cpu_level(function()
      for _, tokens in ipairs {1, 101} do
        local w = weight{dtype = "bf16", rows = 3, cols = 0}
        local x, y = support.buffer("float", 0), support.buffer("float", 3 * tokens)
        for i = 0, 3 * tokens - 1 do y[i] = 5 end
        check(run(y, x, w, tokens, 0, 3, 0, 3, F32))
        for i = 0, 3 * tokens - 1 do assert.are.equal(0, y[i]) end
      end
      local w = weight{dtype = "bf16", rows = 3, cols = 8}
      local none = support.buffer("float", 0)
      check(run(none, none, w, 0, 0, 3, 8, 3, F32))
      check(run(none, none, w, 0, 3, 0, 8, 3, F32))
    end)
  end)

  it("gives the same bits for any number of threads and any range of rows", function()
    support.for_each_cpu_level(function()
      each_format(function(format, what)
        local rows, cols = 131, 640
        local w = weight(merged(format, {rows = rows, cols = cols}))
        local x = support.normals(cols * 13, 5)
        for _, tokens in ipairs {1, 2, 13} do
          local all, part = support.buffer("float", rows * tokens), support.buffer("float", rows * tokens)
          C.lsa_threads_set(1)
          check(run(all, x, w, tokens, 0, rows, cols, rows, format.compute))
          C.lsa_threads_set(3)
          check(run(part, x, w, tokens, 0, rows, cols, rows, format.compute))
          C.lsa_threads_set(0)
          assert.is_true(support.same_bits(all, part, 4 * rows * tokens), what)
          for from = 0, rows - 1, 43 do
            check(run(part + from, x, w, tokens, from, math.min(43, rows - from), cols, rows, format.compute))
          end
          assert.is_true(support.same_bits(all, part, 4 * rows * tokens), what)
        end
      end)
    end)
  end)

  it("needs no more workspace for fewer tokens", function()
    for _, dtype in ipairs {"f32", "bf16", "f8"} do
      for _, shape in ipairs {{1, 4096}, {3, 70}, {4096, 64}} do
        for _, compute in ipairs {F32, BF16} do
          local w = ffi.new "lsa_weight"
          w.rows, w.cols, w.dtype = shape[1], shape[2], DTYPES[dtype]
          for tokens = 1, 200 do
            assert.is_true(C.lsa_linear_workspace(w, tokens, shape[1], compute)
              >= C.lsa_linear_workspace(w, tokens - 1, shape[1], compute))
          end
        end
      end
    end
  end)

  it("needs no more workspace for a million tokens than for ten thousand", function()
    for _, dtype in ipairs {"f32", "bf16", "f8"} do
      local w = ffi.new "lsa_weight"
      w.rows, w.cols, w.dtype = 129280, 4096, DTYPES[dtype]
      for _, compute in ipairs {F32, BF16} do
        local many = C.lsa_linear_workspace(w, 1000000, 129280, compute)
        assert.is_true(many == C.lsa_linear_workspace(w, 10000, 129280, compute))
        assert.is_true(many <= 64 * 2 ^ 20)
      end
    end
  end)

  it("gives the values of any rows", function()
    support.for_each_cpu_level(function(_, level)
      for _, format in ipairs(FORMATS) do
        for _, shape in ipairs {{5, 2}, {9, 130}, {40, 64}, {131, 390}, {3, 0}} do
          local rows, cols = shape[1], shape[2]
          local w = weight(merged(format, {rows = rows, cols = cols}))
          for from = 0, rows - 1, 3 do
            local n = math.min(3, rows - from)
            local out = support.buffer("float", n * cols)
            check(C.lsa_weight_rows(out, w.c, from, n))
            assert.is_true(support.same_bits(out, w.values + from * cols, 4 * n * cols),
              ("%s %s [%d, %d]"):format(level, format.dtype, rows, cols))
          end
        end
      end
    end)
    local w = weight{dtype = "f32", rows = 4, cols = 8}
    assert.are.equal(C.LSA_ESHAPE, C.lsa_weight_rows(nil, w.c, 3, 2))
    assert.is_truthy(ffi.string(C.lsa_error()):find("weight_rows: rows 3 .. 5 of a weight [4, 8]", 1, true))
  end)

  it("names what is wrong with a call", function()
    local w = weight{dtype = "f32", rows = 4, cols = 8}
    local x, y = support.buffer("float", 16), support.buffer("float", 8)
    local function fails(code, pattern, ...)
      assert.are.equal(code, run(y, x, w, ...))
      assert.is_truthy(ffi.string(C.lsa_error()):find(pattern, 1, true))
    end
    fails(C.LSA_ESHAPE, "rows 2 .. 5 of a weight [4, 8]", 1, 2, 3, 8, 3, F32)
    fails(C.LSA_ESHAPE, "x_stride 7 of 8 columns", 2, 0, 4, 7, 4, F32)
    fails(C.LSA_EARG, "compute 9", 1, 0, 4, 8, 4, 9)
    w.c.dtype = C.LSA_I32
    fails(C.LSA_EDTYPE, "weight dtype 7", 1, 0, 4, 8, 4, F32)
    w.c.dtype, w.c.cols = C.LSA_F4_E2M1, 7
    fails(C.LSA_ESHAPE, "odd number of columns, 7", 1, 0, 4, 8, 4, F32)
    w.c.dtype, w.c.cols, w.c.scale, w.c.scale_dtype = C.LSA_F8_E4M3, 8, x, C.LSA_I8
    fails(C.LSA_EDTYPE, "scale dtype 5", 1, 0, 4, 8, 4, F32)
    w.c.scale_dtype = C.LSA_F32
    fails(C.LSA_ESHAPE, "scale blocks of 0 x 0", 1, 0, 4, 8, 4, F32)
  end)
end)
