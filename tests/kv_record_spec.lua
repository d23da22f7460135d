local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local F32, BF16, FP8 = C.LSA_KV_F32, C.LSA_KV_BF16, C.LSA_KV_FP8
local INF, NAN = math.huge, 0 / 0
local word = ffi.new "union { float f; uint32_t u; uint8_t bytes[4]; }"

-- The oracle: bytes made with Lua's doubles.

local function f32(x)
  word.f = x
  return tonumber(word.f)
end

local function nearest_even(q) return q + 1.5 * 2 ^ 52 - 1.5 * 2 ^ 52 end

local function e4m3(x)
  local sign = (x < 0 or 1 / x < 0) and 128 or 0
  local a = math.abs(x)
  if a == 0 then return sign end
  local _, e = math.frexp(a)
  local quantum = 2 ^ (math.max(e - 1, -6) - 3)
  a = nearest_even(a / quantum) * quantum
  if a > 448 then return sign + 126 end
  if a < 2 ^ -6 then return sign + a / 2 ^ -9 end
  _, e = math.frexp(a)
  return sign + (e - 1 + 7) * 8 + a / 2 ^ (e - 4) - 8
end

local function e4m3_value(code)
  local m, e = code % 8, math.floor(code / 8) % 16
  if code % 128 == 127 then return NAN end
  local x = e == 0 and m * 2 ^ -9 or (8 + m) * 2 ^ (e - 10)
  return code < 128 and x or -x
end

local function bf16(x)
  word.f = x
  local u = word.u
  if x ~= x then return bit.bor(bit.rshift(u, 16), 0x40) end
  return nearest_even(u / 65536)   -- magnitudes grow with their bits, so rounding the bits rounds the number
end

local function amax(x, from, n)
  local most = 1e-4
  for i = from, from + n - 1 do
    local a = math.abs(x[i])
    if a ~= a or a == INF then return NAN end
    most = math.max(most, a)
  end
  return most
end

