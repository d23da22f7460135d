local C = require("lsa.ffi").C
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
    for _, dtype in ipairs {"f32", "bf16", "f16", "f8_e4m3", "i8", "u8", "i32", "i64", "f64"} do
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
    assert.equal(12, names)
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
    local header = '{"a":{"dtype":"U64","shape":[1],"data_offsets":[0,8]},' ..
      '"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}'
    header = header .. (" "):rep(-#header % 8)
    local path = temporary(string.char(#header) .. ("\0"):rep(7) .. header .. ("\0"):rep(12))
    local t = lsa.load(path)
    assert.same({0}, t.b:totable())
    assert.is_truthy(message_of(function() return t.a end):find "U64")
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
    os.remove(path)
  end)

  it("refuse what has a zero byte in a name or text when it is asked for, and read the rest", function()
    local path = temporary(require("file_support").safetensors('{"__metadata__":{"k":"v\\u0000w","\\u0000":"x","plain":"\\\\n"},' ..
      '"a\\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', "\5\7"))
    local t, metadata = lsa.load(path)
    assert.same({{7}, "\\n"}, {t.a:totable(), metadata.plain})
    assert.is_nil(t.ab)
    assert.equal("a  u8 [1]", tostring(t))
    for _, case in ipairs {{t, "a\0b", "tensor a\\u0000b: its name has a zero byte"}, {metadata, "k", "metadata k: has a zero byte"},
      {metadata, "\0", "metadata \\u0000: has a zero byte"}} do
      local message = message_of(function() return case[1][case[2]] end)
      assert.is_truthy(message:find(path .. ": " .. case[3], 1, true), message)
    end
    os.remove(path)
  end)

  it("are one tensor where they are numpy's, of every dtype that it has", function()
    local path = os.tmpname() .. ".npy"
    for _, dtype in ipairs {"f32", "f64", "f16", "i8", "u8", "i32", "i64"} do
      for _, data in ipairs {{{1, 2, 3}, {4, 5, 6}}, {7, 8}, {}, {{{1}}}} do
        local x = lsa.tensor(data, dtype)
        lsa.save(path, x)
        local y = lsa.load(path)
        assert.same(data, y:totable())
        assert.same(x:shape(), y:shape())
        assert.equal(dtype, y:dtype())
      end
    end
    lsa.save(path, lsa.tensor(5, "f64"))
    assert.equal(5, lsa.load(path):item())
    lsa.save(path, lsa.tensor {{1, 2}, {3, 4}}:transpose())
    assert.same({{1, 3}, {2, 4}}, lsa.load(path):totable())
    assert.is_truthy(message_of(lsa.save, path, lsa.zeros({1}, "bf16")):find('npy has no bf16; x:to "f32" converts', 1, true))
    assert.is_truthy(message_of(lsa.save, path, {x = lsa.zeros(1)}):find(path .. " is of one tensor, a table is given", 1, true))
    assert.same({{1, 3}, {2, 4}}, lsa.load(path):totable())
    for n = 0, 4 do
      C.lsa_io_fail_after(n)
      local ok = pcall(lsa.save, path, lsa.zeros(2))
      C.lsa_io_fail_after(-1)
      if not ok then assert.same({{1, 3}, {2, 4}}, lsa.load(path):totable()) end
    end
    os.remove(path)
  end)

  it("of numpy are read by their header, whatever its order, and refused by name", function()
    local function npy(header, data, version)
      header = header .. (" "):rep(53 - #header % 64) .. "\n"
      local length = version == 2 and string.char(#header % 256, math.floor(#header / 256), 0, 0)
        or string.char(#header % 256, math.floor(#header / 256))
      return temporary("\147NUMPY" .. string.char(version or 1, 0) .. length .. header .. data)
    end
    local function of(...)
      local path = npy(...)
      local ok, t = pcall(lsa.load, path)
      os.remove(path)
      return ok and t:totable() or t
    end
    local head = "{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }"
    local six = "\1\0\2\0\3\0"
    assert.same({{1, 2, 3}, {4, 5, 6}}, of(head:format("|u1", "False", "2, 3"), "\1\2\3\4\5\6"))
    assert.same({{1, 3, 5}, {2, 4, 6}}, of(head:format("|u1", "True", "2, 3"), "\1\2\3\4\5\6"))
    assert.same({1, 0}, of(head:format("|b1", "False", "2,"), "\1\0"))
    assert.same({1}, of(head:format("<i4", "False", "1,"), "\1\0\0\0", 2))
    assert.is_truthy(of(head:format("<i2", "False", "3,"), six):find("its dtype is <i2; <f2, <f4, <f8, <i4, <i8, |b1, |i1, |u1 are known", 1, true))
    assert.is_truthy(of(head:format(">f4", "False", "1,"), "\0\0\0\0"):find("its dtype is >f4", 1, true))
    assert.is_truthy(of(head:format("<f4", "False", "2,"), "\0\0\0\0"):find("elements of 8", 1, true))
    assert.is_truthy(of(head:format("|u1", "False", "1,1,1,1,1,1,1"), "\0"):find("7 dimensions", 1, true))
    assert.is_truthy(of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "\0\0\0\0"):find("records", 1, true))
    assert.is_truthy(of("{}", ""):find("damaged", 1, true))
    assert.is_truthy(of(head:format("|u1", "False", "1,"), "\0", 9):find("version 9", 1, true))
    local cut = temporary "\147NUMPY\1\0\118\0{'descr'"
    assert.is_truthy(message_of(lsa.load, cut):find("cut short", 1, true))
    os.remove(cut)
  end)

  it("say what is wrong with what is to be saved", function()
    for _, ending in ipairs {"csv", "json", "npz", "pkl", "txt"} do
      local path = "/tmp/x." .. ending
      assert.is_truthy(message_of(lsa.save, path, {x = lsa.zeros(1)}):find(path .. ": ." .. ending .. " is not written", 1, true))
      assert.is_nil(io.open(path))
    end
    assert.is_truthy(message_of(lsa.save, "/tmp/x", lsa.zeros(1)):find("tensors is one tensor", 1, true))
    assert.is_truthy(message_of(lsa.save, "/tmp/x", {x = 3}):find("save: x is a number, a tensor is wanted", 1, true))
    assert.is_truthy(message_of(lsa.save, "/tmp/x", {tensor.new(1)}):find("save: the name 1 is number", 1, true))
    assert.is_truthy(message_of(lsa.save, "/nonexistent/x", {x = lsa.zeros(1)}):find "/nonexistent")
  end)
end)
