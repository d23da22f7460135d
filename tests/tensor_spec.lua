local ffi = require "ffi"
local lsa = require "lsa"
local raw = require "lsa.ffi"
local C = raw.C
local real = require "lsa.tensor.real"
local tensor = require "lsa.tensor.tensor"

local INF, NAN = math.huge, 0 / 0
local dtypes = {"f32", "bf16", "f16", "f8_e4m3", "f8_e8m0", "i8", "u8", "i32", "i64", "f64"}

local function at_this_line(f)
  local ok, message = pcall(f)
  assert.is_false(ok)
  return message:match "^[^:]-tests/tensor_spec%.lua:%d+: (.*)$" or "not at the caller's line: " .. message
end

describe("a tensor", function()
  it("become integers towards zero, and say what does not fit", function()
    for _, case in ipairs {{{254.9, -0.9, 3}, "f32", "u8", {254, 0, 3}}, {{-128, 127.5}, "f64", "i8", {-128, 127}}, {{-2 ^ 31}, "f32", "i32", {-2 ^ 31}},
      {{-2 ^ 63, 2 ^ 53}, "f64", "i64", {-2LL ^ 63, 2 ^ 53}}, {{255, 7}, "i64", "u8", {255, 7}}, {{1.5}, "bf16", "i32", {1}}} do
      assert.same(case[4], lsa.tensor(case[1], case[2]):to(case[3]):totable())
    end
    for _, case in ipairs {{{0, 256}, "f32", "u8", "element 1 is 256, which u8"}, {{-1}, "i32", "u8", "element 0 is %-1, which u8"},
      {{2 ^ 31}, "f32", "i32", "2147483648, which i32"}, {{2 ^ 63}, "f64", "i64", "9.2233720368547758e%+18, which i64"},
      {{0 / 0}, "f32", "i64", "element 0 is %-?nan, which i64"}, {{1 / 0}, "bf16", "u8", "inf, which u8"}, {{2 ^ 40}, "i64", "i32", "1099511627776, which i32"}} do
      local x = lsa.tensor(case[1], case[2])
      local ok, message = pcall(x.to, x, case[3])
      assert.is_false(ok)
      assert.matches("to: .*" .. case[4] .. " cannot hold", message)
    end
    assert.same({{255, 0}, {1, 2}}, lsa.tensor({{300, -4}, {1, 2}}):clamp(0, 255):to "u8":totable())
    assert.matches("min 9007199254740993 ", tostring(lsa.tensor({2LL ^ 53 + 1, 2LL ^ 53 + 3}, "i64")))
  end)

  it("is made of zeros, in every dtype", function()
    for _, dtype in ipairs(dtypes) do
      if dtype ~= "f8_e8m0" then
        local x = lsa.zeros({2, 3}, dtype)
        assert.same({2, 3}, x:shape())
        assert.equal(dtype, x:dtype())
        assert.equal("cpu", x:device())
        assert.same({{0, 0, 0}, {0, 0, 0}}, x:totable())
      end
    end
    assert.equal("f32", lsa.zeros(4):dtype())
    assert.same({4}, lsa.zeros(4):shape())
    assert.same({}, lsa.zeros {}:shape())
    assert.same({0, 3}, lsa.zeros {0, 3}:shape())
  end)

  it("is made of nested data, and gives it back", function()
    for _, dtype in ipairs(dtypes) do
      local data = {{{1, 2}, {4, 8}}, {{16, 32}, {64, 1}}}
      local x = lsa.tensor(data, dtype)
      assert.same({2, 2, 2}, x:shape())
      assert.same(data, x:totable())
      assert.equal(dtype, x:dtype())
      assert.equal(64, x:get(1, 1, 0))
    end
    assert.same({}, lsa.tensor({}):totable())
    assert.same({{}, {}}, lsa.tensor({{}, {}}):totable())
    assert.equal(2.5, lsa.tensor(2.5):item())
    assert.equal(2 ^ 40 + 1, lsa.tensor({2 ^ 40 + 1}, "i64"):get(0))
    assert.same({-7, 9}, lsa.tensor({-7LL, 9ULL}, "i64"):totable())
  end)

  it("has a length: its first dimension", function()
    assert.equal(4, #lsa.zeros {4, 128})
    assert.equal(0, #lsa.zeros {0, 128})
  end)

  it("reads and writes elements of every dtype", function()
    for _, dtype in ipairs(dtypes) do
      local x = lsa.tensor({{1, 2}, {4, 8}}, dtype)
      x:set(1, 0, 16)
      assert.equal(16, x:get(1, 0))
      assert.same({{1, 2}, {16, 8}}, x:totable())
      assert.same({{2, 2}, {2, 2}}, x:fill(2):totable())
    end
    assert.same({7, 7, 7, 7, 7}, lsa.zeros(5):fill(7):totable())
  end)

  it("shares its memory with its views, which keep it alive", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}
    local row, columns = x:row(1), x:narrow(1, 1, 2)
    row:set(0, 40)
    columns:set(0, 1, 30)
    assert.same({{1, 2, 30}, {40, 5, 6}}, x:totable())
    assert.same({{2, 30}, {5, 6}}, columns:totable())
    assert.is_false(columns:is_contiguous())
    assert.same({{2, 30}, {5, 6}}, columns:contiguous():totable())
    assert.same({40, 5, 6}, row:totable())
    assert.same({{1, 2}, {30, 40}, {5, 6}}, x:reshape {-1, 2}:totable())
    assert.same({2, 30, 5, 6}, columns:reshape {4}:totable())
    assert.same({{2, 0}, {5, 0}}, columns:narrow(1, 1, 1):fill(0) and columns:totable())
    x = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.same({40, 5, 0}, row:totable())
  end)

  it("copies values in and out, through dtypes and strides", function()
    local x = lsa.zeros({2, 3}, "bf16")
    assert.equal(x, x:copy(lsa.tensor {{1, 2, 3}, {4, 5, 6}}))
    assert.same({{1, 2, 3}, {4, 5, 6}}, x:totable())
    x:narrow(1, 0, 2):copy(lsa.tensor({{9, 8}, {7, 6}}, "i32"))
    assert.same({{9, 8, 3}, {7, 6, 6}}, x:totable())
    local y = x:copy()
    y:fill(0)
    assert.same({{9, 8, 3}, {7, 6, 6}}, x:totable())
    local z = lsa.tensor {1, 2, 3, 4}
    z:narrow(0, 1, 3):copy(z:narrow(0, 0, 3))
    assert.same({1, 1, 2, 3}, z:totable())
  end)

  it("changes dtype, and is itself where nothing changes", function()
    local x = lsa.tensor {1.5, -2.75, 300, NAN}
    assert.is_true(rawequal(x, x:to "f32") and rawequal(x, x:to "cpu"))
    assert.same({1, -2, 300}, x:narrow(0, 0, 3):to "i32":totable())
    assert.equal(2.75, -x:to("bf16"):get(1))
    assert.same({1.5, -2.75, 300}, x:to("f16"):to("f32"):narrow(0, 0, 3):totable())
  end)

  it("adds, multiplies, subtracts and divides", function()
    local x, y = lsa.tensor {{1, 2}, {3, 4}}, lsa.tensor {{10, 20}, {30, 40}}
    assert.same({{11, 22}, {33, 44}}, x:add(y):totable())
    assert.same({{11, 12}, {13, 14}}, x:add(10):totable())
    assert.same({{6, 12}, {18, 24}}, (x * 6):totable())
    assert.same({{6, 12}, {18, 24}}, (6 * x):totable())
    assert.same({{9, 18}, {27, 36}}, (y - x):totable())
    assert.same({{9, 8}, {7, 6}}, (10 - x):totable())
    assert.same({{12, 6}, {4, 3}}, (12 / x):totable())
    assert.same({{-1, -2}, {-3, -4}}, (-x):totable())
    assert.same({{10, 40}, {30, 80}}, x:mul(lsa.tensor {10, 20}):totable())
    assert.same({{2, 2}, {3, 4}}, x:maximum(2):totable())
    assert.same({{1, 2}, {2, 2}}, x:minimum(2):totable())
    assert.same({{1, 2}, {3, 4}}, x:totable())
    assert.same({2, 4}, lsa.tensor({1, 2}, "i32"):mul(2):totable())
    assert.same({0, 2}, x:narrow(1, 0, 1):reshape {2}:sub(1):totable())
    assert.same({}, lsa.zeros(0):add(1):totable())
  end)

  it("computes exp, log and sigmoid", function()
    local x = lsa.tensor {0, 1, -1}
    local e, s, back = x:exp(), x:sigmoid(), x:exp():log()
    for i = 0, 2 do
      assert.is_true(math.abs(e:get(i) - math.exp(x:get(i))) <= 3e-7)
      assert.is_true(math.abs(s:get(i) - 1 / (1 + math.exp(-x:get(i)))) <= 2e-7)
      assert.is_true(math.abs(back:get(i) - x:get(i)) <= 2e-7)
    end
  end)

  it("reduces to numbers and along dimensions", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 9}}
    assert.equal(24, x:sum())
    assert.equal(4, x:mean())
    assert.equal(1, x:min())
    assert.equal(9, x:max())
    assert.same({5, 7, 12}, x:sum(0):totable())
    assert.same({2, 6}, x:mean(1):totable())
    assert.same({3, 9}, x:max(1):totable())
    assert.same({1, 2, 3}, x:min(0):totable())
    assert.same({2, 2}, x:argmax():totable())
    assert.equal(1, lsa.tensor {1, 5, 5}:argmax())
    assert.is_nil(lsa.tensor {NAN}:argmax())
    assert.equal(7, lsa.tensor {{1, 2}, {3, 4}}:narrow(1, 0, 2):row(1):sum())
    assert.equal(0, lsa.zeros(0):sum())
  end)

  it("scores pages", function()
    local x = lsa.tensor {1, 5, 2, 2, 7}
    assert.same({6, 4, 7}, x:pages(2, "sum"):totable())
    assert.same({5, 2, 7}, x:pages(2, "max"):totable())
    assert.same({3, 2, 7}, x:pages(2, "mean"):totable())
    assert.same({{1, 2}, {3, 4}}, lsa.tensor {{1, 1, 2}, {3, 3, 4}}:pages(2, "max"):totable())
  end)

  it("makes sets of its scores", function()
    local x = lsa.tensor {0.5, 0.1, 0.9, NAN, 0.5, 0.7}
    local function ids(s) return s:ids():totable() end
    assert.same({0, 2, 4, 5}, ids(x:ge(0.5)))
    assert.same({2, 5}, ids(x:gt(0.5)))
    assert.same({0, 2, 5}, ids(x:topk(3)))
    local into = lsa.set(#x):range(0, #x)
    assert.equal(into, x:topk(3, into))
    assert.same({0, 2, 5}, ids(into))
    assert.same({}, ids(x:topk(0)))
    assert.same({0, 1, 2, 4, 5}, ids(x:topk(100)))
    assert.same({2, 5}, ids(x:topp(0.5)))
    assert.same({0, 2, 4, 5}, ids(x:to "bf16":ge(0.5)))
    assert.equal(6, x:ge(2):size())
    assert.same({4, 5}, ids(lsa.tensor {1, 2, 3, 4, 5, 6}:pages(4, "sum"):mul(2):topk(1):intersect({1}):chunks(4)))
    assert.equal(6, x:pages(4, "max"):topk(1):chunks(4):size())
  end)

  it("prints itself", function()
    assert.equal("tensor f32 [3]  min 1 mean 2.5 max 4\n  [1, 2.5, 4]", tostring(lsa.tensor {1, 2.5, 4}))
    assert.equal("tensor bf16 [] 7", tostring(lsa.tensor(7, "bf16")))
    assert.equal("tensor i32 [2, 0]", tostring(lsa.zeros({2, 0}, "i32")))
    local zeros = "  [0, 0, 0, 0, ..., 0, 0, 0]\n"
    assert.equal("tensor f32 [100, 100]  min 0 mean 0 max 0\n" .. zeros:rep(4) .. "  ...\n" .. zeros:rep(3), tostring(lsa.zeros {100, 100}) .. "\n")
    assert.equal("tensor f64 [2, 2]  min -3 mean 37.06 max 150\n  [   1, 150]\n  [0.25,  -3]", tostring(lsa.tensor({{1, 150}, {0.25, -3}}, "f64")))
    assert.equal("tensor i32 [61]  min 0 mean 30 max 60\n  [0, 1, 2, 3, 4, 5, 6, ..., 58, 59, 60]", tostring(lsa.arange(61)))
    assert.equal("tensor i32 [3, 1, 2]  min 0 mean 2.5 max 5\n  [0]\n    [0, 1]\n  [1]\n    [2, 3]\n  [2]\n    [4, 5]", tostring(lsa.arange(6):reshape {3, 1, 2}))
    assert.equal("\n  [1][1]\n    [0]\n  ...", tostring(lsa.zeros {2, 9, 1, 1}):sub(-23))
    assert.is_truthy(tostring(lsa.full({1, 10}, 10000000)):find("\n  [10000000, 10000000, 10000000, 10000000, ..., 10000000, 10000000, 10000000]", 1, true))
    -- Whole, in columns.
    local lines = {}
    for line in tostring(lsa.arange(60) * 1000):gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.equal("  [    0,  1000,  2000,  3000,  4000,  5000,  6000,  7000,  8000,  9000, 10000, 11000, 12000,", lines[2])
    assert.equal("   13000, 14000,", lines[3]:sub(1, 16))
    assert.is_truthy(#lines == 6 and lines[6]:find " 59000%]$")
    local broken = tostring(lsa.tensor {1, NAN, INF})
    assert.is_truthy(broken:find "min nan")
    assert.is_truthy(broken:find("[1, nan, inf]", 1, true))
  end)

  it("points into C memory", function()
    local x = lsa.tensor({1, 2, 3}, "i32")
    x:pointer()[1] = 20
    assert.same({1, 20, 3}, x:totable())
    assert.equal(3, x:narrow(0, 2, 1):pointer()[0])
    local made = tensor.unmade()
    require("lsa.raise").check(C.lsa_tensor_new(made.box, C.LSA_I8, 1, ffi.new("int64_t[1]", 2)))
    assert.same({0, 0}, made:totable())
  end)

  it("names the argument and both values in its errors, at the caller's line", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}
    local v = lsa.tensor {1, 2}
    local cases = {
      {"zeros: shape: dimension 1 is -2", function() lsa.zeros {3, -2} end},
      {"zeros: shape has 7 dimensions, at most 6 are possible", function() lsa.zeros {1, 1, 1, 1, 1, 1, 1} end},
      {"zeros: shape is nil, a list of dimensions is wanted", function() lsa.zeros() end},
      {'zeros: dtype is "f12"; f32, bf16, f16, f8_e4m3, f8_e8m0, i8, u8, i32, i64 and f64 are known',
        function() lsa.zeros(3, "f12") end},
      {"tensor: a list has 1 elements where the first of its depth has 2", function() lsa.tensor {{1, 2}, {3}} end},
      {'tensor: element 1 is "x", a number is wanted', function() lsa.tensor {1, "x"} end},
      {"tensor: element 2 is 3, a list of 2 is wanted", function() lsa.tensor {{1, 2}, 3} end},
      {"tensor: data is nil; numbers, nested as the tensor is, are wanted", function() lsa.tensor(nil) end},
      {"get: index 1 is 3, dimension 1 has 3", function() x:get(0, 3) end},
      {"get: index 0 is -3, dimension 0 has 2", function() x:get(-3, 0) end},
      {"get: 1 indices for a 2-D tensor", function() x:get(0) end},
      {"set: the value is nil, a number is wanted", function() x:set(0, 0, nil) end},
      {"item: the tensor has 6 elements", function() x:item() end},
      {"row: i is 2, the tensor has 2 rows", function() x:row(2) end},
      {"narrow: 3 elements from 1, dimension 1 has 3", function() x:narrow(1, 1, 3) end},
      {"narrow: dimension 2 out of range of a 2-D tensor", function() x:narrow(2, 0, 1) end},
      {"reshape: shape [4] has 4 elements, the tensor [2, 3] has 6", function() x:reshape {4} end},
      {"copy: y has shape [2], the tensor [2, 3]", function() x:copy(v) end},
      {"add: y has shape [2], x has [2, 3]: 2 meets 3 in dimension 1", function() x:add(v) end},
      {"add: y has shape [2], x has [2, 3]: 2 meets 3 in dimension 1", function() return x + v end},
      {"mul: y is nil, a tensor is wanted", function() x:mul(nil) end},
      {"sum: dim is 2, the tensor has 2 dimensions", function() x:sum(2) end},
      {"no elements to take the maximum of", function() lsa.zeros(0):max() end},
      {"pages: size is 0, at least 1 is wanted", function() v:pages(0, "max") end},
      {'pages: how is "median"; "sum", "max", "mean" and "min" are possible', function() v:pages(2, "median") end},
      {"topk: the tensor has shape [2, 3], 1-D is wanted", function() x:topk(1) end},
      {"ge: v is nil, a number is wanted", function() v:ge() end},
      {"topk: k is 1.5, a whole number is wanted", function() v:topk(1.5) end},
      {"select_topk: k is -1", function() v:topk(-1) end},
      {"select_topp: mass is 2, from 0 to 1 is wanted", function() v:topp(2) end},
      {'to: dtype or device is "gpu"; f32, bf16, f16, f8_e4m3, f8_e8m0, i8, u8, i32, i64 and f64 are known',
        function() x:to "gpu" end},
    }
    for _, case in ipairs(cases) do assert.equal(case[1], at_this_line(case[2])) end
  end)

  it("reports memory that cannot be had, and frees what it took", function()
    collectgarbage()
    collectgarbage()
    local before = tonumber(C.lsa_memory_in_use())
    for n = 0, 2 do
      C.lsa_memory_fail_after(n)
      local ok, message = pcall(lsa.zeros, 1000)
      C.lsa_memory_fail_after(-1)
      assert.is_false(ok)
      assert.is_truthy(message:find "out of memory")
    end
    assert.equal(before, tonumber(C.lsa_memory_in_use()))
    assert.is_truthy(at_this_line(function() lsa.zeros {2 ^ 50, 2 ^ 50} end):find "too large")
  end)

  it("is not made empty by one dimension when the others overflow", function()
    assert.same({0, 1000}, lsa.zeros {0, 1000}:shape())
    for _, shape in ipairs {{0, 2 ^ 40, 2 ^ 40}, {2 ^ 40, 2 ^ 40, 0}, {2 ^ 40, 2 ^ 40}} do
      local ok, message = pcall(lsa.zeros, shape)
      assert.is_false(ok)
      assert.is_true(message:find("too large", 1, true) ~= nil, message)
    end
  end)

  it("gives Lua a plain NaN for every pattern that is none", function()
    local patterns = {0xffff0000, 0xffec0001, 0xfffa1234, 0x7fa00000, 0x7fffffff, 0xffffffff, 0x7fc00000, 0xffc00000}
    local t = lsa.zeros {2, 4}
    for i, bits in ipairs(patterns) do ffi.cast("uint32_t *", t.c.data)[i - 1] = bits end
    local function is_nan(x) return type(x) == "number" and x ~= x and tostring(x):find "nan" ~= nil end
    for row, values in ipairs(t:totable()) do
      for i = 1, 4 do
        assert.is_true(is_nan(values[i]))
        assert.is_true(is_nan(t:get(row - 1, i - 1)))
        assert.is_true(is_nan(t:row(row - 1):narrow(0, i - 1, 1):item()))
      end
    end
    for _, how in ipairs {"sum", "mean", "min", "max"} do assert.is_true(is_nan(t[how](t)), how) end
    assert.is_true(is_nan(t:row(0):add(1):get(0)))
    assert.is_truthy(tostring(t):find "nan")
    local b = lsa.zeros({3}, "bf16")
    for i, bits in ipairs {0xffff, 0xffec, 0x7fa0} do
      b:pointer()[i - 1] = bits
      assert.is_true(is_nan(b:get(i - 1)))
    end
    assert.is_true(is_nan(b:totable()[2]))
    local doubles = ffi.new("uint32_t[?]", 10, {0, 0xffff0000, 1, 0xfffec000, 0, 0x7ff80000, 1, 0x7ff00000, 0, 0xfff00000})
    for i = 0, 3 do assert.is_true(is_nan(real.f64(doubles, i))) end
    assert.equal(-INF, real.f64(doubles, 4))
    assert.equal(-INF, real.f32(ffi.new("float[2]", {1, -INF}), 1))
    assert.equal(-1.5, real.f64(ffi.new("double[2]", {1, -1.5}), 1))
  end)

  it("takes no number that its dtype cannot hold", function()
    for _, case in ipairs {{{256}, "u8", 256}, {{0, -1}, "u8", -1}, {{128}, "i8", 128}, {{2 ^ 31}, "i32", 2 ^ 31}, {{1.5}, "i32", 1.5},
      {{2 ^ 63}, "i64", 2 ^ 63}, {{NAN}, "i64"}, {{INF}, "u8"}} do
      local message = at_this_line(function() lsa.tensor(case[1], case[2]) end)
      assert.is_truthy(message:find("which " .. case[2] .. " cannot hold", 1, true), message)
      if case[3] then assert.is_truthy(message:find(("element %d is %.17g,"):format(#case[1] - 1, case[3]), 1, true), message) end
      local one = lsa.zeros({2}, case[2])
      assert.is_truthy(at_this_line(function() one:set(0, case[1][#case[1]]) end):find("set: the value is", 1, true))
      assert.is_truthy(at_this_line(function() one:fill(case[1][#case[1]]) end):find("fill: v is", 1, true))
      assert.same({0, 0}, one:totable())
    end
    assert.same({255, 0}, lsa.tensor({255, 0}, "u8"):totable())
    assert.same({-2 ^ 31, 2 ^ 31 - 1}, lsa.tensor({-2 ^ 31, 2 ^ 31 - 1}, "i32"):totable())
    assert.equal(0x7fffffffffffffffLL, lsa.tensor({0x7fffffffffffffffLL}, "i64"):pointer()[0])
    assert.is_truthy(at_this_line(function() lsa.tensor({0xffffffffffffffffULL}, "i64") end):find "cannot hold")
  end)

  it("is exact for integers, or says that it is not", function()
    local t = lsa.tensor({16777217, 3, -16777219}, "i32")
    assert.equal(16777217, t:max())
    assert.equal(-16777219, t:min())
    assert.equal(1, t:sum())
    assert.equal(1 / 3, t:mean())
    assert.same({16777218, 4, -16777218}, t:add(1):totable())
    assert.equal(0, t:to("i64"):argmax())
    assert.is_truthy(at_this_line(function() t:topk(1) end):find("element 0 is 16777217, which f32 cannot hold", 1, true))
    assert.is_truthy(tostring(t):find("16777217", 1, true))
    assert.same({16777216, 4}, lsa.tensor({16777216, 4}, "i32"):add(0):totable())
    assert.equal(3, lsa.tensor({{3, 1}, {2, 3}}, "u8"):max())
    assert.is_truthy(at_this_line(function() lsa.zeros({0}, "i32"):max() end))
  end)

  it("has its largest places along a dimension", function()
    local t = lsa.tensor {{1, 5}, {7, 2}}
    assert.same({1, 0}, t:argmax(1):totable())
    assert.equal(1, t:row(0):argmax(0))
    assert.same({1, 0}, t:argmax(0):totable())
  end)

  it("does not let dead tensors pile up", function()
    collectgarbage()
    collectgarbage()
    local before, most = tonumber(C.lsa_memory_in_use()), 0
    for _ = 1, 2000 do
      lsa.tensor({1}):reshape {1}
      tensor.empty {2 ^ 19}
      most = math.max(most, tonumber(C.lsa_memory_in_use()))
    end
    assert.is_true(most - before <= 2 ^ 29)
  end)
end)
