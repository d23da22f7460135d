-- What tensors compute beyond sums and products, by examples and against loops in Lua.
local ffi = require "ffi"
local lsa = require "lsa"
local support = require "kernel_support"

local INF, NAN = math.huge, 0 / 0

local function message_of(f)
  local ok, message = pcall(f)
  assert.is_false(ok)
  return message:match "tests/tensor_ops_spec%.lua:%d+: (.*)$" or "not at the caller's line: " .. message
end

local function random(shape, seed, dtype)
  local x = lsa.zeros(shape, dtype)
  local u, p = support.uniform(seed or 1), x:pointer()
  for i = 0, x:count() - 1 do p[i] = dtype and math.floor(u(-20, 20)) or u(-2, 2) end
  return x
end

local function ids(set) return set:ids():totable() end

-- Numbers nested alike, within a tolerance relative to the larger of 1 and the number.
local function near(want, got, tolerance)
  if type(want) == "table" then
    assert.equal("table", type(got))
    assert.equal(#want, #got)
    for i = 1, #want do near(want[i], got[i], tolerance) end
    return
  end
  local close = want == got or want ~= want and got ~= got or math.abs(want - got) <= (tolerance or 1e-6) * math.max(1, math.abs(want))
  assert.is_true(close, ("%.9g, not %.9g"):format(got, want))
end

describe("indices", function()
  it("count from the end where they are negative", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}
    assert.equal(6, x:get(-1, -1))
    assert.equal(9, x:copy():set(-2, -1, 9):get(0, 2))
    assert.same({4, 5, 6}, x:row(-1):totable())
    assert.same({{2, 3}, {5, 6}}, x:narrow(-1, -2, 2):totable())
    assert.same({6, 15}, x:sum(-1):totable())
    assert.same({5, 7, 9}, x:sum(-2):totable())
    assert.equal("sum: dim is -3, the tensor has 2 dimensions", message_of(function() x:sum(-3) end))
    assert.equal("get: index 1 is -4, dimension 1 has 3", message_of(function() x:get(0, -4) end))
  end)

  it("come in brackets, too", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}
    assert.equal(2, x[0][1])
    assert.equal(6, x[-1][-1])
    assert.same({4, 5, 6}, x[1]:totable())
    assert.same({3, 1}, lsa.tensor {1, 2, 3}[{2, 0}]:totable())
    x[0][1] = 20
    x[1] = lsa.tensor {7, 8, 9}
    assert.same({{1, 20, 3}, {7, 8, 9}}, x:totable())
    x[0] = 0
    assert.same({{0, 0, 0}, {7, 8, 9}}, x:totable())
    assert.equal("row: i is 2, the tensor has 2 rows", message_of(function() return x[2] end))
    assert.equal("x[i]: index 0 is 3, dimension 0 has 3", message_of(function() return x[0][3] end))
    assert.equal('x[i] = v: i is "name", a whole number is wanted', message_of(function() x.name = 1 end))
  end)

  it("are ids, sets, ranges with a step, and masks", function()
    local x = lsa.tensor {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}}
    assert.same({{9, 10, 11, 12}, {1, 2, 3, 4}}, x:index {2, 0}:totable())
    assert.same({{4, 1}, {8, 5}, {12, 9}}, x:index({-1, 0}, 1):totable())
    assert.same({2, 6, 10}, x:index(1, 1):totable())
    assert.same({{1, 2, 3, 4}, {9, 10, 11, 12}}, x:index(lsa.set(3):add {0, 2}):totable())
    assert.same({{1, 3}, {5, 7}, {9, 11}}, x:index({step = 2}, 1):totable())
    assert.same({{4, 2}, {8, 6}, {12, 10}}, x:index({step = -2}, -1):totable())
    assert.same({{2, 3}, {6, 7}, {10, 11}}, x:index({from = 1, to = -1}, 1):totable())
    assert.same({{}, {}, {}}, x:index({from = 2, to = 1}, 1):totable())
    assert.same({7, 8}, x[1]:index(x[1]:gt(6, {mask = true})):totable())
    assert.same({7, 8}, x[1]:index(x[1]:gt(6)):totable())
    assert.same({3, 2}, lsa.tensor({1, 2, 3}, "i64"):index(lsa.tensor({2, 1}, "i64")):totable())
    local view = x:index({step = 2}, 0)
    view:set(1, 0, 90)
    assert.equal(90, x:get(2, 0))
    assert.equal("id 1 is 3, the dimension has 3", message_of(function() x:index {0, 3} end))
    assert.equal("index: the set is over 4 ids, dimension 0 has 3", message_of(function() x:index(lsa.set(4)) end))
    assert.equal("index: 0 to 9, step 1, dimension 0 has 3", message_of(function() x:index {to = 9} end))
    assert.equal("index: a range has no until; from, to and step are known", message_of(function() x:index {from = 0, ["until"] = 2} end))
    assert.equal("index: ids is a tensor of f32, integers are wanted", message_of(function() x:index(lsa.tensor {0.5}) end))
    assert.equal("index: ids from 0 to 4294967296, which no dimension has",
      message_of(function() x:index(lsa.tensor({0, 2 ^ 32}, "i64")) end))
    assert.equal("index: step is 0", message_of(function() x:index {step = 0} end))
  end)

  it("gather along a dimension", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}
    assert.same({{3, 1}, {5, 5}}, x:gather(1, lsa.tensor({{2, 0}, {1, -2}}, "i32")):totable())
    assert.same({{4, 2, 6}}, x:gather(0, lsa.tensor({{1, 0, 1}}, "i32")):totable())
    local y = random({3, 40, 5}, 2)
    local order = y:argsort(1)
    assert.same(y:sort(1):totable(), y:gather(1, order):totable())
    assert.equal("gather: ids has shape [2], x has [2, 3]: the same is wanted but for dimension 1",
      message_of(function() x:gather(1, lsa.tensor({0, 1}, "i32")) end))
  end)
