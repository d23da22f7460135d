local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0
local bytes_of = { [0] = 4, 2, 2, 1, 1, 1, 1, 4, 8, 8 }
local ctype = { [0] = "uint32_t", "uint16_t", "uint16_t", "uint8_t", "uint8_t", "int8_t", "uint8_t", "int32_t", "int64_t", "uint64_t" }
local name = { [0] = "f32", "bf16", "f16", "f8_e4m3", "f8_e8m0", "i8", "u8", "i32", "i64", "f64" }
local integer_range = {
  [C.LSA_I8] = { -128LL, 127LL }, [C.LSA_U8] = { 0LL, 255LL }, [C.LSA_I32] = { -2147483648LL, 2147483647LL },
  [C.LSA_I64] = { -0x7fffffffffffffffLL - 1, 0x7fffffffffffffffLL },
}
-- Significant bits, the smallest normal exponent, the largest number.
local float = {
  [C.LSA_F32] = { 24, -126, (2 - 2 ^ -23) * 2 ^ 127 }, [C.LSA_BF16] = { 8, -126, (2 - 2 ^ -7) * 2 ^ 127 },
  [C.LSA_F16] = { 11, -14, 65504 }, [C.LSA_F64] = { 53, -1022, (2 - 2 ^ -52) * 2 ^ 1023 }, [C.LSA_F8_E4M3] = { 4, -6, 448 },
}

-- The number that a code of `width` exponent bits and `digits` mantissa bits stands for, had it no special codes.
local function ieee(code, width, digits)
  local magnitude = code % 2 ^ (width + digits)
  local e, m = math.floor(magnitude / 2 ^ digits), magnitude % 2 ^ digits
  local bias = 2 ^ (width - 1) - 1
  local x = e == 0 and m * 2 ^ (1 - bias - digits) or (m + 2 ^ digits) * 2 ^ (e - bias - digits)
  return magnitude == code and x or -x, e, m
end

local function special(code, width, digits)
  local x, e, m = ieee(code, width, digits)
  if e < 2 ^ width - 1 then return x end
  return m ~= 0 and NAN or x > 0 and INF or -INF
end

local value = {
  [C.LSA_F32] = function(c) return special(c, 8, 23) end,
  [C.LSA_BF16] = function(c) return special(c, 8, 7) end,
  [C.LSA_F16] = function(c) return special(c, 5, 10) end,
  [C.LSA_F8_E4M3] = function(c) return c % 128 == 127 and NAN or (ieee(c, 4, 3)) end,
  [C.LSA_F8_E8M0] = function(c) return c == 255 and NAN or 2 ^ (c - 127) end,
  [C.LSA_F64] = function(c)
    local bits = ffi.new("uint64_t[1]", c)
    local words = ffi.cast("uint32_t *", bits)
    local high = words[1] % 2 ^ 31
    if high > 0x7ff00000 or high == 0x7ff00000 and words[0] ~= 0 then return NAN end
    return ffi.cast("double *", bits)[0]
  end,
}
local fp4 = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6 }

local function nearest_even(q)   -- |q| < 2^51
  return q + 1.5 * 2 ^ 52 - 1.5 * 2 ^ 52
end

local function round_float(x, dtype)
  local p, lowest, most = unpack(float[dtype])
  if x ~= x or x == 0 or dtype == C.LSA_F64 then return x end
  local magnitude = math.abs(x)
  if magnitude < INF then
    local _, e = math.frexp(x)
    local quantum = 2 ^ (math.max(e - 1, lowest) - (p - 1))
    magnitude = nearest_even(magnitude / quantum) * quantum
  end
  if magnitude > most then magnitude = dtype == C.LSA_F8_E4M3 and most or INF end
  return x < 0 and -magnitude or magnitude
end

