local ffi = require "ffi"
local json = require "cjson"
local lsa = require "lsa.ffi"
local support = require "file_support"
local C, check = lsa.C, require("lsa.raise").check

local SWA, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"

-- A small model in the current spelling, with `changes` over it; json.null takes no field away, "" does.
local function config(changes)
  local c = {
    model_type = "deepseek_v4", vocab_size = 64, hidden_size = 32, num_hidden_layers = 3, num_attention_heads = 4,
    head_dim = 32, q_lora_rank = 24, sliding_window = 8, index_n_heads = 8, index_head_dim = 16, index_topk = 8,
    o_groups = 2, o_lora_rank = 12, n_routed_experts = 4, num_experts_per_tok = 2, moe_intermediate_size = 24,
    partial_rotary_factor = 0.5, layer_types = {SWA, CSA, HCA}, mlp_layer_types = {"hash_moe", "moe", "moe"},
  }
  for field, value in pairs(changes or {}) do
    if value == "" then c[field] = nil else c[field] = value end
  end
  return c
end

-- Gives the call's code, the configuration, and the path that it was read from.
local function load_text(text)
  local out = ffi.new "lsa_config"
  local rc, path
  support.with_folder(function(folder)
    path = folder .. "/config.json"
    support.write(path, text)
    rc = C.lsa_config_load(out, path)
  end)
  return rc, out, path
end

local function load(changes)
  local rc, out = load_text(json.encode(config(changes)))
  check(rc, 2)
  return out
end

