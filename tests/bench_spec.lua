local bench = require "lsa.prompt.bench"
local stub = require "stub_support"
local C = require("lsa.ffi").C

-- What main(arguments) printed, by lines, and its code.
local function printed(arguments)
  local lines, real_print = {}, print
  _G.print = function(text) lines[#lines + 1] = text or "" end
  local ok, code = pcall(bench.main, arguments)
  _G.print = real_print
  assert(ok, code)
  return lines, code
end

describe("bench", function()
  it("times the cases that the filter names, as CSV that adds up", function()
    local lines, code = printed {"--csv", "topk_push 64 of 16384"}
    assert.equal(0, code)
    assert.equal("op,shape,median_ns,best_ns,bytes,flops,gb_per_s,gflop_per_s,limit,percent_of_limit", lines[1])
    assert.equal(3, #lines)
    for i = 2, 3 do
      local op, shape, ns, best, bytes, flops, speed = lines[i]:match '^([%w_]+),"([^"]+)",(%d+),(%d+),(%d+),(%d+),([%d.]+),'
      assert.equal("topk_push", op)
      assert.truthy(shape:find("64 of 16384", 1, true))
      ns, best, bytes, speed = tonumber(ns), tonumber(best), tonumber(bytes), tonumber(speed)
      assert.is_true(0 < best and best <= ns)
      assert.equal(16384 * 4, bytes)
      assert.equal("0", flops)
      assert.is_true(math.abs(speed - bytes / ns) <= 0.01 * speed + 0.0005) -- it has three digits
    end
  end)

  it("names of several limits the one that binds", function()
    local bf16 = tonumber(C.lsa_roofline_bf16(1)) > 0 and "bf16" or "f32"
    for filter, expected in pairs {["linear 512 x [256, 64] f32, f32"] = "f32", ["linear 512 x [256, 64] f32, bf16"] = bf16,
      ["index_score 1 x 4 heads x 32, 4096"] = bf16} do
      local lines = printed {"--csv", filter}
      assert.equal(2, #lines)
      local limit, percent = lines[2]:match ",([%w ]+),([%d.]+)$"
      assert.equal(expected, limit)
      assert.is_true(tonumber(percent) > 0)
    end
  end)

  it("fails where the filter names nothing, or an option is unknown", function()
    local stderr = io.stderr
    io.stderr = {write = function() end}   -- luacheck: ignore
    local _, none = printed {"--csv", "no such operation"}
    local _, unknown = printed {"--fast"}
    local _, threads = printed {"--threads", "0"}
    io.stderr = stderr                     -- luacheck: ignore
    assert.same({1, 2, 2}, {none, unknown, threads})
  end)
end)

describe("bench of a GPU", function()
  it("times each kernel beside the least time and a peer's", function()
    for filter, expected in pairs {["moe_route"] = {1, "^moe_route,"}, ["linear 1 token, 512 x 4096 fp8"] = {1, ",5300$"}, ["linear 1 token, 512 x 4096 bf16"] = {1, ",6400$"}, ["gather 16"] = {1, ",bus,10000$"},
      ["sparse 1 req"] = {1, ",13000$"}, ["topk 512 of 262144, 1 rows, random"] = {1, ",8700$"}} do
      local out, errors, code = stub.lsa(("bench --device cuda --csv '%s'"):format(filter))
      assert.equal(0, code, errors)
      local lines = {}
      for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
      assert.equal("op,shape,median_ns,best_ns,bytes,flops,least_ns,least_by,peer_ns", lines[1])
      assert.equal(expected[1], #lines - 1)
      assert.matches(expected[2], lines[2])
      local ns, best, bytes, _, least = lines[2]:match '",(%d+),(%d+),(%d+),(%d+),(%d+),'
      assert.is_true(tonumber(ns) >= tonumber(best) and tonumber(bytes) > 0 and tonumber(least) > 1600)
    end
  end)

  it("says what is missing where there is none", function()
    if C.lsa_device_count() > 0 then return end
    local ok, message = pcall(bench.main, {"--device", "cuda"})
    assert.is_false(ok)
    assert.matches("no device: ", message)
  end)
end)

describe("peaks", function()
  it("count the FLOPs of all rounds in all threads", function()
    C.lsa_threads_set(2)
    local one, three = tonumber(C.lsa_roofline_f32(1000)), tonumber(C.lsa_roofline_f32(3000))
    C.lsa_threads_set(1)
    local half = tonumber(C.lsa_roofline_f32(1000))
    C.lsa_threads_set(0)
    assert.is_true(one > 0)
    assert.equal(3 * one, three)
    assert.equal(one / 2, half)
  end)

  it("copy whole ranges", function()
    local ffi = require "ffi"
    local support = require "kernel_support"
    for _, n in ipairs {0, 1, 63, 64, 1000, 100003, 6400000} do
      local from, to = support.buffer("uint8_t", n), support.buffer("uint8_t", n)
      for i = 0, n - 1 do from[i] = i % 251 end
      for past_caches = 0, 1 do
        ffi.fill(to, n, 255)
        C.lsa_roofline_copy(to, from, n, past_caches)
        assert.is_true(ffi.C.memcmp(to, from, n) == 0)
      end
      C.lsa_roofline_read(from, n)
      C.lsa_roofline_update(to, n)
      for i = 0, n - 1 do
        if to[i] ~= (i < n - n % 8 and 255 - from[i] or from[i]) then error("byte " .. i .. " of " .. n) end
      end
    end
  end)
end)

describe("the clock", function()
  it("never goes back", function()
    local last = C.lsa_clock_ns()
    for _ = 1, 1000 do
      local now = C.lsa_clock_ns()
      assert.is_true(now >= last)
      last = now
    end
  end)
end)
