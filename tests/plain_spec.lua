local plain = require "lsa.files.plain_data"

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

  it("is numbers, strings, booleans and tables of them", function()
    assert.has_error(function() plain.encode(print) end, "a function is no plain data")
    assert.has_error(function() plain.encode{[true] = 1} end, "a key is a boolean; numbers and strings are plain data")
    local loop = {}
    loop[1] = loop
    assert.has_error(function() plain.encode(loop) end, "plain data nested deeper than 64")
  end)

  it("refuses damaged bytes, wherever they are cut or changed", function()
    local whole = plain.encode{1, "two", {three = true}}
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
