-- Attention over window, selected records and all records; prefill and decode, small model and V4-Flash.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, lsa.check

local models = {
  small = {heads = 4, dim = 64, rope_dim = 16, window = 64, topk = 32},
  flash = {heads = 64, dim = 512, rope_dim = 64, window = 128, topk = 512},
}

local function floats(n)
  local out = ffi.new("float[?]", n)
  for i = 0, n - 1 do out[i] = math.random() - 0.5 end
  return out
end

-- n records in one block, encoded from random numbers.
local function records_of(model, format, n)
  local size = tonumber(C.lsa_kv_record_bytes(format, model.dim, model.rope_dim))
  local bytes = ffi.new("uint8_t[?]", size * n)
  check(C.lsa_kv_encode_cpu(bytes, floats(n * model.dim), n, model.dim, model.rope_dim, size, format, nil))
  local blocks = ffi.new("const uint8_t *[1]", bytes)
  return ffi.new("lsa_records", {blocks, size, 0, 31, format}), {bytes, blocks}, size
end

local function add(bench, name, kind, tokens, n, format)
  local model = models[name]
  local heads, dim = model.heads, model.dim
  local per_query = kind == "csa" and math.min(n, model.topk) or kind == "hca" and n or 0
  local held, prepared
  local size = per_query > 0 and tonumber(C.lsa_kv_record_bytes(format, dim, model.rope_dim)) or 0
  local keys = model.window + per_query
  local read = kind == "hca" and n or tokens * per_query
  bench:case {
    op = "attention_cpu",
    shape = ("%s %s tokens=%d records=%d%s"):format(name, kind, tokens, per_query,
      per_query > 0 and (format == C.LSA_KV_FP8 and " fp8" or format == C.LSA_KV_BF16 and " bf16" or " f32") or ""),
    bytes = tokens * heads * dim * 8 + (model.window + tokens) * dim * 4 + read * size,
    flops = 4 * tokens * heads * dim * keys,
    limit = "f32",
    run = function()
      if not prepared then
        local records
        if per_query > 0 then records, held = records_of(model, format, n) end
        local ids = kind == "csa" and ffi.new("int32_t[?]", tokens * per_query) or nil
        for i = 0, ids and tokens * per_query - 1 or -1 do ids[i] = math.random(0, n - 1) end
        local counts = ffi.new("int32_t[?]", tokens)
        for i = 0, tokens - 1 do counts[i] = per_query end
        local out, q = ffi.new("float[?]", tokens * heads * dim), floats(tokens * heads * dim)
        local window, sinks = floats((model.window + tokens) * dim), floats(heads)
        local bytes = tonumber(C.lsa_attention_workspace(tokens, heads, dim, model.window, per_query))
        local workspace = ffi.gc(C.lsa_alloc(bytes), C.lsa_free)
        held = {held, records, ids, counts, out, q, window, sinks, workspace}
        function prepared()
          check(C.lsa_attention_cpu(out, nil, q, window, sinks, records, ids, counts, tokens, heads, dim, model.rope_dim,
            model.window, model.window, per_query, dim ^ -0.5, workspace, nil))
        end
      end
      prepared()
    end,
  }
end

return function(bench)
  for _, name in ipairs {"small", "flash"} do
    local tokens = name == "small" and 512 or 64
    add(bench, name, "window", tokens, 0, C.LSA_KV_F32)
    add(bench, name, "csa", tokens, 4096, C.LSA_KV_F32)
    add(bench, name, "csa", tokens, 4096, C.LSA_KV_BF16)
    add(bench, name, "csa", tokens, 4096, C.LSA_KV_FP8)
    add(bench, name, "hca", tokens, 256, C.LSA_KV_FP8)
    add(bench, name, "hca", tokens, 2048, C.LSA_KV_FP8)
    add(bench, name, "window", 1, 0, C.LSA_KV_F32)
    add(bench, name, "csa", 1, 262144, C.LSA_KV_FP8)
    add(bench, name, "hca", 1, 8192, C.LSA_KV_FP8)
  end
end
