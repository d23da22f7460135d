-- Level 1 of a cycle in one call: what its parts give one by one.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local F32, FP8 = tonumber(C.LSA_KV_F32), tonumber(C.LSA_KV_FP8)
local MAX, MEAN = C.LSA_ENSEMBLE_MAX, C.LSA_ENSEMBLE_MEAN
local cuda = support.device == "cuda"
local kernel = support.over_spans "lookahead"
local workspace_of = cuda and support.device_kernel("lsa_lookahead_workspace_cuda", "lsa_lookahead_workspace_fn")
  or C.lsa_lookahead_workspace

local function words(n) return math.max(1, math.floor((n + 63) / 64)) end

-- A layer's n keys in blocks of 2^shift, `gap` bytes apart, and packed for the oracle.
local function new_keys(t, n, random)
  local size = tonumber(C.lsa_index_key_bytes(t.format, t.dim))
  local keys = {packed = support.buffer("uint8_t", math.max(1, n * size)), held = {}}
  local values = support.buffer("float", math.max(1, n * t.dim))
  for i = 0, n * t.dim - 1 do values[i] = random(-1, 1) end
  if t.nan and n > 5 then values[5 * t.dim] = 0 / 0 end
  check(C.lsa_index_encode_cpu(keys.packed, values, n, t.dim, size, t.format, nil))
  local per_block, blocks = 2 ^ t.shift, math.max(1, math.ceil(n / 2 ^ t.shift))
  keys.blocks = support.shared("uint8_t *", blocks)
  for b = 0, blocks - 1 do
    keys.held[b] = support.shared("uint8_t", per_block * (size + t.gap))
    keys.blocks[b] = keys.held[b]
    for i = 0, math.min(per_block, n - b * per_block) - 1 do
      ffi.copy(keys.held[b] + i * (size + t.gap), keys.packed + (b * per_block + i) * size, size)
    end
  end
  return keys, size + t.gap
end