local function kv_record(x, dim, rope)
  local bytes, scales, nope = {}, {}, dim - rope
  for from = 0, nope - 1, 64 do
    local n = math.min(64, nope - from)
    local most, e = amax(x, from, n), -127
    while 448 * 2 ^ e < most do e = e + 1 end
    scales[#scales + 1] = most == most and e + 127 or 255
    for i = from, from + n - 1 do bytes[#bytes + 1] = most == most and e4m3(x[i] / 2 ^ e) or 0x7f end
  end
  for i = nope, dim - 1 do
    local h = bf16(x[i])
    bytes[#bytes + 1], bytes[#bytes + 2] = h % 256, math.floor(h / 256)
  end
  for _, s in ipairs(scales) do bytes[#bytes + 1] = s end
  while #bytes % 8 ~= 0 do bytes[#bytes + 1] = 0 end
  return bytes
end

local function index_key(rotated, dim)
  local bytes, most = {}, amax(rotated, 0, dim)
  if most > 1e-4 then most = f32(most) else most = f32(1e-4) end
  local scale = f32(most / 448)
  for i = 0, dim - 1 do bytes[i + 1] = e4m3(f32(rotated[i] / scale)) end
  word.f = scale
  for i = 0, 3 do bytes[#bytes + 1] = word.bytes[i] end
  return bytes
end

-- What every path agrees on; the bytes between records keep the filling.
local FILL = 0xa5

local function encode(x, n, dim, rope, stride, format)
  local first
  local bytes = tonumber(rope and C.lsa_kv_record_bytes(format, dim, rope) or C.lsa_index_key_bytes(format, dim))
  local size = n > 0 and (n - 1) * stride + bytes or 0
  support.for_each_cpu_level(function()
    local out = support.buffer("uint8_t", size)
    ffi.fill(out, size, FILL)
    if rope then check(C.lsa_kv_encode_cpu(out, x, n, dim, rope, stride, format, nil))
    else check(C.lsa_index_encode_cpu(out, x, n, dim, stride, format, nil)) end
    first = first or out
    assert.is_true(support.same_bits(first, out, size))
  end)
  return first, size, bytes
end

local function decode(records, n, dim, rope, stride, format)
  local first
  support.for_each_cpu_level(function()
    local out = support.buffer("float", n * dim)
    if rope then check(C.lsa_kv_decode_cpu(out, records, n, dim, rope, stride, format, nil))
    else check(C.lsa_index_decode_cpu(out, records, n, dim, stride, format, nil)) end
    first = first or out
    assert.is_true(support.same_bits(first, out, n * dim * 4))
  end)
  return first
end

local function expect_bytes(got, want, what)
  for i = 1, #want do
    if got[i - 1] ~= want[i] then error(("%s: byte %d is %d, not %d"):format(what, i - 1, got[i - 1], want[i])) end
  end
end

-- Rows whose tiles differ by many powers of two: plain, tiny, huge, zero, subnormal.
local function varied(n, dim, seed)
  local x, u = support.normals(n * dim, seed), support.uniform(seed + 1)
  for i = 0, n * dim - 1, 16 do
    local scale = 2 ^ math.floor(u(-140, 120))
    local kind = u()
    for j = i, math.min(i + 15, n * dim - 1) do
      if kind < 0.4 then x[j] = x[j] * scale elseif kind < 0.5 then x[j] = u() < 0.5 and 0 or -0.0 end
    end
  end
  return x
end

local shapes = { { 512, 64 }, { 64, 16 }, { 128, 0 }, { 64, 64 }, { 65, 0 }, { 70, 6 }, { 193, 1 }, { 1, 0 }, { 1, 1 }, { 127, 63 } }

describe("attention KV record", function()
  it("has the bytes of its format", function()
    local function bytes(...) return tonumber(C.lsa_kv_record_bytes(...)) end
    assert.are.equal(584, bytes(FP8, 512, 64))
    assert.are.equal(88, bytes(FP8, 64, 16))    -- 48 + 32 + 1, padded
    assert.are.equal(128, bytes(FP8, 64, 64))   -- no tile, no padding
    assert.are.equal(72, bytes(FP8, 65, 0))     -- 65 + 2 tiles, padded
    assert.are.equal(2048, bytes(F32, 512, 64))
    assert.are.equal(1024, bytes(BF16, 512, 64))
    for _, wrong in ipairs { { 3, 512, 64 }, { -1, 512, 64 }, { FP8, 0, 0 }, { FP8, 64, 65 }, { FP8, 64, -1 } } do
      assert.are.equal(0, bytes(unpack(wrong)))
    end
  end)

  for _, shape in ipairs(shapes) do
    local dim, rope = shape[1], shape[2]
    it(("stores %d values, %d of them rotated, as the format says, and touches nothing else"):format(dim, rope), function()
      for _, extra in ipairs { 0, 1, 56 } do
        local n, x = 9, varied(9, dim, dim + rope + extra)
        local stride = tonumber(C.lsa_kv_record_bytes(FP8, dim, rope)) + extra
        local out, size, bytes = encode(x, n, dim, rope, stride, FP8)
        for i = 0, n - 1 do
          expect_bytes(out + i * stride, kv_record(x + i * dim, dim, rope), "record " .. i)
          for gap = i * stride + bytes, math.min((i + 1) * stride, size) - 1 do assert.are.equal(FILL, out[gap]) end
        end
      end
    end)

    it(("reads %d values, %d of them rotated, back to within fp8's rounding"):format(dim, rope), function()
      local n, x = 5, varied(5, dim, 3 * dim + rope)
      local stride = tonumber(C.lsa_kv_record_bytes(FP8, dim, rope)) + 8
      local out = decode((encode(x, n, dim, rope, stride, FP8)), n, dim, rope, stride, FP8)
      for i = 0, n * dim - 1 do
        local column = i % dim
        local bound
        if column >= dim - rope then bound = math.max(math.abs(x[i]) * 2 ^ -8, 2 ^ -134)
        else
          local tile = math.floor(column / 64) * 64
          local most = amax(x + (i - column), tile, math.min(64, dim - rope - tile))
          bound = math.max(math.abs(x[i]) * 2 ^ -4, most * 2 ^ -17)   -- scale < amax / 224; half of 2^-9
        end
        assert.is_true(math.abs(out[i] - x[i]) <= bound)
      end
    end)
  end

  it("doubles the scale just past 448 times a power of two", function()
    for e = -22, 119 do
      local x = support.buffer("float", 2 * 64)
      x[3], word.f = -448 * 2 ^ e, 448 * 2 ^ e
      word.u = word.u + 1
      x[64 + 5] = word.f
      local out = encode(x, 2, 64, 0, 72, FP8)
      assert.are.equal(e + 127, out[64])
      assert.are.equal(0xfe, out[3])
      assert.are.equal(e + 128, out[72 + 64])
      assert.are.equal(0x76, out[72 + 5])          -- 224
    end
  end)

  it("gives an empty tile the scale of 1e-4 and zeros of the same sign", function()
    local x = support.buffer("float", 64)
    x[1] = -0.0
    local out = encode(x, 1, 64, 0, 72, FP8)
    assert.are.equal(127 - 22, out[64])
    assert.are.equal(0, out[0])
    assert.are.equal(0x80, out[1])
  end)

  it("turns a tile with a NaN or an infinity into NaN, and no other", function()
    for _, bad in ipairs { NAN, -NAN, INF, -INF } do
      local x = support.normals(2 * 512, 8)
      x[64 + 7] = bad
      local out = decode((encode(x, 2, 512, 64, 584, FP8)), 2, 512, 64, 584, FP8)
      for i = 0, 1023 do assert.are.equal(i >= 64 and i < 128, out[i] ~= out[i]) end
    end
  end)

  it("keeps NaN and infinity in the rotated part where they are", function()
    local x = support.normals(512, 8)
    x[460], x[470] = NAN, -INF
    local out = decode((encode(x, 1, 512, 64, 584, FP8)), 1, 512, 64, 584, FP8)
    for i = 0, 511 do assert.are.equal(i == 460, out[i] ~= out[i]) end
    assert.are.equal(-INF, out[470])
  end)

  it("decodes every e4m3 code under every scale", function()
    local records = support.buffer("uint8_t", 256 * 264)   -- 256 values, 4 scales, 4 bytes of padding
    for s = 0, 255 do
      for c = 0, 255 do records[s * 264 + c] = c end
      for t = 0, 3 do records[s * 264 + 256 + t] = (s + t) % 256 end
    end
    local out = decode(records, 256, 256, 0, 264, FP8)
    for s = 0, 255 do
      for c = 0, 255 do
        local byte = (s + math.floor(c / 64)) % 256
        local want = byte == 255 and NAN or e4m3_value(c) * 2 ^ (byte - 127)
        local got = out[s * 256 + c]
        assert.is_true(got == f32(want) or (got ~= got and want ~= want))
      end
    end
  end)

  it("keeps f32 as it is and rounds bf16 to nearest even", function()
    local n, dim = 7, 37
    local x = varied(n, dim, 5)
    x[3], x[4] = NAN, INF
    local exact = decode((encode(x, n, dim, 9, 4 * dim + 3, F32)), n, dim, 9, 4 * dim + 3, F32)
    assert.is_true(support.same_bits(exact, x, 4 * n * dim))
    local out = encode(x, n, dim, 9, 2 * dim + 1, BF16)
    local back = decode(out, n, dim, 9, 2 * dim + 1, BF16)
    for i = 0, n * dim - 1 do
      local at = math.floor(i / dim) * (2 * dim + 1) + i % dim * 2
      assert.are.equal(bf16(x[i]), out[at] + 256 * out[at + 1])
      word.u = (out[at] + 256 * out[at + 1]) * 65536
      assert.is_true(back[i] == word.f or (back[i] ~= back[i] and x[i] ~= x[i]))
    end
  end)

  it("gives a record the same bytes alone, in bulk and on several threads", function()
    local n, dim, rope, stride = 700, 512, 64, 584
    local x = varied(n, dim, 21)
    C.lsa_threads_set(3)
    local bulk = support.buffer("uint8_t", n * stride)
    check(C.lsa_kv_encode_cpu(bulk, x, n, dim, rope, stride, FP8, nil))
    local values = support.buffer("float", n * dim)
    check(C.lsa_kv_decode_cpu(values, bulk, n, dim, rope, stride, FP8, nil))
    C.lsa_threads_set(0)
    for i = 0, n - 1, 13 do
      local alone = encode(x + i * dim, 1, dim, rope, stride, FP8)
      assert.is_true(support.same_bits(alone, bulk + i * stride, stride))
      assert.is_true(support.same_bits(decode(alone, 1, dim, rope, stride, FP8), values + i * dim, 4 * dim))
    end
  end)

  it("refuses unknown formats, wrong dimensions and strides shorter than a record", function()
    local x, out = support.buffer("float", 64), support.buffer("uint8_t", 128)
    local function fails(code, message, ...)
      assert.are.equal(tonumber(code), C.lsa_kv_encode_cpu(out, x, ...))
      assert.are.equal("kv_encode: " .. message, ffi.string(C.lsa_error()))
      assert.are.equal(tonumber(code), C.lsa_kv_decode_cpu(x, out, ...))
      assert.are.equal("kv_decode: " .. message, ffi.string(C.lsa_error()))
    end
    fails(C.LSA_EDTYPE, "format 3 is unknown", 1, 64, 16, 88, 3, nil)
    fails(C.LSA_ESHAPE, "rope_dim is 65, dim is 64", 1, 64, 65, 88, FP8, nil)
    fails(C.LSA_ESHAPE, "rope_dim is -1, dim is 64", 1, 64, -1, 88, FP8, nil)
    fails(C.LSA_ESHAPE, "dim is 0", 1, 0, 0, 88, FP8, nil)
    fails(C.LSA_ESHAPE, "stride is 87, a record has 88 bytes", 1, 64, 16, 87, FP8, nil)
    fails(C.LSA_EARG, "n is -1", -1, 64, 16, 88, FP8, nil)
    check(C.lsa_kv_encode_cpu(nil, nil, 0, 64, 16, 88, FP8, nil))
    check(C.lsa_kv_decode_cpu(nil, nil, 0, 64, 16, 88, FP8, nil))
  end)
end)

describe("index key", function()
  local function rotated(x, n, dim)
    local out = support.buffer("float", n * dim)
    ffi.copy(out, x, 4 * n * dim)
    check(C.lsa_hadamard_cpu(out, n, dim, nil))
    return out
  end

  it("has the bytes of its format", function()
    local function bytes(...) return tonumber(C.lsa_index_key_bytes(...)) end
    assert.are.equal(132, bytes(FP8, 128))
    assert.are.equal(512, bytes(F32, 128))
    assert.are.equal(256, bytes(BF16, 128))
    assert.are.equal(0, bytes(3, 128))
    assert.are.equal(0, bytes(FP8, 0))
  end)

  for _, dim in ipairs { 128, 64, 32, 8, 1, 1024 } do
    it(("stores %d rotated values under one f32 scale, and touches nothing else"):format(dim), function()
      for _, extra in ipairs { 0, 1, 28 } do
        local n, stride = 70, dim + 4 + extra
        local x = varied(n, dim, dim + extra)
        local turned = rotated(x, n, dim)
        local out, size, bytes = encode(x, n, dim, nil, stride, FP8)
        for i = 0, n - 1 do
          expect_bytes(out + i * stride, index_key(turned + i * dim, dim), "key " .. i)
          for gap = i * stride + bytes, math.min((i + 1) * stride, size) - 1 do assert.are.equal(FILL, out[gap]) end
        end
      end
    end)
  end

  it("stores a rotation that is exact by hand", function()
    -- Ones rotate to (8, 0, ..., 0); alternating signs to the second place. The scale is 8 / 448.
    local x = support.buffer("float", 128)
    for i = 0, 63 do x[i], x[64 + i] = 1, i % 2 == 0 and -1 or 1 end
    local out = encode(x, 2, 64, nil, 68, FP8)
    for i = 0, 63 do
      assert.are.equal(i == 0 and 0x7e or 0, out[i] % 128)
      assert.are.equal(i == 1 and 0xfe or 0, out[68 + i] % 128 == 0 and 0 or out[68 + i])
    end
    for i = 0, 3 do word.bytes[i] = out[64 + i] end
    assert.are.equal(f32(8 / 448), tonumber(word.f))
  end)

  it("divides by the scale, not by a reciprocal", function()
    -- Keys that rotate to (a, b, 0, 0), b as near as f32 comes to a tie between two codes times the scale.
    local u, x = support.uniform(17), support.buffer("float", 4)
    local ties = { 232, 248, 272, 304, 336, 368, 400, 432 }
    local close = 0
    for _ = 1, 4000 do
      local a, tie = math.floor(u(2 ^ 23, 2 ^ 24)), ties[math.floor(u(1, 9))]
      local b = f32(tie * f32(a / 448))
      if b >= 2 ^ 23 and (a + b) % 2 == 0 then
        close = close + 1
        x[0], x[1] = (a + b) / 2, (a - b) / 2
        x[2], x[3] = x[0], x[1]
        expect_bytes(encode(x, 1, 4, nil, 8, FP8), index_key(support.array("float", { a, b, 0, 0 }), 4), "key")
      end
    end
    assert.is_true(close > 500)
  end)

  it("decodes every code with the key's scale, rotated as it is", function()
    local dim, n = 256, 6
    local keys = support.buffer("uint8_t", n * (dim + 5))
    local scales = { 1, 0.3, 1e-4 / 448, 2 ^ -140, 3e38, NAN }
    for i = 0, n - 1 do
      for c = 0, 255 do keys[i * (dim + 5) + c] = c end
      word.f = scales[i + 1]
      for b = 0, 3 do keys[i * (dim + 5) + dim + b] = word.bytes[b] end
    end
    local out = decode(keys, n, dim, nil, dim + 5, FP8)
    for i = 0, n - 1 do
      for c = 0, 255 do
        local got, want = out[i * dim + c], f32(e4m3_value(c) * f32(scales[i + 1]))
        assert.is_true(got == want or (got ~= got and want ~= want))
      end
    end
  end)

  it("rotates back to what was stored, to within fp8's rounding", function()
    local n, dim = 20, 128
    local x = support.normals(n * dim, 3)
    local out = decode((encode(x, n, dim, nil, 132, FP8)), n, dim, nil, 132, FP8)
    local back = rotated(out, n, dim)
    local wrong, size = 0, 0
    for i = 0, n * dim - 1 do wrong, size = wrong + (back[i] - x[i]) ^ 2, size + x[i] ^ 2 end
    assert.is_true(math.sqrt(wrong / size) <= 0.04)
    assert.is_true(math.sqrt(wrong / size) >= 0.005)
  end)

  it("turns a key with a NaN or an infinity into NaN, and no other", function()
    for _, bad in ipairs { NAN, INF, -INF } do
      local x = support.normals(3 * 128, 8)
      x[128 + 7] = bad
      local keys = encode(x, 3, 128, nil, 132, FP8)
      for i = 0, 127 do assert.are.equal(0x7f, keys[132 + i]) end
      local out = decode(keys, 3, 128, nil, 132, FP8)
      for i = 0, 383 do assert.are.equal(i >= 128 and i < 256, out[i] ~= out[i]) end
    end
  end)

  it("gives a zero key the scale of 1e-4", function()
    local out = encode(support.buffer("float", 128), 1, 128, nil, 132, FP8)
    for i = 0, 3 do word.bytes[i] = out[128 + i] end
    assert.are.equal(f32(f32(1e-4) / 448), tonumber(word.f))
    for i = 0, 127 do assert.are.equal(0, out[i] % 128) end
  end)

  it("keeps f32 and bf16 keys of any dimension unrotated", function()
    local n, dim = 3, 100
    local x = varied(n, dim, 6)
    local exact = decode((encode(x, n, dim, nil, 4 * dim, F32)), n, dim, nil, 4 * dim, F32)
    assert.is_true(support.same_bits(exact, x, 4 * n * dim))
    local out = encode(x, n, dim, nil, 2 * dim + 2, BF16)
    local back = decode(out, n, dim, nil, 2 * dim + 2, BF16)
    for i = 0, n * dim - 1 do
      word.u = bf16(x[i]) * 65536
      assert.are.equal(tonumber(word.f), tonumber(back[i]))
    end
  end)

  it("gives a key the same bytes alone, in bulk and on several threads", function()
    local n, dim, stride = 3000, 128, 132
    local x = support.normals(n * dim, 31)
    C.lsa_threads_set(3)
    local bulk = support.buffer("uint8_t", n * stride)
    check(C.lsa_index_encode_cpu(bulk, x, n, dim, stride, FP8, nil))
    C.lsa_threads_set(0)
    for i = 0, n - 1, 41 do
      assert.is_true(support.same_bits((encode(x + i * dim, 1, dim, nil, stride, FP8)), bulk + i * stride, stride))
    end
  end)

  it("refuses fp8 of dimensions that are no power of two, or above 4096, and short strides", function()
    local x, out = support.buffer("float", 8192), support.buffer("uint8_t", 8196)
    local function fails(code, message, ...)
      assert.are.equal(tonumber(code), C.lsa_index_encode_cpu(out, x, ...))
      assert.are.equal("index_encode: " .. message, ffi.string(C.lsa_error()))
      assert.are.equal(tonumber(code), C.lsa_index_decode_cpu(x, out, ...))
      assert.are.equal("index_decode: " .. message, ffi.string(C.lsa_error()))
    end
    fails(C.LSA_ESHAPE, "dim is 96, not a power of two", 1, 96, 100, FP8, nil)
    fails(C.LSA_ESHAPE, "dim is 8192, fp8 keys have at most 4096", 1, 8192, 8196, FP8, nil)
    fails(C.LSA_ESHAPE, "dim is 0", 1, 0, 100, FP8, nil)
    fails(C.LSA_ESHAPE, "stride is 131, a record has 132 bytes", 1, 128, 131, FP8, nil)
    fails(C.LSA_EDTYPE, "format -1 is unknown", 1, 128, 132, -1, nil)
    fails(C.LSA_EARG, "n is -2", -2, 128, 132, FP8, nil)
  end)
end)