local function round_exponent(x)
  if x == 0 then return 2 ^ -127 end
  if not (x > 0 and x < INF) then return NAN end
  local m, e = math.frexp(x)               -- m in [0.5, 1)
  if e - 1 < -127 then return 2 ^ -127 end
  local up = m > 0.75 or (m == 0.75 and e - 1 >= -126)
  if e - 1 == -127 then up = m > 0.5 end   -- 2^-127 is 0.1b of the subnormals: all above it is over the half
  return e - 1 + (up and 1 or 0) > 127 and NAN or 2 ^ (e - 1 + (up and 1 or 0))
end

local function round_integer(x, dtype)
  local range = integer_range[dtype]
  if x ~= x then return 0LL end
  if x >= tonumber(range[2]) then return range[2] end
  if x <= tonumber(range[1]) then return range[1] end
  return ffi.cast("int64_t", x)
end

-- An int64 rounded to p bits, as a Lua number; or to a power of two (p = nil).
local function round_i64(v, p)
  local u, bits = v < 0 and ffi.cast("uint64_t", -v) or ffi.cast("uint64_t", v), 0
  while bits < 64 and u / 2ULL ^ bits > 0 do bits = bits + 1 end
  local function divmod(k)
    local unit = 2ULL ^ k
    return u / unit, u % unit, unit
  end
  if not p then
    if v < 0 then return NAN elseif v == 0 then return 2 ^ -127 end
    return 2 ^ (bits - 1 + (bits > 1 and tonumber(u / 2ULL ^ (bits - 2) % 2ULL) or 0))
  end
  if bits <= p then return tonumber(v) end
  local q, rest, unit = divmod(bits - p)
  local half = unit / 2
  if rest > half or (rest == half and q % 2 == 1) then q = q + 1 end
  return tonumber(q) * 2 ^ (bits - p) * (v < 0 and -1 or 1)
end

local function expected(source, from, to)
  if integer_range[from] and integer_range[to] then
    local range = integer_range[to]
    return source < range[1] and range[1] or source > range[2] and range[2] or source
  elseif integer_range[from] then
    if to == C.LSA_F8_E8M0 then return round_i64(source) end
    return round_float(round_i64(source, float[to][1]), to)
  elseif integer_range[to] then return round_integer(source, to)
  elseif to == C.LSA_F8_E8M0 then return round_exponent(source)
  else return round_float(source, to) end
end

local function same(got, want)
  if type(got) == "cdata" then return got == want end
  return (got == want and 1 / got == 1 / want) or (got ~= got and want ~= want)
end

