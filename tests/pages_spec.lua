local support = require "kernel_support"
local C = require("lsa.ffi").C
local ffi = require "ffi"

local NAN = 0 / 0
local ops = {sum = C.LSA_REDUCE_SUM, mean = C.LSA_REDUCE_MEAN, min = C.LSA_REDUCE_MIN, max = C.LSA_REDUCE_MAX}

local function oracle(x, from, to, how)
  local sum, low, high = 0, math.huge, -math.huge
  for i = from, to - 1 do
    if x[i] ~= x[i] then return NAN end
    sum, low, high = sum + x[i], math.min(low, x[i]), math.max(high, x[i])
  end
  return ({sum = sum, mean = sum / (to - from), min = low, max = high})[how]
end

describe("pages", function()
  it("reduces each page of each row, the short last one too, on every code path", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {0, 1, 5, 63, 64, 65, 130, 400} do
        for _, size in ipairs {1, 3, 16, 64, 100, 1000} do
          local rows, pages = 3, math.ceil(n / size)
          local x = support.normals(rows * n, n + size)
          if n > 40 then x[n + 40] = NAN end
          for how, op in pairs(ops) do
            local out = support.buffer("float", rows * pages)
            assert.equal(0, C.lsa_pages_cpu(out, x, rows, n, size, op, nil))
            for r = 0, rows - 1 do
              for p = 0, pages - 1 do
                local from = r * n + p * size
                local want, got = oracle(x, from, math.min(from + size, (r + 1) * n), how), out[r * pages + p]
                assert.is_true((want ~= want and got ~= got) or math.abs(want - got) <= 1e-5,
                  ("%s of %d by %d"):format(how, n, size))
              end
            end
          end
        end
      end
    end)
  end)

  it("refuses a size of 0", function()
    assert.equal(C.LSA_EARG, C.lsa_pages_cpu(nil, nil, 1, 4, 0, 0, nil))
    assert.equal("pages: size is 0", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_EARG, C.lsa_density_cpu(nil, nil, 4, 0, nil))
  end)
end)

describe("density", function()
  it("counts the members of each page, on every code path", function()
    local u = support.uniform(9)
    support.for_each_cpu_level(function()
      for _, n in ipairs {0, 1, 63, 64, 65, 300, 1000} do
        local words = math.ceil(n / 64)
        local bits, has = support.buffer("uint64_t", words), {}
        for i = 0, n - 1 do
          has[i] = u() < 0.4 and 1 or 0
          local w = math.floor(i / 64)
          bits[w] = bit.bor(bits[w], bit.lshift(ffi.cast("uint64_t", has[i]), i % 64))
        end
        for _, size in ipairs {1, 7, 64, 100, 128, 640, 5000} do
          local pages = math.ceil(n / size)
          local out = support.buffer("float", pages)
          assert.equal(0, C.lsa_density_cpu(out, bits, n, size, nil))
          for p = 0, pages - 1 do
            local want = 0
            for i = p * size, math.min(n, (p + 1) * size) - 1 do want = want + has[i] end
            assert.equal(want, out[p])
          end
        end
      end
    end)
  end)
end)
