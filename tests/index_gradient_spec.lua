local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local trainer_support = require "trainer_support"
local C, check = lsa.C, require("lsa.raise").check

local function run(q, w, keys, ids, slope, n, heads, dim, format)
  local workspace = support.workspace(C.lsa_index_gradient_workspace(n, heads, dim))
  local logits, dq, dw = support.buffer("float", n), support.buffer("float", heads * dim), support.buffer("float", heads)
  support.poison(dq, heads * dim)
  check(C.lsa_index_gather_cpu(logits, q, w, keys, ids, n, heads, dim, C.lsa_index_key_bytes(format, dim), format,
    workspace, nil))
  check(C.lsa_index_gradient_cpu(dq, dw, slope, w, n, heads, dim, workspace, nil))
  return logits, dq, dw
end

local function compare(n, heads, dim, format, seed)
  local COUNT = 11
  local keys, lists = trainer_support.keys(COUNT, {key_format = format, dim = dim}, seed)
  local q, w, slope = support.normals(heads * dim, seed + 1), support.normals(heads, seed + 2), support.normals(n, seed + 3)
  local ids, uniform = support.buffer("int32_t", n), support.uniform(seed)
  local logits, dq, dw = {}, {}, {}
  for h = 0, heads - 1 do
    dw[h] = 0
    for d = 0, dim - 1 do dq[h * dim + d] = 0 end
  end
  for i = 0, n - 1 do
    ids[i] = math.floor(uniform(0, COUNT))
    local key = lists[ids[i]]
    logits[i] = 0
    for h = 0, heads - 1 do
      local dot = 0
      for d = 0, dim - 1 do dot = dot + q[h * dim + d] * key[d + 1] end
      if dot > 0 then
        logits[i], dw[h] = logits[i] + w[h] * dot, dw[h] + slope[i] * dot
        for d = 0, dim - 1 do dq[h * dim + d] = dq[h * dim + d] + slope[i] * w[h] * key[d + 1] end
      end
    end
  end
  local got, gq, gw = run(q, w, keys, ids, slope, n, heads, dim, format)
  local floor = math.sqrt(dim * math.max(n, 1))
  return math.max(support.max_error(got, logits, n, floor), support.max_error(gq, dq, heads * dim, floor),
    support.max_error(gw, dw, heads, floor))
end

describe("lsa_index_gather and lsa_index_gradient", function()
  it("agree with their formulas on every shape, format and code path", function()
    support.for_each_cpu_level(function()
      for i, shape in ipairs{{1, 1, 1}, {3, 4, 8}, {32, 4, 32}, {33, 5, 16}, {100, 9, 64}, {31, 3, 48}, {64, 2, 23}, {0, 3, 8}} do
        local n, heads, dim = unpack(shape)
        assert.is_true(compare(n, heads, dim, C.LSA_KV_F32, i) <= 1e-5)
        assert.is_true(compare(n, heads, dim, C.LSA_KV_BF16, i) <= 1e-5)
        if math.log(dim) / math.log(2) % 1 == 0 then
          assert.is_true(compare(n, heads, dim, C.LSA_KV_FP8, i) <= 1e-5)
        end
      end
    end)
  end)

  it("have no gradient through a product of exactly 0", function()
    local logits, dq, dw = run(support.array("float", {1, 0, 0, 1}), support.array("float", {2, 3}),
      support.array("float", {0, 5}), support.array("int32_t", {0}), support.array("float", {1}), 1, 2, 2, C.LSA_KV_F32)
    assert.equal(15, logits[0])
    assert.same({0, 0, 0, 15}, {dq[0], dq[1], dq[2], dq[3]})
    assert.same({0, 5}, {dw[0], dw[1]})
  end)

  it("pass the NaN of a key on to its logit alone, and to the gradient", function()
    local keys = support.array("float", {1, 1, 0 / 0, 1})
    local logits, dq = run(support.array("float", {1, 1}), support.array("float", {1}), keys, support.array("int32_t", {0, 1}),
      support.array("float", {1, 1}), 2, 1, 2, C.LSA_KV_F32)
    assert.equal(2, logits[0])
    assert.is_true(logits[1] ~= logits[1])
    assert.is_true(dq[0] ~= dq[0])
  end)

  it("refuse shapes and formats that are none", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_index_gather_cpu(nil, nil, nil, nil, nil, -1, 1, 1, 4, C.LSA_KV_F32, nil, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_index_gradient_cpu(nil, nil, nil, nil, 1, 0, 1, nil, nil))
    assert.equal(C.LSA_EARG, C.lsa_index_gather_cpu(nil, nil, nil, nil, nil, 1, 1, 1, 4, 3, nil, nil))
    assert.equal("index_gather: key format 3 is not f32, bf16 or fp8", ffi.string(C.lsa_error()))
  end)
end)
