-- Values of scripts as bytes and back.
local ffi = require "ffi"
local lists = require "lsa.cycle.slot_lists"
local lsa = require "lsa"
local rng = require "lsa.cycle.rng"
local snapshot = require "lsa.session.snapshot"

local function again(value, roots) return snapshot.decode(snapshot.encode(value, roots), roots) end

local function says(pattern, ...)
  local ok, message = pcall(...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

-- An object of closures that share a counter, and its code.
local function counter()
  local n, self = 0, {}
  function self.add() n = n + 1 return n end
  function self.get() return n end
  return self
end

describe("a snapshot", function()
  it("brings plain values back, identities and cycles too", function()
    local shared = {1.5, -0.0, 1 / 0, "a\0b", true, false}
    local value = {shared, again = shared, [3] = {}}
    value.itself = value
    local got = again(value)
    assert.same(shared, got[1])
    assert.is_true(got[1] == got.again and got.itself == got)
    assert.equal(-1 / 0, 1 / got[1][2])
    assert.is_nil(again(nil))
    local nan = again(0 / 0)
    assert.is_true(nan ~= nan)
  end)

  it("brings sets, tensors, arrays and 64-bit numbers back", function()
    local value = {s = lsa.set(130):add {0, 64, 129}, t = lsa.tensor({{1, 2}, {3, 4}}, "bf16"), e = lsa.zeros({0, 3}, "i32"),
      a = ffi.new("int32_t[?]", 3, {7, -8, 9}), f = ffi.new("double[2]", {0.5, 3}), u = 2 ^ 63 * 1ULL, l = -5LL}
    local got = again(value)
    assert.is_true(got.s:equals(value.s))
    assert.same({{1, 2}, {3, 4}}, got.t:totable())
    assert.same({"bf16", "i32", 0, 3}, {got.t:dtype(), got.e:dtype(), unpack(got.e:shape())})
    assert.same({7, -8, 9, 0.5, 3}, {got.a[0], got.a[1], got.a[2], got.f[0], got.f[1]})
    assert.is_true(got.u == value.u and got.l == -5LL)
    assert.is_true(again(value.s:pages(64)):chunks(64):size() == 130)
  end)

  it("has classes, modules and functions of modules by name", function()
    local r, l = rng.new(3), lists.new(2, 4)
    l:push(1, l:add(17))
    local got = again {r = r, l = l, floor = math.floor, set = lsa.set, rng = rng}
    assert.is_true(got.floor == math.floor and got.set == lsa.set and got.rng == rng)
    for _ = 1, 3 do assert.equal(r(), got.r()) end
    assert.equal(17, got.l:drop(got.l:back(1)))
    assert.equal(getmetatable(l), getmetatable(got.l))
  end)

  it("has closures with what they share, by the code of an example", function()
    local object = counter()
    object.add()
    local got = again(object, {counter()})
    assert.equal(2, got.add())
    assert.equal(2, got.get())
    assert.equal(1, object.get())
  end)

  it("tells functions apart that are on one line", function()
    local function pair() local n = 0 return {add = function() n = n + 1 return n end, take = function() n = n - 1 return n end} end
    local object = pair()
    object.add()
    local got = again(object, {pair()})
    assert.same({2, 1, 0}, {got.add(), got.take(), got.take()})
  end)

  it("says what it cannot hold, and where that is", function()
    says("the value.a.b is a thread, which", snapshot.encode, {a = {b = coroutine.create(print)}})
    says("the state.f is a function %(.*snapshot_spec.lua:%d+", snapshot.encode, {f = function() return says end}, {}, "the state")
    says("cdata 'void %*'", snapshot.encode, {ffi.cast("void *", 0)})
    local deep = {}
    for _ = 1, 300 do deep = {deep} end
    says("nested too deep", snapshot.encode, deep)
    says("code that it refers to is not here any more", snapshot.decode, snapshot.encode(counter(), {counter()}), {})
  end)

  it("refuses bytes that are none, and never more than that", function()
    local bytes, random = snapshot.encode({1, "text", {true}, lsa.set(9):add(3), ffi.new("int8_t[3]"), rng.new(1)}), rng.new(5)
    for n = 0, #bytes - 1 do assert.is_false((pcall(snapshot.decode, bytes:sub(1, n)))) end
    assert.is_false((pcall(snapshot.decode, bytes .. "0")))
    for _ = 1, 300 do
      local at = random(1, #bytes)
      pcall(snapshot.decode, bytes:sub(1, at - 1) .. string.char(random(256)) .. bytes:sub(at + 1))
    end
  end)
end)
