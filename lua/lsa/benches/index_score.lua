-- Index scoring: decode (one token, all chunks of 256K .. 4M tokens) and prefill (blocks of tokens).
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

local F32, BF16, FP8 = tonumber(C.LSA_KV_F32), tonumber(C.LSA_KV_BF16), tonumber(C.LSA_KV_FP8)
local FORMAT, COMPUTE = {[F32] = "f32", [BF16] = "bf16", [FP8] = "fp8"}, {[0] = "f32", "bf16"}

-- Keys as they are stored; the scales of fp8 are floats near 1.
local function random_keys(bench, n, dim, format, stride)
  if format == F32 then return bench:random("float", n * dim, 3) end
  local keys, owner = bench:random("uint8_t", n * stride, 3)
  if format == BF16 then   -- sign and exponent of numbers around 1
    for i = 1, n * stride - 1, 2 do keys[i] = 0x3f + keys[i] % 2 * 0x80 end
  else
    local scale = ffi.new("float[1]", 0.75)
    for i = 0, n - 1 do ffi.copy(keys + i * stride + dim, scale, 4) end
  end
  return keys, owner
end

return function(bench)
  local function case(tokens, n, heads, dim, format, compute, device)
    local stride = format == F32 and 4 * dim or format == BF16 and 2 * dim or dim + 4
    local moved = n * stride + tokens * n * 4 + tokens * heads * dim * 4
    bench:case {
      op = device and "index_score_cuda" or "index_score",
      shape = ("%d x %d heads x %d, %d keys %s, %s"):format(tokens, heads, dim, n, FORMAT[format], COMPUTE[compute]),
      bytes = moved, flops = 2 * tokens * n * heads * dim,
      limit = device and "device copy" or {"read", COMPUTE[compute]}, device = device,
      setup = function()
        local s = {}
        s.keys, s.keys_owner = random_keys(bench, n, dim, format, stride)
        s.q, s.q_owner = bench:random("float", tokens * heads * dim, 1)
        s.w, s.w_owner = bench:random("float", tokens * heads, 2)
        s.scores, s.scores_owner = bench:alloc("float", tokens * n)
        local scratch = tonumber(C.lsa_index_score_workspace(tokens, n, heads, dim, format, compute))
        s.workspace, s.workspace_owner = bench:alloc("uint8_t", scratch)
        s.kernel = C.lsa_index_score_cpu
        if device then
          s.kernel = ffi.cast("lsa_index_score_fn *", C.lsa_device_symbol "lsa_index_score_cuda")
          s.keys = bench:to_device(n * stride, s.keys)
          s.q, s.w = bench:to_device(tokens * heads * dim * 4, s.q), bench:to_device(tokens * heads * 4, s.w)
          s.scores, s.workspace = bench:to_device(tokens * n * 4), bench:to_device(scratch)
        end
        return s
      end,
      run = function(s)
        check(s.kernel(ffi.cast("float *", s.scores), ffi.cast("float *", s.q), ffi.cast("float *", s.w), s.keys,
          tokens, n, heads, dim, stride, n, format, compute, s.workspace, nil))
      end,
    }
  end

  for _, device in ipairs(C.lsa_device_count() > 0 and {false, true} or {false}) do
    for _, heads in ipairs {64, 128} do
      case(1, 1000000, heads, 128, FP8, 1, device)
      case(1, 1000000, heads, 128, BF16, 1, device)
    end
    case(1, 250000, 64, 128, FP8, 1, device)
    case(1, 250000, 64, 128, FP8, 0, device)
    case(64, 16384, 64, 128, FP8, 1, device)
    case(512, 4096, 4, 32, FP8, 1, device)
    case(512, 4096, 4, 32, F32, 0, device)
    case(1, 4096, 4, 32, FP8, 1, device)
  end
end