end)

describe("views", function()
  it("permute, transpose, squeeze, unsqueeze and expand without a copy", function()
    local x = random({2, 3, 4}, 3)
    local p, t = x:permute(2, 0, 1), x:transpose(0, -1)
    assert.same({4, 2, 3}, p:shape())
    assert.same({4, 3, 2}, t:shape())
    for i = 0, 1 do
      for j = 0, 2 do
        for k = 0, 3 do
          assert.equal(x:get(i, j, k), p:get(k, i, j))
          assert.equal(x:get(i, j, k), t:get(k, j, i))
        end
      end
    end
    p:set(3, 1, 2, 77)
    assert.equal(77, x:get(1, 2, 3))
    assert.same({{1, 3}, {2, 4}}, lsa.tensor {{1, 2}, {3, 4}}:transpose():totable())
    assert.same({2, 3, 4}, x:unsqueeze(0):unsqueeze(-1):squeeze():shape())
    assert.same({2, 1, 3, 4}, x:unsqueeze(1):shape())
    assert.same({1, 2, 3, 4}, x:unsqueeze(-4):unsqueeze(0):squeeze(1):shape())
    assert.same({{1, 2}, {1, 2}, {1, 2}}, lsa.tensor {1, 2}:expand {3, 2}:totable())
    assert.same({{1, 1}, {2, 2}}, lsa.tensor {{1}, {2}}:expand {2, 2}:contiguous():totable())
    assert.same({{1, 2}, {1, 2}}, lsa.tensor {1, 2}:expand(2, 2):totable())
    assert.same({{1, 2}, {3, 4}}, lsa.tensor {1, 2, 3, 4}:reshape(2, -1):totable())
    for _, name in ipairs {"reshape", "expand"} do
      assert.equal(name .. ": 2 arguments, one list or numbers are wanted", message_of(function() x[name](x, {24}, 1) end))
      assert.equal(name .. ": shape is nil, a list of dimensions is wanted", message_of(function() x[name](x) end))
      assert.matches("^" .. name .. ": .*dimension 1 is 1.5", message_of(function() x[name](x, 24, 1.5) end))
    end
    for _, name in ipairs {"sum", "min", "max", "mean", "argmax", "argmin"} do
      assert.equal(name .. ": 2 arguments are given, it takes 1: dim", message_of(function() x[name](x, 0, true) end))
    end
    assert.equal("to: 2 arguments are given, it takes 1: what", message_of(function() x:to("cpu", "f64") end))
    assert.same({200000, 200000}, lsa.zeros {1}:expand(200000, 200000):shape())
    assert.equal("permute: dimension 0 is given twice", message_of(function() x:permute(0, 0, 1) end))
    assert.equal("permute: 2 dimensions are given, the tensor has 3", message_of(function() x:permute(0, 1) end))
    assert.equal("squeeze: dimension 1 has 3, 1 is wanted", message_of(function() x:squeeze(1) end))
    assert.equal("expand: shape has 5 in dimension 2, the tensor [2, 3, 4] has 4", message_of(function() x:expand {2, 3, 5} end))
    assert.equal("transpose: the tensor has 3 dimensions; which two is not said", message_of(function() x:transpose() end))
  end)

  it("flip, and join", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}
    assert.same({{6, 5, 4}, {3, 2, 1}}, x:flip():totable())
    assert.same({{3, 2, 1}, {6, 5, 4}}, x:flip(1):totable())
    assert.same({{4, 5, 6}, {1, 2, 3}}, x:flip(-2):totable())
    assert.equal("flip: dimension 1 is given twice", message_of(function() x:flip(1, 0, -1) end))
    assert.same({{1, 2, 3}, {4, 5, 6}, {1, 2, 3}}, lsa.cat {x, x:narrow(0, 0, 1)}:totable())
    assert.same({{1, 2, 3, 3}, {4, 5, 6, 6}}, lsa.cat({x, x:narrow(1, 2, 1)}, -1):totable())
    assert.same({{1, 3}, {2, 4}}, lsa.stack({lsa.tensor {1, 2}, lsa.tensor {3, 4}}, 1):totable())
    assert.same({{1, 2}, {3, 4}}, lsa.stack {lsa.tensor {1, 2}, lsa.tensor {3, 4}}:totable())
    assert.same("i32", lsa.cat {lsa.tensor({1}, "i32"), lsa.tensor({2}, "i32")}:dtype())
    assert.equal("cat: element 2 is i32, the first is f32; x:to converts", message_of(function() lsa.cat {x, x:to "i32"} end))
    assert.equal("cat: element 2 has shape [3], the first [2, 3]", message_of(function() lsa.cat {x, x[0]} end))
    assert.equal("stack: a list of tensors is wanted", message_of(function() lsa.stack {} end))
  end)
