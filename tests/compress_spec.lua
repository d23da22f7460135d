local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

-- One channel of one entry: `slots` is a list of {gate with bias, kv}.
local function mix(slots)
  local max, sum, out = -math.huge, 0, 0
  for _, slot in ipairs(slots) do
    if slot[1] ~= slot[1] then return 0 / 0 end
    max = math.max(max, slot[1])
  end
  for _, slot in ipairs(slots) do
    local p = math.exp(slot[1] - max)
    sum, out = sum + p, out + p * slot[2]
  end
  return out / sum
end

local function oracle(case)
  local n, m, dim, width = case.n, case.m, case.dim, case.width
  local out = ffi.new("double[?]", n * dim)
  for w = 0, n - 1 do
    for c = 0, dim - 1 do
      local slots = {}
      local function add(kv, gate, window, column)
        for i = 0, m - 1 do
          local at = (window * m + i) * width + column
          slots[#slots + 1] = {gate[at] + case.bias[i * width + column], kv[at]}
        end
      end
      if case.overlap == 1 then
        if w > 0 then add(case.kv, case.gate, w - 1, c)
        elseif case.prev_kv then add(case.prev_kv, case.prev_gate, 0, c) end
      end
      add(case.kv, case.gate, w, c + width - dim)
      out[w * dim + c] = mix(slots)
    end
  end
  return out
end

local function new_case(n, m, dim, overlap, prev)
  local width = overlap == 1 and 2 * dim or dim
  return {n = n, m = m, dim = dim, width = width, overlap = overlap,
    kv = support.normals(n * m * width, 1), gate = support.normals(n * m * width, 2, 2),
    bias = support.normals(m * width, 3), prev_kv = prev and support.normals(m * width, 4),
    prev_gate = prev and support.normals(m * width, 5, 2)}
end

local function run(case, out)
  out = out or support.buffer("float", case.n * case.dim)
  check(C.lsa_compress_cpu(out, case.kv, case.gate, case.prev_kv or nil, case.prev_gate or nil, case.bias,
    case.n, case.m, case.dim, case.overlap, nil))
  return out
end

local shapes = {{1, 1, 1}, {3, 2, 5}, {2, 4, 16}, {7, 4, 40}, {40, 4, 96}, {3, 128, 64}, {2, 6, 130}}

describe("compress", function()
  it("is a softmax mix per channel, with and without overlap and previous window", function()
    support.for_each_cpu_level(function(_, name)
      for _, shape in ipairs(shapes) do
        local n, m, dim = unpack(shape)
        for _, mode in ipairs {{0, false}, {1, false}, {1, true}} do
          local case = new_case(n, m, dim, mode[1], mode[2])
          local err = support.max_error(run(case), oracle(case), n * dim, 1)
          assert.is_true(err <= 3e-6, ("%s [%d, %d, %d] overlap %d: %g"):format(name, n, m, dim, mode[1], err))
        end
      end
    end)
  end)

  it("weighs tied gates alike, whatever their size", function()
    support.for_each_cpu_level(function()
      local case = new_case(2, 4, 3, 0, false)
      for i = 0, 4 * 3 - 1 do case.bias[i] = 1 end
      for i = 0, 2 * 4 * 3 - 1 do case.gate[i], case.kv[i] = 3e4, i end
      local out = run(case)
      for c = 0, 2 do
        assert.is_true(math.abs(out[c] - (c + 4.5)) <= 1e-5)
        assert.is_true(math.abs(out[3 + c] - (c + 16.5)) <= 1e-5)
      end
    end)
  end)

  it("gives a window the same bits alone as among others, on every code path", function()
    local case = new_case(50, 4, 72, 1, true)
    local row, want = 4 * case.width, nil
    support.for_each_cpu_level(function(_, name)
      local out = run(case)
      want = want or out
      assert.is_true(support.same_bits(want, out, case.n * case.dim * 4), name)
      local alone = {n = 1, m = 4, dim = 72, width = case.width, overlap = 1, bias = case.bias,
        kv = case.kv + 9 * row, gate = case.gate + 9 * row, prev_kv = case.kv + 8 * row, prev_gate = case.gate + 8 * row}
      assert.is_true(support.same_bits(out + 9 * case.dim, run(alone), case.dim * 4), name)
    end)
  end)

  it("keeps NaN in its channel and in the windows that see it", function()
    support.for_each_cpu_level(function()
      local case = new_case(3, 4, 20, 1, false)
      case.gate[(1 * 4 + 2) * 40 + 7] = 0 / 0        -- Ca of window 1: read by window 2
      case.kv[(1 * 4 + 1) * 40 + 20 + 17] = 0 / 0    -- Cb of window 1: read by window 1
      local out = run(case)
      for i = 0, 59 do
        assert.equal(i == 2 * 20 + 7 or i == 20 + 17, out[i] ~= out[i])
      end
    end)
  end)

  it("takes no windows and refuses windows of nothing", function()
    assert.equal(0, C.lsa_compress_cpu(nil, nil, nil, nil, nil, nil, 0, 4, 8, 1, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_compress_cpu(nil, nil, nil, nil, nil, nil, 1, 0, 8, 1, nil))
  end)
end)
