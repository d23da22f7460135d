-- Histograms and counts of integers against loops over all bins.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local support = require "kernel_support"

local INF, NAN = math.huge, 0 / 0

describe("histogram", function()
  it("counts what lies between the edges, those themselves too", function()
    for _, case in ipairs {{0, 1, 10}, {-3, 5, 7}, {0.1, 0.7, 3}, {-1e9, 1e9, 100}, {5, 6, 1}} do
      local low, high, bins = unpack(case)
      local u, list = support.uniform(bins), {NAN, INF, -INF, low, high, low - 1, high + 1}
      for b = 0, bins do list[#list + 1] = low + b * ((high - low) / bins) end
      for _ = 1, 500 do list[#list + 1] = u(low - 0.5, high + 0.5) end
      local x, counts = support.array("double", list), support.buffer("int64_t", bins)
      assert.equal(0, C.lsa_histogram_cpu(counts, x, #list, low, high, bins, nil))
      local width = (high - low) / bins
      for b = 0, bins - 1 do
        local want = 0
        for _, v in ipairs(list) do
          local last = b == bins - 1
          if v >= low + b * width and v <= high and (last or v < low + (b + 1) * width) then want = want + 1 end
        end
        assert.equal(want, tonumber(counts[b]))
      end
    end
  end)

  it("refuses ranges that are none", function()
    local counts = support.buffer("int64_t", 1)
    for _, case in ipairs {{1, 1, 1}, {2, 1, 1}, {NAN, 1, 1}, {0, INF, 1}, {-1.7e308, 1.7e308, 1}, {0, 1, 0}} do
      assert.equal(C.LSA_EARG, C.lsa_histogram_cpu(counts, nil, 0, case[1], case[2], case[3], nil))
    end
  end)
end)

describe("bincount", function()
  it("counts integers, and names one that has no bin", function()
    local x, counts = support.array("int64_t", {3LL, 0LL, 3LL, 1LL}), support.buffer("int64_t", 5)
    assert.equal(0, C.lsa_bincount_cpu(counts, x, 4, 5, nil))
    assert.same({1, 1, 0, 2, 0}, {tonumber(counts[0]), tonumber(counts[1]), tonumber(counts[2]), tonumber(counts[3]), tonumber(counts[4])})
    assert.equal(C.LSA_EARG, C.lsa_bincount_cpu(counts, x, 4, 3, nil))
    assert.equal("bincount: element 0 is 3, there are 3 bins", ffi.string(C.lsa_error()))
    x[0] = -1
    assert.equal(C.LSA_EARG, C.lsa_bincount_cpu(counts, x, 4, 5, nil))
    assert.equal(0, C.lsa_bincount_cpu(nil, nil, 0, 0, nil))
  end)
end)
