-- Linear layers: DeepSeek-V4-Flash's for one token (the weight is read once) and for a prefill's piece, and a tiny
-- model's, whose weights stay in the cache.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

local FORMATS = {
  f32 = {dtype = C.LSA_F32, bits = 32},
  bf16 = {dtype = C.LSA_BF16, bits = 16},
  fp8 = {dtype = C.LSA_F8_E4M3, bits = 8, block = {128, 128}},
  fp4 = {dtype = C.LSA_F4_E2M1, bits = 4, block = {1, 32}},
}
local COMPUTE = {[0] = "f32", "bf16"}

-- `copies` weights one after another, so that together they outgrow the cache.
local function weights(bench, format, rows, cols, copies)
  local f, s = FORMATS[format], {}
  local bytes = rows * cols * f.bits / 8
  if format == "f32" then s.first, s.first_owner = bench:random("float", rows * cols, 1)
  else s.first, s.first_owner = bench:random("uint8_t", bytes, 1) end
  if format == "bf16" then
    for i = 1, bytes - 1, 2 do s.first[i] = 0x3f + s.first[i] % 2 * 0x80 end   -- numbers around 1
  end
  s.data, s.data_owner = bench:alloc("uint8_t", bytes * copies)
  for i = 0, copies - 1 do ffi.copy(s.data + i * bytes, s.first, bytes) end
  local w = ffi.new("lsa_weight[?]", copies)
  if f.block then
    local count = math.ceil(rows / f.block[1]) * math.ceil(cols / f.block[2])
    s.scale, s.scale_owner = bench:alloc("uint8_t", count)
    ffi.fill(s.scale, count, 126)
  end
  for i = 0, copies - 1 do
    w[i].data, w[i].rows, w[i].cols, w[i].dtype = s.data + i * bytes, rows, cols, f.dtype
    if f.block then
      w[i].scale, w[i].scale_dtype, w[i].block_rows, w[i].block_cols = s.scale, C.LSA_F8_E8M0, f.block[1], f.block[2]
    end
  end
  s.w = w
  return s
end

local function case(bench, tokens, rows, cols, format, compute)
  local bytes = rows * cols * FORMATS[format].bits / 8
  local large = bytes > 2 ^ 18                  -- a layer of a model that no cache holds
  local copies = large and bench:turns(bytes) or 1
  bench:case {
    op = "linear",
    shape = ("%d x [%d, %d] %s, %s"):format(tokens, rows, cols, format, COMPUTE[compute]),
    bytes = bytes + 4 * tokens * (rows + cols), flops = 2 * tokens * rows * cols,
    span = copies * bytes, limit = {"read", COMPUTE[compute]},
    setup = function()
      local s = weights(bench, format, rows, cols, copies)
      s.x, s.x_owner = bench:random("float", tokens * cols, 2)
      s.y, s.y_owner = bench:alloc("float", tokens * rows)
      s.workspace, s.workspace_owner = bench:alloc("uint8_t", tonumber(C.lsa_linear_workspace(s.w, tokens, rows, compute)))
      s.at = 0
      return s
    end,
    run = function(s)
      s.at = (s.at + 1) % copies
      check(C.lsa_linear_cpu(s.y, s.x, s.w + s.at, tokens, 0, rows, cols, rows, compute, s.workspace, nil))
    end,
  }
end

return function(bench)
  for compute = 0, 1 do
    for _, format in ipairs {"bf16", "fp8"} do
      for _, shape in ipairs {{1024, 4096}, {32768, 1024}, {512, 4096}, {8192, 4096}, {4096, 8192}} do
        case(bench, 1, shape[1], shape[2], format, compute)
      end
    end
    case(bench, 1, 2048, 4096, "fp4", compute)
    case(bench, 1, 4096, 2048, "fp4", compute)
    case(bench, 8, 2048, 4096, "fp4", compute)
    case(bench, 8, 8192, 4096, "fp8", compute)
    for _, format in ipairs {"f32", "bf16", "fp8"} do case(bench, 512, 1024, 4096, format, compute) end
    case(bench, 64, 1024, 4096, "fp8", compute)
    for _, shape in ipairs {{128, 128}, {64, 128}, {256, 64}} do case(bench, 1, shape[1], shape[2], "f32", compute) end
    for _, shape in ipairs {{128, 128}, {64, 128}, {256, 64}} do case(bench, 512, shape[1], shape[2], "f32", compute) end
  end
end
