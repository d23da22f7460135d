local ffi = require "ffi"
local bit = require "bit"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0
local F32, BF16, FP8 = tonumber(C.LSA_KV_F32), tonumber(C.LSA_KV_BF16), tonumber(C.LSA_KV_FP8)
local FORMAT = {[F32] = "f32", [BF16] = "bf16", [FP8] = "fp8"}
local COMPUTE = {[0] = "f32", "bf16", "fp8"}

local word = ffi.new "union { float f; uint32_t u; uint8_t b[4]; }"

local function f32(x) word.f = x return word.f end

local function round_bf16(x)
  word.f = x
  if x ~= x then return x end
  local u = word.u
  local low, kept = u % 0x10000, (u - u % 0x10000)
  if low > 0x8000 or (low == 0x8000 and bit.band(u, 0x10000) ~= 0) then kept = kept + 0x10000 end
  word.u = kept
  return word.f
end

local function e4m3(byte)
  local sign, exponent, mantissa = byte >= 128 and -1 or 1, math.floor(byte % 128 / 8), byte % 8
  if exponent == 15 and mantissa == 7 then return NAN end
  if exponent == 0 then return sign * mantissa * 2 ^ -9 end
  return sign * (1 + mantissa / 8) * 2 ^ (exponent - 7)
end

-- The e4m3 number nearest to x, ties to even; |x| is at most 448.
local function round_e4m3(x)
  local size = math.abs(x)
  local step = 2 ^ (math.max(select(2, math.frexp(size)) - 1, -6) - 3)
  local n = size / step
  local low = math.floor(n)
  if n - low > 0.5 or n - low == 0.5 and low % 2 == 1 then low = low + 1 end
  return x < 0 and -low * step or low * step
end

-- Keys as records, and as the numbers that they stand for. The last record ends where its buffer ends.
local function make_keys(n, dim, format, spare)
  local bytes = format == F32 and 4 * dim or format == BF16 and 2 * dim or dim + 4
  local stride = bytes + (spare or 0)
  local data = support.buffer("uint8_t", math.max(n * stride - (spare or 0), 0))
  local values, scales = {}, {}
  for i = 0, n - 1 do
    local row = {}
    for d = 0, dim - 1 do
      if format == FP8 then
        local byte = math.random(0, 255)
        if byte % 128 == 127 then byte = byte - 1 end
        if math.random() < 0.05 then byte = math.random(0, 7) + 128 * math.random(0, 1) end
        data[i * stride + d] = byte
        row[d] = e4m3(byte)
      else
        local x = f32(math.random() * 2 - 1)
        if format == BF16 then
          x = round_bf16(x)
          word.f = x
          ffi.copy(data + i * stride + 2 * d, word.b + 2, 2)
        else
          word.f = x
          ffi.copy(data + i * stride + 4 * d, word.b, 4)
        end
        row[d] = x
      end
    end
    values[i], scales[i] = row, 1
    if format == FP8 then
      scales[i] = f32(math.random() + 0.01)
      word.f = scales[i]
      ffi.copy(data + i * stride + dim, word.b, 4)
    end
  end
  return {data = data, stride = stride, values = values, scales = scales, bytes = bytes, format = format}
end

-- The same records with `gap` bytes more between them, so that they start at any address.
local function spread(keys, n, gap)
  local stride = keys.stride + gap
  local data = support.buffer("uint8_t", n * stride - gap)
  for i = 0, n - 1 do ffi.copy(data + i * stride, keys.data + i * keys.stride, keys.bytes) end
  return {data = data, stride = stride, bytes = keys.bytes, format = keys.format}
end

local function random_floats(n)
  local a = support.buffer("float", n)
  for i = 0, n - 1 do a[i] = math.random() * 2 - 1 end
  return a
end