-- The message that these changes make, without the path, which it must name.
local function refused(changes)
  local rc, _, path = load_text(json.encode(config(changes)))
  local message = support.failure(rc, C.LSA_EFORMAT)
  assert(message:sub(1, #path) == path, message)
  return message:sub(#path + 3)
end

local function near(a, b) return math.abs(a - b) <= 1e-6 * math.abs(b) end

describe("config.json", function()
  it("is read in the current spelling", function()
    local c = ffi.new "lsa_config"
    check(C.lsa_config_load(c, lsa.root .. "/tests/golden/flash/config.json"))
    local fields = {vocab = 64, hidden = 32, layers = 7, heads = 4, head_dim = 32, rope_dim = 16, q_rank = 24, window = 8,
      csa_rate = 4, hca_rate = 16, index_heads = 8, index_dim = 16, index_topk = 8, o_groups = 2, o_rank = 12, hc_mult = 4,
      hc_iters = 20, experts = 4, experts_per_token = 2, shared_experts = 1, moe_hidden = 24, max_positions = 4096,
      csa_layers = 3, hca_layers = 2}
    for field, value in pairs(fields) do assert.equals(value, tonumber(c[field]), field) end
    for i, kind in ipairs {0, 0, 1, 2, 1, 2, 1} do assert.equals(kind, c.layer_type[i - 1]) end
    for i = 0, 6 do assert.equals(i < 3 and 1 or 0, c.hash_moe[i]) end
    assert.is_true(near(c.norm_eps, 1e-6) and near(c.hc_eps, 1e-6))
    assert.is_true(near(c.routed_scaling, 1.5) and near(c.swiglu_limit, 10))
    assert.equals(C.LSA_SCORING_SQRTSOFTPLUS, c.scoring)
    assert.equals(0, c.tied_embeddings)
    assert.equals(0, c.main_rope.yarn)
    assert.equals(10000, c.main_rope.theta)
    assert.equals(1, c.compress_rope.yarn)
    assert.equals(160000, c.compress_rope.theta)
    assert.equals(16, c.compress_rope.factor)
    assert.equals(64, c.compress_rope.original_positions)
    assert.equals(32, c.compress_rope.beta_fast)
    assert.equals(1, c.compress_rope.beta_slow)
  end)

  it("is read in the legacy spelling, without the layers of multi-token prediction", function()
    local c = ffi.new "lsa_config"
    check(C.lsa_config_load(c, lsa.root .. "/tests/golden/released/config.json"))
    assert.equals(4, tonumber(c.layers))
    for i, kind in ipairs {0, 1, 2, 1} do assert.equals(kind, c.layer_type[i - 1]) end
    for i = 0, 3 do assert.equals(i < 1 and 1 or 0, c.hash_moe[i]) end
    assert.equals(2, tonumber(c.csa_layers))
    assert.equals(1, tonumber(c.hca_layers))
    assert.equals(4, tonumber(c.csa_rate))
    assert.equals(128, tonumber(c.hca_rate))
    assert.equals(32, tonumber(c.rope_dim))
    assert.equals(0, c.main_rope.yarn)
    assert.equals(10000, c.main_rope.theta)
    assert.equals(1, c.compress_rope.yarn)
    assert.equals(160000, c.compress_rope.theta)
    assert.equals(64, c.compress_rope.original_positions)
  end)

  it("has V4-Flash's numbers where it says nothing", function()
    local rc, c = load_text('{"architectures":["DeepseekV4ForCausalLM"],"num_hash_layers":3,"num_hidden_layers":4,'
      .. '"compress_ratios":[0,0,4,128],"partial_rotary_factor":null}')
    check(rc)
    local fields = {vocab = 129280, hidden = 4096, heads = 64, head_dim = 512, rope_dim = 64, q_rank = 1024, window = 128,
      csa_rate = 4, hca_rate = 128, index_heads = 64, index_dim = 128, index_topk = 512, o_groups = 8, o_rank = 1024,
      hc_mult = 4, hc_iters = 20, experts = 256, experts_per_token = 6, shared_experts = 1, moe_hidden = 2048,
      max_positions = 1048576}
    for field, value in pairs(fields) do assert.equals(value, tonumber(c[field]), field) end
    assert.equals(0, c.compress_rope.yarn)
  end)

  it("loads every golden case and the small model", function()
    local c = ffi.new "lsa_config"
    for name in io.popen("ls -d '" .. lsa.root .. "'/tests/golden/*/"):lines() do
      check(C.lsa_config_load(c, name .. "config.json"))
    end
    check(C.lsa_config_load(c, lsa.root .. "/experiments/models/needle/config.json"))
    assert.equals(256, tonumber(c.vocab))
  end)

  it("takes compression rates from a table or from fields of their own, which win", function()
    assert.equals(16, tonumber(load({compress_rates = {[HCA] = 16} }).hca_rate))
    assert.equals(4, tonumber(load({compress_rates = {[HCA] = 16} }).csa_rate))
    local c = load {compress_rates = {[HCA] = 16, [CSA] = 2}, compress_rate_csa = 3, compress_rate_hca = 5}
    assert.equals(3, tonumber(c.csa_rate))
    assert.equals(5, tonumber(c.hca_rate))
    assert.equals(7, tonumber(load({compress_rate_hca = 7}).hca_rate))
  end)

  it("takes the rope dimensions from the factor, else from their number", function()
    assert.equals(16, tonumber(load({qk_rope_head_dim = 8}).rope_dim))
    assert.equals(8, tonumber(load({partial_rotary_factor = "", qk_rope_head_dim = 8}).rope_dim))
    assert.equals(4, tonumber(load({partial_rotary_factor = ""}).rope_dim))
    assert.equals(8, tonumber(load({head_dim = 24, partial_rotary_factor = 8 / 24}).rope_dim))
    local c = load {rope_parameters = {main = {partial_rotary_factor = 0.25}, compress = {partial_rotary_factor = 0.25} }}
    assert.equals(8, tonumber(c.rope_dim))
  end)

  it("lets nested rope parameters win over flat ones", function()
    local yarn = {rope_type = "yarn", factor = 4, original_max_position_embeddings = 100, beta_fast = 20, beta_slow = 2}
    local c = load {rope_theta = 1, compress_rope_theta = 1, rope_scaling = {type = "linear"},
      rope_parameters = {main = {rope_theta = 500, rope_type = "default"},
        compress = {rope_theta = 700, rope_type = "yarn", factor = 4, original_max_position_embeddings = 100,
          attention_factor = 1.0} }}
    assert.equals(500, c.main_rope.theta)
    assert.equals(700, c.compress_rope.theta)
    assert.equals(0, c.main_rope.yarn)
    assert.equals(1, c.compress_rope.yarn)
    assert.equals(32, c.compress_rope.beta_fast)
    for _, field in ipairs {"rope_parameters", "rope_scaling"} do
      c = load {[field] = yarn, rope_theta = 500, compress_rope_theta = 700}
      assert.equals(0, c.main_rope.yarn)
      assert.equals(1, c.compress_rope.yarn)
      assert.equals(500, c.main_rope.theta)
      assert.equals(700, c.compress_rope.theta)
      assert.equals(4, c.compress_rope.factor)
      assert.equals(100, c.compress_rope.original_positions)
      assert.equals(20, c.compress_rope.beta_fast)
      assert.equals(2, c.compress_rope.beta_slow)
    end
    c = load {rope_parameters = {rope_type = "default"} }
    assert.equals(0, c.compress_rope.yarn)
    assert.equals(160000, c.compress_rope.theta)
    c = load {rope_scaling = {type = "yarn", original_max_position_embeddings = 64}, max_position_embeddings = 4096}
    assert.equals(64, c.compress_rope.factor)
  end)

  it("ignores what does not concern the mathematics", function()
    load {dtype = json.null, id2label = {["0"] = "A"}, quantization_config = {quant_method = "fp8"}, expert_dtype = "fp4",
      attention_bias = false, hidden_act = "silu", use_cache = true, something_new = 3, eos_token_id = {1, 2} }
    assert.equals(1, load({tie_word_embeddings = true}).tied_embeddings)
    assert.equals(C.LSA_SCORING_SIGMOID, load({scoring_func = "sigmoid"}).scoring)
    assert.equals(64, tonumber(load({hidden_size = 64.0}).hidden))
  end)

  describe("refuses", function()
    local long = {}
    for i = 1, 600 do long[i] = SWA end
    for what, case in pairs {
      ["another architecture"] = {{ model_type = "llama"}, 'model_type is "llama"'},
      ["no architecture at all"] = {{ model_type = ""}, "model_type is missing"},
      ["an unknown layer type"] = {{ layer_types = {SWA, "full_attention", HCA} }, 'layer_types[1] is "full_attention"'},
      ["too few layer types"] = {{ layer_types = {SWA, CSA} }, "an array for 3 layers is expected"},
      ["no layer types"] = {{ layer_types = ""}, "layer_types is missing"},
      ["layer types that are a number"] = {{ layer_types = 3}, "layer_types is 3"},
      ["an unknown ratio"] = {{ layer_types = "", compress_ratios = {0, 8, 4} }, "compress_ratios[1] is 8"},
      ["a fractional ratio"] = {{ layer_types = "", compress_ratios = {0, 4.5, 4} }, "compress_ratios[1] is 4.5"},
      ["too few ratios"] = {{ layer_types = "", compress_ratios = {0, 4} }, "compress_ratios is [0,4]"},
      ["an unknown kind of MLP"] = {{ mlp_layer_types = {"moe", "dense", "moe"} }, 'mlp_layer_types[1] is "dense"'},
      ["no kinds of MLP"] = {{ mlp_layer_types = ""}, "mlp_layer_types is missing"},
      ["a negative number of hash layers"] = {{ mlp_layer_types = "", num_hash_layers = -1}, "num_hash_layers is -1"},
      ["an unknown score"] = {{ scoring_func = "softmax"}, 'scoring_func is "softmax"'},
      ["a score that is a number"] = {{ scoring_func = 1}, "scoring_func is 1"},
      ["biases of attention"] = {{ attention_bias = true}, "attention_bias is true"},
      ["biases of the MLP"] = {{ mlp_bias = true}, "mlp_bias is true"},
      ["another activation"] = {{ hidden_act = "gelu"}, 'hidden_act is "gelu"'},
      ["weights of experts that do not sum to one"] = {{ norm_topk_prob = false}, "norm_topk_prob is false"},
      ["several key heads"] = {{ num_key_value_heads = 4}, "num_key_value_heads is 4"},
      ["groups of experts"] = {{ n_group = 8}, "n_group is 8"},
      ["another way to pick experts"] = {{ topk_method = "greedy"}, 'topk_method is "greedy"'},
      ["another rope"] = {{ rope_scaling = {type = "linear", factor = 2} }, 'rope_scaling.type is "linear"'},
      ["another nested rope"] = {{ rope_parameters = {main = {rope_type = "llama3"}, compress = {}} },
        'rope_parameters.main.rope_type is "llama3"'},
      ["half of nested ropes"] = {{ rope_parameters = {main = {rope_type = "default"} }}, "main and compress"},
      ["ropes of different widths"] = {{ rope_parameters = {main = {partial_rotary_factor = 0.25},
        compress = {partial_rotary_factor = 0.5} }}, "main has 8 dimensions, compress has 16"},
      ["YaRN without its positions"] = {{ rope_scaling = {type = "yarn", factor = 2} },
        "rope_scaling.original_max_position_embeddings is missing"},
      ["YaRN that scales attention"] = {{ rope_scaling = {type = "yarn", original_max_position_embeddings = 64,
        attention_factor = 1.2} }, "attention_factor is 1.2"},
      ["YaRN without rounding"] = {{ rope_scaling = {type = "yarn", original_max_position_embeddings = 64,
        truncate = false} }, "truncate is false"},
      ["a factor of zero"] = {{ rope_scaling = {type = "yarn", original_max_position_embeddings = 64, factor = 0} },
        "rope_scaling.factor is 0"},
      ["rope parameters that are text"] = {{ rope_scaling = "yarn"}, 'rope_scaling is "yarn"'},
      ["a theta of one"] = {{ rope_theta = 1}, "main rope's theta is 1"},
      ["a negative theta"] = {{ compress_rope_theta = -5}, "compress_rope_theta is -5"},
      ["an odd rope"] = {{ partial_rotary_factor = "", qk_rope_head_dim = 7}, "7 rope dimensions"},
      ["no rope"] = {{ partial_rotary_factor = 0.01}, "0 rope dimensions"},
      ["more rope than head"] = {{ partial_rotary_factor = 1.5}, "partial_rotary_factor is 1.5"},
      ["more rope than index key"] = {{ index_head_dim = 8}, "index_head_dim is 8"},
      ["groups that do not divide the heads"] = {{ o_groups = 3}, "o_groups is 3"},
      ["more experts a token than there are"] = {{ num_experts_per_tok = 5}, "num_experts_per_tok is 5"},
      ["no layers"] = {{ num_hidden_layers = 0}, "num_hidden_layers is 0"},
      ["too many layers"] = {{ num_hidden_layers = 600, layer_types = long}, "num_hidden_layers is 600"},
      ["a fractional size"] = {{ hidden_size = 32.5}, "hidden_size is 32.5"},
      ["a negative size"] = {{ vocab_size = -64}, "vocab_size is -64"},
      ["a size that is text"] = {{ head_dim = "32"}, 'head_dim is "32"'},
      ["a huge size"] = {{ hidden_size = 1e300}, "a whole number from 1 to"},
      ["a window of zero"] = {{ sliding_window = 0}, "sliding_window is 0"},
      ["too many streams"] = {{ hc_mult = 17}, "hc_mult is 17"},
      ["a rate of zero"] = {{ compress_rates = {[CSA] = 0} }, "compress_rates.compressed_sparse_attention is 0"},
      ["rates that are a number"] = {{ compress_rates = 4}, "compress_rates is 4"},
      ["an eps of zero"] = {{ rms_norm_eps = 0}, "rms_norm_eps is 0"},
      ["a limit too large for a float"] = {{ swiglu_limit = 1e39}, "a positive number is expected"},
      ["ties that are a number"] = {{ tie_word_embeddings = 1}, "tie_word_embeddings is 1"},
    } do
      it(what, function()
        local message = refused(case[1])
        assert.is_true(message:find(case[2], 1, true) ~= nil, message)
      end)
    end

    it("text that is no JSON object, and a file that is not there", function()
      for _, text in ipairs {"", "{", "[]", "null", '{"vocab_size":1,"vocab_size":1}', "{}x", '{"a":1e999}'} do
        support.failure(load_text(text), C.LSA_EFORMAT)
      end
      local message = support.failure(C.lsa_config_load(ffi.new "lsa_config", "/nowhere/config.json"), C.LSA_EIO)
      assert.is_true(message:find("/nowhere/config.json", 1, true) ~= nil)
    end)
  end)

  it("leaves the caller's structure alone when it fails", function()
    local c = ffi.new "lsa_config"
    c.vocab = 7
    support.with_folder(function(folder)
      support.write(folder .. "/c", json.encode(config {hc_mult = 99}))
      support.failure(C.lsa_config_load(c, folder .. "/c"), C.LSA_EFORMAT)
    end)
    assert.equals(7, tonumber(c.vocab))
  end)

  it("fails cleanly at every allocation and file operation", function()
    local c = ffi.new "lsa_config"
    local path = lsa.root .. "/tests/golden/flash/config.json"
    local blocks, operations = support.fail_everything(function() return C.lsa_config_load(c, path) end)
    assert.is_true(blocks > 100 and operations >= 4)
  end)
end)

describe("rope frequencies", function()
  it("are transformers' to the last bit but one, with YaRN and without", function()
    local cases = json.decode(support.read(lsa.root .. "/tests/golden/rope.json"))
    assert.equals(5, #cases)
    for _, case in ipairs(cases) do
      local c = load {head_dim = case.head_dim, index_head_dim = case.rope_dim,
        partial_rotary_factor = case.partial_rotary_factor, rope_theta = case.rope_theta,
        compress_rope_theta = case.compress_rope_theta, rope_parameters = case.rope_parameters or json.null}
      assert.equals(case.rope_dim, tonumber(c.rope_dim))
      local half = case.rope_dim / 2
      local got = ffi.new("float[?]", half)
      for _, which in ipairs {"main", "compress"} do
        C.lsa_rope_frequencies(got, c[which .. "_rope"], case.rope_dim)
        assert.equals(half, #case[which])
        for i = 1, half do
          local error = math.abs(got[i - 1] / case[which][i] - 1)
          assert.is_true(error <= 2.4e-7, ("%s %d: %.9g, %.9g"):format(which, i, got[i - 1], case[which][i]))
        end
      end
    end
  end)
end)
