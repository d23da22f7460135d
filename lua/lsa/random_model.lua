-- Owns models without a checkpoint: random weights of a given shape. lsa.model{config = "flash", random = 1, experts = 16}.
--
--   config    "flash" (DeepSeek-V4-Flash), a model's short name or folder, whose config.json it is, or a table with config.json's fields
--   random    the seed, from which and from their names all weights follow
--   weights   "released": fp8, experts packed fp4, as DeepSeek stores them; "bf16" or "f32": all of them
--   and any number of model.config by its name, in place of the configuration's own
local ffi = require "ffi"
local json = require "cjson"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"

local C = lib.C

local M = {}

-- The numbers that can be given, and what config.json calls them.
local fields = {
  vocab = "vocab_size", hidden = "hidden_size", layers = "num_hidden_layers", heads = "num_attention_heads", head_dim = "head_dim",
  rope_dim = "qk_rope_head_dim", q_rank = "q_lora_rank", window = "sliding_window", csa_rate = "compress_rate_csa",
  hca_rate = "compress_rate_hca", index_heads = "index_n_heads", index_dim = "index_head_dim", index_topk = "index_topk",
  o_groups = "o_groups", o_rank = "o_lora_rank", hc_mult = "hc_mult", hc_iters = "hc_sinkhorn_iters", experts = "n_routed_experts",
  experts_per_token = "num_experts_per_tok", shared_experts = "n_shared_experts", moe_hidden = "moe_intermediate_size",
  max_positions = "max_position_embeddings",
}

local own = {config = false, random = 1, weights = "released"}
M.defaults = options.copy(own)
for name in pairs(fields) do M.defaults[name] = false end

-- What config.json of V4-Flash says beyond the fields' own defaults.
local function flash(layers)
  local ratios = {}
  for i = 1, layers do ratios[i] = i <= 2 and 0 or i % 2 == 1 and 4 or 128 end
  return {
    model_type = "deepseek_v4", compress_ratios = ratios, num_hash_layers = 3, routed_scaling_factor = 1.5, swiglu_limit = 10,
    rope_scaling = {type = "yarn", factor = 16, original_max_position_embeddings = 65536, beta_fast = 32, beta_slow = 1},
  }
end

local function read(path)
  local file, problem = io.open(path)
  if not file then raise("lsa.model: config: %s", problem) end
  local text = file:read "*a"
  file:close()
  local ok, value = pcall(json.decode, text)
  if not ok or type(value) ~= "table" then raise("lsa.model: config: %s is no JSON object", path) end
  return value
end

-- The configuration as config.json's text, and what to call it. directory_of: from a model's name to its folder.
local function config_of(given, directory_of)
  local config, name = given.config, "random"
  if config == "flash" then
    config, name = flash(given.layers or 43), "random flash"
  elseif type(config) == "string" then
    name = "random " .. config
    config = read(directory_of(config) .. "/config.json")
  elseif type(config) == "table" then
    config = options.copy(config)
  else
    raise('lsa.model: config is %s; "flash", a model\'s name or folder, or a table is wanted', options.shown(config))
  end
  config.model_type = config.model_type or "deepseek_v4"
  for field, spelled in pairs(fields) do
    if given[field] then config[spelled] = options.whole(given[field], 1, "lsa.model: " .. field) end
  end
  if given.rope_dim then config.partial_rotary_factor = nil end
  local ok, text = pcall(json.encode, config)
  if not ok then raise("lsa.model: config: %s", tostring(text)) end
  return text, name
end

-- The C model, and its name.
function M.load(given, directory_of)
  options.whole(given.random, 0, "lsa.model: random")
  options.one_of(given.weights, {"released", "bf16", "f32"}, "lsa.model: weights")
  local text, name = config_of(given, directory_of)
  local dtype = given.weights == "released" and C.LSA_RANDOM_RELEASED or C.lsa_dtype_of(given.weights)
  local random = ffi.new("lsa_random", {given.random, dtype})
  return ownership.take(C.lsa_model_free, "lsa_model", C.lsa_model_random, text, name, random), name
end

return M
