local ffi = require "ffi"
local json = require "cjson"
local lsa = require "lsa.ffi"
local support = require "file_support"
local uniform = require("kernel_support").uniform
local C, check = lsa.C, require("lsa.raise").check

local GOLDEN = lsa.root .. "/tests/golden/"
local CASES = {"swa", "csa", "hca", "hash", "flash", "odd", "short", "narrow", "hca_only", "experts", "released"}

local function load(folder)
  local out = ffi.new "lsa_model *[1]"
  check(C.lsa_model_load(out, folder), 2)
  return ffi.gc(out[0], C.lsa_model_free)
end

local function refused(folder, code)
  local before, out = support.memory(), ffi.new "lsa_model *[1]"
  local message = support.failure(C.lsa_model_load(out, folder), code)
  assert(support.memory() == before, "a failed load leaks")
  return message
end

-- Bytes of a weight's numbers and of its scales.
local function weight_bytes(w)
  local size = w.dtype == C.LSA_F4_E2M1 and 0.5 or tonumber(C.lsa_dtype_size(w.dtype))
  local rows, cols = tonumber(w.rows), tonumber(w.cols)
  local numbers, scales = ffi.string(w.data, rows * cols * size), ""
  if w.scale ~= nil then
    local n = math.ceil(rows / tonumber(w.block_rows)) * math.ceil(cols / tonumber(w.block_cols))
    scales = ffi.string(w.scale, n * tonumber(C.lsa_dtype_size(w.scale_dtype)))
  end
  return numbers, scales
end

-- Everything a model holds, under the released names: name -> bytes. Vectors are f32, tables i32, as the model has them.
local function contents(m)
  local c, all = m.config, {}
  local D, hc = tonumber(c.hidden), tonumber(c.hc_mult)
  local function weight(name, w, suffix)
    all[name .. (suffix or ".weight")], all[name .. ".scale"] = weight_bytes(w)
  end
  local function vector(name, p, n) all[name] = ffi.string(p, 4 * n) end
  local function hyper(prefix, w, rows, scales)
    weight(prefix .. "fn", w.fn, "")
    all[prefix .. "fn.scale"] = nil
    vector(prefix .. "base", w.base, rows)
    vector(prefix .. "scale", w.scale, scales)
  end
  local function compressor(prefix, w, dim, width, rate)
    weight(prefix .. "wkv", w.kv)
    weight(prefix .. "wgate", w.gate)
    vector(prefix .. "ape", w.bias, rate * width)
    vector(prefix .. "norm.weight", w.norm, dim)
  end
  local function mlp(prefix, w)
    weight(prefix .. "w1", w.gate)
    weight(prefix .. "w3", w.up)
    weight(prefix .. "w2", w.down)
  end
  weight("embed", m.embed)
  weight("head", m.head)
  vector("norm.weight", m.norm, D)
  hyper("hc_head_", m.hc_head, hc, 1)
  for i = 0, tonumber(c.layers) - 1 do
    local l, p = m.layers[i], "layers." .. i .. "."
    hyper(p .. "hc_attn_", l.attn_hc, (2 + hc) * hc, 3)
    hyper(p .. "hc_ffn_", l.ffn_hc, (2 + hc) * hc, 3)
    vector(p .. "attn_norm.weight", l.attn_norm, D)
    vector(p .. "ffn_norm.weight", l.ffn_norm, D)
    for name, w in pairs {wq_a = l.q_a, wq_b = l.q_b, wkv = l.kv, wo_a = l.o_a, wo_b = l.o_b} do
      weight(p .. "attn." .. name, w)
    end
    vector(p .. "attn.q_norm.weight", l.q_a_norm, tonumber(c.q_rank))
    vector(p .. "attn.kv_norm.weight", l.kv_norm, tonumber(c.head_dim))
    vector(p .. "attn.attn_sink", l.sinks, tonumber(c.heads))
    local dim, index_dim = tonumber(c.head_dim), tonumber(c.index_dim)
    if c.layer_type[i] == C.LSA_LAYER_HCA then
      compressor(p .. "attn.compressor.", l.compressor, dim, dim, tonumber(c.hca_rate))
    elseif c.layer_type[i] == C.LSA_LAYER_CSA then
      compressor(p .. "attn.compressor.", l.compressor, dim, 2 * dim, tonumber(c.csa_rate))
      compressor(p .. "attn.indexer.compressor.", l.index_keys, index_dim, 2 * index_dim, tonumber(c.csa_rate))
      weight(p .. "attn.indexer.wq_b", l.index_q_b)
      weight(p .. "attn.indexer.weights_proj", l.index_weights)
    end
    weight(p .. "ffn.gate", l.router)
    if c.hash_moe[i] == 1 then
      vector(p .. "ffn.gate.tid2eid", l.token_experts, tonumber(c.vocab * c.experts_per_token))
    else
      vector(p .. "ffn.gate.bias", l.router_bias, tonumber(c.experts))
    end
    for e = 0, tonumber(c.experts) - 1 do mlp(p .. "ffn.experts." .. e .. ".", l.experts[e]) end
    mlp(p .. "ffn.shared_experts.", l.shared)
  end
  for name, data in pairs(all) do if data == "" then all[name] = nil end end
  return all