-- Every code of the small types; ties, their neighbours and the ends of the ranges of the large ones.
local function codes(dtype)
  local list = {}
  if bytes_of[dtype] <= 2 then
    local first = dtype == C.LSA_I8 and -128 or 0
    for c = 0, 256 ^ bytes_of[dtype] - 1 do list[#list + 1] = first + c end
  elseif dtype == C.LSA_F32 then
    local u = support.uniform(11)
    local low = { 0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1000, 0x0fff, 0x1001, 0x3000 }
    for high = 0, 0xffff, 7 do
      for _, c in ipairs(low) do list[#list + 1] = high * 65536 + c end
      list[#list + 1] = high * 65536 + math.floor(u() * 65536)
    end
    for exponent = 0, 255 do               -- ties of e4m3 and e8m0, with the bits around them
      for top = 0, 31 do
        for _, rest in ipairs { 0, 1, 0x3ffff } do
          list[#list + 1] = (exponent * 32 + top) * 2 ^ 18 + rest
          list[#list + 1] = 2 ^ 31 + (exponent * 32 + top) * 2 ^ 18 + rest
        end
      end
    end
    for _, c in ipairs { 0x7f800000, 0xff800000, 0x7f800001, 0x7fffffff, 0xffc00000, 0xff800001, 0x7f7fffff, 0x80000000, 0x80000001,
                         0x477fefff, 0x477ff000, 0x43e80000, 0x43e80001, 0x4effffff, 0x4f000000, 0x5effffff, 0x5f000000, 0xdf000000 } do
      list[#list + 1] = c
    end
  elseif dtype == C.LSA_F64 then
    local box = ffi.new "double[1]"
    local function add(x)
      box[0] = x
      list[#list + 1] = ffi.cast("uint64_t *", box)[0]
    end
    local u = support.uniform(13)
    for exponent = -160, 140 do            -- ties of every float, with what breaks them a digit of f64 away
      for _, top in ipairs { 1, 1.0625, 1.125, 1.1875, 1 + 2 ^ -11, 1 + 3 * 2 ^ -11, 1 + 2 ^ -8, 1 + 3 * 2 ^ -8, 1 + 2 ^ -24, 1 + 3 * 2 ^ -24,
                             1.5, 1.75, 2 - 2 ^ -24, 2 - 2 ^ -52, 1 + u() } do
        for _, rest in ipairs { -2 ^ -52, 0, 2 ^ -52 } do
          add((top + rest) * 2 ^ exponent)
          add(-(top + rest) * 2 ^ exponent)
        end
      end
    end
    for _, x in ipairs { 0, -0.0, INF, -INF, NAN, 1e308, -1e308, 5e-324, -5e-324, 2 ^ 63, -2 ^ 63, 2 ^ 53 + 2, 2 ^ 31 - 0.5, 255.5, -0.5 } do add(x) end
  else
    local range = integer_range[dtype]
    for k = 0, bytes_of[dtype] * 8 - 2 do
      for _, pattern in ipairs { 1, 3, 257, 129, 131, 385, 2049, 2051, 4097, 9, 11, 2 ^ 24 + 1, 2 ^ 25 + 3, 2 ^ 25 + 2 } do
        for d = -1, 1 do
          local v = 2LL ^ k * pattern + d
          if pattern * 2 ^ k < 2 ^ (bytes_of[dtype] * 8 - 2) then
            list[#list + 1], list[#list + 2] = v, -v
          end
        end
      end
    end
    for d = 0, 2 do
      list[#list + 1], list[#list + 2] = range[1] + d, range[2] - d
    end
    list[#list + 1] = 0LL
  end
  return support.array(ctype[dtype], list), #list
end

local function source_value(dtype, code)
  if integer_range[dtype] then return ffi.cast("int64_t", code) end
  return value[dtype](code)
end

local function on_every_path(from, to, input, n)
  local first
  support.for_each_cpu_level(function(level)
    local out = support.buffer(ctype[to], n)
    check(C.lsa_convert_cpu(out, input, n, to, from, nil))
    first = first or out
    assert.is_true(support.same_bits(first, out, n * bytes_of[to]), ("path %d differs"):format(level))
  end)
  return first
end

describe("convert", function()
  for from = 0, C.LSA_DTYPES - 1 do
    for to = 0, C.LSA_DTYPES - 1 do
      it(("gives the standard's %s for %s on every path"):format(name[to], name[from]), function()
        local input, n = codes(from)
        local out = on_every_path(from, to, input, n)
        if from == to then return assert.is_true(support.same_bits(out, input, n * bytes_of[to])) end
        for i = 0, n - 1 do
          local got, want = source_value(to, out[i]), expected(source_value(from, input[i]), from, to)
          if not same(got, want) then
            error(("%s %s gives %s, not %s"):format(name[from], input[i], tostring(got), tostring(want)))
          end
        end
      end)
    end
  end

  it("unpacks fp4, low nibble first, to every dtype", function()
    local input = support.buffer("uint8_t", 256)
    for c = 0, 255 do input[c] = c end
    for to = 0, C.LSA_DTYPES - 1 do
      local out = on_every_path(C.LSA_F4_E2M1, to, input, 512)
      for c = 0, 255 do
        assert.is_true(same(source_value(to, out[2 * c]), expected(fp4[c % 16], C.LSA_F4_E2M1, to)))
        assert.is_true(same(source_value(to, out[2 * c + 1]), expected(fp4[math.floor(c / 16)], C.LSA_F4_E2M1, to)))
      end
    end
  end)

  it("keeps NaN's sign and quiets it, with e4m3's only NaN codes", function()
    local input = support.array("uint32_t", { 0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff })
    local e4m3 = on_every_path(C.LSA_F32, C.LSA_F8_E4M3, input, 4)
    assert.are.same({ 0x7f, 0xff, 0x7f, 0xff }, { e4m3[0], e4m3[1], e4m3[2], e4m3[3] })
    local bf16 = on_every_path(C.LSA_F32, C.LSA_BF16, input, 4)
    assert.are.same({ 0x7fc0, 0xffc0, 0x7fff, 0xffff }, { bf16[0], bf16[1], bf16[2], bf16[3] })
  end)

  it("treats every number alike, whatever its place, the length or the number of threads", function()
    local n = 200003
    local input, u = support.buffer("uint8_t", 8 * n), support.uniform(5)
    for i = 0, 8 * n - 1 do input[i] = u(0, 256) end
    for _, pair in ipairs { { 0, 1 }, { 0, 3 }, { 1, 0 }, { 2, 1 }, { 3, 0 }, { 8, 2 }, { 8, 5 }, { 0, 8 } } do
      local from, to = pair[1], pair[2]
      local start = input + 8 * n - bytes_of[from] * n
      C.lsa_threads_set(1)
      local whole = support.buffer(ctype[to], n)
      check(C.lsa_convert_cpu(whole, start, n, to, from, nil))
      C.lsa_threads_set(3)
      local threaded = support.buffer(ctype[to], n)
      check(C.lsa_convert_cpu(threaded, start, n, to, from, nil))
      C.lsa_threads_set(0)
      assert.is_true(support.same_bits(whole, threaded, n * bytes_of[to]))
      for _, length in ipairs { 0, 1, 2, 15, 16, 17, 33, 511, 512, 513, 1027 } do
        local tail = on_every_path(from, to, start + (n - length) * bytes_of[from], length)
        assert.is_true(support.same_bits(tail, whole + (n - length), length * bytes_of[to]))
      end
    end
  end)

  it("takes memory that is not aligned to its elements", function()
    local input, out = support.buffer("uint8_t", 4 * 100 + 1), support.buffer("uint8_t", 2 * 100 + 1)
    local floats = support.normals(100, 9)
    ffi.copy(input, floats, 400)   -- the buffer starts at an odd address
    check(C.lsa_convert_cpu(out + 1, input, 100, C.LSA_BF16, C.LSA_F32, nil))
    local aligned = on_every_path(C.LSA_F32, C.LSA_BF16, floats, 100)
    assert.is_true(support.same_bits(out + 1, aligned, 200))
  end)

  it("refuses unknown dtypes, fp4 as a result, half bytes and negative lengths", function()
    local a, b = support.buffer("uint8_t", 64), support.buffer("uint8_t", 64)
    local function fails(code, n, to, from)
      assert.are.equal(tonumber(code), C.lsa_convert_cpu(a, b, n, to, from, nil))
      assert.is_truthy(ffi.string(C.lsa_error()):find "^convert: ")
    end
    fails(C.LSA_EDTYPE, 1, C.LSA_F4_E2M1, C.LSA_F32)
    fails(C.LSA_EDTYPE, 1, C.LSA_F32, 11)
    fails(C.LSA_EDTYPE, 1, -1, C.LSA_F32)
    fails(C.LSA_EDTYPE, 1, C.LSA_F32, -1)
    fails(C.LSA_ESHAPE, 3, C.LSA_F32, C.LSA_F4_E2M1)
    fails(C.LSA_EARG, -1, C.LSA_F32, C.LSA_BF16)
  end)
end)
