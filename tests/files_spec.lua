local lsa = require "lsa"
local tensor = require "lsa.tensor.tensor"

local function temporary(write)
  local path = os.tmpname()
  if write then
    local file = assert(io.open(path, "wb"))
    file:write(write)
    file:close()
  end
  return path
end

local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  return message
end

describe("lsa.save and lsa.load", function()
  it("give back every dtype, shape and metadata entry", function()
    local path, written = temporary(), {}
    for _, dtype in ipairs {"f32", "bf16", "f16", "f8_e4m3", "i8", "u8", "i32", "i64"} do
      written[dtype] = lsa.tensor({{1, 2, 3}, {4, 5, 6}}, dtype)
    end
    written.scalar = lsa.tensor(7)
    written.nothing = lsa.zeros {0, 4}
    written.strided = lsa.tensor({{1, 2}, {3, 4}}):narrow(1, 1, 1)
    lsa.save(path, written, {note = "x", steps = 64})
    local t, metadata = lsa.load(path)
    local names = 0
    for name, x in pairs(t) do
      names = names + 1
      assert.same(written[name]:shape(), x:shape())
      assert.equal(written[name]:dtype(), x:dtype())
      assert.same(written[name]:totable(), x:totable())
    end
    assert.equal(11, names)
    assert.same({note = "x", steps = "64"}, metadata)
    assert.is_truthy(tostring(t):find("bf16  bf16 [2, 3]", 1, true))
    assert.is_nil(t.absent)
    os.remove(path)
  end)

  it("keep a mapped file alive, and refuse to write to it", function()
    local path = temporary()
    lsa.save(path, {x = lsa.tensor {1, 2, 3}})
    local x = lsa.load(path).x
    os.remove(path)
    collectgarbage()
    collectgarbage()
    assert.same({1, 2, 3}, x:totable())
    local message = message_of(function() x:set(0, 5) end)
    assert.is_truthy(message:find "files_spec.lua:%d+: set: the tensor is read%-only")
    assert.same({5, 2, 3}, x:copy():set(0, 5):totable())
  end)

  it("read the file at the path, whatever its name", function()
    assert.is_truthy(message_of(lsa.load, "/nonexistent/x"):find "/nonexistent/x")
    local empty, text = temporary "", temporary "this is a text file, and a long one"
    assert.is_truthy(message_of(lsa.load, empty):find "empty")
    assert.is_truthy(message_of(lsa.load, text):find("none of the known formats", 1, true))
    os.remove(empty)
    os.remove(text)
  end)

  it("leave a tensor of an unknown dtype until it is asked for", function()
    local header = '{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},' ..
      '"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}'
    header = header .. (" "):rep(-#header % 8)
    local path = temporary(string.char(#header) .. ("\0"):rep(7) .. header .. ("\0"):rep(12))
    local t = lsa.load(path)
    assert.same({0}, t.b:totable())
    assert.is_truthy(message_of(function() return t.a end):find "F64")
    os.remove(path)
  end)

  it("leave a tensor of too many dimensions until it is asked for, and take metadata of null", function()
    local path = temporary(require("file_support").safetensors('{"__metadata__":null,"x":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],' ..
      '"data_offsets":[0,1]},"y":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', "\5\7"))
    local t, metadata = lsa.load(path)
    assert.same({}, metadata)
    assert.same({7}, t.y:totable())
    assert.is_truthy(message_of(function() return t.x end):find("x: has 9 dimensions, at most 6 are supported", 1, true))
    os.remove(path)
  end)

  it("refuse names and metadata with a zero byte, and give back an empty name", function()
    local path = temporary()
    local x = lsa.tensor {1}
    lsa.save(path, {[""] = x}, {[""] = ""})
    local t, metadata = lsa.load(path)
    assert.same({1}, t[""]:totable())
    assert.same({[""] = ""}, metadata)
    for _, case in ipairs {{{["a\0b"] = x}, nil, "the name"}, {{a = x}, {["k\0"] = "v"}, "the metadata's name"},
      {{a = x}, {k = "v\0w"}, "metadata k"}} do
      local message = message_of(lsa.save, path, case[1], case[2])
      assert.is_truthy(message:find(case[3], 1, true) and message:find("has a zero byte", 1, true), message)
    end
    assert.same({1}, lsa.load(path)[""]:totable())
    for _, header in ipairs {'{"a\\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      '{"__metadata__":{"k":"v\\u0000w"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'} do
      local damaged = temporary(require("file_support").safetensors(header, "z"))
      assert.is_truthy(message_of(lsa.load, damaged):find(damaged, 1, true))
      os.remove(damaged)
    end
    os.remove(path)
  end)

  it("say what is wrong with what is to be saved", function()
    assert.is_truthy(message_of(lsa.save, "/tmp/x", {x = 3}):find("save: x is a number, a tensor is wanted", 1, true))
    assert.is_truthy(message_of(lsa.save, "/tmp/x", {tensor.new(1)}):find("save: the name 1 is number", 1, true))
    assert.is_truthy(message_of(lsa.save, "/nonexistent/x", {x = lsa.zeros(1)}):find "/nonexistent")
  end)
end)