end

-- transformers' name -> the released name, for all but the fused experts.
local RENAMES = {
  {"^model%.", ""}, {"^embed_tokens", "embed"}, {"^lm_head", "head"}, {"^hc_head%.hc_", "hc_head_"},
  {"self_attn%.compressor%.indexer%.scorer%.", "attn.indexer."},
  {"self_attn%.compressor%.indexer%.q_b_proj", "attn.indexer.wq_b"},
  {"self_attn%.compressor%.indexer%.", "attn.indexer.compressor."}, {"self_attn%.", "attn."}, {"%.mlp%.", ".ffn."},
  {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}, {"attn_hc%.", "hc_attn_"},
  {"ffn_hc%.", "hc_ffn_"}, {"attn%.sinks", "attn.attn_sink"}, {"compressor%.kv_norm", "compressor.norm"},
  {"position_bias", "ape"}, {"q_a_proj", "wq_a"}, {"attn%.q_b_proj", "attn.wq_b"}, {"q_a_norm", "q_norm"},
  {"attn%.kv_proj", "attn.wkv"}, {"compressor%.kv_proj", "compressor.wkv"}, {"compressor%.gate_proj", "compressor.wgate"},
  {"o_a_proj", "wo_a"}, {"o_b_proj", "wo_b"}, {"gate%.e_score_correction_bias", "gate.bias"},
  {"shared_experts%.gate_proj", "shared_experts.w1"}, {"shared_experts%.up_proj", "shared_experts.w3"},
  {"shared_experts%.down_proj", "shared_experts.w2"},
}

-- The tensors of a transformers checkpoint as the released one has them: renamed, the experts apart.
local function as_released(tensors)
  local out = {}
  for name, t in pairs(tensors) do
    for _, rename in ipairs(RENAMES) do name = name:gsub(rename[1], rename[2]) end
    local prefix, which = name:match "^(.*%.experts%.)(gate_up_proj)$"
    if not prefix then prefix, which = name:match "^(.*%.experts%.)(down_proj)$" end
    if not prefix then
      out[name] = t
    else
      local E, rows, cols = t.shape[1], t.shape[2], t.shape[3]
      local one = #t.data / E
      for e = 0, E - 1 do
        local data = t.data:sub(e * one + 1, (e + 1) * one)
        if which == "down_proj" then
          out[prefix .. e .. ".w2.weight"] = {dtype = t.dtype, shape = {rows, cols}, data = data}
        else
          local shape = {rows / 2, cols}
          out[prefix .. e .. ".w1.weight"] = {dtype = t.dtype, shape = shape, data = data:sub(1, one / 2)}
          out[prefix .. e .. ".w3.weight"] = {dtype = t.dtype, shape = shape, data = data:sub(one / 2 + 1)}
        end
      end
    end
  end
  return out
end

