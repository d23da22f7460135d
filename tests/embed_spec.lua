local ffi = require "ffi"
local lsa = require "lsa"
local support = require "kernel_support"
local C = require("lsa.ffi").C
local check = require("lsa.raise").check

local function table_of(data, dtype, vocab, hidden)
  local w = ffi.new "lsa_weight"
  w.data, w.dtype, w.rows, w.cols, w.block_rows, w.block_cols = data, dtype, vocab, hidden, 1, 1
  return w
end

local function embed(w, ids, hc)
  local n, hidden = #ids, tonumber(w.cols)
  local out = support.poison(support.buffer("float", n * hc * hidden), n * hc * hidden)
  check(C.lsa_embed_cpu(out, support.array("int32_t", ids), w, n, hc, hidden, nil))
  return out
end

describe("embed", function()
  it("gives every stream the token's row, in every number format", function()
    support.for_each_cpu_level(function(_, level)
      for _, shape in ipairs {{1, 1, 1}, {5, 7, 2}, {40, 33, 4}, {9, 128, 3}} do
        local vocab, hidden, hc = unpack(shape)
        local numbers = support.normals(vocab * hidden, 3)
        for dtype, ctype in pairs {[C.LSA_F32] = "float", [C.LSA_BF16] = "uint16_t", [C.LSA_F16] = "uint16_t"} do
          local stored, want = support.buffer(ctype, vocab * hidden), support.buffer("float", vocab * hidden)
          check(C.lsa_convert_cpu(stored, numbers, vocab * hidden, dtype, C.LSA_F32, nil))
          check(C.lsa_convert_cpu(want, stored, vocab * hidden, C.LSA_F32, dtype, nil))
          local ids = {vocab - 1, 0, math.floor(vocab / 2), vocab - 1}
          local got = embed(table_of(stored, dtype, vocab, hidden), ids, hc)
          for i, id in ipairs(ids) do
            for j = 0, hc - 1 do
              assert.is_true(support.same_bits(got + ((i - 1) * hc + j) * hidden, want + id * hidden, hidden * 4),
                ("%s: dtype %d, token %d, stream %d"):format(level, dtype, id, j))
            end
          end
        end
      end
    end)
  end)

  it("scales rows that are stored with scales", function()
    local w = table_of(support.array("uint8_t", {0x38, 0x40, 0x30, 0xb8, 0x38, 0x38}), C.LSA_F8_E4M3, 2, 3)
    w.scale, w.scale_dtype, w.block_rows, w.block_cols = support.array("float", {2, 10, 0.5, -1}), C.LSA_F32, 1, 2
    local got = embed(w, {1, 0}, 1)
    for i, want in ipairs {-0.5, 0.5, -1, 2, 4, 5} do assert.equal(want, got[i - 1]) end
  end)

  it("keeps NaN where it is", function()
    local got = embed(table_of(support.array("float", {1, 0 / 0, 3, 4}), C.LSA_F32, 2, 2), {0, 1}, 2)
    for i = 0, 7 do assert.equal(i == 1 or i == 3, got[i] ~= got[i]) end
  end)

  it("takes no tokens, and no streams", function()
    local w = table_of(support.normals(6, 1), C.LSA_F32, 2, 3)
    embed(w, {}, 2)
    embed(w, {1}, 0)
  end)

  it("gives the same bits for any number of threads", function()
    local w, ids = table_of(support.normals(50 * 512, 1), C.LSA_F32, 50, 512), {}
    for i = 1, 400 do ids[i] = i * 7 % 50 end
    C.lsa_threads_set(1)
    local one = embed(w, ids, 4)
    C.lsa_threads_set(3)
    local three = embed(w, ids, 4)
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, three, 400 * 4 * 512 * 4))
  end)

  it("names what is wrong with a call", function()
    local w = table_of(nil, C.LSA_F32, 2, 3)
    assert.equal(C.LSA_ESHAPE, C.lsa_embed_cpu(nil, nil, w, 1, 2, 4, nil))
    assert.equal("embed: 1 tokens in 2 streams of 4, rows have 3", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, C.lsa_embed_cpu(nil, nil, w, -1, 2, 3, nil))
    w.dtype = C.LSA_I64
    assert.equal(C.LSA_EDTYPE, C.lsa_embed_cpu(nil, nil, w, 1, 2, 3, nil))
  end)

  it("is a call on tensors", function()
    local rows = lsa.tensor {{1, 2}, {3, 4}}
    local streams = lsa.kernels.embed(lsa.tensor({1, 0, 1}, "i32"), rows:to "bf16", 2)
    assert.same({{{3, 4}, {3, 4}}, {{1, 2}, {1, 2}}, {{3, 4}, {3, 4}}}, streams:totable())
    local ok, message = pcall(lsa.kernels.embed, lsa.tensor({2}, "i32"), rows)
    assert.is_false(ok)
    assert.is_truthy(message:find("embed: tokens has 2, the table has 2 rows", 1, true))
  end)
end)
