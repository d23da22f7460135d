-- Sorting against table.sort with ties by place.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local support = require "kernel_support"

local INF, NAN = math.huge, 0 / 0
local F32, F64, I64 = C.LSA_F32, C.LSA_F64, C.LSA_I64
local ctype = {[F32] = "float", [F64] = "double", [I64] = "int64_t"}

local function values(dtype, n, seed, distinct)
  local u, x = support.uniform(seed), support.buffer(ctype[dtype], n)
  for i = 0, n - 1 do
    if dtype == I64 then x[i] = math.floor(u(-distinct, distinct)) * 2LL ^ 30 else x[i] = math.floor(u(-distinct, distinct)) / 7 end
  end
  if dtype ~= I64 and n > 20 then
    for i, v in ipairs {NAN, INF, -INF, 0, -0.0, NAN, 1e-41, -1e-41, -NAN} do x[i * 2] = v end
  end
  return x
end

-- Places, 0-based, in order.
local function oracle(x, n, descending)
  local ids = {}
  for i = 1, n do ids[i] = i - 1 end
  table.sort(ids, function(i, j)
    local a, b = tonumber(x[i]), tonumber(x[j])
    if a ~= a or b ~= b then
      if a ~= a and b ~= b then return i < j end
      return b ~= b
    end
    if a ~= b then
      if descending then return a > b end
      return a < b
    end
    return i < j
  end)
  return ids
end

local function sorted(x, rows, n, dtype, descending, want_values, want_ids)
  local values_out = want_values and support.buffer(ctype[dtype], rows * n) or nil
  local ids = want_ids and support.buffer("int32_t", rows * n) or nil
  local work = support.workspace(C.lsa_sort_workspace(rows, n, want_ids and 1 or 0, dtype))
  assert.equal(0, C.lsa_sort_cpu(values_out, ids, x, rows, n, dtype, descending and 1 or 0, work, nil))
  return values_out, ids
end

local function same(a, b) return a == b or a ~= a and b ~= b end

describe("sort", function()
  it("orders floats alone, of lengths where the way changes, also where they share their upper digits", function()
    for _, n in ipairs {100, 4096, 4097, 16384, 16385} do
      for _, step in ipairs {2 ^ -23, 2 ^ -14, 0.37} do
        local u, x = support.uniform(n), support.buffer("float", n)
        for i = 0, n - 1 do x[i] = 1 + step * math.floor(u(0, 60000)) end
        for _, descending in ipairs {false, true} do
          local out, ids = sorted(x, 1, n, F32, descending, true, false), oracle(x, n, descending)
          for i = 0, n - 1 do
            if out[i] ~= x[ids[i + 1]] then error(("%d floats, step %g: place %d has %.9g, not %.9g"):format(n, step, i, out[i], x[ids[i + 1]])) end
          end
        end
      end
    end
  end)

  for dtype, name in pairs(ctype) do
    it("orders rows of " .. name .. ", ties by place, NaN last", function()
      for _, shape in ipairs {{1, 0}, {1, 1}, {3, 2}, {2, 63}, {1, 767}, {1, 768}, {2, 5000}} do
        for _, distinct in ipairs {1, 20, 1e6} do
          for _, descending in ipairs {false, true} do
            local rows, n = unpack(shape)
            local x = values(dtype, rows * n, 5, distinct)
            local both, ids = sorted(x, rows, n, dtype, descending, true, true)
            local alone = sorted(x, rows, n, dtype, descending, true, false)
            local _, places = sorted(x, rows, n, dtype, descending, false, true)
            for r = 0, rows - 1 do
              local want = oracle(x + r * n, n, descending)
              for i = 0, n - 1 do
                local at = r * n + i
                if ids[at] ~= want[i + 1] or places[at] ~= want[i + 1] then
                  error(("[%d, %d] row %d: place %d is %d, not %d"):format(rows, n, r, i, ids[at], want[i + 1]))
                end
                local v = tonumber(x[r * n + want[i + 1]])
                assert.is_true(same(tonumber(both[at]), v) and same(tonumber(alone[at]), v))
              end
            end
          end
        end
      end
    end)
  end

  it("tells neighbours of 64 bits apart", function()
    local x = support.array("int64_t", {2LL ^ 62 + 1, 2LL ^ 62, -2LL ^ 62, -2LL ^ 62 - 1})
    local _, ids = sorted(x, 1, 4, I64, false, false, true)
    assert.same({3, 2, 1, 0}, {ids[0], ids[1], ids[2], ids[3]})
  end)

  it("does not depend on the number of threads", function()
    local rows, n = 50, 3000
    local x = values(F32, rows * n, 8, 1e6)
    C.lsa_threads_set(1)
    local one, one_ids = sorted(x, rows, n, F32, false, true, true)
    C.lsa_threads_set(3)
    local many, many_ids = sorted(x, rows, n, F32, false, true, true)
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, many, rows * n * 4) and support.same_bits(one_ids, many_ids, rows * n * 4))
  end)

  it("may sort in place", function()
    local x = support.array("float", {3, 1, 2})
    local work = support.workspace(C.lsa_sort_workspace(1, 3, 0, F32))
    assert.equal(0, C.lsa_sort_cpu(x, nil, x, 1, 3, F32, 0, work, nil))
    assert.same({1, 2, 3}, {x[0], x[1], x[2]})
  end)

  it("refuses what it does not know", function()
    assert.equal(C.LSA_EDTYPE, C.lsa_sort_cpu(nil, nil, nil, 1, 1, C.LSA_I32, 0, nil, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_sort_cpu(nil, nil, nil, 1, 2 ^ 31, F32, 0, nil, nil))
    assert.is_truthy(ffi.string(C.lsa_error()):find "^sort: ")
  end)

  it("is broken off by Ctrl-C where it takes long, and not where it does not", function()
    finally(function() C.lsa_interrupt_clear() end)
    local n = 2 ^ 20
    local x = support.buffer("float", n)
    for i = 0, n - 1 do x[i] = i * 7919 % 65537 end
    C.lsa_interrupt()
    assert.equal(C.LSA_EINTR, C.lsa_sort_cpu(x, nil, x, 1, n, F32, 0, support.workspace(C.lsa_sort_workspace(1, n, 0, F32)), nil))
    assert.equal(0, C.lsa_sort_cpu(x, nil, x, 1, 1000, F32, 0, support.workspace(C.lsa_sort_workspace(1, 1000, 0, F32)), nil))
  end)
end)
