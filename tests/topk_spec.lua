local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0

-- The definition: sort all candidates, best first, lower id first among equals; take k; sort by id.
local function oracle(scores, k)
  local order = {}
  for id, v in ipairs(scores) do
    if v == v and v ~= -INF then order[#order + 1] = {v = v, id = id - 1} end
  end
  table.sort(order, function(a, b) return a.v > b.v or (a.v == b.v and a.id < b.id) end)
  local taken = {}
  for i = 1, math.min(k, #order) do taken[i] = order[i] end
  table.sort(taken, function(a, b) return a.id < b.id end)
  return taken
end

local function floats(t) return support.array("float", t) end

-- Scores are rounded to f32 first, so that ties in the oracle are ties in the kernel.
local function rounded(t)
  local a, r = floats(t), {}
  for i = 1, #t do r[i] = a[i - 1] end
  return r
end

local function stream(scores, k, blocks)
  local capacity = C.lsa_topk_capacity(k)
  local state = ffi.new "lsa_topk_state"
  local values, ids = support.buffer("float", capacity), support.buffer("int32_t", capacity)
  C.lsa_topk_begin(state, k, values, ids)
  local at, block = 0, 0
  while at < #scores do
    local n = math.min(blocks[block % #blocks + 1], #scores - at)
    local part = n >= 1000 and support.buffer("float", n) or ffi.new("float[?]", n)
    for i = 0, n - 1 do part[i] = scores[at + i + 1] end
    C.lsa_topk_push(state, part, n, at)
    at, block = at + n, block + 1
  end
  local out_ids, out_values = ffi.new("int32_t[?]", k + 1), ffi.new("float[?]", k + 1)
  out_ids[k] = 12345
  local count = C.lsa_topk_finish(state, out_ids, out_values)
  assert.equal(12345, out_ids[k])
  return count, out_ids, out_values
end

local function batch(rows, k, n, stride)
  stride = stride or n
  local scores = support.buffer("float", math.max(#rows * stride - (stride - n), 0))
  for r, row in ipairs(rows) do
    for i = 1, n do scores[(r - 1) * stride + i - 1] = row[i] end
  end
  local ids, values = support.buffer("int32_t", #rows * k), support.buffer("float", #rows * k)
  local counts = support.buffer("int32_t", #rows)
  local workspace = support.workspace(C.lsa_topk_workspace(#rows, k))
  check(C.lsa_topk_cpu(ids, values, counts, scores, #rows, n, stride, k, workspace, nil))
  return ids, values, counts
end

-- One comparison for a whole row: the specs look at millions of elements.
local function same(want, count, ids, values, from)
  from = from or 0
  assert.equal(#want, tonumber(count))
  local wrong
  for i, w in ipairs(want) do
    if not (w.id == ids[from + i - 1] and w.v == values[from + i - 1]) then
      wrong = ("place %d: id %d, score %g; not id %d, score %g"):format(i, w.id, w.v, ids[from + i - 1],
        values[from + i - 1])
      break
    end
  end
  assert.is_nil(wrong)
end

local function random_row(n, kind)
  local row = {}
  for i = 1, n do
    if kind == "distinct" then row[i] = math.random() - 0.5
    elseif kind == "tied" then row[i] = math.random(0, 6) - 3
    elseif kind == "equal" then row[i] = 0.25
    elseif kind == "rising" then row[i] = i
    elseif kind == "falling" then row[i] = -i
    elseif kind == "zeros" then row[i] = math.random() < 0.5 and 0.0 or -0.0
    elseif kind == "spoiled" then
      local dice = math.random()
      row[i] = dice < 0.2 and NAN or dice < 0.4 and -INF or dice < 0.45 and INF
        or dice < 0.6 and 1e-42 * math.random(-3, 3) or 3.4e38 * (math.random() - 0.5) * 2
    end
  end
  return rounded(row)
end

local KINDS = {"distinct", "tied", "equal", "rising", "falling", "zeros", "spoiled"}

for level = 0, C.lsa_cpu_best() do
  describe("topk on " .. ffi.string(C.lsa_cpu_level_name(level)), function()
    setup(function() C.lsa_cpu_limit(level) math.randomseed(7) end)
    teardown(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

    for _, kind in ipairs(KINDS) do
      it("equals the definition on rows that are " .. kind, function()
        for _, n in ipairs {1, 2, 15, 16, 17, 63, 64, 65, 129, 1000, 5000} do
          local row = random_row(n, kind)
          for _, k in ipairs {0, 1, 7, 500, 1600, 6000} do
            local want = oracle(row, k)
            same(want, stream(row, k, {n}))
            local ids, values, counts = batch({row}, k, n)
            same(want, counts[0], ids, values)
            for i = #want, k - 1 do assert(ids[i] == -1) end
          end
        end
      end)

      it("does not depend on the blocks in which scores that are " .. kind .. " come", function()
        local row = random_row(7000, kind)
        for _, k in ipairs {1, 300, 2000} do
          local want = oracle(row, k)
          for _, blocks in ipairs {{1}, {1, 2, 3, 5, 8, 13, 21}, {17}, {64, 1}, {1024}, {4096, 5}} do
            same(want, stream(row, k, blocks))
          end
        end
      end)
    end

    it("selects each row of a strided batch by itself", function()
      for _, shape in ipairs {{1, 1}, {3, 40}, {33, 700}, {400, 70}} do
        local rows, n, k = {}, shape[2], 20
        for r = 1, shape[1] do rows[r] = random_row(n, KINDS[r % #KINDS + 1]) end
        local ids, values, counts = batch(rows, k, n, n + 3)
        for r = 1, shape[1] do same(oracle(rows[r], k), counts[r - 1], ids, values, (r - 1) * k) end
      end
    end)

    it("goes on after finish", function()
      local row = random_row(3000, "distinct")
      local k, state = 100, ffi.new "lsa_topk_state"
      local capacity = C.lsa_topk_capacity(k)
      local values, ids = ffi.new("float[?]", capacity), ffi.new("int32_t[?]", capacity)
      local out = ffi.new("int32_t[?]", k)
      C.lsa_topk_begin(state, k, values, ids)
      for _, from in ipairs {0, 1000, 2000} do
        local part = {}
        for i = 1, 1000 do part[i] = row[from + i] end
        C.lsa_topk_push(state, floats(part), 1000, from)
        assert.equal(k, C.lsa_topk_finish(state, out, nil))
      end
      for i, w in ipairs(oracle(row, k)) do assert.equal(w.id, out[i - 1]) end
    end)

    it("takes empty rows and no rows", function()
      local _, _, counts = batch({{}}, 4, 0)
      assert.equal(0, counts[0])
      batch({}, 4, 10)
    end)
  end)
end

describe("topk", function()
  it("refuses a negative k by name", function()
    local rc = C.lsa_topk_cpu(nil, nil, nil, nil, 1, 1, 1, -2, nil, nil)
    assert.equal(tonumber(C.LSA_EARG), rc)
    assert.truthy(ffi.string(C.lsa_error()):find("k is -2", 1, true))
  end)

  it("says what k of many reach, and takes as many where it is told what to expect", function()
    local random = support.uniform(9)
    support.for_each_cpu_level(function()
      for _, n in ipairs {1, 5, 16, 100, 1000} do
        local scores, sorted = support.buffer("float", n), {}
        for i = 0, n - 1 do
          scores[i] = math.floor(random() * 50) / 8
          sorted[i + 1] = scores[i]
        end
        table.sort(sorted, function(a, b) return a > b end)
        for _, k in ipairs {1, 3, 16, 99} do
          local least = C.lsa_topk_least(scores, n, k)
          if n < k then assert.equal(-math.huge, least)
          else assert.is_true(least <= sorted[k] and (k == n or least > sorted[k + 1] or sorted[k + 1] == sorted[k])) end
          local capacity = C.lsa_topk_capacity(k)
          local values, ids, out, want = support.buffer("float", capacity), support.buffer("int32_t", capacity),
            support.buffer("int32_t", k), support.buffer("int32_t", k)
          local function best(into, expected)
            local state = ffi.new "lsa_topk_state"
            C.lsa_topk_begin(state, k, values, ids)
            if expected then C.lsa_topk_expect(state, expected) end
            C.lsa_topk_push(state, scores, n, 0)
            return C.lsa_topk_finish(state, into, nil)
          end
          local count = best(want)
          assert.equal(count, best(out, least))
          for i = 0, count - 1 do assert.equal(want[i], out[i]) end
          local state, apart = ffi.new "lsa_topk_state", support.buffer("int32_t", n)
          for i = 0, n - 1 do apart[i] = 3 * i + 1 end
          C.lsa_topk_begin(state, k, values, ids)
          for from = 0, n - 1, 37 do C.lsa_topk_offer(state, scores + from, apart + from, math.min(37, n - from)) end
          assert.equal(count, C.lsa_topk_finish(state, out, nil))
          for i = 0, count - 1 do assert.equal(3 * want[i] + 1, out[i]) end
        end
        for i = 0, n - 1 do scores[i] = 0 / 0 end
        assert.equal(-math.huge, C.lsa_topk_least(scores, n, 1))
      end
    end)
  end)
end)