-- On the GPU, keys with an odd stride also start at an odd address.
local function score_cuda(scores, q, w, key_data, keys, tokens, n, heads, dim, compute, score_stride, scratch)
  local kernel = support.device_kernel("lsa_index_score_cuda", "lsa_index_score_fn")
  local off, bytes = keys.stride % 2, math.max((n - 1) * keys.stride + keys.bytes, 0)
  local dq, dw = support.device_buffer(tokens * heads * dim * 4, q), support.device_buffer(tokens * heads * 4, w)
  local all_scores = tokens * score_stride * 4
  local dscores, dkeys = support.device_buffer(all_scores, scores), support.device_buffer(bytes + off)
  local workspace = support.device_buffer(scratch)
  check(C.lsa_device_copy(dkeys + off, key_data, bytes))
  check(kernel(ffi.cast("float *", dscores), ffi.cast("float *", dq), ffi.cast("float *", dw), dkeys + off, tokens, n,
    heads, dim, keys.stride, score_stride, keys.format, compute, workspace, nil))
  support.from_device(scores, dscores, all_scores)
end

local function score(q, w, keys, tokens, n, heads, dim, compute, key_data, score_stride)
  score_stride = score_stride or n
  local scores = support.poison(support.buffer("float", tokens * score_stride), tokens * score_stride)
  local bytes = C.lsa_index_score_workspace(tokens, n, heads, dim, keys.format, compute)
  if support.device == "cuda" then
    score_cuda(scores, q, w, key_data or keys.data, keys, tokens, n, heads, dim, compute, score_stride, bytes)
  else
    check(C.lsa_index_score_cpu(scores, q, w, key_data or keys.data, tokens, n, heads, dim, keys.stride,
      score_stride, keys.format, compute, support.workspace(bytes), nil))
  end
  return scores
end

-- Queries and keys as the product takes them, and weights.
local function operands(q, w, keys, rows, n, dim, compute)
  local round = compute >= 1 and round_bf16 or function(x) return x end
  local qs, ks, ws = ffi.new("double[?]", rows * dim), ffi.new("double[?]", n * dim), ffi.new("double[?]", rows)
  for row = 0, rows - 1 do
    local amax, scale = f32(1e-4), 1
    for d = 0, dim - 1 do amax = math.max(amax, math.abs(q[row * dim + d])) end
    if compute == 2 then scale = f32(amax / 448) end
    for d = 0, dim - 1 do
      local x = q[row * dim + d]
      qs[row * dim + d] = compute == 2 and round_e4m3(f32(x / scale)) or round(x)
    end
    ws[row] = f32(w[row] * scale)
  end
  for s = 0, n - 1 do
    for d = 0, dim - 1 do ks[s * dim + d] = round(keys.values[s][d]) end
  end
  return qs, ks, ws
end

-- The definition, in doubles; and how far off f32 sums of that many terms may be. coarse: sums of tensor cores that multiply
-- e4m3, which keep 13 bits behind the largest of 33 numbers.
local function oracle(qs, ks, w, scale, t, s, heads, dim, coarse)
  local sum, size, cut = 0, 0, 0
  for h = 0, heads - 1 do
    local dot, dot_size, largest = 0, 0, 0
    local q, k = (t * heads + h) * dim, s * dim
    for d = 0, dim - 1 do
      local product = qs[q + d] * ks[k + d]
      dot, dot_size = dot + product, dot_size + math.abs(product)
      largest = math.max(largest, math.abs(product), math.abs(dot))
    end
    cut = cut + math.abs(w[t * heads + h]) * largest * 33 * dim / 32 * 2 ^ -13
    local weight = w[t * heads + h]
    if not (dot <= 0) then sum = sum + weight * dot end
    size = size + math.abs(weight) * dot_size
  end
  return sum * scale, (size * (dim + heads) * 2 ^ -24 + (coarse and cut or 0)) * scale + 1e-30
end

local function compare(case)
  local tokens, n, heads, dim, format, compute = unpack(case)
  local keys = make_keys(n, dim, format, case.spare)
  local q, w = random_floats(tokens * heads * dim), random_floats(tokens * heads)
  local stride = n + (case.gap or 0)
  local scores = score(q, w, keys, tokens, n, heads, dim, compute, nil, stride)
  local qs, ks, ws = operands(q, w, keys, tokens * heads, n, dim, compute)
  local coarse = support.device == "cuda" and compute == 2 and format == FP8 and dim == 128
  local worst = 0
  for t = 0, tokens - 1 do
    for s = 0, n - 1 do
      local want, tolerance = oracle(qs, ks, ws, keys.scales[s], t, s, heads, dim, coarse)
      local off = math.abs(scores[t * stride + s] - want) / tolerance
      if not (off <= worst) then worst = off == off and off or math.huge end
    end
    for s = n, stride - 1 do   -- what lies between the rows is left alone
      if scores[t * stride + s] == scores[t * stride + s] then worst = math.huge end
    end
  end
  assert.is_true(worst <= 1, ("error is %g of the bound"):format(worst))