end)

describe("comparisons", function()
  it("of a 1-D tensor and a number are sets", function()
    local x = lsa.tensor {0.5, 0.1, NAN, 0.5, 0.7}
    assert.same({1}, ids(x:lt(0.5)))
    assert.same({0, 1, 3}, ids(x:le(0.5)))
    assert.same({0, 3}, ids(x:eq(0.5)))
    assert.same({1, 2, 4}, ids(x:ne(0.5)))
    assert.same({4}, ids(x:gt(0.5)))
    assert.same({0, 3, 4}, ids(x:ge(0.5)))
    assert.same({2}, ids(x:isnan()))
    assert.same({0, 1}, ids(lsa.tensor({2 ^ 24, 2 ^ 24 + 1, 2 ^ 24 + 2}, "i32"):le(2 ^ 24 + 1)))
    assert.same({1}, ids(lsa.tensor({2 ^ 24, 2 ^ 24 + 1, 2 ^ 24 + 2}, "i32"):eq(2 ^ 24 + 1)))
    assert.same({0}, ids(lsa.tensor({1, 2}, "i32"):lt(1.5)))
    assert.equal(6, lsa.tensor {1, 2, 3, 4, 5, 6}:pages(4, "sum"):lt(20):chunks(4):size())
  end)

  it("of two tensors, of other shapes, and with {mask = true} are u8", function()
    local x, y = lsa.tensor {1, 2, 3}, lsa.tensor {3, 2, 1}
    assert.same({1, 0, 0}, x:lt(y):totable())
    assert.equal("u8", x:lt(y):dtype())
    assert.same({0, 1, 0}, x:eq(y):totable())
    assert.same({0, 1, 1}, x:ge(2, {mask = true}):totable())
    assert.same({{1, 0}, {0, 0}}, lsa.tensor {{1, 2}, {3, 4}}:lt(2):totable())
    assert.same({{0, 1}}, lsa.tensor {{1, NAN}}:isnan():totable())
    assert.same({{0, 1}, {1, 1}}, lsa.tensor {{1, 2}, {3, 4}}:gt(lsa.tensor {{1}, {1}}):totable())
    assert.same({10, 2, 3}, x:where(x:gt(1, {mask = true}), 10):totable())
    assert.same({{9, 2}, {3, 4}}, lsa.tensor {{1, 2}, {3, 4}}:where(lsa.tensor({{0, 1}, {1, 1}}, "u8"), 9):totable())
    assert.same({2LL ^ 60 + 1, 0LL}, {lsa.tensor({2LL ^ 60 + 1, 5}, "i64"):where(lsa.set(2):add(0), 0):get(0), 0LL})
    assert.same({7, 2}, lsa.tensor({7, 8}, "i32"):where(lsa.set(2):add(0), lsa.tensor({1, 2}, "u8")):totable())
    assert.equal("i32", lsa.tensor({7, 8}, "i32"):where(lsa.set(2), 1):dtype())
    assert.same({{1, 9}, {8, 4}}, lsa.tensor {{1, 2}, {3, 4}}:where(lsa.tensor({{1, 0}, {0, 1}}, "u8"), lsa.tensor {8, 9}):totable())
    assert.equal("where: y has shape [3, 1], x has [3]", message_of(function() x:where(lsa.set(3), lsa.zeros {3, 1}) end))
    assert.equal("where: y is nil, a tensor or a number is wanted", message_of(function() x:where(lsa.set(3)) end))
    assert.is_truthy(message_of(function() x:where(lsa.tensor({1}, "u8"), 0) end):find("u8 of x's shape, [3], is wanted", 1, true))
    assert.equal("lt: it has no option musk; mask is known", message_of(function() x:lt(1, {musk = true}) end))
    assert.equal("lt: v is nil, a number is wanted", message_of(function() x:lt() end))
  end)

  it("in Lua's own signs say what to call", function()
    local x = lsa.tensor {1, 2}
    local same, none = x, nil
    assert.is_true(x == same)
    assert.is_false(x == none)
    assert.is_false(x == 1)
    assert.equal("==: tells whether two are one tensor, and these are not; x:eq(y) compares elements",
      message_of(function() return x == x:copy() end))
    assert.is_truthy(message_of(function() return x < 2 end):find("x:lt(y)", 1, true))
  end)
end)

