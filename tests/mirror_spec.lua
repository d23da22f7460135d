-- The mirror, a GPU's own copy of the records of sessions that attend among all chunks: it has the cold tier's bytes wherever it is,
-- attention reads it, a policy gives it back, and without room for it everything is as it was. Without a GPU, on a stub
-- (tests/stub_support.lua).
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local tokens = require("token_support").random
local files = require "file_support"
local stub = require "stub_support"

local C = lib.C
local folder = lib.root .. "/tests/golden/flash"

if C.lsa_device_count() == 0 then
  describe("a mirror", function()
    it("is right on a stub", function() assert.is_nil(stub.failure_of "mirror_spec.lua") end)
  end)
  return
end

local function bits(t)
  local host = t:to "cpu":contiguous()
  return ffi.string(host.c.data, host:bytes())
end

-- Item i of records.
local function item(r, i)
  local block = r.blocks[math.floor(i / 2 ^ r.block_shift)]
  return block + i % 2 ^ r.block_shift * tonumber(r.stride)
end

-- Whether a pool has a mirror; that it then has the cold tier's bytes.
local function check_mirror(pool)
  local cold, mirror = C.lsa_pool_cold_records(pool, 0, 0), C.lsa_pool_mirror_records(pool, 0, 0)
  local there = mirror.blocks ~= nil
  assert.equal(there, C.lsa_pool_mirror_bytes(pool) > 0)
  local bytes = C.lsa_pool_layers(pool) * C.lsa_pool_record_bytes(pool)
  for i = 0, there and tonumber(C.lsa_pool_chunks(pool)) - 1 or -1 do
    assert.is_true(ffi.string(item(cold, i), bytes) == ffi.string(item(mirror, i), bytes), "chunk " .. i)
  end
  return there
end

