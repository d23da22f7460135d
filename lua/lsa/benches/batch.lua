-- A decode step of several requests at once (lsa.batch) on a model that is eight times as wide as the small real one, with random
-- weights: wider than the caches, so that reading weights once for all rows shows.
local lsa = require "lsa"

local WIDER, CONTEXT, BUDGET = 8, 2000, 64
local SCALE = 0.05
local wide = {vocab = 256, hidden = 128 * WIDER, layers = 7, csa_layers = 3, hca_layers = 2, heads = 4, head_dim = 64,
  rope_dim = 16, q_rank = 64 * WIDER, window = 64, csa_rate = 4, hca_rate = 128, index_heads = 4, index_dim = 32, index_topk = 32, o_groups = 2,
  o_rank = 64 * WIDER, hc_mult = 2, experts = 4, experts_per_token = 2, shared_experts = 1, moe_hidden = 64 * WIDER}

-- Which dimensions of a weight grow; of the rules that fit its name the last holds.
local grown = {
  {"embed_tokens.weight$", {2}}, {"lm_head.weight$", {2}}, {"hc.*fn$", {2}}, {"layernorm.weight$", {1}},
  {"model.norm.weight$", {1}},
  {"gate.weight$", {2}}, {"experts.down_proj", {2, 3}}, {"experts.gate_up_proj$", {2, 3}}, {"shared_experts.*weight$", {1, 2}},
  {"kv_proj.weight$", {2}}, {"compressor.*gate_proj.weight$", {2}}, {"o_a_proj.weight$", {1}}, {"o_b_proj.weight$", {1, 2}},
  {"q_a_norm.weight$", {1}}, {"q_a_proj.weight$", {1, 2}}, {"q_b_proj.weight$", {2}}, {"weights_proj.weight$", {2}},
}
local fields = {"hidden_size", "q_lora_rank", "o_lora_rank", "moe_intermediate_size"}

local function widened(name, weight, seed)
  local shape, dims = weight:shape(), nil
  for _, rule in ipairs(grown) do
    if name:find(rule[1]) then dims = rule[2] end
  end
  if not dims then return weight end
  local count = 1
  for _, dim in ipairs(dims) do shape[dim] = shape[dim] * WIDER end
  for _, size in ipairs(shape) do count = count * size end
  if #shape == 1 then return lsa.zeros(shape, weight:dtype()):add(1):to(weight:dtype()) end
  return lsa.kernels.uniform(count, seed):add(-0.5):mul(SCALE):reshape(shape):to(weight:dtype())
end

-- The wider model, loaded; its files are gone by then but for what is mapped.
local function make_model()
  local small = lsa.root .. "/experiments/models/needle/"
  local folder, weights, seed = os.tmpname(), {}, 1
  os.remove(folder)
  assert(os.execute("mkdir " .. folder) == 0)
  local file = assert(io.open(small .. "config.json"))
  local config = file:read "*a"
  file:close()
  for _, field in ipairs(fields) do
    config = config:gsub('("' .. field .. '": )(%d+)', function(key, value) return key .. WIDER * value end)
  end
  file = assert(io.open(folder .. "/config.json", "w"))
  file:write(config)
  file:close()
  for name, weight in pairs(lsa.load(small .. "model.safetensors")) do
    seed = seed + 1
    weights[name] = widened(name, weight, seed)
  end
  lsa.save(folder .. "/model.safetensors", weights)
  local model = lsa.model(folder)
  os.execute("rm -r " .. folder)
  return model
end

return function(bench)
  local model
  local step = lsa.accounting.flops(wide, {tokens = CONTEXT, resident = BUDGET}).total
  for _, requests in ipairs {1, 2, 4, 8, 16} do
    bench:case {
      op = "batch", shape = ("%d requests, hidden %d, %d chunks resident"):format(requests, wide.hidden, BUDGET),
      flops = requests * step, limit = "f32",
      setup = function()
        model = model or make_model()
        local base = model:session{select = "full"}
        local batch = lsa.batch(model, {select = "recency", budget = BUDGET, most = requests})
        local tokens = {}
        for i = 1, CONTEXT do tokens[i] = 37 * i % 256 end
        base:prefill(tokens)
        for _ = 1, requests do batch:submit{session = base, tokens = {1}, n = 100000} end
        batch:step()
        return batch
      end,
      run = function(batch) batch:step() end,
    }
  end
end