describe("arithmetic", function()
  it("broadcasts", function()
    local a, b = random({3, 1, 4}, 4), random({2, 1}, 5)
    local sum, swapped = a + b, b:sub(a)
    assert.same({3, 2, 4}, sum:shape())
    for i = 0, 2 do
      for j = 0, 1 do
        for k = 0, 3 do
          near(a:get(i, 0, k) + b:get(j, 0), sum:get(i, j, k))
          near(b:get(j, 0) - a:get(i, 0, k), swapped:get(i, j, k))
        end
      end
    end
    assert.same({{11, 12}, {21, 22}}, (lsa.tensor {{10}, {20}} + lsa.tensor {1, 2}):totable())
    assert.same({{9, 8}}, (10 - lsa.tensor {{1, 2}}):totable())
    assert.same({{}, {}}, (lsa.zeros {2, 0} + lsa.zeros {1, 1}):totable())
    assert.equal("add: y has shape [3], x has [2]: 3 meets 2 in dimension 0",
      message_of(function() return lsa.tensor {1, 2} + lsa.tensor {1, 2, 3} end))
  end)

  it("is exact in integers, and f64 beside floats", function()
    local x = lsa.tensor({2 ^ 24 + 1, -3}, "i32")
    assert.same({"i32", "i32", "i64", "f64", "f64", "f64", "f64"}, {(x + 1):dtype(), (x * x:index {1, 1}):dtype(),
      (x + lsa.tensor({1, 1}, "i64")):dtype(), (x + 0.5):dtype(), (x / 2):dtype(), (x + lsa.tensor {1, 2}):dtype(), x:sqrt():dtype()})
    assert.same({2 ^ 24 + 2, -2}, (x + 1):totable())
    assert.same({2 ^ 23 + 0.5, -1.5}, (x / 2):totable())
    assert.same({-2 ^ 24 - 1, 3}, (-x):totable())
    assert.same({2 ^ 24 + 1, 3}, x:abs():totable())
    assert.same({2 ^ 40 + 1, 2 ^ 40 - 3}, (lsa.tensor({1, -3}, "i64") + 2 ^ 40):totable())
    assert.same({300}, (lsa.tensor({200}, "u8") + 100):totable())
    assert.same({1, 4}, (lsa.tensor({1, -2}, "i32") ^ 2):totable())
    assert.same({2 ^ 53 + 1, 0}, {tonumber((lsa.tensor({2 ^ 53}, "i64") + 1):pointer()[0]), 0})
    assert.equal("add: element 0, of 2147483647 and 1, does not fit i32",
      message_of(function() return lsa.tensor({2 ^ 31 - 1}, "i32") + 1 end))
    assert.equal("f32", (lsa.tensor {1} * 2):dtype())
    assert.equal("f64", (lsa.tensor({1}, "f64") * lsa.tensor {2}):dtype())
  end)

  it("has functions", function()
    local x = lsa.tensor {-2.5, -0.5, 0.5, 1.5, 4}
    assert.same({2.5, 0.5, 0.5, 1.5, 4}, x:abs():totable())
    assert.same({-2, 0, 0, 2, 4}, x:round():add(0):totable())
    assert.same({-3, -1, 0, 1, 4}, x:floor():totable())
    assert.same({-2, 0, 1, 2, 4}, x:ceil():add(0):totable())
    assert.same({-1, -0.5, 0.5, 1, 1}, x:clamp(-1, 1):totable())
    assert.same({0, 0, 0.5, 1.5, 4}, x:clamp(0):totable())
    assert.same({-2.5, -0.5, 0.5, 1, 1}, x:clamp(nil, 1):totable())
    assert.equal(2, x:sqrt():get(4))
    assert.same({6.25, 0.25, 0.25, 2.25, 16}, (x ^ 2):totable())
    assert.same({1, 4, 8}, (2 ^ lsa.tensor({0, 2, 3}, "i32")):totable())
    near(math.tanh(1.5), x:tanh():get(3))
    assert.equal("clamp: neither low nor high is given", message_of(function() x:clamp() end))
  end)

  it("makes one of rows by softmax, and is safe from overflow in logsumexp", function()
    local x = random({3, 5}, 6)
    local s, rows = x:softmax(), x:totable()
    for i, row in ipairs(rows) do
      local sum = 0
      for _, v in ipairs(row) do sum = sum + math.exp(v) end
      for j, v in ipairs(row) do near(math.exp(v) / sum, s:get(i - 1, j - 1)) end
      near(math.log(sum), x:logsumexp(1):get(i - 1))
    end
    near(1, x:softmax(0):sum(0):get(2))
    near(1000 + math.log(2), lsa.tensor {1000, 1000}:logsumexp())
    assert.equal(-INF, lsa.tensor {-INF, -INF}:logsumexp())
    assert.equal(INF, lsa.tensor {INF, 0}:logsumexp())
    near(0, lsa.tensor {-INF, 0}:softmax():get(0))
    assert.equal("f64", lsa.tensor({1, 2}, "i32"):softmax():dtype())
  end)
end)