describe("a mirror", function()
  local cpu, gpu = lsa.model(folder, {device = "cpu"}), lsa.model(folder, {device = "cuda"})

  -- A session on the GPU and one on the CPU; on a stub, whose kernels are the CPU's, with the same bits.
  local function pair(options) return {gpu:session(options), cpu:session(options)} end
  local function both(p, method, ...)
    local a, b = p[1][method](p[1], ...), p[2][method](p[2], ...)
    if stub.here then assert.is_true(bits(p[1]:logits()) == bits(p[2]:logits()), method) end
    return {a, b}
  end

  it("has the cold tier's bytes through random operations on sessions and their forks", function()
    math.randomseed(3)
    local some, seen = {pair {select = "full"}}, {[true] = 0, [false] = 0}
    both(some[1], "prefill", tokens(gpu, 30, 1))
    local ways = {{select = "full"}, {select = "recency", budget = 9, every = 3}, {on_demand = true}, {on_demand = true, select = "recency", budget = 9}}
    for round = 1, 150 do
      local p, act = some[math.random(#some)], math.random(9)
      local decoded
      if act <= 2 then both(p, "prefill", tokens(gpu, math.random(40), round))
      elseif act == 3 then both(p, "prefill", tokens(gpu, math.random(3), round)) -- few rows
      elseif act <= 5 then both(p, "decode", tokens(gpu, 1, round)[1]); decoded = true
      elseif act == 6 then
        local n = math.random(12)
        for _, token in ipairs(p[1]:generate{n = n}) do p[2]:decode(token) end
        if stub.here then assert.is_true(bits(p[1]:logits()) == bits(p[2]:logits()), "generate") end
        decoded = true
      elseif act == 7 then
        local path = os.tmpname()
        p[1]:save(path)
        p[1]:close()
        p[1] = gpu:restore(path)
        os.remove(path)
      elseif act == 8 then some[#some + 1] = both(p, "fork")
      else some[#some + 1] = both(p, "fork", ways[math.random(#ways)]) end
      if #some > 5 then
        local gone = table.remove(some, math.random(#some))
        gone[1]:close()
        gone[2]:close()
      end
      if p[1].c and decoded then assert.equal(p[1].loop.full and not p[1].opt.on_demand, C.lsa_pool_mirror_bytes(p[1].pool) > 0) end
      for _, q in ipairs(some) do
        local there = check_mirror(q[1].pool)
        seen[there] = seen[there] + 1
        assert.equal(tonumber(C.lsa_pool_mirror_bytes(q[1].pool)), q[1]:stats().mirror_bytes)
        assert.equal(0, q[1]:stats().mirror_refused + q[2]:stats().mirror_bytes)
      end
    end
    assert.is_true(seen[true] > 50 and seen[false] > 50)
    for _, q in ipairs(some) do q[1]:close() end
  end)

  it("is what attention among all chunks reads", function()
    local s = gpu:session{select = "full"}
    s:prefill(tokens(gpu, 90, 1))
    local want = bits(s:fork():decode(5))
    local all = s:fork()
    all:decode(5) -- which has blocks of its own
    all:close()
    local cold = C.lsa_pool_cold_records(s.pool, 0, 0)
    for i = 0, tonumber(C.lsa_pool_chunks(s.pool)) - 1 do ffi.fill(item(cold, i), tonumber(cold.stride), 0xff) end
    assert.is_true(want == bits(s:fork():decode(5)))
    C.lsa_pool_set_mirror(s.pool, 0)
    local fork = s:fork()
    assert.is_false(want == bits(fork:decode(5))) -- it was copied up, NaNs and all
    s:close()
  end)

  it("is shared by forks, and given back by the first step under a policy", function()
    local base = gpu:session{select = "full"}
    base:prefill(tokens(gpu, 130, 2))
    local full, few, demand = base:fork(), base:fork{select = "recency", budget = 8}, base:fork{on_demand = true}
    for _, s in ipairs {full, few, demand} do
      assert.is_true(C.lsa_pool_mirror_records(s.pool, 0, 0).blocks[0] == C.lsa_pool_mirror_records(base.pool, 0, 0).blocks[0])
      s:generate{n = 5}
    end
    assert.same({true, false, false}, {check_mirror(full.pool), check_mirror(few.pool), check_mirror(demand.pool)})
    assert.is_true(check_mirror(base.pool))
    assert.is_true(tostring(full:stats()):find("mirrored by the GPU in", 1, true) ~= nil)
    assert.is_nil(tostring(few:stats()):find("mirror", 1, true))
    few:prefill(tokens(gpu, 1, 3)) -- picks fewer than there are
    assert.is_false(check_mirror(few.pool))
    few:prefill(tokens(gpu, 60, 3))
    assert.is_true(check_mirror(few.pool))
    local again = few:fork{select = "full"}
    again:decode(3)
    assert.is_true(check_mirror(again.pool))
  end)

  it("is not there where a GPU has no room, with the same bits", function()
    local function run(n)
      local s = gpu:session{select = "full"}
      C.lsa_device_fail_after(n)
      local ok = pcall(function()
        s:prefill(tokens(gpu, 70, 4))
        s:generate{n = 3}
      end)
      local left = C.lsa_device_fail_after(-1)
      return s, ok, left >= 0
    end
    local want, refused = run(-1), 0
    for n = 0, 400 do
      local s, ok, beyond = run(n)
      if beyond then break end
      if ok then
        assert.is_true(bits(want:logits()) == bits(s:logits()), "call " .. n)
        local stats = s:stats()
        refused = refused + stats.mirror_refused
        if stats.mirror_refused > 0 then
          assert.is_true(tostring(stats):find("the GPU had no room for all records 1 times", 1, true) ~= nil)
        end
      end
      check_mirror(s.pool)
      s:close()
      assert.is_true(n < 400)
    end
    assert.is_true(refused > 0)
    if not stub.here then return end
    ffi.cdef "extern int64_t stub_free;"
    local S = ffi.load(lib.root .. "/" .. lib.build .. "/liblsa_cuda.so")
    local free = S.stub_free
    S.stub_free = 2 ^ 31 / 32
    local s = run(-1)
    S.stub_free = free
    assert.is_true(s:stats().mirror_refused > 1 and s:stats().mirror_bytes == 0)
    assert.is_true(bits(want:logits()) == bits(s:logits()))
    s:fork():decode(1)
    s:generate{n = 70} -- it asks again
    assert.is_true(check_mirror(s.pool))
  end)

  it("ends with what the host writes, and is had anew", function()
    local s = gpu:session{select = "full"}
    s:prefill(tokens(gpu, 50, 5))
    local record, keys = ffi.new("uint8_t[?]", 1e6), ffi.new("uint8_t[?]", 1e6)
    local writes = {
      function() return C.lsa_pool_write(s.pool, 0, ffi.new("int32_t[1]", 3), 1, record) end,
      function() return C.lsa_pool_publish(s.pool, 0, 4, record) end,
      function() return C.lsa_pool_write_chunks(s.pool, 2, 5, record, keys) end,
    }
    for _, write in ipairs(writes) do
      assert.is_true(check_mirror(s.pool))
      assert.equal(0, write())
      assert.is_false(check_mirror(s.pool))
      C.lsa_pool_set_mirror(s.pool, 1)
      local fork = s:fork()
      fork:decode(2)
      assert.is_true(check_mirror(s.pool) and check_mirror(fork.pool))
    end
    C.lsa_pool_set_mirror(s.pool, C.LSA_MIRROR_NEVER)
    C.lsa_pool_set_mirror(s.pool, 1)
    s:decode(1)
    assert.is_false(check_mirror(s.pool))
  end)

  it("goes with a cold tier on disk", function()
    files.with_folder(function(directory)
      local options = {select = "recency", budget = 20, every = 4, cold = "disk:" .. directory}
      local p = {lsa.model("needle", {device = "cuda", piece = 512}):session(options), lsa.model("needle", {device = "cpu", piece = 512}):session(options)}
      local function check(spilled, there)
        assert.same({spilled and 1 or 0, there}, {C.lsa_pool_spilled(p[1].pool), check_mirror(p[1].pool)})
      end
      both(p, "prefill", tokens(gpu, 4300, 6))
      check(false, true)
      both(p, "generate", {n = 6})
      check(true, false)
      both(p, "prefill", tokens(gpu, 1, 7))
      check(false, false)
      both(p, "generate", {n = 6})
      both(p, "prefill", tokens(gpu, 400, 8))
      check(false, true)
      both(p, "generate", {n = 6})
      local full = both(p, "fork", {select = "full"})
      both(full, "decode", 9)
      check(true, false)
      assert.is_true(check_mirror(full[1].pool))
      full[1]:close()
      p[1]:close()
    end)
  end)

  it("is of a batch's requests, but where fast memory has a bound that they would be beyond", function()
    local pieces = lsa.model(folder, {device = "cuda", piece = 8})
    for _, memory in ipairs {false, "1 GiB"} do
      local b = lsa.batch(pieces, {memory = memory, piece = 8, select = "recency", budget = 8, every = 4})
      b:submit{tokens = tokens(gpu, 100, 1), n = 40}
      b:submit{tokens = tokens(gpu, 90, 2), n = 40, select = "full"}
      local seen = {0, 0}
      while b:step() > 0 do
        for id = 0, 1 do
          local s = b:session(id)
          if s and check_mirror(s.pool) then seen[id + 1] = seen[id + 1] + 1 end
        end
      end
      assert.same({not memory, true}, {seen[1] > 0, seen[2] > 0})
      assert.same({2, 0}, {b:stats().done, b:stats().mirror_refused})
      b:close()
    end
  end)
end)