-- What contents() gives for these tensors: tables of experts as i32.
local function expected(tensors)
  local out = {}
  for name, t in pairs(as_released(tensors)) do
    out[name] = t.data
    if name:find "tid2eid" then
      local n = #t.data / 8
      local wide, narrow = ffi.new("int64_t[?]", n), ffi.new("int32_t[?]", n)
      ffi.copy(wide, t.data, #t.data)
      for i = 0, n - 1 do narrow[i] = tonumber(wide[i]) end
      out[name] = ffi.string(narrow, 4 * n)
    end
  end
  return out
end

local function assert_same(got, want)
  for name, data in pairs(want) do
    if got[name] ~= data then error(("%s: %s"):format(name, got[name] and "other bytes" or "missing"), 2) end
  end
  for name in pairs(got) do if not want[name] then error(name .. " should not be there", 2) end end
end

-- A model folder in `folder` out of a golden case's config.json and these tensors.
local function write_model(folder, case, tensors, shift)
  support.write(folder .. "/config.json", support.read(GOLDEN .. case .. "/config.json"))
  support.write_tensors(folder .. "/model.safetensors", tensors, shift)
end

-- write_model in a folder of its own, with tensors changed by `change`; fn(folder).
local function with_changed(case, change, fn)
  support.with_folder(function(folder)
    local tensors = support.read_tensors(GOLDEN .. case .. "/model.safetensors")
    write_model(folder, case, change(tensors) or tensors)
    fn(folder)
  end)
end

-- Splits the tensors over two shards with an index; `edit` may change the shards and the map before they are written.
local function write_shards(folder, case, tensors, edit)
  local names, shards, map = {}, {{}, {}}, {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    shards[i % 2 + 1][name] = tensors[name]
    map[name] = ("part-%d.safetensors"):format(i % 2 + 1)
  end
  if edit then edit(shards, map) end
  support.write(folder .. "/config.json", support.read(GOLDEN .. case .. "/config.json"))
  for i = 1, 2 do support.write_tensors(folder .. "/part-" .. i .. ".safetensors", shards[i]) end
  support.write(folder .. "/model.safetensors.index.json", json.encode {weight_map = map})
end

describe("loading a model", function()
  for _, case in ipairs(CASES) do
    if case ~= "released" then
      it("finds every number of " .. case, function()
        local tensors, m = support.read_tensors(GOLDEN .. case .. "/model.safetensors"), load(GOLDEN .. case)
        local total = 0
        for _, t in pairs(tensors) do total = total + #t.data end
        assert.equals(total, tonumber(m.weight_bytes))
        if m.config.tied_embeddings == 1 then tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] end
        assert_same(contents(m), expected(tensors))
        assert.equals(1, m.main_freq[0])
        assert.equals(1, m.compress_freq[0])
        assert.is_true(m.main_freq[1] > m.compress_freq[1])
      end)
    end
  end

  it("finds every number of the released formats, their scales and blocks", function()
    local m, tensors, total = load(GOLDEN .. "released"), {}, 0
    for i = 1, 2 do
      for name, t in pairs(support.read_tensors(GOLDEN .. ("released/model-%05d-of-00002.safetensors"):format(i))) do
        tensors[name] = t
        total = total + #t.data
      end
    end
    assert.equals(total, tonumber(m.weight_bytes))
    -- The vectors that the file has in bf16 are f32 in the model.
    local got, want = contents(m), expected(tensors)
    for name, t in pairs(tensors) do
      if t.dtype == "BF16" and #got[name] == 2 * #t.data then
        local wide = {}
        for at = 1, #t.data, 2 do wide[#wide + 1] = "\0\0" .. t.data:sub(at, at + 1) end
        want[name] = table.concat(wide)
      end
    end
    assert_same(got, want)
    local l = m.layers[1]
    for _, w in ipairs {l.q_a, l.q_b, l.kv, l.o_a, l.o_b, l.shared.gate, l.shared.up, l.shared.down} do
      assert.equals(C.LSA_F8_E4M3, w.dtype)
      assert.equals(C.LSA_F8_E8M0, w.scale_dtype)
      assert.equals(128, tonumber(w.block_rows))
      assert.equals(128, tonumber(w.block_cols))
    end
    for e = 0, 2 do
      for _, w in ipairs {l.experts[e].gate, l.experts[e].up, l.experts[e].down} do
        assert.equals(C.LSA_F4_E2M1, w.dtype)
        assert.equals(128, tonumber(w.rows))
        assert.equals(128, tonumber(w.cols))
        assert.equals(1, tonumber(w.block_rows))
        assert.equals(32, tonumber(w.block_cols))
      end
    end
    assert.equals(C.LSA_BF16, l.compressor.kv.dtype)
    assert.is_true(l.compressor.kv.scale == nil)
    assert.is_true(l.router_bias ~= nil and l.token_experts == nil)
    assert.is_true(m.layers[0].router_bias == nil and m.layers[0].token_experts ~= nil)
  end)

  it("gives the same model under every naming, sharded or not, aligned or not", function()
    for _, case in ipairs {"flash", "odd", "experts"} do
      local tensors = support.read_tensors(GOLDEN .. case .. "/model.safetensors")
      local want = contents(load(GOLDEN .. case))
      local function renamed(fn)
        local out = {}
        for name, t in pairs(tensors) do out[fn(name)] = t end
        return out
      end
      local released, prefixed = as_released(tensors), {}
      for name, t in pairs(released) do prefixed["model." .. name] = t end
      local apart = {}                          -- transformers' names, the experts apart
      for name, t in pairs(released) do
        local parts = {w1 = "gate_proj", w3 = "up_proj", w2 = "down_proj"}
        local layer, e, w = name:match "^layers%.(%d+)%.ffn%.experts%.(%d+)%.(w%d)%.weight$"
        if w then apart[("model.layers.%d.mlp.experts.%d.%s.weight"):format(layer, e, parts[w])] = t end
      end
      for name, t in pairs(tensors) do if not name:find "%.experts%." then apart[name] = t end end
      local extra = renamed(function(name) return name end)
      extra["mtp.0.embed.weight"] = {dtype = "F64", shape = {1}, data = "12345678"}
      extra["model.layers.99.mlp.gate.weight"] = {dtype = "I8", shape = {1}, data = "x"}
      for kind, set in pairs {released = released, prefixed = prefixed, apart = apart, extra = extra,
        bare = renamed(function(name) return (name:gsub("^model%.", "")) end)} do
        support.with_folder(function(folder)
          write_model(folder, case, set, kind == "bare" and 1 or kind == "released" and 3 or nil)
          assert_same(contents(load(folder)), want)
        end)
        support.with_folder(function(folder)
          write_shards(folder, case, set)
          assert_same(contents(load(folder)), want)
        end)
      end
    end
  end)

  it("takes tables of experts in 32 bits, and vectors in bf16 and f16", function()
    with_changed("hash", function(tensors)
      local ids = tensors["model.layers.0.mlp.gate.tid2eid"]
      local n = #ids.data / 8
      ids.data = expected({["model.layers.0.mlp.gate.tid2eid"] = ids})["layers.0.ffn.gate.tid2eid"]
      ids.dtype = "I32"
      assert.equals(4 * n, #ids.data)
      local norm = tensors["model.norm.weight"]
      norm.dtype, norm.data = "BF16", ("\192\63"):rep(32)                -- 1.5
      local sinks = tensors["model.layers.0.self_attn.sinks"]
      sinks.dtype, sinks.data = "F16", ("\0\194"):rep(4)                 -- -3
    end, function(folder)
      local m, original = load(folder), load(GOLDEN .. "hash")
      for i = 0, 31 do assert.equals(1.5, m.norm[i]) end
      for i = 0, 3 do assert.equals(-3, m.layers[0].sinks[i]) end
      for i = 0, 127 do assert.equals(original.layers[0].token_experts[i], m.layers[0].token_experts[i]) end
    end)
  end)

  -- The numbers of a tensor of the golden swa, replaced.
  local Q = "model.layers.0.self_attn.q_a_proj.weight"

  it("finds scales under each of their names, in each of their dtypes", function()
    for _, case in ipairs {{ ".scale", "F8_E8M0", "\127"}, {".scale", "U8", "\127"},
      {".scale", "F32", "\0\0\128\63"}, {".weight_scale_inv", "F32", "\0\0\128\63"} } do
      with_changed("swa", function(tensors)
        tensors[Q] = {dtype = "F8_E4M3", shape = {24, 32}, data = ("\56"):rep(24 * 32)}
        tensors[Q:gsub("%.weight$", case[1])] = {dtype = case[2], shape = {1, 1}, data = case[3]}
      end, function(folder)
        local w = load(folder).layers[0].q_a
        assert.equals(C.LSA_F8_E4M3, w.dtype)
        assert.equals(case[2] == "F32" and C.LSA_F32 or C.LSA_F8_E8M0, w.scale_dtype)
        assert.equals(128, tonumber(w.block_rows))
        local numbers, scales = weight_bytes(w)
        assert.equals(("\56"):rep(24 * 32), numbers)
        assert.equals(case[3], scales)
      end)
    end
  end)

  it("finds the block size from the grid's shape", function()
    for _, case in ipairs {{ "F8_E4M3", 24, 32, 3, 4, 8, 8}, {"F8_E4M3", 24, 32, 1, 1, 128, 128},
      {"F8_E4M3", 24, 32, 24, 1, 1, 128}, {"I8", 24, 16, 24, 1, 1, 32}, {"I8", 24, 16, 3, 2, 8, 16} } do
      with_changed("swa", function(tensors)
        local dtype, rows, cols, grid_rows, grid_cols = unpack(case)
        tensors[Q] = {dtype = dtype, shape = {rows, cols}, data = ("\17"):rep(rows * cols)}
        tensors[Q:gsub("weight$", "scale")] =
          {dtype = "U8", shape = {grid_rows, grid_cols}, data = ("\128"):rep(grid_rows * grid_cols)}
      end, function(folder)
        local w = load(folder).layers[0].q_a
        assert.equals(24, tonumber(w.rows))
        assert.equals(32, tonumber(w.cols))
        assert.equals(case[6], tonumber(w.block_rows))
        assert.equals(case[7], tonumber(w.block_cols))
      end)
    end
  end)

  it("takes fused experts in fp8, each with its part of the scales", function()
    local prefix = "model.layers.0.mlp.experts."
    local function numbers(n, step)
      local out = {}
      for i = 1, n do out[i] = string.char(i * step % 120) end
      return table.concat(out)
    end
    local gate_up, down = numbers(4 * 48 * 32, 7), numbers(4 * 32 * 24, 11)
    local gate_up_scale, down_scale = numbers(4 * 6 * 4, 13), numbers(4 * 4 * 3, 17)
    with_changed("swa", function(tensors)
      tensors[prefix .. "gate_up_proj"] = {dtype = "F8_E4M3", shape = {4, 48, 32}, data = gate_up}
      tensors[prefix .. "down_proj"] = {dtype = "F8_E4M3", shape = {4, 32, 24}, data = down}
      tensors[prefix .. "gate_up_proj_scale_inv"] = {dtype = "U8", shape = {4, 6, 4}, data = gate_up_scale}
      tensors[prefix .. "down_proj_scale"] = {dtype = "U8", shape = {4, 4, 3}, data = down_scale}
    end, function(folder)
      local m = load(folder)
      for e = 0, 3 do
        local w = m.layers[0].experts[e]
        local function same(weight, all, scales, from, n, scale_from, scale_n)
          local data, scale = weight_bytes(weight)
          assert.is_true(data == all:sub(from + 1, from + n))
          assert.is_true(scale == scales:sub(scale_from + 1, scale_from + scale_n))
          assert.equals(8, tonumber(weight.block_rows))
        end
        same(w.gate, gate_up, gate_up_scale, e * 48 * 32, 24 * 32, e * 24, 12)
        same(w.up, gate_up, gate_up_scale, e * 48 * 32 + 24 * 32, 24 * 32, e * 24 + 12, 12)
        same(w.down, down, down_scale, e * 32 * 24, 32 * 24, e * 12, 12)
      end
    end)
  end)

  describe("refuses", function()
    local function case_of(case, change, code, ...)
      local words = {...}
      return function()
        with_changed(case, change, function(folder)
          local message = refused(folder, code)
          for _, word in ipairs(words) do assert.is_true(message:find(word, 1, true) ~= nil, message) end
          assert.is_true(message:find(folder, 1, true) ~= nil, message)
        end)
      end
    end
    local function set(name, field, value) return function(tensors) tensors[name][field] = value end end

    it("each tensor that is missing, by both of its names", function()
      local tensors = support.read_tensors(GOLDEN .. "short/model.safetensors")
      local count = 0
      support.with_folder(function(folder)
        for name in pairs(tensors) do
          local others = {}
          for other, t in pairs(tensors) do if other ~= name then others[other] = t end end
          write_model(folder, "short", others)
          local message = refused(folder, C.LSA_EFORMAT)
          -- Without the fused tensor, the experts' own are looked for.
          local wanted = name:gsub("^model%.", ""):gsub("gate_up_proj$", "0.gate_proj.weight")
          assert.is_true(message:find("tensor " .. wanted, 1, true) ~= nil, name .. ": " .. message)
          assert.is_true(message:find("is missing", 1, true) ~= nil)
          count = count + 1
        end
      end)
      assert.is_true(count > 60)
    end)

    it("each tensor of another shape, with both shapes", function()
      local tensors = support.read_tensors(GOLDEN .. "short/model.safetensors")
      support.with_folder(function(folder)
        for name, t in pairs(tensors) do
          local shape = t.shape
          local turned, has = {}, {}
          for i, n in ipairs(shape) do turned[#shape + 1 - i], has[#shape + 1 - i] = n, ("%d"):format(n) end
          if #shape == 1 or shape[1] == shape[#shape] then turned, has = {shape[1] * (shape[2] or 1), 1}, nil end
          t.shape = turned
          write_model(folder, "short", tensors)
          local message = refused(folder, C.LSA_ESHAPE)
          t.shape = shape
          assert.is_true(message:find("tensor " .. name .. " is [", 1, true) ~= nil, message)
          assert.is_true(message:find("config.json makes it [", 1, true) ~= nil, message)
          if has then assert.is_true(message:find("[" .. table.concat(has, ", ") .. "]", 1, true) ~= nil, message) end
        end
      end)
    end)

    it("a weight of whole numbers", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "I32", shape = {24, 32}, data = ("1234"):rep(24 * 32)}
    end, C.LSA_EDTYPE, Q, "dtype is i32"))

    it("a weight of f64", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "F64", shape = {24, 32}, data = ("12345678"):rep(24 * 32)}
    end, C.LSA_EDTYPE, Q, "dtype is f64"))

    it("a dtype that tensors do not have", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "U64", shape = {24, 32}, data = ("12345678"):rep(24 * 32)}
    end, C.LSA_EDTYPE, Q, "U64"))

    it("a vector of fp8", case_of("swa", function(tensors)
      tensors["model.norm.weight"] = {dtype = "F8_E4M3", shape = {32}, data = ("a"):rep(32)}
    end, C.LSA_EDTYPE, "model.norm.weight", "f8_e4m3"))

    it("fp8 without scales", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "F8_E4M3", shape = {24, 32}, data = ("a"):rep(24 * 32)}
    end, C.LSA_EFORMAT, "q_a_proj.scale", "is missing"))

    it("scales in no equal blocks", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "F8_E4M3", shape = {24, 32}, data = ("a"):rep(24 * 32)}
      tensors[Q:gsub("weight$", "scale")] = {dtype = "U8", shape = {5, 1}, data = "aaaaa"}
    end, C.LSA_ESHAPE, "q_a_proj.scale", "[5, 1]", "[24, 32]"))

    it("scales of one dimension", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "F8_E4M3", shape = {24, 32}, data = ("a"):rep(24 * 32)}
      tensors[Q:gsub("weight$", "scale")] = {dtype = "U8", shape = {24}, data = ("a"):rep(24)}
    end, C.LSA_ESHAPE, "q_a_proj.scale"))

    it("scales in bf16", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "F8_E4M3", shape = {24, 32}, data = ("a"):rep(24 * 32)}
      tensors[Q:gsub("weight$", "scale")] = {dtype = "BF16", shape = {1, 1}, data = "ab"}
    end, C.LSA_EDTYPE, "q_a_proj.scale", "bf16"))

    it("whole bytes where packed halves are due", case_of("swa", function(tensors)
      tensors[Q] = {dtype = "I8", shape = {24, 32}, data = ("a"):rep(24 * 32)}
    end, C.LSA_ESHAPE, Q, "[24, 32]", "[24, 16]"))

    it("blocks of scales across the fused gate and up", case_of("swa", function(tensors)
      local name = "model.layers.0.mlp.experts.gate_up_proj"
      tensors[name] = {dtype = "F8_E4M3", shape = {4, 48, 32}, data = ("a"):rep(4 * 48 * 32)}
      tensors[name .. "_scale"] = {dtype = "U8", shape = {4, 1, 1}, data = "aaaa"}
    end, C.LSA_ESHAPE, "gate_up_proj", "24 rows"))

    it("a token's expert past the last, and before the first", function()
      local name = "model.layers.0.mlp.gate.tid2eid"
      for _, id in ipairs {"\4\0\0\0\0\0\0\0", ("\255"):rep(8), "\0\0\0\0\1\0\0\0"} do
        case_of("hash", function(tensors)
          local t = tensors[name]
          t.data = t.data:sub(1, 16 * 9) .. id .. t.data:sub(16 * 9 + 9)
        end, C.LSA_EFORMAT, name, "token 9", "of 4")()
      end
    end)

    it("a table of experts for fewer tokens", case_of("hash", function(tensors)
      local t = tensors["model.layers.0.mlp.gate.tid2eid"]
      t.shape, t.data = {63, 2}, t.data:sub(17)
    end, C.LSA_ESHAPE, "tid2eid", "[63, 2]", "[64, 2]"))

    it("a table of experts in floats", case_of("hash", function(tensors)
      local t = tensors["model.layers.0.mlp.gate.tid2eid"]
      t.dtype, t.data = "F32", t.data:sub(1, #t.data / 2)
    end, C.LSA_EDTYPE, "tid2eid", "f32"))

    it("a weight under two names", case_of("swa", function(tensors)
      tensors["layers.0.attn.wq_a.weight"] = tensors[Q]
    end, C.LSA_EFORMAT, "layers.0.attn.wq_a.weight", "the same weight"))

    it("a weight with the prefix and without", case_of("swa", function(tensors)
      tensors[Q:gsub("^model%.", "")] = tensors[Q]
    end, C.LSA_EFORMAT, Q, "the same weight"))

    it("a missing head that is not tied", case_of("swa", function(tensors)
      tensors["lm_head.weight"] = nil
    end, C.LSA_EFORMAT, "lm_head.weight (or head.weight) is missing"))

    it("a checkpoint of another config", case_of("swa", set(Q, "shape", {32, 24}), C.LSA_ESHAPE,
      "[32, 24]", "[24, 32]", "model.safetensors"))

    it("folders without config, without weights, and no folder", function()
      support.with_folder(function(folder)
        assert.is_true(refused(folder, C.LSA_EIO):find("config.json: cannot be opened: No such file", 1, true) ~= nil)
        support.write(folder .. "/config.json", support.read(GOLDEN .. "swa/config.json"))
        assert.is_true(refused(folder, C.LSA_EIO):find("neither model.safetensors nor", 1, true) ~= nil)
        support.make_folder(folder .. "/model.safetensors")
        assert.is_true(refused(folder, C.LSA_EIO):find("not a regular file", 1, true) ~= nil)
        assert.is_true(refused(folder .. "/none", C.LSA_EIO):find("none/config.json", 1, true) ~= nil)
      end)
    end)
  end)

  describe("refuses shards", function()
    local tensors = support.read_tensors(GOLDEN .. "swa/model.safetensors")
    local function try(edit, code, ...)
      local words = {...}
      support.with_folder(function(folder)
        write_shards(folder, "swa", tensors, edit)
        local message = refused(folder, code)
        for _, word in ipairs(words) do assert.is_true(message:find(word, 1, true) ~= nil, message) end
      end)
    end

    it("that are not there", function()
      try(function(_, map) map[Q] = "part-3.safetensors" end, C.LSA_EIO, "part-3.safetensors", "No such file")
    end)

    it("outside the folder", function()
      for _, name in ipairs {"../part-1.safetensors", "/etc/passwd", "a/b", "..", ".", ""} do
        try(function(_, map) map[Q] = name end, C.LSA_EFORMAT, Q, "a name in this directory is expected")
      end
    end)

    it("whose name is a number", function()
      try(function(_, map) map[Q] = 3 end, C.LSA_EFORMAT, Q, "its file is 3")
    end)

    it("that both have a tensor", function()
      try(function(shards) shards[1][Q], shards[2][Q] = tensors[Q], tensors[Q] end, C.LSA_EFORMAT, Q, "part-2", "part-1")
    end)

    it("without a tensor that the index has there", function()
      try(function(shards) shards[1][Q], shards[2][Q] = nil, nil end, C.LSA_EFORMAT, Q, "is missing", "index.json")
      try(function(_, map) map[Q] = map[Q] == "part-1.safetensors" and "part-2.safetensors" or "part-1.safetensors" end,
        C.LSA_EFORMAT, Q, "is missing", "index.json")
    end)

    it("of an index that is broken", function()
      for _, text in ipairs {"", "{}", '{"weight_map":[]}', '{"weight_map":{"a":"b","a":"b"}}', '{"weight_map":{}}'} do
        support.with_folder(function(folder)
          support.write(folder .. "/config.json", support.read(GOLDEN .. "swa/config.json"))
          support.write(folder .. "/model.safetensors.index.json", text)
          assert.is_true(refused(folder, C.LSA_EFORMAT):find("index.json", 1, true) ~= nil)
        end)
      end
    end)
  end)

  it("leaves nothing behind, whichever allocation or file operation fails", function()
    local out = ffi.new "lsa_model *[1]"
    local function sweep(folder, stride)
      local blocks, operations = support.fail_everything(function()
        local rc = C.lsa_model_load(out, folder)
        if rc == 0 then C.lsa_model_free(out[0]) end
        return rc
      end, stride)
      assert.is_true(blocks > 500 and operations >= 9)
    end
    sweep(GOLDEN .. "short", 1)
    sweep(GOLDEN .. "released", 17)
    support.with_folder(function(folder)         -- a hash layer whose data is not aligned
      write_model(folder, "hash", support.read_tensors(GOLDEN .. "hash/model.safetensors"), 1)
      sweep(folder, 1)
    end)
  end)

  it("survives damaged configs and indexes", function()
    local u = uniform(31)
    local function int(n) return math.floor(u() * n) end
    local numbers = {"0", "-1", "1", "2", "3", "7", "1e3", "2147483647", "9223372036854775807", "1e308", "0.5", "null", "true",
      '"x"', "[]", "{}"}
    local function damage(text)
      for _ = 1, 1 + int(2) do
        local places = {}
        for at, value in text:gmatch '()": *[%d%.e%-]+' do places[#places + 1] = {at, value} end
        local kind = int(3)
        if kind < 2 and #places > 0 then           -- another value for a number
          local from, to = text:find("[%d%.e%-]+", places[1 + int(#places)][1])
          text = text:sub(1, from - 1) .. numbers[1 + int(#numbers)] .. text:sub(to + 1)
        else                                       -- another byte
          local at = 1 + int(#text)
          text = text:sub(1, at - 1) .. string.char(int(256)) .. text:sub(at + 1)
        end
      end
      return text
    end
    support.with_folder(function(folder)
      local before, loaded = support.memory(), 0
      write_shards(folder, "short", support.read_tensors(GOLDEN .. "short/model.safetensors"))
      local good = {}
      for _, name in ipairs {"config.json", "model.safetensors.index.json"} do good[name] = support.read(folder .. "/" .. name) end
      for round = 1, 600 do
        local name = round % 4 == 0 and "model.safetensors.index.json" or "config.json"
        support.write(folder .. "/" .. name, damage(good[name]))
        local out = ffi.new "lsa_model *[1]"
        if C.lsa_model_load(out, folder) == 0 then
          loaded = loaded + 1
          C.lsa_model_free(out[0])
        end
        support.write(folder .. "/" .. name, good[name])
      end
      assert.is_true(loaded > 20 and loaded < 500, "loaded " .. loaded)
      assert.equals(before, support.memory())
    end)
  end)

  it("keeps the weights when the files are gone", function()
    support.with_folder(function(folder)
      local tensors = support.read_tensors(GOLDEN .. "hca/model.safetensors")
      write_shards(folder, "hca", tensors)
      local m = load(folder)
      os.execute("rm -r '" .. folder .. "'")
      assert_same(contents(m), expected(tensors))
    end)
  end)
end)
