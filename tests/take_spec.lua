-- Elements by their places against a loop.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local support = require "kernel_support"

describe("take", function()
  it("copies what the ids name, whatever the elements' size", function()
    for _, bytes in ipairs {1, 2, 3, 4, 8, 20} do
      for _, shape in ipairs {{1, 5, 7}, {3, 4, 1}, {2, 6, 6}, {2, 3, 0}, {0, 3, 2}} do
        for _, each in ipairs {0, 1} do
          local outer, n, count = unpack(shape)
          local u = support.uniform(bytes)
          local x, ids = support.buffer("uint8_t", outer * n * bytes), support.buffer("int32_t", (each == 1 and outer or 1) * count)
          for i = 0, outer * n * bytes - 1 do x[i] = u(0, 256) end
          for i = 0, (each == 1 and outer or 1) * count - 1 do ids[i] = math.floor(u(-n, n)) end
          local out = support.buffer("uint8_t", outer * count * bytes)
          assert.equal(0, C.lsa_take_cpu(out, x, ids, outer, n, count, bytes, each * count, nil))
          for o = 0, outer - 1 do
            for j = 0, count - 1 do
              local id = ids[each * o * count + j]
              for b = 0, bytes - 1 do
                assert.equal(x[(o * n + id % n) * bytes + b], out[(o * count + j) * bytes + b])
              end
            end
          end
        end
      end
    end
  end)

  it("names an id that is not there", function()
    local x, out = support.buffer("float", 3), support.buffer("float", 2)
    for _, bad in ipairs {3, -4} do
      assert.equal(C.LSA_EARG, C.lsa_take_cpu(out, x, support.array("int32_t", {0, bad}), 1, 3, 2, 4, 0, nil))
      assert.equal(("id 1 is %d, the dimension has 3"):format(bad), ffi.string(C.lsa_error()))
    end
    assert.equal(C.LSA_ESHAPE, C.lsa_take_cpu(out, x, nil, 1, 3, 2, 4, 1, nil))
  end)
end)
