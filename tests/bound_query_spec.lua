local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local function random(n, seed)
  local u, x = support.uniform(seed), support.buffer("float", n)
  for i = 0, n - 1 do x[i] = u(-1, 1) end
  return x
end

describe("bound_query", function()
  it("equals the definition, of any size", function()
    for _, size in ipairs {{0, 3, 4}, {1, 0, 4}, {2, 3, 0}, {1, 1, 1}, {3, 5, 7}, {1, 4, 128}} do
      local rows, heads, dim = unpack(size)
      local q, w = random(rows * heads * dim, 3), random(rows * heads, 4)
      local both = support.poison(support.buffer("float", 4 * rows * heads * dim), 4 * rows * heads * dim)
      local weights = support.poison(support.buffer("float", 2 * rows * heads), 2 * rows * heads)
      check(C.lsa_bound_query_cpu(both, weights, q, w, rows, heads, dim, nil))
      for r = 0, rows - 1 do
        for h = 0, heads - 1 do
          local weight = w[r * heads + h]
          assert.equal(math.max(weight, 0), weights[r * 2 * heads + h])
          assert.equal(math.min(weight, 0), weights[r * 2 * heads + heads + h])
          for d = 0, dim - 1 do
            local x = q[(r * heads + h) * dim + d]
            local most, least = (r * 2 * heads + h) * 2 * dim, (r * 2 * heads + heads + h) * 2 * dim
            assert.equal(math.max(x, 0), both[most + d])
            assert.equal(math.min(x, 0), both[most + dim + d])
            assert.equal(math.min(x, 0), both[least + d])
            assert.equal(math.max(x, 0), both[least + dim + d])
          end
        end
      end
    end
  end)

  it("keeps NaN and refuses negative sizes", function()
    local nan, one = support.buffer("float", 1), support.buffer("float", 1)
    nan[0], one[0] = 0 / 0, 1
    local both, weights = support.buffer("float", 4), support.buffer("float", 2)
    check(C.lsa_bound_query_cpu(both, weights, nan, nan, 1, 1, 1, nil))
    for i = 0, 3 do assert.is_true(both[i] ~= both[i]) end
    for i = 0, 1 do assert.is_true(weights[i] ~= weights[i]) end
    assert.equal(C.LSA_ESHAPE, C.lsa_bound_query_cpu(both, weights, one, one, -1, 1, 1, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_bound_query_cpu(both, weights, one, one, 1, -1, 1, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_bound_query_cpu(both, weights, one, one, 1, 1, -1, nil))
  end)
end)
