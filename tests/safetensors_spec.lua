local ffi = require "ffi"
local lsa = require "lsa.ffi"
local unistd = require "posix.unistd"
local writer = require "lsa.files.safetensors_writer"
local support = require "file_support"
local uniform = require("kernel_support").uniform
local C, check = lsa.C, require("lsa.raise").check
local failure = support.failure

local function open(path)
  local out = ffi.new "lsa_safetensors *[1]"
  check(C.lsa_safetensors_open(out, path), 2)
  return ffi.gc(out[0], C.lsa_safetensors_close)
end

local function close(file) C.lsa_safetensors_close(ffi.gc(file, nil)) end

-- Tries to open a file of these bytes and closes it again.
local function try(path, bytes)
  support.write(path, bytes)
  local out = ffi.new "lsa_safetensors *[1]"
  local rc = C.lsa_safetensors_open(out, path)
  if rc == 0 then C.lsa_safetensors_close(out[0]) end
  return rc
end

-- A tensor of bytes from a string.
local function tensor(dtype, shape, bytes)
  local out = ffi.new "lsa_tensor *[1]"
  check(C.lsa_tensor_new(out, dtype, #shape, ffi.new("int64_t[?]", #shape + 1, shape)))
  local t = ffi.gc(out[0], C.lsa_tensor_free)
  local n = tonumber(C.lsa_tensor_count(t) * C.lsa_dtype_size(dtype))
  assert(n == #bytes)
  ffi.copy(t.data, bytes, n)
  return t
end

-- 0, or a code and a message, as the library's functions give it.
local function save(path, list, metadata)
  local entries, texts, w = {}, {}, nil
  for i, entry in ipairs(list) do
    local t, shape = entry[2], {}
    for axis = 1, t.rank do shape[axis] = tonumber(t.shape[axis - 1]) end
    entries[i] = {entry[1], ffi.string(C.lsa_dtype_name(t.dtype)), shape}
  end
  for _, pair in ipairs(metadata or {}) do texts[pair[1]] = pair[2] end
  local ok, message = pcall(function()
    w = writer.new(path, entries, texts)
    for _, entry in ipairs(list) do w:write(entry[1], entry[2].data, tonumber(C.lsa_tensor_count(entry[2]))) end
    w:finish()
  end)
  if ok then return 0 end
  if w then w:abandon() end
  return message:find "memory" and C.LSA_ENOMEM or C.LSA_EIO, message
end

local function get(file, name)
  local i = C.lsa_safetensors_find(file, name)
  assert(i >= 0, name)
  local out = ffi.new "lsa_tensor *[1]"
  check(C.lsa_safetensors_get(file, i, out), 2)
  return ffi.gc(out[0], C.lsa_tensor_free)
end

local function free(t) C.lsa_tensor_free(ffi.gc(t, nil)) end

local function bytes_of(t)
  return ffi.string(t.data, tonumber(C.lsa_tensor_count(t) * C.lsa_dtype_size(t.dtype)))
end

local X = '{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'

describe("safetensors", function()
  it("gives back what was saved, of every dtype, in the order of the data", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local u, list, wanted = uniform(1), {}, {}
      for dtype = 0, C.LSA_DTYPES - 1 do
        local size = tonumber(C.lsa_dtype_size(dtype))
        local name, data = "t." .. ffi.string(C.lsa_dtype_name(dtype)), {}
        for i = 1, size * 6 do data[i] = string.char(math.floor(u(0, 256))) end
        wanted[name] = table.concat(data)
        list[#list + 1] = {name, tensor(dtype, {2, 3}, wanted[name])}
      end
      list[#list + 1] = {"nothing", tensor(C.LSA_F32, {0, 5}, "")}
      list[#list + 1] = {"scalar", tensor(C.LSA_U8, {}, "s")}
      check(save(path, list, {{ "format", "pt"}, {"ключ", "значение \"\n"} }))

      local file = open(path)
      assert.equals(#list, tonumber(C.lsa_safetensors_count(file)))
      for name, data in pairs(wanted) do
        local t = get(file, name)
        assert.equals(2, t.rank)
        assert.equals(2, tonumber(t.shape[0]))
        assert.equals(3, tonumber(t.shape[1]))
        assert.equals(1, t.read_only)
        assert.equals(name, "t." .. ffi.string(C.lsa_dtype_name(t.dtype)))
        assert.is_true(bytes_of(t) == data)
        assert.equals(0, tonumber(ffi.cast("intptr_t", t.data)) % tonumber(C.lsa_dtype_size(t.dtype)))
        free(t)
      end
      local nothing, scalar = get(file, "nothing"), get(file, "scalar")
      assert.equals(0, tonumber(C.lsa_tensor_count(nothing)))
      assert.equals(5, tonumber(nothing.shape[1]))
      assert.equals(0, scalar.rank)
      assert.equals("s", bytes_of(scalar))
      free(nothing)
      free(scalar)
      assert.equals(2, tonumber(C.lsa_safetensors_metadata_count(file)))
      assert.equals("ключ", ffi.string(C.lsa_safetensors_metadata_key(file, 1)))
      assert.equals("значение \"\n", ffi.string(C.lsa_safetensors_metadata_value(file, 1)))
      assert.is_true(C.lsa_safetensors_metadata_key(file, 2) == nil)
      assert.is_true(C.lsa_safetensors_metadata_value(file, -1) == nil)
      assert.equals(-1, tonumber(C.lsa_safetensors_find(file, "t")))
      assert.is_true(C.lsa_safetensors_name(file, #list) == nil)
      close(file)
    end)
  end)

  it("keeps the mapping as long as a view lives", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      support.write(path, support.safetensors(X, "abc"))
      local file = open(path)
      local t = get(file, "x")
      close(file)
      os.remove(path)
      assert.equals("abc", bytes_of(t))
      free(t)
    end)
  end)

  it("reads the files of the reference implementation", function()
    local file = open(lsa.root .. "/tests/golden/short/golden.safetensors")
    local ids = get(file, "input_ids")
    assert.equals(C.LSA_I64, ids.dtype)
    assert.equals(3, tonumber(ids.shape[0]))
    local found = {}
    for i = 0, tonumber(C.lsa_safetensors_metadata_count(file)) - 1 do
      found[ffi.string(C.lsa_safetensors_metadata_key(file, i))] =
        ffi.string(C.lsa_safetensors_metadata_value(file, i))
    end
    assert.equals("3", found.tokens)
    assert.equals("7", found.seed)
    free(ids)
    close(file)
  end)

  it("finds every tensor by its name", function()
    local file = open(lsa.root .. "/tests/golden/flash/model.safetensors")
    local n = tonumber(C.lsa_safetensors_count(file))
    assert.is_true(n > 100)
    for i = 0, n - 1 do
      assert.equals(i, tonumber(C.lsa_safetensors_find(file, C.lsa_safetensors_name(file, i))))
    end
    close(file)
  end)

  it("copies data that is not aligned to its elements", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local header = '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        .. '"b":{"dtype":"I32","shape":[1],"data_offsets":[1,5]},'
        .. '"c":{"dtype":"I64","shape":[],"data_offsets":[5,13]}}'
      support.write(path, support.safetensors(header, "x\1\2\0\0\255\255\255\255\255\255\255\255"))
      local file = open(path)
      local b, c = get(file, "b"), get(file, "c")
      assert.equals(0, tonumber(ffi.cast("intptr_t", b.data)) % 4)
      assert.equals(513, ffi.cast("int32_t *", b.data)[0])
      assert.equals(-1, tonumber(ffi.cast("int64_t *", c.data)[0]))
      free(b)
      free(c)
      close(file)
    end)
  end)

  it("knows the dtypes that tensors do not have", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      for name, bits in pairs {U64 = 64, I16 = 16, BOOL = 8, U32 = 32, C64 = 64, F4 = 4, F8_E5M2 = 8} do
        local bytes = bits * 4 / 8
        support.write(path, support.safetensors(
          ('{"x":{"dtype":"%s","shape":[4],"data_offsets":[0,%d]}}'):format(name, bytes), ("z"):rep(bytes)))
        local file, out = open(path), ffi.new "lsa_tensor *[1]"
        local message = failure(C.lsa_safetensors_get(file, 0, out), C.LSA_EDTYPE)
        assert.is_true(message:find(name, 1, true) and message:find(path, 1, true) ~= nil)
        close(file)
      end
    end)
  end)

  it("refuses more dimensions than a tensor has, at the tensor", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      support.write(path, support.safetensors(
        '{"x":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}', "z"))
      local file, out = open(path), ffi.new "lsa_tensor *[1]"
      assert.is_true(failure(C.lsa_safetensors_get(file, 0, out), C.LSA_ESHAPE):find "8 dimensions" ~= nil)
      assert.is_true(failure(C.lsa_safetensors_get(file, 1, out), C.LSA_EARG):find "1 of 1" ~= nil)
      close(file)
    end)
  end)

  describe("refuses", function()
    local function entry(text) return support.safetensors('{"x":' .. text .. "}", "abc") end
    local bad = {
      ["an empty file"] = {"", "0 bytes"},
      ["seven bytes"] = {"1234567", "7 bytes"},
      ["a header past the end"] = {support.length_bytes(60) .. X, "claims 60 bytes"},
      ["a header of more than 100 MB"] = {support.length_bytes(100000001) .. X, "100000001"},
      ["a header of 2^64 - 1"] = {("\255"):rep(8) .. X, "18446744073709551615"},
      ["no header"] = {support.safetensors "", "begin with {"},
      ["a header that begins with a space"] = {support.safetensors(" " .. X, "abc"), "begin with {"},
      ["an array for a header"] = {support.safetensors "[]", "begin with {"},
      ["text after the header's object"] = {support.safetensors(X .. "x", "abc"), "JSON"},
      ["broken JSON"] = {support.safetensors '{"x":', "JSON"},
      ["bytes that are not UTF-8"] = {support.safetensors('{"\255":' .. X:sub(6), "abc"), "JSON"},
      ["a duplicate name"] = {support.safetensors(X:sub(1, -2) .. "," .. X:sub(2), "abc"), "[Dd]uplicate"},
      ["an entry that is a number"] = {entry "3", "tensor x: its entry is 3"},
      ["no dtype"] = {entry '{"shape":[3],"data_offsets":[0,3]}', "dtype is missing"},
      ["an unknown dtype"] = {entry '{"dtype":"F3","shape":[3],"data_offsets":[0,3]}', 'dtype is "F3"'},
      ["a dtype in lower case"] = {entry '{"dtype":"u8","shape":[3],"data_offsets":[0,3]}', 'dtype is "u8"'},
      ["a dtype that is a number"] = {entry '{"dtype":8,"shape":[3],"data_offsets":[0,3]}', "dtype is 8"},
      ["no shape"] = {entry '{"dtype":"U8","data_offsets":[0,3]}', "shape is missing"},
      ["a shape that is a number"] = {entry '{"dtype":"U8","shape":3,"data_offsets":[0,3]}', "shape is 3"},
      ["a negative dimension"] = {entry '{"dtype":"U8","shape":[-3],"data_offsets":[0,3]}', "%[%-3%]"},
      ["a fractional dimension"] = {entry '{"dtype":"U8","shape":[3.0],"data_offsets":[0,3]}', "%[3.0%]"},
      ["a dimension that is text"] = {entry '{"dtype":"U8","shape":["3"],"data_offsets":[0,3]}', "shape"},
      ["a dimension past 64 bits"] =
        {entry '{"dtype":"U8","shape":[18446744073709551619],"data_offsets":[0,3]}', "JSON"},
      ["dimensions whose product overflows to the right size"] = {entry
        '{"dtype":"U8","shape":[6148914691236517209, 3],"data_offsets":[0,3]}', "too large"},
      ["huge dimensions beside a zero"] = {support.safetensors
        '{"x":{"dtype":"U8","shape":[4611686018427387904,4611686018427387904,0],"data_offsets":[0,0]}}',
        "too large"},
      ["no offsets"] = {entry '{"dtype":"U8","shape":[3]}', "data_offsets is missing"},
      ["one offset"] = {entry '{"dtype":"U8","shape":[3],"data_offsets":[0]}', "data_offsets"},
      ["three offsets"] = {entry '{"dtype":"U8","shape":[3],"data_offsets":[0,3,3]}', "data_offsets"},
      ["negative offsets"] = {entry '{"dtype":"U8","shape":[3],"data_offsets":[-3,0]}', "data_offsets"},
      ["offsets that fall"] = {entry '{"dtype":"U8","shape":[3],"data_offsets":[3,0]}', "data_offsets"},
      ["offsets past the end"] = {entry '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}', "ends at byte 4"},
      ["too few bytes for the shape"] = {entry '{"dtype":"U8","shape":[4],"data_offsets":[0,3]}', "has 3 bytes"},
      ["too few bytes for the dtype"] = {entry '{"dtype":"I32","shape":[3],"data_offsets":[0,3]}', "96 bits"},
      ["half a byte"] = {entry '{"dtype":"F4","shape":[5],"data_offsets":[0,3]}', "20 bits"},
      ["bytes that no tensor has, at the end"] = {support.safetensors(X, "abcd"), "4 bytes of data, its tensors have 3"},
      ["data of no tensor"] = {support.safetensors("{}", "a"), "1 bytes of data"},
      ["a hole"] = {support.safetensors('{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        .. '"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}', "abc"), "tensor y: .* hole"},
      ["an overlap"] = {support.safetensors('{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        .. '"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', "abc"), "tensor y: .* overlapping"},
      ["the same bytes twice"] = {support.safetensors('{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
        .. '"y":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}', "abc"), "tensor y: .* overlapping"},
      ["metadata that is text"] = {support.safetensors('{"__metadata__":"pt"}'), '__metadata__.* "pt"'},
      ["metadata whose value is a number"] = {support.safetensors '{"__metadata__":{"a":1}}', "metadata a"},
      ["zero bytes themselves"] = {support.safetensors('{"a\0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "JSON"},
      ["an entry of more than a mebibyte"] = {support.safetensors('{"x":{"dtype":"U8","more":[' .. ("[],"):rep(4e5) .. "1]}}"),
        "tensor x: its entry has 12000%d%d bytes, at most 1048576 are allowed"},
      ["the metadata twice"] = {support.safetensors('{"__metadata__":{"a":"b"},"__metadata__":{}}'), "[Dd]uplicate"},
      ["a metadata's name twice"] = {support.safetensors('{"__metadata__":{"a":"b","c":"d","a":"b"}}'), "[Dd]uplicate metadata a"},
      ["no comma"] = {support.safetensors('{"x":{} "y":{}}'), "JSON"},
      ["a comma at the end"] = {support.safetensors('{"__metadata__":{},}'), "JSON, byte 19 of the header: a name is expected"},
      ["a name without a value"] = {support.safetensors('{"x"}'), "JSON, byte 4 of the header: : is expected"},
      ["another bracket"] = {support.safetensors('{"__metadata__":{}]'), "JSON, byte 18 of the header: , or } is expected"},
      ["no end"] = {support.safetensors('{"__metadata__":{}'), "JSON, byte 18 of the header: , or } is expected"},
      ["deep nesting"] = {support.safetensors('{"x":' .. ("["):rep(100000)), "JSON"},
    }
    for name, case in pairs(bad) do
      it(name, function()
        support.with_folder(function(folder)
          local path, before = folder .. "/bad.safetensors", support.memory()
          local message = failure(try(path, case[1]), C.LSA_EFORMAT)
          assert.is_true(message:find(path, 1, true) ~= nil, message)
          assert.is_true(message:find(case[2]) ~= nil, message)
          assert.equals(0, support.memory() - before)
        end)
      end)
    end

    it("what is not there, a folder, a pipe", function()
      support.with_folder(function(folder)
        local out = ffi.new "lsa_safetensors *[1]"
        local path = folder .. "/none"
        local message = failure(C.lsa_safetensors_open(out, path), C.LSA_EIO)
        assert.is_true(message:find(path, 1, true) and message:find "No such file" ~= nil)
        message = failure(C.lsa_safetensors_open(out, folder), C.LSA_EIO)
        assert.is_true(message:find "regular" ~= nil)
        support.make_pipe(path)
        message = failure(C.lsa_safetensors_open(out, path), C.LSA_EIO)
        assert.is_true(message:find "regular" ~= nil)
      end)
    end)
  end)

  it("takes memory by the bytes of the header, whatever is in it", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local entries = {}
      for i = 1, 2000 do entries[i] = ('"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'):format(i) end
      local x = ',"x":{"dtype":"U8","shape":[],"data_offsets":[0,1],"more":[%s]}}'
      for _, more in ipairs {"", ("[],"):rep(12000) .. "1", '"' .. ("y"):rep(3e5) .. '"'} do
        local file = support.safetensors("{" .. table.concat(entries, ",") .. x:format(more), "z")
        support.write(path, file)
        local before = support.memory()
        local opened = open(path)
        local taken = support.memory() - before
        assert.is_true(taken < 6 * #file, ("%d bytes of memory for %d"):format(taken, #file))
        close(opened)
      end
    end)
  end)

  it("accepts an empty file of no tensors, padding, and fields it does not know", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      assert.equals(0, try(path, support.safetensors "{}"))
      assert.equals(0, try(path, support.safetensors(X .. "     ", "abc")))
      assert.equals(0, try(path, support.safetensors(X:gsub("}}", ',"more":[1]}}'), "abc")))
      assert.equals(0, try(path, support.safetensors '{"x":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}}'))
    end)
  end)

  it("survives thousands of damaged files", function()
    support.with_folder(function(folder)
      local path, before = folder .. "/f.safetensors", support.memory()
      local header = '{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        .. '"e":{"dtype":"U8","shape":[0],"data_offsets":[24,24]},'
        .. '"y":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}'
      local good = support.safetensors(header, ("\1\2\3\4"):rep(8))
      local pieces = {"0", "9", "-1", "[", "]", "{", "}", '"', ",", ":", "null", "1e9", "24", "\\u0000", "\255",
        "9223372036854775807", "F64", "data_offsets", "x", ""}
      local u = uniform(20)
      local function int(n) return math.floor(u() * n) end
      local opened = 0
      for round = 1, 6000 do
        local bytes = good
        for _ = 1, 1 + int(3) do
          local at, kind = 1 + int(#bytes), int(5)
          if kind == 0 then      -- another byte
            bytes = bytes:sub(1, at - 1) .. string.char(int(256)) .. bytes:sub(at + 1)
          elseif kind == 1 then  -- cut off
            if round % 7 == 0 then bytes = bytes:sub(1, at) end
          elseif kind == 2 then  -- a piece put in, the length kept or mended
            bytes = bytes:sub(1, at - 1) .. pieces[1 + int(#pieces)] .. bytes:sub(at)
          elseif kind == 3 then  -- a piece over another
            local piece = pieces[1 + int(#pieces)]
            bytes = bytes:sub(1, at - 1) .. piece .. bytes:sub(at + #piece)
          else                   -- a run taken out
            bytes = bytes:sub(1, at - 1) .. bytes:sub(at + int(12))
          end
        end
        if round % 2 == 0 and #bytes >= 40 then
          bytes = support.length_bytes(#bytes - 40) .. bytes:sub(9)
        end
        support.write(path, bytes)
        local out = ffi.new "lsa_safetensors *[1]"
        if C.lsa_safetensors_open(out, path) == 0 then
          opened = opened + 1
          for i = 0, tonumber(C.lsa_safetensors_count(out[0])) - 1 do
            local t, sum = ffi.new "lsa_tensor *[1]", 0
            if C.lsa_safetensors_get(out[0], i, t) == 0 then
              local data = bytes_of(t[0])
              for j = 1, #data do sum = sum + data:byte(j) end
              C.lsa_tensor_free(t[0])
            end
          end
          C.lsa_safetensors_close(out[0])
        end
      end
      assert.is_true(opened > 50 and opened < 5000, "opened " .. opened)
      assert.equals(0, support.memory() - before)
    end)
  end)

  it("opens and saves cleanly when any one allocation or file operation fails", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local list = {{ "a", tensor(C.LSA_U8, {3}, "abc")}, {"b", tensor(C.LSA_I64, {1}, "12345678")} }
      local metadata = {{ "k", "v"} }
      support.write(path, "old")
      local blocks, operations = support.fail_everything(function()
        local rc = save(path, list, metadata)
        -- After the rename only the directory's sync can fail: the new file is whole by then.
        local text = support.read(path)
        assert.is_true(text == "old" or #text > 64)
        if rc == 0 then support.write(path, "old") end
        assert.equals("a.safetensors", support.names(folder))
        return rc
      end)
      assert.is_true(blocks >= 5 and operations >= 7)

      check(save(path, list, metadata))
      blocks, operations = support.fail_everything(function()
        local out, t = ffi.new "lsa_safetensors *[1]", ffi.new "lsa_tensor *[1]"
        local rc = C.lsa_safetensors_open(out, path)
        if rc ~= 0 then return rc end
        rc = C.lsa_safetensors_get(out[0], 0, t)
        C.lsa_safetensors_close(out[0])
        if rc == 0 then C.lsa_tensor_free(t[0]) end
        return rc
      end)
      assert.is_true(blocks > 20 and operations >= 4)
    end)
  end)

  it("fails cleanly at every allocation, whatever the length of a name", function()
    support.with_folder(function(folder)
      local path, tensors = folder .. "/a.safetensors", {}
      for n = 1, 70 do tensors[("n"):rep(n)] = {dtype = "U8", shape = {1}, data = "x"} end
      for n = 10, 70, 4 do
        support.write_tensors(path, {[("n"):rep(n)] = tensors.n, [("n"):rep(n + 1)] = tensors.n})
        support.fail_everything(function() return try(path, support.read(path)) end)
      end
      support.write_tensors(path, tensors)
      assert.is_true(support.fail_everything(function() return try(path, support.read(path)) end) > 500)
    end)
  end)

  it("says which tensor cannot be saved, and leaves the old file", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      support.write(path, "old")
      local t = tensor(C.LSA_U8, {4}, "abcd")
      local function refused(where, list, metadata) return select(2, save(where, list, metadata)) end
      assert.matches("x is given twice", refused(path, {{"x", t}, {"x", t}}))
      for _, bad in ipairs {"\255", "a\128", "\237\160\128", "\192\128", "\244\144\128\128", "\226\130", "\195\195\168\168"} do
        assert.matches("is not UTF%-8", refused(path, {{bad, t}}))
        assert.matches("is not UTF%-8", refused(path, {}, {{"a", bad}}))
      end
      assert.matches("has a zero byte", refused(path, {{"a\0b", t}}))
      assert.matches("cannot be called __metadata__", refused(path, {{"__metadata__", t}}))
      assert.matches("No such file", refused(folder .. "/no/a", {{"x", t}}))
      assert.equals("old", support.read(path))
      assert.equals("a.safetensors", support.names(folder))
      local names = {"é", "€/\"", "\240\159\152\128", "\238\128\128"}
      for i, name in ipairs(names) do names[i] = {name, t} end
      assert.equals(0, save(path, names, {{"ключ", "a\n\127"}}))
      local file = open(path)
      for _, entry in ipairs(names) do assert.equals("abcd", bytes_of(get(file, entry[1]))) end
      assert.equals("a\n\127", ffi.string(C.lsa_safetensors_metadata_value(file, 0)))
    end)
  end)

  local function mode_of(path)
    local pipe = io.popen("stat -c %a " .. path)
    local mode = pipe:read "*l"
    pipe:close()
    return mode
  end

  it("keeps the permissions of the file it replaces", function()
    support.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      for _, mode in ipairs {"640", "600", "664"} do
        support.write(path, "old")
        os.execute("chmod " .. mode .. " " .. path)
        check(save(path, {{ "x", tensor(C.LSA_U8, {1}, "a")} }))
        assert.equals(mode, mode_of(path))
      end
    end)
  end)

  it("writes what a link leads to, there or not", function()
    support.with_folder(function(folder)
      os.execute(("mkdir %s/in && ln -s in/b %s/a && ln -s a %s/c"):format(folder, folder, folder))
      for _ = 1, 2 do
        check(save(folder .. "/c", {{"x", tensor(C.LSA_U8, {1}, "a")}}))
        assert.equals("b", support.names(folder .. "/in"))
        assert.equals("a", bytes_of(get(open(folder .. "/in/b"), "x")))
        assert.equals(0, os.execute(("test -L %s/a -a -L %s/c"):format(folder, folder)))
      end
      os.execute(("ln -s d %s/d"):format(folder))
      assert.matches("leads through more than 40 links", select(2, save(folder .. "/d", {})))
    end)
  end)

  -- Two writers take turns: whoever finishes last is what is there, whole; a link at a name that a temporary may have is not
  -- followed.
  it("by two writers to one path is the whole of one of them", function()
    support.with_folder(function(folder)
      local path, victim = folder .. "/a", folder .. "/victim"
      support.write(victim, "mine")
      local function begin() return writer.new(path, {{"x", "u8", {4}}, {"y", "i32"}}) end
      local a = begin()
      local start, last = ffi.string(C.lsa_file_path(a.file)):match "^(.*%-)(%d+)$"
      for n = last + 1, last + 5 do assert(unistd.link(victim, start .. n, true) == 0) end
      local b = begin()
      local data = ffi.new("int32_t[2]", {1, 2})
      a:write("x", "aaaa", 4)
      b:write("y", data, 2)
      b:write("x", "bbbb", 4)
      a:write("y", data, 1)
      b:finish()
      assert.equals("bbbb", bytes_of(get(open(path), "x")))
      a:finish()
      local file = open(path)
      assert.equals("aaaa", bytes_of(get(file, "x")))
      assert.equals("\1\0\0\0", bytes_of(get(file, "y")))
      assert.equals("mine", support.read(victim))
    end)
  end)
end)
