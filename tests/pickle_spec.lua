-- PyTorch's checkpoints and pickles of tensors: what torch and numpy wrote is read, what could run code is refused by its
-- name, damage does no harm, and what is written torch reads.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local files = require "file_support"
local process = require "process_support"
local support = require "kernel_support"
local C, check = lib.C, require("lsa.raise").check

ffi.cdef "unsigned long crc32_z(unsigned long, const void *, size_t);   // zlib's"

local folder = lib.root .. "/tests/pickle/"

local function ramp(n, start, scale)
  local out = {}
  for i = 0, n - 1 do out[i + 1] = (i + (start or 0)) / (scale or 1) end
  return out
end

local function rows(list, width)
  local out = {}
  for i, v in ipairs(list) do
    local r = math.floor((i - 1) / width) + 1
    out[r] = out[r] or {}
    table.insert(out[r], v)
  end
  return out
end

local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  return message
end

-- Reads the bytes of a pickle or archive; raises what the library says. The data ends where memory ends.
local function read(bytes, keep)
  local storage, box = ffi.new "lsa_storage *[1]", ffi.new "lsa_pickle *[1]"
  local data = keep or support.buffer("uint8_t", #bytes)
  ffi.copy(data, bytes, #bytes)
  check(C.lsa_storage_wrap(storage, data, #bytes, nil, nil))
  local rc = C.lsa_pickle_read(box, storage[0], "test.pkl")
  C.lsa_storage_release(storage[0])
  check(rc)
  return ffi.gc(box[0], C.lsa_pickle_close), data
end

-- Values by name; tensors as "tensor".
local function values(bytes)
  local p, keep = read(bytes)
  local out, length = {}, ffi.new "int64_t[1]"
  for i = 0, tonumber(C.lsa_pickle_count(p)) - 1 do
    local kind, name = C.lsa_pickle_kind(p, i), ffi.string(C.lsa_pickle_name(p, i))
    local text = C.lsa_pickle_text(p, i, length)
    if kind == C.LSA_PICKLE_TENSOR then out[name] = "tensor"
    elseif kind == C.LSA_PICKLE_NONE then out[name] = "none"
    elseif text ~= nil then out[name] = ffi.string(text, length[0])
    else out[name] = C.lsa_pickle_number(p, i) end
  end
  return out, keep
end

describe("files of PyTorch", function()
  it("are checkpoints of a joint retriever, in both of torch's formats", function()
    for _, name in ipairs {"retriever.pt", "retriever_stream.pt"} do
      local t = lsa.load(folder .. name)
      local count = 0
      for _ in pairs(t) do count = count + 1 end
      assert.equal(8, count)
      for i, layer in ipairs {0, 2} do
        local function part(suffix) return t[("retrievers.l%d.%s"):format(layer, suffix)] end
        assert.same(rows(ramp(32, i - 1, 16), 8), part "wq_a.weight":totable())
        assert.same(rows(ramp(64, i - 1, 32), 4), part "wq_b.weight":totable())
        assert.same(ramp(4, 1), part "q_norm_weight":totable())
        assert.same(rows(ramp(16, i - 1, 8), 8), part "weights_proj.weight":totable())
      end
    end
  end)

  it("have tensors of every dtype; those that tensors here do not have are refused when asked for", function()
    for _, name in ipairs {"dtypes.pt", "dtypes_2.pkl"} do
      local t = lsa.load(folder .. name)
      local dtypes = {float32 = "f32", bfloat16 = "bf16", float16 = "f16", uint8 = "u8", int8 = "i8", int32 = "i32",
        int64 = "i64", float64 = "f64", float8_e4m3fn = "f8_e4m3"}
      for torch_name, dtype in pairs(dtypes) do
        assert.equal(dtype, t[torch_name]:dtype())
        assert.same({{0, 1, 2}, {3, 4, 5}}, t[torch_name]:totable())
      end
      assert.matches("bool: dtype bool is not supported", message_of(function() return t.bool end))
    end
  end)

  it("have views with strides, on storages that they share", function()
    local t = lsa.load(folder .. "views.pt")
    local base = rows(ramp(24), 6)
    assert.same(base, t.shared:totable())
    assert.same({6, 4}, t.transposed:shape())
    for i = 0, 5 do
      for j = 0, 3 do assert.equal(base[j + 1][i + 1], t.transposed:get(i, j)) end
    end
    assert.same({{8, 9, 10}, {14, 15, 16}}, t.narrow:totable())
    assert.same({{0, 3}, {12, 15}}, t.stepped:totable())
    assert.equal(13, t.scalar:item())
    assert.same({{0, 0}, {1, 1}, {2, 2}}, t.expanded:totable())
    assert.same({0, 6}, t.nothing:shape())
    assert.same({0, 1}, t.parameter:totable())
    assert.equal(tonumber(ffi.cast("intptr_t", t.shared.c.data)) + 8 * 4, tonumber(ffi.cast("intptr_t", t.narrow.c.data)))
    assert.is_truthy(message_of(function() t.shared:set(0, 0, 1) end):find "read%-only")
  end)

  it("join nested names, and give as metadata what is no tensor", function()
    local t, metadata = lsa.load(folder .. "nested.pt")
    assert.same({0, 1}, t["model.a"]:totable())
    assert.same({0}, t["state.0.step"]:totable())
    assert.same({["list.0"] = 1, ["list.1"] = -2, ["list.2"] = 3.5, ["list.3"] = "text", ["list.5"] = true, ["tuple.0.0"] = 1,
      ["tuple.0.1"] = 2, ["tuple.1"] = "x", bytes = "\0\255", large = 2 ^ 40, ["size.0"] = 2, ["size.1"] = 3, dtype = "bfloat16"},
      metadata)
    t = lsa.load(folder .. "module.pt")
    assert.same({{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}}, t["inner.weight"]:totable())
    assert.same({0.25, 0.25}, t["inner.bias"]:totable())
    assert.same({0, 1, 2}, lsa.load(folder .. "alone.pt").value:totable())
  end)

  it("are traces, as plain pickles", function()
    local t = lsa.load(folder .. "doc_00000.pkl")
    for _, layer in ipairs {10, 20} do
      local hidden = t["hidden_layer_" .. layer]
      assert.equal("bf16", hidden:dtype())
      assert.same(rows(ramp(24, layer), 8), hidden:totable())
      assert.same(rows(ramp(60), 12), t["compk_layer_" .. layer]:totable())
      assert.same({20, 21, 22}, t["positions_layer_" .. layer]:totable())
      assert.same(ramp(5), t[("logits_layer_%d_token_0"):format(layer)]:totable())
    end
    assert.same({0, 2, 2, 5}, t.label_pointers:totable())
    assert.same({0, 3, 1, 2, 4}, t.label_indices:totable())
    assert.same({3, 4, 3, 5, 21}, t.label_scores:totable())
  end)

  it("are numpy's arrays, in every binary protocol", function()
    for _, name in ipairs {"arrays_2.pkl", "arrays_3.pkl", "arrays_4.pkl", "arrays_5.pkl", "arrays.pt"} do
      local t, metadata = lsa.load(folder .. name)
      assert.same({{0, 1, 2}, {3, 4, 5}}, t.f4:totable())
      assert.same({250, 251, 252, 253, 254}, t.u1:totable())
      assert.same({{0, 1, 2}, {3, 4, 5}}, t.i8:totable())
      assert.same({0, 3}, t.empty:shape())
      assert.same({number = 1.5, count = 7}, metadata)
      assert.same({0, 0}, t.f8:totable())
    end
  end)

  it("are views on the mapped file, which outlive it", function()
    files.with_folder(function(place)
      local path = place .. "/x.pt"
      files.write(path, files.read(folder .. "retriever.pt"))
      local x = lsa.load(path)["retrievers.l0.q_norm_weight"]
      os.remove(path)
      collectgarbage()
      collectgarbage()
      assert.same({1, 2, 3, 4}, x:totable())
    end)
  end)

  it("serve as a Memory Indexer", function()
    local model = lsa.model(lib.root .. "/tests/golden/flash")
    local ix = lsa.indexer{model = model, from = "native"}
    files.with_folder(function(place)
      ix:save(place .. "/ix.pt")
      ix:save(place .. "/ix.safetensors")
      local a = lsa.indexer{model = model, from = place .. "/ix.pt"}
      local b = lsa.indexer{model = model, from = place .. "/ix.safetensors"}
      assert.same(b.layers, a.layers)
      local s = model:session{select = "full"}
      local tokens = {}
      for i = 1, 60 do tokens[i] = i * 7 % tonumber(model.config.vocab) end
      s:prefill(tokens)
      for _, l in ipairs(a.layers) do
        assert.same(b:logits(l, s:hidden(l), s:keys(l), 59):totable(), a:logits(l, s:hidden(l), s:keys(l), 59):totable())
      end
    end)
  end)
end)

-- ---- pickles by hand ----

local function u32(n) return files.length_bytes(n):sub(1, 4) end
local function global(module, name) return "c" .. module .. "\n" .. name .. "\n" end

describe("pickles", function()
  it("are read opcode by opcode", function()
    assert.same({value = 7}, values "\128\2K\7.")
    assert.same({value = -1}, values "\128\2J\255\255\255\255.")
    assert.same({value = 65535}, values "\128\2M\255\255.")
    assert.same({value = 0}, values "\128\2\138\0.")
    assert.same({value = -2}, values "\128\2\138\1\254.")
    assert.same({value = 2 ^ 62}, values("\128\2\138\8" .. ("\0"):rep(7) .. "\64."))
    assert.same({value = 1.5}, values("\128\2G\63\248" .. ("\0"):rep(6) .. "."))
    assert.same({value = "none"}, values "\128\2N.")
    assert.same({["0"] = 1, ["1"] = 0}, values "\128\2\136\137\134.")
    assert.same({["0"] = 1, ["1"] = 2}, values "\128\2]K\1aK\2a.")
    assert.same({["0"] = 1, ["1"] = 2}, values "\128\2](K\1K\2e.")
    assert.same({["0"] = 1, ["1"] = 2}, values "\128\2(K\1K\2l.")
    assert.same({a = 1, ["5"] = 2}, values "\128\2}\140\1aK\1sK\5K\2s.")
    assert.same({a = 1, b = 2}, values "\128\4(\140\1aK\1\140\1bK\2d.")
    assert.same({["0"] = "x", ["1"] = "x", ["2"] = "x"}, values "\128\4\140\1x\148h\0h\0\135.")
    assert.same({["0"] = "x", ["1"] = "x"}, values("\128\2X" .. u32(1) .. "xr" .. u32(9) .. "j" .. u32(9) .. "\134."))
    assert.same({["0"] = 1, ["1"] = 1}, values "\128\2K\00020K\0012\134.")
    assert.same({value = 3}, values "\128\2(K\1K\0021K\3.")
    assert.same({}, values "\128\2}.")
    -- Keys that are no text.
    assert.same({["''"] = 1, a = 2}, values "\128\2}\140\0K\1s\140\1aK\2s.")
    assert.same({["a\\0b"] = 1}, values "\128\2}\140\3a\0bK\1s.")
    assert.same({None = 1, True = 2, ["False.x"] = 3}, values "\128\2}NK\1s\136K\2s\137}\140\1xK\3ss.")
    assert.same({["(1, 'a', (None,), ())"] = 1}, values "\128\2}(K\1\140\1aN\133)tK\1s.")
    assert.same({["-0.5"] = 1}, values("\128\2}G\191\224" .. ("\0"):rep(6) .. "K\1s."))
    for _, bits in ipairs {"\255\255\224\0", "\255\253\128\0", "\127\240\0\1"} do
      local x = values("\128\2G" .. bits .. ("\0"):rep(4) .. ".").value
      assert.is_true(type(x) == "number" and x ~= x)
    end
  end)

  it("are refused where they would run something, by its name", function()
    for text, name in pairs {
      [global("os", "system") .. "\140\4true\133R."] = "the global os.system is refused",
      ["\140\5posix\140\6system\147\140\4true\133R."] = "the global posix.system is refused",
      [global("builtins", "eval") .. "."] = "the global builtins.eval is refused",
      [global("torch", "load") .. "."] = "the global torch.load is refused",
      [global("evil\27[2J", "x") .. "."] = "the global evil%?%[2J.x is refused",
      ["("..global("collections", "OrderedDict") .. "o."] = "opcode 0x6f %(OBJ%) is refused",
      ["(iposix\nsystem\n."] = "opcode 0x69 %(INST%) is refused",
      [")\129."] = "opcode 0x81 %(NEWOBJ%) is refused",
      ["\130\1."] = "opcode 0x82 %(EXT1%) is refused",
      ["S'text'\n."] = "opcode 0x53 %(STRING%) is refused",
      ["\143."] = "opcode 0x8f %(EMPTY_SET%) is refused",
      ["\1."] = "opcode 0x01 %(unknown%) is refused",
      ["K\1Q."] = "refers to something outside",
      [global("numpy", "ndarray") .. ")R."] = "calls numpy.ndarray, which is refused",
      ["K\1)R."] = "calls what cannot be called",
      [global("collections", "OrderedDict") .. "."] = "is no value",
      ["\128\9K\1."] = "protocol is later than 5",
      ["]K\1b."] = "gives a state to what has none",
      [global("numpy", "dtype") .. "\140\2O8\133R."] = "numpy dtype O8 is refused",
    } do
      assert.matches(name, message_of(values, "\128\2" .. text))
    end
    assert.matches("code.pt: the global __main__.Module is refused", message_of(lsa.load, folder .. "code.pt"))
  end)

  it("are refused where they make no sense", function()
    for text, what in pairs {
      [""] = "has no end", ["K"] = "is cut off", ["."] = "without a value", ["K\1"] = "has no end", ["t."] = "no mark",
      ["\134."] = "too few values", ["K\1a."] = "without a list", ["]K\1K\1s."] = "without a dict", ["(K\1d."] = "a key has no value",
      ["}(K\1u."] = "a key has no value", ["h\5."] = "memo number is unknown", ["(."] = "without a value", ["K\1(\133."] = "too few",
      ["q\5."] = "nothing is there", ["K\1r\255\255\255\127."] = "memo number is too large", ["0."] = "stack is empty",
      ["X\255\255\255\255x."] = "is cut off", ["}K\1K\2sK\1K\3s."] = "two values are called 1",
      ["}]K\1s."] = "neither a text nor a number", ["}]\133K\1s."] = "neither a text nor a number",
    } do
      assert.matches(what, message_of(values, "\128\2" .. text), text)
    end
    assert.matches("nested deeper than 64", message_of(values, "\128\2" .. ("]"):rep(70) .. ("a"):rep(69) .. "."))
    assert.matches("nested deeper than 64", message_of(values, "\128\2]q\0h\0a."))       -- a list in itself
    -- Lists of lists of the same list: 2^60 values in 400 bytes.
    local bomb = "\128\2]" .. ("q\0]h\0ah\0a"):rep(60)
    assert.matches("has more than", message_of(values, bomb .. "."))
  end)

  -- A pickle of one tensor in the stream format: storage of `n` floats, and the tensor's offset, shape, stride as opcodes.
  local function stream(n, offset, shape, stride, elements)
    local head = "\128\2\138\10l\252\156F\249 j\168P\25.\128\2M\233\3.\128\2}."
    local id = "(\140\7storage" .. global("torch", "FloatStorage") .. "\140\1k\140\3cpu" .. n .. "NtQ"
    local value = "\128\2" .. global("torch._utils", "_rebuild_tensor_v2") .. "(" .. id .. offset .. shape .. stride .. "\137}tR."
    return head .. value .. "\128\2]\140\1ka." .. files.length_bytes(elements) .. ("\0"):rep(4 * elements)
  end

  local function tensor_of(bytes)
    local p, keep = read(bytes)
    local out = require("lsa.tensor.tensor").unmade()
    check(C.lsa_pickle_tensor(p, 0, out.box))
    return out, keep, p
  end

  it("that name the same values again and again take no more memory than their size times a constant", function()
    -- A list of ten ones, a list of ten of that list, and so on.
    local text = "\128\2](" .. ("K\1"):rep(10) .. "eq\0"
    for level = 1, 6 do
      text = text .. "](" .. ("h" .. string.char(level - 1)):rep(10) .. "eq" .. string.char(level)
    end
    assert.is_true(#text < 300)
    local before = tonumber(C.lsa_memory_in_use())
    assert.matches("test.pkl: %d+ bytes of file name values in more than 64 times as many", message_of(read, text .. "."))
    collectgarbage()
    assert.is_true(tonumber(C.lsa_memory_in_use()) - before < 2 ^ 16)
    local few = "\128\2](" .. ("K\1"):rep(10) .. "eq\0](" .. ("h\0"):rep(10) .. "e."
    assert.equal(100, tonumber(C.lsa_pickle_count((read(few)))))
  end)

  it("have no tensor that is more than its elements", function()
    local bytes = stream("K\4", "K\0", "K\2\133", "K\1\133", 4)
    local function with(metadata)
      return (bytes:gsub("\137}tR", function() return "\137}" .. metadata .. "tR" end))
    end
    for metadata, what in pairs {["}\140\3neg\136s"] = "a negative bit", ["}\140\4conj\136s"] = "a conjugate bit",
      ["}\140\3neg\137s\140\1xK\1s"] = "unknown metadata", ["K\1"] = "metadata of an unknown kind"} do
      assert.matches("value: " .. what .. " is not supported", message_of(tensor_of, with(metadata)))
    end
    for _, metadata in ipairs {"N", "}", "}\140\3neg\137s"} do assert.same({0, 0}, tensor_of(with(metadata)):totable()) end
  end)

  it("have integers exactly, or not", function()
    files.with_folder(function(place)
      local path = place .. "/x.pkl"
      files.write(path, "\128\2}(\140\1a\138\8\1\0\0\0\0\0\32\0\140\1b\138\9" .. ("\255"):rep(8) .. "\0\140\1c\138\8\0\0\0\0\0\0\224\255"
        .. "\140\1d\138\8\0\0\0\0\0\0\0\128u.")
      local t, metadata = lsa.load(path)
      assert.equal(0x20000000000001LL, metadata.a)
      assert.equal("cdata", type(metadata.a))
      assert.equal(-2 ^ 53, metadata.c)
      assert.equal("number", type(metadata.c))
      assert.equal(-0x7fffffffffffffffLL - 1, metadata.d)
      for _, place_of in ipairs {t, metadata} do
        assert.matches("x.pkl: b: an integer of 9 bytes is not supported", message_of(function() return place_of.b end))
        assert.is_nil(place_of.other)
      end
    end)
  end)

  it("are of little-endian machines alone", function()
    files.with_folder(function(place)
      for order, fine in pairs {little = true, big = false, [""] = false} do
        local zip, path = ffi.new "lsa_zip_writer *[1]", place .. "/x.pt"
        check(C.lsa_zip_create(zip, path, 0))
        check(C.lsa_zip_add(zip[0], "archive/data.pkl", "\128\2}\140\1aK\1s.", 10, 1))
        check(C.lsa_zip_add(zip[0], "archive/byteorder", order, #order, 1))
        check(C.lsa_zip_finish(zip[0]))
        if fine then
          assert.equal(1, select(2, lsa.load(path)).a)
        else
          assert.matches("x.pt: has the byte order " .. order .. ", only little is read", message_of(lsa.load, path))
        end
      end
    end)
  end)

  it("have no tensor that goes beyond its storage", function()
    assert.same({{0, 0}, {0, 0}}, tensor_of(stream("K\4", "K\0", "K\2K\2\134", "K\2K\1\134", 4)):totable())
    assert.same({0}, tensor_of(stream("K\4", "K\3", "K\1\133", "K\1\133", 4)):totable())
    local huge = "\138\8" .. ("\255"):rep(7) .. "\127"
    for _, case in ipairs {
      {"K\4", "K\1", "K\2K\2\134", "K\2K\1\134", 4, "needs 4 elements"},
      {"K\4", "K\0", "K\2K\2\134", "K\3K\1\134", 4, "needs 5 elements"},
      {"K\4", "K\5", "K\0\133", "K\1\133", 4, "from 5 on"},
      {"K\4", "J\255\255\255\255", "K\1\133", "K\1\133", 4, "impossible shape"},
      {"K\4", "K\0", "J\255\255\255\255\133", "K\1\133", 4, "impossible shape"},
      {"K\4", "K\0", "K\1\133", "J\255\255\255\255\133", 4, "impossible shape"},
      {"K\4", "K\0", "K\1\133", ")", 4, "impossible shape"},
      {"K\4", huge, "K\1\133", "K\1\133", 4, "needs 1 elements"},
      {"K\4", "K\0", huge .. huge .. "\134", "K\0K\0\134", 4, "too large"},
      {"K\4", "K\0", "K\2\133", huge .. "\133", 4, "too large"},
      {"K\4", "K\0", "(K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1t", 4, "7 dimensions"},
      {"K\5", "K\0", "K\1\133", "K\1\133", 4, "storage is cut off"},
      {huge, "K\0", "K\1\133", "K\1\133", 4, "has 9223372036854775807 elements"},
    } do
      assert.matches(case[6], message_of(tensor_of, stream(unpack(case, 1, 5))))
    end
    local bytes = stream("K\4", "K\0", "K\4\133", "K\1\133", 4)
    for cut = 1, #bytes - 1 do message_of(tensor_of, bytes:sub(1, cut)) end
  end)
end)

-- ---- damage ----

-- The same numbers each time: a failure can be repeated.
local function generator(seed)
  local state = seed
  return function(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 2147483648 * n)
  end
end

-- One to three edits, in which bytes change, go, come or are repeated.
local function mutated(bytes, random)
  for _ = 1, 1 + random(3) do
    local at, kind = random(#bytes) + 1, random(8)
    local head, tail = bytes:sub(1, at - 1), bytes:sub(at + 1)
    if kind < 4 then bytes = head .. string.char(random(256)) .. tail
    elseif kind == 4 then bytes = head .. tail
    elseif kind == 5 then bytes = head .. string.char(random(256)) .. bytes:sub(at)
    elseif kind == 6 then bytes = head .. bytes:sub(random(#bytes) + 1):sub(1, random(24)) .. tail
    else bytes = bytes:sub(1, at) end
    if #bytes == 0 then bytes = "." end
  end
  return bytes
end

-- An archive in which data.pkl is damaged, but has its checksum: so that more than the checksum is tried.
local function archive_mutated(bytes, random)
  local name = bytes:find("data.pkl", 1, true)
  local header = bytes:sub(1, name):find "PK\3\4[^\3]*$"
  local function number(at, n)
    local v = 0
    for i = n - 1, 0, -1 do v = v * 256 + bytes:byte(at + i) end
    return v
  end
  local entry = bytes:find("PK\1\2", 1, true)
  local size = number(entry + 24, 4)
  local start = header + 30 + number(header + 26, 2) + number(header + 28, 2)
  local content = bytes:sub(start, start + size - 1)
  for _ = 1, 1 + random(3) do
    local at = random(size) + 1
    content = content:sub(1, at - 1) .. string.char(random(256)) .. content:sub(at + 1)
  end
  local crc = tonumber(C.crc32_z(0, content, #content))
  return bytes:sub(1, start - 1) .. content .. bytes:sub(start + size, entry + 15) .. u32(crc) .. bytes:sub(entry + 20)
end

local MOST_ELEMENTS = 4096

-- Reads all there is of a damaged file; returns whether there was anything to read.
local function try(bytes, data, room)
  local storage, box, made = ffi.new "lsa_storage *[1]", ffi.new "lsa_pickle *[1]", ffi.new "lsa_tensor *[1]"
  local at = data + (room - #bytes)               -- what follows the last byte faults
  ffi.copy(at, bytes, #bytes)
  check(C.lsa_storage_wrap(storage, at, #bytes, nil, nil))
  local rc = C.lsa_pickle_read(box, storage[0], "damaged.pkl")
  C.lsa_storage_release(storage[0])
  if rc < 0 then
    if rc ~= C.LSA_EFORMAT and rc ~= C.LSA_ENOMEM then error(ffi.string(C.lsa_error())) end
    return false
  end
  local length = ffi.new "int64_t[1]"
  for i = 0, tonumber(C.lsa_pickle_count(box[0])) - 1 do
    local text = C.lsa_pickle_text(box[0], i, length)
    if text ~= nil then ffi.string(text, length[0]) end
    if C.lsa_pickle_kind(box[0], i) == C.LSA_PICKLE_TENSOR and C.lsa_pickle_tensor(box[0], i, made) == 0 then
      local t = made[0]
      local count = tonumber(C.lsa_tensor_count(t))
      if count > 0 and count <= MOST_ELEMENTS then
        local out, zero = ffi.new("uint8_t[?]", count * 8), ffi.new "int64_t[6]"
        local step = 1
        for d = t.rank - 1, 0, -1 do
          zero[d] = step
          step = step * tonumber(t.shape[d])
        end
        check(C.lsa_copy_cpu(out, t.data, C.lsa_dtype_size(t.dtype), t.rank, t.shape, zero, t.stride, nil))
      end
      C.lsa_tensor_free(t)
    end
  end
  C.lsa_pickle_close(box[0])
  return true
end

describe("damaged files", function()
  it("are refused or read, a hundred thousand of them, without a crash or a leak", function()
    local names = {"retriever.pt", "retriever_stream.pt", "dtypes.pt", "views.pt", "nested.pt", "module.pt", "alone.pt", "arrays.pt",
      "doc_00000.pkl", "arrays_2.pkl", "arrays_3.pkl", "arrays_4.pkl", "arrays_5.pkl", "dtypes_2.pkl"}
    local random, whole, room = generator(20240607), {}, 16384
    for i, name in ipairs(names) do whole[i] = files.read(folder .. name) end
    local data = support.buffer("uint8_t", room)
    for _, bytes in ipairs(whole) do assert.is_true(try(bytes, data, room)) end
    local before, fine = files.memory(), 0
    for round = 0, 99999 do
      local i = round % #names + 1
      local bytes = whole[i]
      local zip = bytes:sub(1, 2) == "PK" and random(4) > 0
      bytes = zip and archive_mutated(bytes, random) or mutated(bytes, random)
      if #bytes <= room and try(bytes, data, room) then fine = fine + 1 end
    end
    assert.equal(before, files.memory())
    assert.is_true(fine > 5000, fine .. " could be read all the same")
  end)

  it("leave nothing behind when memory or files fail", function()
    for _, name in ipairs {"retriever.pt", "retriever_stream.pt", "doc_00000.pkl", "arrays_2.pkl", "views.pt"} do
      files.fail_everything(function()
        local box, made = ffi.new "lsa_pickle *[1]", ffi.new "lsa_tensor *[1]"
        local rc = C.lsa_pickle_open(box, folder .. name)
        if rc < 0 then return rc end
        for i = 0, tonumber(C.lsa_pickle_count(box[0])) - 1 do
          if C.lsa_pickle_kind(box[0], i) == C.LSA_PICKLE_TENSOR then
            rc = C.lsa_pickle_tensor(box[0], i, made)
            if rc == 0 then C.lsa_tensor_free(made[0]) end
            if rc < 0 and rc ~= C.LSA_EDTYPE then break end
            rc = 0
          end
        end
        C.lsa_pickle_close(box[0])
        return rc
      end)
    end
  end)
end)

-- ---- writing ----

local function everything()
  local out = {}
  for _, dtype in ipairs {"f32", "bf16", "f16", "f8_e4m3", "i8", "u8", "i32", "i64"} do
    out[dtype] = lsa.tensor({{1, 2, 3}, {4, 5, 6}}, dtype)
  end
  out.e8m0 = lsa.tensor({0.5, 4}, "f8_e8m0")
  out.scalar, out.nothing = lsa.tensor(7), lsa.zeros {0, 4}
  out["a.b.c"] = lsa.tensor({{1, 2}, {3, 4}}):narrow(1, 1, 1)
  out.long = lsa.tensor(ramp(70000))
  return out
end

describe("lsa.save to .pt", function()
  it("gives back every dtype, shape and metadata entry", function()
    files.with_folder(function(place)
      local path, written = place .. "/x.pt", everything()
      lsa.save(path, written, {note = "x", steps = 64})
      assert.equal("x.pt", files.names(place))
      local t, metadata = lsa.load(path)
      local count = 0
      for name, x in pairs(t) do
        count = count + 1
        assert.same(written[name]:shape(), x:shape())
        assert.equal(written[name]:dtype(), x:dtype())
        assert.same(written[name]:totable(), x:totable())
        if x:count() > 0 then assert.equal(0, tonumber(ffi.cast("intptr_t", x.c.data) % 64)) end
      end
      assert.equal(13, count)
      assert.same({note = "x", steps = "64"}, metadata)
    end)
  end)

  it("refuses names that it could not give back", function()
    files.with_folder(function(place)
      local x, path = lsa.tensor {1}, place .. "/x.pt"
      for _, case in ipairs {{{[""] = x}, nil, 'the name "" is empty'}, {{["a\0b"] = x}, nil, "has a zero byte"},
        {{a = x}, {[""] = "v"}, [[the metadata's name "" is empty]]}, {{a = x}, {["k\0"] = "v"}, "has a zero byte"},
        {{[("n"):rep(901)] = x}, nil, "has 901 bytes, a .pt file gives back 900"}} do
        local message = message_of(lsa.save, path, case[1], case[2])
        assert.is_truthy(message:find(case[3], 1, true), message)
        assert.equal("", files.names(place))
      end
      lsa.save(path, {[("n"):rep(900)] = x}, {k = "a\0b", [("m"):rep(900)] = ""})
      local t, metadata = lsa.load(path)
      assert.same({1}, t[("n"):rep(900)]:totable())
      assert.same({k = "a\0b", [("m"):rep(900)] = ""}, metadata)
    end)
  end)

  it("writes what torch.load takes, where there is torch", function()
    local _, _, code = process.shell "python3 -c 'import torch'"
    if code ~= 0 then return pending "python3 has no torch" end
    files.with_folder(function(place)
      lsa.save(place .. "/x.pt", everything(), {note = "x"})
      files.write(place .. "/check.py", [==[
import sys, torch
for mmap in (False, True):
    t = torch.load(sys.argv[1], weights_only=True, mmap=mmap)
    names = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f8_e4m3": torch.float8_e4m3fn, "i8": torch.int8,
             "u8": torch.uint8, "i32": torch.int32, "i64": torch.int64}
    for name, dtype in names.items():
        assert t[name].dtype == dtype and t[name].float().tolist() == [[1, 2, 3], [4, 5, 6]], name
    assert t["e8m0"].dtype == torch.float8_e8m0fnu and t["e8m0"].float().tolist() == [0.5, 4]
    assert t["scalar"].item() == 7 and t["nothing"].shape == (0, 4) and t["a.b.c"].tolist() == [[2], [4]]
    assert t["long"].tolist() == list(range(70000))
    assert t["__metadata__"] == {"note": "x"}
torch.save({k: v for k, v in t.items() if k != "__metadata__"}, sys.argv[2])
print("fine")
]==])
      local out, err = process.shell(("python3 %s/check.py %s/x.pt %s/y.pt"):format(place, place, place))
      assert.equal("fine\n", out, err)
      local mine, theirs = lsa.load(place .. "/x.pt"), lsa.load(place .. "/y.pt")
      for name, x in pairs(mine) do assert.same(x:totable(), theirs[name]:totable()) end
    end)
  end)

  it("writes whole files or none, and no pickles", function()
    files.with_folder(function(place)
      local path = place .. "/x.pt"
      files.write(path, "old")
      for n = 0, 5 do
        C.lsa_io_fail_after(n)
        assert.is_false((pcall(lsa.save, path, {x = lsa.zeros {4}})))
        C.lsa_io_fail_after(-1)
        assert.equal("old", files.read(path))
        assert.equal("x.pt", files.names(place))
      end
      assert.matches("%.pkl is not written", message_of(lsa.save, place .. "/x.pkl", {x = lsa.zeros {4}}))
    end)
  end)
end)