-- t: layers, heads, dim, format, scoring, ensemble, theta (nil: see proves), strict, shift, gap, n = {chunks of each request}
local function new_call(t)
  local random = support.uniform(7)
  t.requests, t.most, t.held = support.shared("lsa_lookahead_request", #t.n), 0, {}
  for i, n in ipairs(t.n) do
    local held, r = {layers = {}}, t.requests[i - 1]
    held.q, held.w = support.shared("float", t.layers * t.heads * t.dim), support.shared("float", t.layers * t.heads)
    for j = 0, t.layers * t.heads * t.dim - 1 do held.q[j] = random(-1, 1) end
    for j = 0, t.layers * t.heads - 1 do held.w[j] = random(-0.4, 1) / t.heads end
    held.records = support.shared("lsa_records", t.layers)
    for layer = 0, t.layers - 1 do
      local keys, stride = new_keys(t, n, random)
      held.layers[layer] = keys
      held.records[layer].blocks, held.records[layer].stride = keys.blocks, stride
      held.records[layer].block_shift, held.records[layer].format = t.shift, t.format
    end
    held.scores, held.bits = support.shared("float", math.max(1, n)), support.shared("uint64_t", words(n))
    held.ids, held.count = support.shared("int32_t", math.max(1, n)), support.shared("int32_t", 1)
    held.pages = support.shared("int32_t", words(n))
    support.poison(held.scores, n)
    r.q, r.w, r.keys, r.n = held.q, held.w, held.records, n
    r.scores, r.bits, r.ids, r.count, r.pages = held.scores, held.bits, held.ids, held.count, held.pages
    t.held[i], t.most = held, math.max(t.most, n)
  end
end

local function run(t, requests, count, more)
  local l = ffi.new("lsa_lookahead", {requests = requests, count = count, layers = t.layers, heads = t.heads, dim = t.dim,
    most = t.most + (more or 0), key_format = t.format, scoring = t.scoring, ensemble = t.ensemble, theta = t.theta,
    strict = t.strict or 0, lists = 1})
  local bytes = tonumber(workspace_of(l))
  local workspace = cuda and support.shared("uint8_t", bytes) or support.workspace(bytes)
  check(kernel(l, workspace, nil))
end

-- What the parts give on the CPU.
local function oracle(t, held, n)
  local logits, scores = support.buffer("float", math.max(1, t.layers * n)), support.buffer("float", math.max(1, n))
  local size = tonumber(C.lsa_index_key_bytes(t.format, t.dim))
  local workspace = support.workspace(C.lsa_index_score_workspace(1, n, t.heads, t.dim, t.format, t.scoring))
  for layer = 0, t.layers - 1 do
    check(C.lsa_index_score_cpu(logits + layer * n, held.q + layer * t.heads * t.dim, held.w + layer * t.heads,
      held.layers[layer].packed, 1, n, t.heads, t.dim, size, n, t.format, t.scoring, workspace, nil))
  end
  check(C.lsa_ensemble_cpu(scores, logits, t.layers, n, t.ensemble, nil))
  return scores
end

local function proves(t)
  new_call(t)
  if not t.theta then   -- what about half of the first request's chunks reach
    local scores, list = oracle(t, t.held[1], t.n[1]), {}
    for s = 0, t.n[1] - 1 do
      if scores[s] == scores[s] then list[#list + 1] = scores[s] end
    end
    table.sort(list)
    t.theta = list[math.ceil(#list / 2)]
  end
  run(t, t.requests, #t.n, 100)
  for i, n in ipairs(t.n) do
    local held, chosen = t.held[i], 0
    local want = oracle(t, held, n)
    if cuda then
      local tolerance = t.scoring == 2 and 2e-2 or 1e-4
      for s = 0, n - 1 do
        local same = want[s] ~= want[s] and held.scores[s] ~= held.scores[s]
        assert(same or math.abs(held.scores[s] - want[s]) <= tolerance,
          ("request %d, chunk %d: %g, not %g"):format(i, s, held.scores[s], want[s]))
      end
    else
      assert.equal(0, support.max_error(held.scores, want, n))
    end
    local bits = support.buffer("uint64_t", words(n))
    check(C.lsa_select_above_cpu(bits, held.scores, n, t.theta, t.strict or 0, nil))
    assert.is_true(support.same_bits(bits, held.bits, math.floor((n + 63) / 64) * 8))
    local pages = {}
    for s = 0, n - 1 do
      local score, page = held.scores[s], math.floor(s / 64)
      pages[page] = pages[page] or 0
      if score > t.theta or score == t.theta and t.strict ~= 1 then
        assert.equal(s, held.ids[chosen])
        chosen, pages[page] = chosen + 1, pages[page] + 1
      end
    end
    assert.equal(chosen, held.count[0])
    for page, count in pairs(pages) do assert.equal(count, held.pages[page]) end
    if i == 1 and not t.all then assert.is_true(chosen > 0 and chosen < n) end

    -- The same alone, and with nothing but scores asked for.
    local before = support.buffer("float", math.max(1, n))
    ffi.copy(before, held.scores, n * 4)
    support.poison(held.scores, n)
    local r = support.shared("lsa_lookahead_request", 1)
    r[0].q, r[0].w, r[0].keys, r[0].n, r[0].scores = held.q, held.w, held.records, n, held.scores
    run(t, r, 1)
    assert.is_true(support.same_bits(before, held.scores, n * 4))
  end
end

describe("lookahead", function()
  it("is the ensemble of index scores and what reaches the threshold, for requests of any lengths", function()
    for _, scoring in ipairs {0, 1, 2} do
      for _, ensemble in ipairs {MAX, MEAN} do
        proves {layers = 3, heads = 5, dim = 32, format = FP8, scoring = scoring, ensemble = ensemble, shift = 4,
          gap = 0, n = {300, 0, 64, 1, 129}}
        proves {layers = 2, heads = 3, dim = 20, format = F32, scoring = scoring, ensemble = ensemble, shift = 10,
          gap = 8, n = {200, 70}}
      end
    end
  end)

  it("has the tensor cores' shapes: keys one behind the other, and in blocks with gaps", function()
    for _, scoring in ipairs {0, 1, 2} do
      for _, gap in ipairs {0, 1} do
        proves {layers = 3, heads = 128, dim = 128, format = FP8, scoring = scoring, ensemble = MAX,
          shift = 6, gap = gap, n = {1000, 0, 150}, nan = true}
        proves {layers = 1, heads = 40, dim = 128, format = FP8, scoring = scoring, ensemble = MEAN,
          shift = 10, gap = gap, n = {2100}, strict = 1}
      end
    end
  end)

  it("scores more layers than a block can hold queries of", function()
    proves {layers = 12, heads = 70, dim = 128, format = FP8, scoring = 1, ensemble = MAX, shift = 5, gap = 0,
      n = {333}}
  end)

  it("takes all and none", function()
    for theta, all in pairs {[0] = 100, [-1] = 100, [2] = 0} do
      local t = {layers = 1, heads = 2, dim = 16, format = F32, scoring = 0, ensemble = MAX, theta = theta, shift = 7, gap = 0,
        n = {100}, all = true}
      proves(t)
      assert.equal(all, t.held[1].count[0])
    end
  end)

  it("refuses what it cannot do, by name", function()
    local function refusal(code, words_, fields)
      local l = ffi.new("lsa_lookahead", {layers = 1, heads = 1, dim = 8, most = 10})
      for name, value in pairs(fields) do l[name] = value end
      assert.equal(tonumber(code), C.lsa_lookahead_cpu(l, nil, nil))
      assert.truthy(ffi.string(C.lsa_error()):find(words_, 1, true))
    end
    refusal(C.LSA_ESHAPE, "0 layers", {layers = 0})
    refusal(C.LSA_ESHAPE, "65 layers", {layers = 65})
    refusal(C.LSA_ESHAPE, "-1 requests", {count = -1})
    refusal(C.LSA_EARG, "scoring 3", {scoring = 3})
    refusal(C.LSA_EARG, "neither max (0) nor mean (1)", {ensemble = 2})
  end)
end)