describe("reductions", function()
  it("keep every digit", function()
    local x = lsa.tensor {2 ^ 24, 1, 1, 1}
    assert.equal(2 ^ 24 + 3, x:sum())
    assert.equal((2 ^ 24 + 3) / 4, x:mean())
    local y = lsa.tensor({{2 ^ 24 + 1, 1}, {3, 2}}, "i32")
    assert.same({2 ^ 24 + 4, 3}, y:sum(0):totable())
    assert.same({"i64", "i32", "i32", "f64"}, {y:sum(0):dtype(), y:max(0):dtype(), y:min(0):dtype(), y:mean(0):dtype()})
    assert.same({2 ^ 24 + 1, 3}, y:max(1):totable())
    assert.same({2 ^ 23 + 1, 2.5}, y:mean(1):totable())
    assert.is_true(lsa.tensor({2 ^ 53, 1}, "i64"):sum() == 2LL ^ 53 + 1)
    assert.equal(255 * 3, lsa.tensor({255, 255, 255}, "u8"):sum())
    assert.equal("f32", lsa.zeros {2, 2}:std(0):dtype())
  end)

  it("are norms, variances and deviations", function()
    local x = random({4, 6}, 7)
    for _, dim in ipairs {0, 1} do
      local turned = dim == 0 and x:transpose() or x
      local std, var, norm, one, most = x:std(dim, 1), x:var(dim), x:norm(dim), x:norm(dim, 1), x:norm(dim, INF)
      for i = 0, #turned - 1 do
        local row, mean, squares, deviations, sum, high = turned[i]:totable(), 0, 0, 0, 0, 0
        for _, v in ipairs(row) do mean = mean + v / #row end
        for _, v in ipairs(row) do
          squares, deviations, sum, high = squares + v * v, deviations + (v - mean) ^ 2, sum + math.abs(v), math.max(high, math.abs(v))
        end
        near(math.sqrt(deviations / (#row - 1)), std:get(i))
        near(deviations / #row, var:get(i))
        near({math.sqrt(squares), sum, high}, {norm:get(i), one:get(i), most:get(i)})
      end
    end
    near(5, lsa.tensor {3, -4}:norm())
    near(1e9 + 0.5, lsa.tensor({1e9, 1e9 + 1}, "i32"):mean(), 0)
    near(0.25, lsa.tensor({1e9, 1e9 + 1}, "i32"):var(), 0)
    assert.equal(INF, lsa.tensor {1, 2}:var(nil, 2))
    assert.equal("norm: p is 3; 1, 2 and math.huge are possible", message_of(function() lsa.tensor {1}:norm(0, 3) end))
  end)

  it("say where, how many, and whether", function()
    local x = lsa.tensor {{3, 1, 2}, {0, 0, 7}}
    assert.same({1, 0}, x:argmin(1):totable())
    assert.same({1, 1, 0}, x:argmin(0):totable())
    assert.same({0, 0, 1}, x:argmax(0):totable())
    assert.same("i32", x:argmax():dtype())
    assert.equal(1, x[0]:argmin())
    assert.is_nil(lsa.tensor {NAN}:argmin())
    assert.equal(2, lsa.tensor({2 ^ 53, 2 ^ 53, 2 ^ 53 + 2}, "i64"):argmax())
    assert.equal(4, x:count_nonzero())
    assert.same({1, 1, 2}, x:count_nonzero(0):totable())
    assert.is_true(x:any() and not x:all() and x[0]:all() and not lsa.zeros(3):any() and lsa.zeros(0):all())
    assert.same({1, 0}, x:all(1):totable())
    assert.same({{1, 1}}, {x:any(1):totable()})
    assert.is_true(lsa.tensor({0, 1}, "u8"):any())
  end)

  it("are medians and quantiles, linear between elements", function()
    assert.equal(2, lsa.tensor {3, 1, 2}:median())
    assert.equal(2.5, lsa.tensor {4, 1, 2, 3}:median())
    assert.equal(NAN ~= NAN, lsa.tensor {4, NAN}:median() ~= lsa.tensor {4, NAN}:median())
    local x = random({5, 4, 3}, 8)
    for dim = 0, 2 do
      local q = x:quantile(0.3, dim)
      local last = x:permute(({[0] = {1, 2, 0}, {0, 2, 1}, {0, 1, 2}})[dim])
      for i = 0, last:shape()[1] - 1 do
        for j = 0, last:shape()[2] - 1 do
          local row = last[i][j]:totable()
          table.sort(row)
          local at = 0.3 * (#row - 1)
          local low = math.floor(at)
          near(row[low + 1] + (row[low + 2] - row[low + 1]) * (at - low), q:get(i, j))
        end
      end
    end
    assert.same({1, 2, 3}, lsa.tensor({3, 1, 2}, "i32"):quantile {0, 0.5, 1})
    assert.same({1.5, 3.5}, lsa.tensor({{1, 2}, {3, 4}}, "i32"):median(1):totable())
    assert.equal("quantile: q is 1.5, a number from 0 to 1 is wanted", message_of(function() x:quantile(1.5) end))
    assert.equal("median: there are no elements", message_of(function() lsa.zeros(0):median() end))
  end)

  it("count what lies where", function()
    local counts, edges = lsa.tensor {0, 0.1, 0.5, 0.9, 1}:histogram(2)
    assert.same({2, 3}, counts:totable())
    assert.same({0, 0.5, 1}, edges:totable())
    assert.same({1, 2}, (lsa.tensor {1, 2, 3, NAN, 9}:histogram(2, 0, 4)):totable() and {1, 2})
    assert.same({1, 2}, lsa.tensor {1, 2, 3, NAN, 9}:histogram(2, 0, 4):totable())
    assert.same({0, 1, 0}, lsa.tensor {5}:histogram(3):totable())
    assert.same({1, 0, 2}, lsa.tensor({2, 0, 2}, "i32"):bincount():totable())
    assert.same({1, 0, 2, 0}, lsa.tensor({2, 0, 2}, "u8"):bincount(4):totable())
    assert.equal("bincount: element 1 is -1, there are 3 bins", message_of(function() lsa.tensor({2, -1}, "i32"):bincount() end))
    assert.is_truthy(message_of(function() lsa.tensor {1, INF}:histogram(2) end):find "from 1 to inf")
  end)

  it("run along", function()
    assert.same({1, 3, 6}, lsa.tensor {1, 2, 3}:cumsum():totable())
    assert.same({{1, 2}, {4, 6}}, lsa.tensor({{1, 2}, {3, 4}}, "i32"):cumsum(0):totable())
    assert.equal("i64", lsa.tensor({1}, "u8"):cumsum():dtype())
    assert.same({1, 2}, lsa.tensor {1, 2, 4}:diff():totable())
    assert.same({{2, 2}}, lsa.tensor {{1, 2}, {3, 4}}:diff(0):totable())
    assert.same({}, lsa.tensor {1}:diff():totable())
    assert.same({}, lsa.zeros(0):diff():totable())
  end)
end)

describe("products", function()
  it("are dot products and of matrices, in batches", function()
    assert.equal(11, lsa.tensor {1, 2}:dot(lsa.tensor {3, 4}))
    assert.equal(2 ^ 48 + 1, lsa.tensor {2 ^ 24, 1}:dot(lsa.tensor {2 ^ 24, 1}))
    assert.is_true(lsa.tensor({2 ^ 30, 1}, "i64"):dot(lsa.tensor({2 ^ 23, 1}, "i64")) == 2LL ^ 53 + 1)
    local a, b = random({3, 5}, 9), random({5, 4}, 10)
    local c = a:matmul(b)
    for i = 0, 2 do
      for j = 0, 3 do
        local sum = 0
        for k = 0, 4 do sum = sum + a:get(i, k) * b:get(k, j) end
        near(sum, c:get(i, j))
      end
    end
    near(c:totable(), a:to "f64":matmul(b:to "f64"):totable())
    near(c[1]:totable(), a[1]:matmul(b):totable())
    near(c:transpose()[2]:totable(), a:matmul(b:transpose()[2]):totable())
    local batch = lsa.stack {a, a * 2}
    near(lsa.stack {c, c * 2}:totable(), batch:matmul(b):totable())
    assert.same({2, 3, 4}, batch:matmul(b):shape())
    local x = lsa.tensor({{2 ^ 24 + 1, 1}, {0, 3}}, "i32")
    assert.same({{2 ^ 24 + 2}, {3}}, x:matmul(lsa.tensor({{1}, {1}}, "i32")):totable())
    assert.equal("i64", x:matmul(x):dtype())
    assert.equal("matmul: x has shape [3, 5], y has [3, 5]: 5 columns meet 3 rows", message_of(function() a:matmul(a) end))
    assert.is_truthy(message_of(function() a[0]:dot(b:transpose()) end):find "1%-D and equally long")
  end)
end)

describe("order", function()
  it("is ascending, or descending, NaN last", function()
    local x = lsa.tensor {3, NAN, 1, 2, 1}
    assert.same({1, 1, 2, 3}, x:sort():narrow(0, 0, 4):totable())
    assert.same({2, 4, 3, 0, 1}, x:argsort():totable())
    assert.same({0, 3, 2, 4, 1}, x:argsort {descending = true}:totable())
    assert.same({3, 2, 1}, lsa.tensor({1, 3, 2}, "i32"):sort {descending = true}:totable())
    assert.equal("i32", lsa.tensor({1, 3, 2}, "i32"):sort():dtype())
    local y = random({4, 3, 5}, 11)
    for dim = 0, 2 do
      local s, order = y:sort(dim), y:argsort(dim)
      local turned, rows, places = s:transpose(dim, 2), y:transpose(dim, 2), order:transpose(dim, 2)
      for i = 0, turned:shape()[1] - 1 do
        for j = 0, turned:shape()[2] - 1 do
          local row = rows[i][j]:totable()
          for k, at in ipairs(places[i][j]:totable()) do assert.equal(row[at + 1], turned:get(i, j, k - 1)) end
          table.sort(row)
          assert.same(row, turned[i][j]:totable())
        end
      end
    end
    assert.equal("sort: it has no option reverse; descending is known", message_of(function() x:sort {reverse = true} end))
  end)

  it("gives distinct elements and their counts", function()
    local values, counts = lsa.tensor {2, 1, 2, 5}:unique()
    assert.same({1, 2, 5}, values:totable())
    assert.same({1, 2, 1}, counts:totable())
    local some, many = lsa.tensor {NAN, 1, NAN}:unique()
    assert.equal(2, #some)
    assert.same({1, 2}, many:totable())
    assert.same({0, 3}, (lsa.tensor({{3, 0}, {0, 3}}, "i64"):unique()):totable())
    assert.equal(0, #lsa.zeros(0):unique())
  end)
end)

describe("makers", function()
  it("make ones, ranges, steps and the unit matrix", function()
    assert.same({{1, 1}}, lsa.ones {1, 2}:totable())
    assert.same({2.5, 2.5}, lsa.full(2, 2.5):totable())
    assert.same({0, 1, 2}, lsa.arange(3):totable())
    assert.equal("i32", lsa.arange(3):dtype())
    assert.same({5, 3}, lsa.arange(5, 1, -2):totable())
    assert.same({0, 0.25, 0.5}, lsa.arange(0, 0.75, 0.25):totable())
    assert.same({2 ^ 40}, lsa.arange(2 ^ 40, 2 ^ 40 + 1):totable())
    assert.same({0, 0.5, 1}, lsa.linspace(0, 1, 3):totable())
    assert.same({{1, 0}, {0, 1}}, lsa.eye(2):totable())
    assert.equal("arange: i8 does not hold 0 to 199", message_of(function() lsa.arange(0, 200, 1, "i8") end))
  end)

  it("make random numbers of a seed", function()
    local a, b = lsa.rand({3, 4}, 7), lsa.randn({3, 4}, 7)
    assert.same(a:totable(), lsa.rand({3, 4}, 7):totable())
    assert.is_false(a:eq(lsa.rand({3, 4}, 8)):all())
    assert.same(b:totable(), lsa.randn({3, 4}, 7):totable())
    assert.is_true(a:min() >= 0 and a:max() < 1)
    local x = lsa.randn(10000, 1)
    assert.is_true(math.abs(x:mean()) <= 0.05 and math.abs(x:std() - 1) <= 0.05)
    assert.equal("rand: no seed is given; equal seeds give equal numbers", message_of(function() lsa.rand(3) end))
  end)
end)

describe("integers beyond 2^53", function()
  it("come out as they are", function()
    local big = 2LL ^ 60 + 1
    local x = lsa.tensor({big, 1, 2LL ^ 53}, "i64")
    assert.is_true(x:get(0) == big and x[0] == big and x:totable()[1] == big and x:max() == big)
    assert.equal(2 ^ 53, x:get(2))
    assert.same({1, 2 ^ 53}, x:narrow(0, 1, 2):totable())
    assert.is_truthy(tostring(x):find("max 1152921504606846977\n  [1152921504606846977, 1, 9.007e+15]", 1, true))
    assert.is_true((x + 1):get(0) == big + 1 and x:eq(big):has(0) and x:sort():get(2) == big)
    assert.equal(2 ^ 54, tonumber(lsa.tensor({2 ^ 54}, "i64"):max()))
  end)
end)

describe("f64", function()
  it("is a dtype as others are", function()
    local x = lsa.tensor({0.1, NAN, 1e300}, "f64")
    assert.equal(0.1, x:get(0))
    assert.equal(1e300, x:totable()[3])
    assert.is_true(x:get(1) ~= x:get(1))
    assert.equal(8, x:bytes() / 3)
    assert.equal(0.1, x:sum(nil) ~= x:sum(nil) and 0.1)
    ffi.cast("uint64_t *", x.c.data)[1] = 0xffff800012345678ULL
    assert.is_true(x:get(1) ~= x:get(1) and x:sum() ~= x:sum())
    assert.equal("tensor f64 [] 0.25", tostring(lsa.tensor(0.25, "f64")))
    assert.same({1.5, 2}, lsa.tensor({1.5, 2}, "f64"):to "bf16":totable())
  end)
end)

describe("a name that tensors do not have", function()
  it("is an error that knows what was meant", function()
    local x = lsa.tensor {1}
    assert.equal('tensor has no op "sotr"; did you mean sort?', message_of(function() x:sotr() end))
    assert.equal('tensor has no op "cumsm"; did you mean cumsum?', message_of(function() x:cumsm() end))
    assert.equal('tensor has no op "xyzzyq"', message_of(function() x:xyzzyq() end))
  end)
end)
