local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0

-- A row: a list of {id, logit}. The definition, in double precision: sort, best first and earlier first among equals; take
-- until the weight exceeds top_p of the whole. nil where f32 could decide otherwise.
local function oracle_row(row, top_p, extra)
  local order, most = {}, -INF
  for place, e in ipairs(row) do
    if e[1] >= 0 and e[2] == e[2] and e[2] ~= -INF then
      order[#order + 1] = {id = e[1], v = e[2], place = place}
      most = math.max(most, e[2])
    end
  end
  table.sort(order, function(a, b) return a.v > b.v or (a.v == b.v and a.place < b.place) end)
  local total, sum, kept = 0, 0, {}
  for _, e in ipairs(order) do
    e.w = e.v == most and 1 or math.exp(e.v - most)
    total = total + e.w
  end
  local margin = top_p > 0 and top_p < 1 and 4e-6 * total or 0
  for i, e in ipairs(order) do
    kept[i] = e.id
    sum = sum + e.w
    if math.abs(sum - top_p * total) < margin then return nil end
    if sum > top_p * total and top_p < 1 then break end
  end
  if extra and order[#kept + 1] then kept[#kept + 1] = order[#kept + 1].id end
  return kept
end

-- steps[t][l] is a row. A list of {id, votes} for every step, or nil.
local function oracle(steps, top_p, extra, min_layers)
  local out = {}
  for t, layers in ipairs(steps) do
    local votes, golden = {}, {}
    for _, row in ipairs(layers) do
      local kept = oracle_row(row, top_p, extra)
      if not kept then return nil end
      for _, id in ipairs(kept) do votes[id] = (votes[id] or 0) + 1 end
    end
    for id, n in pairs(votes) do
      if n >= min_layers then golden[#golden + 1] = {id, n} end
    end
    table.sort(golden, function(a, b) return a[1] < b[1] end)
    out[t] = golden
  end
  return out
end

-- The kernel on exact-size buffers; "steps" or "layers" tells what the outer dimension in memory is.
local function run(steps, n, top_p, extra, min_layers, outer)
  local T, L = #steps, steps[1] and #steps[1] or 0
  local k = L > 0 and #steps[1][1] or 0
  local step_stride, layer_stride = L * k, k
  if outer == "layers" then step_stride, layer_stride = k, T * k end
  local ids, logits = support.buffer("int32_t", T * L * k), support.buffer("float", T * L * k)
  for t = 1, T do
    for l = 1, L do
      for j = 1, k do
        local at = (t - 1) * step_stride + (l - 1) * layer_stride + j - 1
        ids[at], logits[at] = steps[t][l][j][1], steps[t][l][j][2]
      end
    end
  end
  local room = tonumber(C.lsa_golden_labels_room(T, L, k, min_layers))
  local pointers = support.buffer("int32_t", T + 1)
  local indices, scores = support.buffer("int32_t", room), support.buffer("int32_t", room)
  local workspace = support.workspace(C.lsa_golden_labels_workspace(L, k, n))
  check(C.lsa_golden_labels_cpu(pointers, indices, scores, ids, logits, T, L, k, step_stride, layer_stride, n, top_p,
    extra and 1 or 0, min_layers, workspace, nil))
  local out = {}
  assert.equal(0, pointers[0])
  for t = 1, T do
    out[t] = {}
    for i = pointers[t - 1], pointers[t] - 1 do table.insert(out[t], {indices[i], scores[i]}) end
  end
  return out
end

-- Labels as text: one comparison, however many they are.
local function text(steps)
  local out = {}
  for t, golden in ipairs(steps) do
    for _, label in ipairs(golden) do out[#out + 1] = ("%d:%d/%d"):format(t, label[1], label[2]) end
  end
  return table.concat(out, " ")
end

local function f32(x) return tonumber(ffi.new("float", x)) end

local KINDS = {"normal", "peaked", "flat", "tied", "equal", "spoiled", "clustered", "sparse", "rising", "falling",
  "neighbours", "misleading"}

-- Of place i of k.
local function logit(kind, u, i, k)
  if kind == "rising" then return f32(4 * i / k) end
  if kind == "falling" then return f32(-9 * i / k) end
  if kind == "neighbours" then return f32(1 + math.floor(5 * u()) * 2 ^ -23) end
  if kind == "misleading" then return f32(i <= k / 2 and -15 or i % 7 == 0 and 2 or 1.9 + 1e-6 * u()) end
  if kind == "normal" then return f32(3 * (u() + u() + u() + u() - 2)) end
  if kind == "peaked" then return f32(30 * u() ^ 4 - 10) end
  if kind == "flat" then return f32(7 + 1e-4 * u()) end
  if kind == "tied" then return math.floor(4 * u()) end
  if kind == "equal" then return -0.5 end
  if kind == "clustered" then return f32(u() < 0.02 and 3 or 1e-3 * u()) end
  if kind == "spoiled" then
    local dice = u()
    return dice < 0.1 and NAN or dice < 0.2 and -INF or dice < 0.21 and INF or f32(1e30 * (u() - 0.5))
  end
  return f32(u())
end

-- k distinct ascending ids below n; in "sparse" rows most are -1, in front as a trace has them.
local function random_row(k, n, kind, u)
  local ids, seen = {}, {}
  while #ids < k do
    local id = math.floor(u() * n)
    if not seen[id] then
      seen[id] = true
      ids[#ids + 1] = id
    end
  end
  table.sort(ids)
  local row, none = {}, kind == "sparse" and math.floor(u() * (k + 1)) or 0
  for i = 1, k do row[i] = {i <= none and -1 or ids[i], i <= none and NAN or logit(kind, u, i, k)} end
  return row
end

local function random_steps(T, L, k, n, kind, seed)
  local u, steps = support.uniform(seed), {}
  for t = 1, T do
    steps[t] = {}
    for l = 1, L do steps[t][l] = random_row(k, n, kind or KINDS[(t + l) % #KINDS + 1], u) end
  end
  return steps
end

for level = 0, C.lsa_cpu_best() do
  describe("golden labels on " .. ffi.string(C.lsa_cpu_level_name(level)), function()
    setup(function() C.lsa_cpu_limit(level) end)
    teardown(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

    for _, kind in ipairs(KINDS) do
      it("equal the definition on rows that are " .. kind, function()
        local compared = 0
        for seed = 1, 5 do
          for _, k in ipairs {1, 2, 15, 16, 17, 64, 100, 512} do
            local steps = random_steps(2, 4, k, 700, kind, seed * 100 + k)
            for _, top_p in ipairs {0, 0.4, 0.6, 0.95, 1, 2} do
              local extra, min_layers = seed % 2 == 0, 1 + seed % 3
              local want = oracle(steps, top_p, extra, min_layers)
              if want then
                compared = compared + 1
                local got = run(steps, 700, top_p, extra, min_layers, seed % 2 == 0 and "layers" or "steps")
                assert.equal(text(want), text(got))
              end
            end
          end
        end
        assert.is_true(compared > 120, compared .. " cases were clear enough to compare")
      end)
    end

    it("keep exactly the least that is more than top_p", function()
      local function kept(top_p, extra)
        local row = {{3, 0}, {5, 0}, {8, 0}, {9, 0}, {10, -INF}, {-1, 5}, {11, NAN}}
        local out = {}
        for _, e in ipairs(run({{row}}, 12, top_p, extra, 1)[1]) do out[#out + 1] = e[1] end
        return out
      end
      assert.same({3}, kept(0))
      assert.same({3}, kept(0.24))
      assert.same({3, 5}, kept(0.25))   -- a quarter is not more than a quarter
      assert.same({3, 5, 8}, kept(0.5))
      assert.same({3, 5, 8, 9}, kept(0.5, true))
      assert.same({3, 5, 8, 9}, kept(0.75))
      assert.same({3, 5, 8, 9}, kept(0.75, true))
      assert.same({3, 5, 8, 9}, kept(1))
    end)

    it("give the settings that are published", function()
      local steps = random_steps(3, 21, 96, 100, "flat", 5)
      for _, setting in ipairs {{0.6, 3}, {0.4, 10}} do
        local want = assert(oracle(steps, setting[1], false, setting[2]))
        assert.same(want, run(steps, 100, setting[1], false, setting[2]))
        assert.is_true(#want[1] > 0)
      end
    end)

    it("are none where nothing is entered", function()
      assert.same({}, run({}, 10, 0.6, false, 1))
      assert.same({{}}, run({{}}, 10, 0.6, false, 1))
      assert.same({{}}, run({{{}, {}}}, 0, 0.6, false, 1))
      assert.same({{}, {{2, 2}}}, run({{{{-1, 1}}, {{4, NAN}}}, {{{2, 1}}, {{2, -7}}}}, 10, 0.6, false, 1))
      assert.same({{}}, run({{{{4, 1}}, {{5, 1}}}}, 10, 0.6, false, 2))
      assert.same({{}}, run({{{{4, 1}}}}, 10, 0.6, true, 3))   -- more layers than there are
    end)
  end)
end

describe("golden labels", function()
  it("are the same bits on every code path and with any number of threads", function()
    local steps = random_steps(64, 9, 300, 5000, nil, 9)
    local first
    support.for_each_cpu_level(function()
      for _, threads in ipairs {1, 2, 5} do
        C.lsa_threads_set(threads)
        local got = run(steps, 5000, 0.6, false, 2)
        C.lsa_threads_set(0)
        first = first or got
        assert.equal(text(first), text(got))
      end
    end)
    local labels = 0
    for _, golden in ipairs(first) do labels = labels + #golden end
    assert.is_true(labels > 1000)
  end)

  it("are the same on rows of any length", function()
    for _, k in ipairs {8192, 8200} do
      local steps, first = random_steps(1, 2, k, 9000, "normal", k), nil
      support.for_each_cpu_level(function()
        local got = text(run(steps, 9000, 0.6, false, 1))
        first = first or got
        assert.equal(first, got)
      end)
    end
  end)

  it("leave the workspace clean for the next step", function()
    local steps = random_steps(3, 5, 40, 100, "normal", 11)
    local alone = {}
    for t = 1, 3 do alone[t] = run({steps[t]}, 100, 0.7, false, 2)[1] end
    assert.same(alone, run(steps, 100, 0.7, false, 2))
  end)

  it("are refused where an argument makes no sense", function()
    local function failure(...)
      local ok, message = pcall(run, ...)
      assert.is_false(ok)
      return message
    end
    local steps = {{{{4, 1}, {9, 2}}}}
    assert.matches("an id is 9, there are 9 chunks", failure(steps, 9, 0.6, false, 1))
    assert.matches("top_p is %-1", failure(steps, 10, -1, false, 1))
    assert.matches("top_p is %-?nan", failure(steps, 10, NAN, false, 1))
    assert.matches("min_layers is 0", failure(steps, 10, 0.6, false, 0))
    local many = {{}}
    for l = 1, 256 do many[1][l] = {{0, 1}} end
    assert.matches("256 layers", failure(many, 1, 0.6, false, 1))
  end)
end)

describe("lsa.train.labels", function()
  local labels = require "lsa.train.labels"
  local tensor = require "lsa.tensor.tensor"

  local function mined(steps, n, opt)
    local ids, logits = {}, {}
    for t, layers in ipairs(steps) do
      ids[t], logits[t] = {}, {}
      for l, row in ipairs(layers) do
        ids[t][l], logits[t][l] = {}, {}
        for j, e in ipairs(row) do ids[t][l][j], logits[t][l][j] = e[1], e[2] end
      end
    end
    opt.n = n
    local pointers, indices, scores = labels.mine(tensor.new(ids, "i32"), tensor.new(logits), opt)
    local out, p = {}, pointers:totable()
    for t = 1, #steps do
      out[t] = {}
      for i = p[t], p[t + 1] - 1 do out[t][#out[t] + 1] = {indices:get(i), scores:get(i)} end
    end
    assert.equal(p[#p], indices:count())
    assert.equal(p[#p], scores:count())
    return out
  end

  it("are those of the kernel, with a seventh of the layers by default", function()
    local steps = random_steps(5, 8, 40, 90, "normal", 3)
    assert.equal(text(run(steps, 90, 0.6, false, 2)), text(mined(steps, 90, {})))
    assert.equal(text(run(steps, 90, 0.4, true, 5)), text(mined(steps, 90, {top_p = 0.4, min_layers = 5, extra = true})))
    assert.equal(3, labels.min_layers(21))
    assert.equal(1, labels.min_layers(4))
  end)

  it("count the best k of a row alone where k is given", function()
    local steps = random_steps(4, 3, 30, 50, "tied", 8)
    local cut = {}
    for t, layers in ipairs(steps) do
      cut[t] = {}
      for l, row in ipairs(layers) do
        local order = {}
        for place, e in ipairs(row) do order[place] = {e = e, place = place} end
        table.sort(order, function(a, b) return a.e[2] > b.e[2] or (a.e[2] == b.e[2] and a.place < b.place) end)
        local best = {unpack(order, 1, 7)}
        table.sort(best, function(a, b) return a.place < b.place end)
        cut[t][l] = {}
        for j, o in ipairs(best) do cut[t][l][j] = o.e end
      end
    end
    assert.equal(text(run(cut, 50, 0.9, false, 1)), text(mined(steps, 50, {k = 7, top_p = 0.9})))
  end)
end)
