local ffi = require "ffi"
local lsa = require "lsa"
local plain = require "lsa.files.plain_data"
local rng = require "lsa.cycle.rng"

local function refuses(value, what)
  local bytes, problem = plain.try(value, "cycle.state")
  assert.is_nil(bytes)
  assert.equal(what, problem)
  assert.has_error(function() plain.encode(value, "cycle.state") end, what)
end

describe("plain data", function()
  it("comes back as it was", function()
    for _, value in ipairs{0, -1.5, 1e300, math.huge, "", "a\0b", true, false, {}, {1, 2, {3}},
      {a = {b = "c"}, [7] = false, [-0.5] = {}}} do
      assert.same(value, plain.decode(plain.encode(value)))
    end
    local nan = plain.decode(plain.encode(0 / 0))
    assert.is_true(nan ~= nan)
  end)

  it("has one form, whatever the order of insertion", function()
    local a, b = {}, {}
    for i = 1, 50 do a["k" .. i] = i end
    for i = 50, 1, -1 do b["k" .. i] = i end
    assert.equal(plain.encode(a), plain.encode(b))
  end)

  it("has sets, tensors, arrays of whole numbers, 64-bit numbers and generators", function()
    local pages = lsa.set(130):add{0, 64, 129}:pages(64)
    local value = {s = lsa.set(130):add{0, 64, 129}, none = lsa.set(0), pages = pages, t = lsa.tensor({{1, 2}, {3, 4}}, "bf16"),
      part = lsa.tensor({{1, 2}, {3, 4}}, "f32"):narrow(1, 1, 1), e = lsa.zeros({0, 3}, "i32"), r = rng.new(3),
      a = ffi.new("int32_t[?]", 3, {7, -8, 9}), b = ffi.new("uint8_t[?]", 2, {255, 1}), u = 2 ^ 63 * 1ULL, l = -5LL}
    local got = plain.copy(value)
    assert.is_true(got.s:equals(value.s) and got.s ~= value.s and got.none:size() == 0)
    assert.equal(130, got.pages:chunks(64):size())
    assert.same({{1, 2}, {3, 4}}, got.t:totable())
    assert.same({{2}, {4}}, got.part:totable())
    assert.same({"bf16", "i32", 0, 3}, {got.t:dtype(), got.e:dtype(), unpack(got.e:shape())})
    assert.same({7, -8, 9, 12, 255, 1}, {got.a[0], got.a[1], got.a[2], ffi.sizeof(got.a), got.b[0], got.b[1]})
    assert.is_true(got.u == value.u and got.l == -5LL and got.u > 0)
    for _ = 1, 3 do assert.equal(value.r(), got.r()) end
  end)

  it("has once what a table holds twice", function()
    local set, inner = lsa.set(10):add(3), {1}
    local got = plain.copy{a = set, b = set, c = inner, d = {inner}}
    got.a:add(4)
    assert.is_true(got.b:has(4) and not set:has(4))
    assert.is_true(got.c == got.d[1] and got.c ~= inner)
  end)

  it("names what is none by its path", function()
    refuses(print, "cycle.state is a function, which is no plain data")
    refuses({a = {b = coroutine.create(print)}}, "cycle.state.a.b is a thread, which is no plain data")
    refuses({[3] = {f = io.stdout}}, "cycle.state.3.f is a userdata, which is no plain data")
    refuses({p = ffi.cast("void *", 0)}, "cycle.state.p is a cdata 'void *', which is no plain data")
    refuses({p = ffi.new "double[3]"}, "cycle.state.p is a cdata 'double [3]', which is no plain data")
    refuses({[true] = 1}, "cycle.state has a key that is a boolean; numbers and strings are plain data")
    refuses({x = setmetatable({}, {})}, "cycle.state.x has a metatable, which is no plain data")
    local loop = {}
    loop.x = {loop}
    refuses(loop, "cycle.state.x.1 contains itself, which is no plain data")
    local deep = {}
    for _ = 1, 100 do deep = {deep} end
    refuses(deep, "cycle.state is nested deeper than 64")
  end)

  it("has one not-a-number, whatever bits the bytes have", function()
    for _, bytes in ipairs{"\0\0\0\0\0\0\252\255", "\1\0\0\0\0\0\255\255", "\255\255\255\255\255\255\255\255", "\0\0\0\0\1\0\240\127"} do
      local got = plain.decode("n" .. bytes)
      assert.equal("number", type(got))
      assert.is_true(got ~= got)
    end
    assert.equal(-math.huge, plain.decode("n\0\0\0\0\0\0\240\255"))
  end)

  it("refuses damaged bytes, wherever they are cut or changed", function()
    local whole = plain.encode{1, "two", {three = true}, lsa.set(70):add(69), lsa.tensor({1, 2}, "i8"), ffi.new("int8_t[?]", 3), rng.new(1), 3ULL}
    for n = 0, #whole - 1 do assert.is_false((pcall(plain.decode, whole:sub(1, n)))) end
    assert.is_false((pcall(plain.decode, whole .. "y")))
    for at = 1, #whole do
      for _, byte in ipairs{0, 127, 255} do
        local ok, why = pcall(plain.decode, whole:sub(1, at - 1) .. string.char(byte) .. whole:sub(at + 1))
        assert.is_true(ok or why:find "plain_spec.lua:%d+: damaged plain data$" ~= nil, why)
      end
    end
  end)
end)