end

local function bits(a, i)
  word.f = a[i]
  return word.u
end

for level = support.device == "cpu" and 0 or C.lsa_cpu_best(), C.lsa_cpu_best() do
  local path = support.device == "cpu" and ffi.string(C.lsa_cpu_level_name(level)) or support.device
  describe("index_score on " .. path, function()
    setup(function() C.lsa_cpu_limit(level) math.randomseed(11) end)
    teardown(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

    for format = F32, FP8 do
      for compute = 0, 2 do
        local kind = FORMAT[format] .. " keys in " .. COMPUTE[compute]

        it("equals the definition on " .. kind, function()
          for _, shape in ipairs {
            {1, 1, 1, 1}, {1, 1, 1, 2}, {1, 2, 1, 3}, {2, 5, 3, 5}, {1, 17, 4, 32}, {3, 49, 4, 32}, {1, 100, 5, 30},
            {2, 47, 7, 33}, {9, 48, 2, 16}, {1, 97, 64, 128}, {2, 31, 9, 72}, {1, 3, 2, 1024}, {130, 25, 1, 7},
            {2, 70, 5, 64}, {9, 33, 17, 128}, {1, 331, 65, 128}, {3, 64, 128, 128},
          } do
            local whole = shape[4] % 16 == 0   -- as they come from a cache; the others lie apart
            compare {shape[1], shape[2], shape[3], shape[4], format, compute, spare = not whole and 3, gap = not whole and 2}
          end
        end)

        it("gives a score whose bits depend on its query and key alone, on " .. kind, function()
          for _, dim in ipairs {21, 32, support.device == "cuda" and 128 or nil} do
            local tokens, n, heads = 70, 131, 3
            local keys = make_keys(n, dim, format)
            local apart = spread(keys, n, dim == 21 and 3 or 1)
            local q, w = random_floats(tokens * heads * dim), random_floats(tokens * heads)
            local whole = score(q, w, keys, tokens, n, heads, dim, compute)
            for _, cut in ipairs {
              {0, 1, 0, 131}, {69, 1, 130, 1}, {5, 3, 1, 130}, {1, 69, 77, 49}, {13, 9, 100, 3}, {64, 6, 47, 2},
            } do
              local t0, tn, s0, sn = unpack(cut)
              for _, from in ipairs {keys, apart} do
                local part = score(q + t0 * heads * dim, w + t0 * heads, from, tn, sn, heads, dim, compute,
                  from.data + s0 * from.stride)
                local differ = 0
                for t = 0, tn - 1 do
                  for s = 0, sn - 1 do
                    if bits(part, t * sn + s) ~= bits(whole, (t0 + t) * n + s0 + s) then differ = differ + 1 end
                  end
                end
                assert.equal(0, differ)
              end
            end
          end
        end)
      end
    end

    it("carries NaN and infinity to the scores of their keys, and to no others", function()
      local heads, dim, n = 2, 40, 60
      for compute = 0, 1 do
        local keys = make_keys(n, dim, F32)
        local q, w = random_floats(heads * dim), random_floats(heads)
        for d = 0, heads * dim - 1 do q[d] = math.abs(q[d]) + 0.1 end
        w[0], w[1] = 0.5, 0.25
        local function put(s, d, x)
          word.f = x
          ffi.copy(keys.data + s * keys.stride + 4 * d, word.b, 4)
        end
        put(7, 3, NAN)
        put(20, 39, INF)
        put(21, 0, -INF)
        local scores = score(q, w, keys, 1, n, heads, dim, compute)
        for s = 0, n - 1 do
          if s == 7 then assert.is_true(scores[s] ~= scores[s])
          elseif s == 20 then assert.equal(INF, scores[s])
          elseif s == 21 then assert.equal(0, scores[s])
          else assert.is_true(math.abs(scores[s]) < 100) end
        end
      end
    end)

    it("takes the e4m3 codes of NaN for NaN, wherever they are", function()
      for case = 0, 5 do
        local compute, heads, dim, n = case % 3, 3, case < 3 and 32 or 128, 150
        local keys = make_keys(n, dim, FP8)
        for s = 0, dim - 1 do keys.data[s * keys.stride + s] = s % 2 == 0 and 0x7f or 0xff end
        local scores = score(random_floats(heads * dim), random_floats(heads), keys, 1, n, heads, dim, compute)
        for s = 0, n - 1 do assert.equal(s < dim, scores[s] ~= scores[s]) end
      end
    end)

    it("gives long rows the bits of short ones", function()
      local n = 150001
      for _, case in ipairs {{BF16, 32, 1}, {FP8, 32, 1}, {FP8, 128, 1}, {FP8, 128, 2}} do
        local format, dim, scoring = unpack(case)
        local tokens, heads = 2, 3
        if support.device == "cpu" then
          if dim == 128 then break end
        else   -- more than a block's share of tokens
          if dim == 32 then tokens, heads = 8, 200 else tokens, heads = 30, 64 end
        end
        local bytes = format == BF16 and 2 * dim or dim + 4
        local data = support.buffer("uint8_t", n * bytes)
        for i = 0, n * bytes - 1 do data[i] = (i * 7919 % 65537) % 120 end
        local keys = {data = data, stride = bytes, bytes = bytes, format = format}
        local q, w = random_floats(tokens * heads * dim), random_floats(tokens * heads)
        local long = score(q, w, keys, tokens, n, heads, dim, scoring)
        for _, from in ipairs {0, 31, 67500, 67584, 70001, 135168, 149901} do
          local short = score(q, w, keys, tokens, 100, heads, dim, scoring, data + from * bytes)
          for t = 0, tokens - 1 do
            assert.is_true(support.same_bits(short + t * 100, long + t * n + from, 400))
          end
        end
      end
    end)

    it("gives a threaded call the bits of a single thread", function()
      local tokens, n, heads, dim = 3, 3000, 8, 32
      local keys = make_keys(n, dim, FP8)
      local q, w = random_floats(tokens * heads * dim), random_floats(tokens * heads)
      C.lsa_threads_set(1)
      local one = score(q, w, keys, tokens, n, heads, dim, 1)
      C.lsa_threads_set(3)
      local three = score(q, w, keys, tokens, n, heads, dim, 1)
      C.lsa_threads_set(0)
      assert.is_true(support.same_bits(one, three, tokens * n * 4))
    end)

    it("takes no keys and no tokens", function()
      local keys = make_keys(0, 8, BF16)
      score(random_floats(16), random_floats(2), keys, 1, 0, 2, 8, 1)
      score(random_floats(0), random_floats(0), make_keys(5, 8, FP8), 0, 5, 2, 8, 0)
    end)
  end)
end

describe("index_score", function()
  it("refuses what it cannot score, by name", function()
    local function refusal(code, words, tokens, n, heads, dim, key_stride, score_stride, format, compute)
      local rc = C.lsa_index_score_cpu(nil, nil, nil, nil, tokens, n, heads, dim, key_stride, score_stride, format,
        compute, nil, nil)
      assert.equal(tonumber(code), rc)
      assert.truthy(ffi.string(C.lsa_error()):find(words, 1, true))
    end
    refusal(C.LSA_EARG, "key format 9", 1, 1, 1, 8, 8, 1, 9, 0)
    refusal(C.LSA_EARG, "scoring 3", 1, 1, 1, 8, 32, 1, 0, 3)
    refusal(C.LSA_ESHAPE, "dim is 0", 1, 1, 1, 0, 8, 1, 0, 0)
    refusal(C.LSA_ESHAPE, "dim is 1025", 1, 1, 1, 1025, 8000, 1, 0, 0)
    refusal(C.LSA_ESHAPE, "keys of 12 bytes are 11 apart", 1, 1, 1, 8, 11, 1, FP8, 0)
    refusal(C.LSA_ESHAPE, "rows of 4 scores are 3 apart", 2, 4, 1, 8, 32, 3, 0, 0)
    refusal(C.LSA_ESHAPE, "0 heads", 1, 1, 0, 8, 32, 1, 0, 0)
  end)
end)
