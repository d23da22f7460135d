-- Attention over the window, over selected records (CSA), over all records (HCA): prefill and decode, of the small
-- model and of V4-Flash.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

local models = {
  small = {heads = 4, dim = 64, rope_dim = 16, window = 64, topk = 32},
  flash = {heads = 64, dim = 512, rope_dim = 64, window = 128, topk = 512},
}
local formats = {f32 = C.LSA_KV_F32, bf16 = C.LSA_KV_BF16, fp8 = C.LSA_KV_FP8}

-- A layer's n records, in one block.
local function add_records(bench, s, model, format, n)
  local size = tonumber(C.lsa_kv_record_bytes(format, model.dim, model.rope_dim))
  local values, owner = bench:random("float", n * model.dim, 1)
  s.bytes, s.bytes_owner = bench:alloc("uint8_t", n * size)
  check(C.lsa_kv_encode_cpu(s.bytes, values, n, model.dim, model.rope_dim, size, format, nil))
  s.blocks, s.values_owner = ffi.new("uint8_t *[1]", s.bytes), owner
  s.records = ffi.new("lsa_records", {blocks = s.blocks, stride = size, block_shift = 31, format = format})
end

local function case(bench, name, kind, tokens, n, format)
  local model = models[name]
  local heads, dim, rope_dim, window = model.heads, model.dim, model.rope_dim, model.window
  local count = kind == "csa" and model.topk or kind == "hca" and n or 0
  local record = count > 0 and tonumber(C.lsa_kv_record_bytes(formats[format], dim, rope_dim)) or 0
  local keys = kind == "window" and ("window of %d"):format(window) or ("%s, %d + %d %s"):format(kind, window, count, format)
  bench:case {
    op = "attention", shape = ("%s, %d tokens, %s"):format(name, tokens, keys), limit = {"read", "f32"},
    bytes = tokens * heads * dim * 8 + (window + tokens) * dim * 4 + (kind == "csa" and tokens or 1) * count * record,
    flops = 4 * tokens * heads * dim * (window + count),
    setup = function()
      local s = {}
      if count > 0 then add_records(bench, s, model, formats[format], n) end
      s.counts, s.counts_owner = bench:alloc("int32_t", tokens)
      for t = 0, tokens - 1 do s.counts[t] = count end
      if kind == "csa" then
        s.ids, s.ids_owner = bench:alloc("int32_t", tokens * count)
        for i = 0, tokens * count - 1 do s.ids[i] = i * 7919 % n end
      end
      s.out, s.out_owner = bench:alloc("float", tokens * heads * dim)
      s.q, s.q_owner = bench:random("float", tokens * heads * dim, 1)
      s.window, s.window_owner = bench:random("float", (window + tokens) * dim, 1)
      s.sinks, s.sinks_owner = bench:random("float", heads, 1)
      s.workspace, s.workspace_owner =
        bench:alloc("uint8_t", tonumber(C.lsa_attention_workspace(tokens, heads, dim, window, count, 0)))
      return s
    end,
    run = function(s)
      check(C.lsa_attention_cpu(s.out, nil, s.q, s.window, s.sinks, s.records, s.ids, s.counts, tokens, heads, dim, rope_dim,
        window + tokens, window, window, count, dim ^ -0.5, s.workspace, nil))
    end,
  }
end

return function(bench)
  for _, model in ipairs {{"small", 512}, {"flash", 64}} do
    local name, tokens = unpack(model)
    case(bench, name, "window", tokens)
    for _, format in ipairs {"f32", "bf16", "fp8"} do case(bench, name, "csa", tokens, 4096, format) end
    case(bench, name, "hca", tokens, 256, "fp8")
    case(bench, name, "hca", tokens, 2048, "fp8")
    case(bench, name, "window", 1)
    case(bench, name, "csa", 1, 262144, "fp8")
    case(bench, name, "hca", 1, 8192, "fp8")
  end
end
