local ffi = require "ffi"
local lsa = require "lsa"
local raw = require "lsa.ffi"
local kernels = require "lsa.tensor.kernels"
local support = require "kernel_support"

local C = raw.C
local NAN = 0 / 0

local function random(shape, seed)
  local x = lsa.zeros(shape)
  local u, p = support.uniform(seed or 1), x:pointer()
  for i = 0, x:count() - 1 do p[i] = u(-1, 1) end
  return x
end

local function floats(x) return ffi.cast("float *", x.c.data) end

local function near(want, got, tolerance)
  assert.same(want:shape(), got:shape())
  local error = support.max_error(floats(got), floats(want), want:count(), 1)
  assert.is_true(error <= (tolerance or 1e-5), "error " .. error)
end

local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  return (message:gsub("^.-:%d+: ", ""))
end

local function softmax(list)
  local sum, out = 0, {}
  for i, v in ipairs(list) do
    out[i] = math.exp(v)
    sum = sum + out[i]
  end
  for i = 1, #list do out[i] = out[i] / sum end
  return out
end

-- Over the spans of a pass (kernels/span.h), which scripts do not have, or several kernels in one, of which they have the parts.
local of_passes = {}
for name in ("keep_rows extend settle chain pick locate attend remember observe gather advance hc_turn linears lookahead demand reside index_learn"):gmatch "%S+" do of_passes[name] = true end

describe("lsa.tensor.kernels", function()
  it("has every kernel that a header declares", function()
    local missing = {}
    local listing = assert(io.popen("ls " .. raw.root .. "/kernels/*.h"))
    for path in listing:lines() do
      local file = assert(io.open(path))
      for name in file:read("*a"):gmatch "typedef int lsa_([%w_]+)_fn%(" do
        if not kernels[name] and not of_passes[name] then missing[#missing + 1] = name end
      end
      file:close()
    end
    listing:close()
    assert.same({}, missing)
  end)

  it("shows what an op takes", function()
    assert.equal("rmsnorm(x f32 [.., n], weight? f32 [n], eps = 1e-6) -> y! f32 [.., n]", tostring(kernels.rmsnorm))
    assert.is_truthy(tostring(kernels):find("rope(x! f32 [rows, heads, dim]", 1, true))
  end)

  it("takes arguments by position or by name, and results where they are given", function()
    local x, weight = random {3, 5}, random({5}, 2)
    local y = kernels.rmsnorm(x, weight, 1e-3)
    near(y, kernels.rmsnorm {x = x, weight = weight, eps = 1e-3})
    local out = lsa.zeros {3, 5}
    assert.is_true(rawequal(out, kernels.rmsnorm(x, weight, 1e-3, out)))
    near(y, out)
    kernels.rmsnorm(x, weight, 1e-3, x)
    near(y, x)
    assert.same({0, 2}, kernels.rmsnorm(lsa.zeros {0, 2}):shape())
  end)

  it("names the argument and both values in its errors, at the caller's line", function()
    local x, bf = random {3, 6}, lsa.zeros({6}, "bf16")
    local table3 = random {3, 2, 2}
    local mapped = x:copy()
    mapped.c.read_only = 1
    local cuda = x:narrow(0, 0, 3)
    cuda.c.device = C.LSA_CUDA
    local cases = {
      {"rmsnorm: x is nil, a tensor is wanted", function() kernels.rmsnorm() end},
      {"rmsnorm: weight is bf16, f32 is wanted", function() kernels.rmsnorm(x, bf) end},
      {"rmsnorm: weight has 5 in dimension 0, n is 6 (x)", function() kernels.rmsnorm(x, random {5}) end},
      {"rmsnorm: weight has shape [1, 6], 1 dimensions are wanted", function() kernels.rmsnorm(x, random {1, 6}) end},
      {"rmsnorm: eps is \"small\", a number is wanted", function() kernels.rmsnorm(x, nil, "small") end},
      {"rmsnorm: x is not contiguous; x:contiguous() is", function() kernels.rmsnorm(x:narrow(1, 0, 2)) end},
      {"rmsnorm: it has no argument wieght; it is " .. tostring(kernels.rmsnorm),
        function() kernels.rmsnorm {x = x, wieght = bf} end},
      {"rmsnorm: 5 arguments are given, it takes 4", function() kernels.rmsnorm(x, nil, 1, nil, 1) end},
      {"hadamard: x is read-only (a mapped file); x:copy() is not", function() kernels.hadamard(mapped) end},
      {"hadamard: dim is 6, not a power of two", function() kernels.hadamard(x) end, true},
      {"binary: b has leading dimensions [6, 3], a has [3, 6]", function() kernels.binary(x, random {6, 3}, "add") end},
      {"binary: op is \"pow\", add, sub, mul, div, min, max is wanted", function() kernels.binary(x, x, "pow") end},
      {"adamw: gradient is on cuda, x on cpu",
        function() kernels.adamw {x = x, m = x:copy(), v = x:copy(), gradient = cuda, step = 1} end},
      {"linear: y overlaps x", function() kernels.linear {x = x, w = random {6, 6}, y = x} end},
      {"linear: w has 5 columns, x has 6", function() kernels.linear(x, random {2, 5}) end},
      {"rope: table rotates 4 dimensions, x has 2", function() kernels.rope(random {3, 1, 2}, table3) end},
      {"pages: size is 0, at least 1 is wanted", function() kernels.pages(x, 0) end},
      {"topk: k is 2.5, an integer is wanted", function() kernels.topk(x, 2.5) end},
      {"density: s is a tensor, a set is wanted", function() kernels.density(x, 2) end},
      {"kv_decode: records have 6 bytes, 4 dimensions take 16",
        function() kernels.kv_decode(lsa.zeros({3, 6}, "u8"), 4, 2) end},
      {"compress: kv has 3 tokens, windows have 2", function() kernels.compress(x, x, random {2, 6}) end},
      {"attention: window has 2 rows, queries' own rows are 1..3", function()
        kernels.attention {q = random {3, 1, 16}, window = random {2, 16}, sinks = random {1}, rope_dim = 0, own = 1,
          window_size = 4, scale = 1}
      end},
    }
    for _, case in ipairs(cases) do
      local ok, message = pcall(case[2])
      assert.is_false(ok)
      local text = message:match "^[^:]-tests/kernels_spec%.lua:%d+: (.*)$"
      if case[3] then assert.is_truthy(text) else assert.equal(case[1], text) end
    end
    -- What is on a device and has no function there says so; the host's function is never called with its pointers.
    local message = message_of(kernels.rmsnorm, cuda)
    assert.is_truthy(message:find("rmsnorm: x is on cuda, and the op has no CUDA half", 1, true))
    cuda.c.device = C.LSA_CPU
  end)

  it("converts and copies", function()
    local x = lsa.tensor {1, 2.5, -3}
    assert.equal("bf16", kernels.convert(x, "bf16"):dtype())
    assert.same({1, 2, -3}, kernels.convert(x, "i32"):totable())
    assert.same({1, 2.5, -3}, kernels.copy(x):totable())
    assert.is_truthy(message_of(kernels.convert, x, "f12"):find("convert: dtype is \"f12\"", 1, true))
  end)

  it("computes element by element, and reduces", function()
    local x, y = lsa.tensor {{1, 2}, {3, 4}}, lsa.tensor {{4, 3}, {2, 1}}
    assert.same({{5, 5}, {5, 5}}, kernels.binary(x, y):totable())
    assert.same({{4, 6}, {6, 4}}, kernels.binary(x, y, "mul"):totable())
    assert.same({{0, 0}, {0, 0}}, kernels.unary(lsa.zeros {2, 2}:fill(1), "log"):totable())
    assert.same({3, 7}, kernels.reduce(x):totable())
    assert.same({2, 4}, kernels.reduce(x, "max"):totable())
    assert.same({1, 0}, kernels.argmax(lsa.tensor {{1, 2}, {4, 3}}):totable())
    assert.same({{3, 3}, {7, 5}}, kernels.pages(lsa.tensor {{1, 2, 3}, {3, 4, 5}}, 2):totable())
  end)

  it("computes in wider dtypes, sorts and counts", function()
    local x, y = lsa.tensor({{1, 2}, {3, 4}}, "i64"), lsa.tensor({{4, 3}, {2, 1}}, "i64")
    assert.same({{1, 8}, {9, 4}}, kernels.arith(x, y, "pow"):totable())
    assert.same({{1, 1}, {0, 0}}, kernels.compare(x, y, "lt"):totable())
    assert.same({{-1, -2}, {-3, -4}}, kernels.map(x, "neg"):totable())
    assert.same({5, 3}, kernels.sequence(2, 5, -2, "i64"):totable())
    assert.same({1, 2}, kernels.mark(lsa.tensor({0, 1, 7}, "u8")):ids():totable())
    assert.same({3, 7}, kernels.fold(x):totable())
    assert.equal("i64", kernels.fold(x):dtype())
    assert.same({5, 25}, kernels.fold(x:to "f32", "squares"):totable())
    assert.equal("f64", kernels.fold(x, "squares"):dtype())
    assert.same({{1, 3}, {3, 7}}, kernels.cumsum(x):totable())
    assert.same({11}, kernels.dot(lsa.tensor {1, 2}, lsa.tensor {3, 4}):totable())
    local ids, values = kernels.sort {x = y, values = true}
    assert.same({{1, 0}, {1, 0}}, ids:totable())
    assert.same({{3, 4}, {1, 2}}, values:totable())
    assert.same({{0, 1}, {0, 1}}, kernels.sort(y, true):totable())
    assert.same({{3, 4}, {1, 2}, {3, 4}}, kernels.take(x, lsa.tensor({-1, 0, 1}, "i32")):totable())
    assert.same({1, 2}, kernels.histogram(lsa.tensor({0, 0.5, 1}, "f64"), 0, 1, 2):totable())
    assert.same({0, 2}, kernels.bincount(lsa.tensor({1, 1}, "i64"), 2):totable())
    assert.same(lsa.randn(3, 5):totable(), kernels.normal(3, 5):totable())
    assert.is_truthy(message_of(kernels.arith, x, y:to "f32"):find("arith: b is f32, i64 is wanted", 1, true))
    assert.is_truthy(message_of(kernels.bincount, x[0], -1):find("bincount: bins is -1", 1, true))
  end)

  it("selects", function()
    local scores = lsa.tensor {0.1, 0.9, 0.5, NAN, 0.4}
    assert.same({1, 2}, kernels.select_above(scores, 0.4, true):ids():totable())
    assert.same({1, 2, 4}, kernels.select_topk(scores, 3):ids():totable())
    local s = kernels.select_topp(scores, 0.4)
    assert.same({1}, s:ids():totable())
    local given = lsa.set(5):add(0)
    assert.is_true(rawequal(given, kernels.select_topk {scores = scores, k = 1, s = given}))
    assert.same({1}, given:ids():totable())
    assert.same({1, 0, 0}, kernels.density(s, 2):totable())
    local ids, counts, values = kernels.topk {scores = scores:reshape {1, 5}, k = 6, values = true}
    assert.same({{0, 1, 2, 4, -1, -1}}, ids:totable())
    assert.same({4}, counts:totable())
    assert.is_true(math.abs(values:get(0, 1) - 0.9) <= 1e-6)
    assert.equal(2, select("#", kernels.topk(scores, 2)))
  end)

  it("normalises, rotates and transforms", function()
    local x = random {2, 4}
    local y = kernels.rmsnorm(x, nil, 0)
    for r = 0, 1 do
      local square = 0
      for i = 0, 3 do square = square + x:get(r, i) ^ 2 end
      assert.is_true(math.abs(y:get(r, 1) - x:get(r, 1) / math.sqrt(square / 4)) <= 1e-6)
    end
    near(x, kernels.hadamard(kernels.hadamard(x:copy())))
    local q, table_of = random({3, 2, 6}, 3), kernels.rope_table(lsa.tensor {1, 0.5}, lsa.tensor({10, 14, 18}, "i32"))
    assert.is_true(math.abs(table_of:get(2, 1, 0) - math.cos(18 * 0.5)) <= 1e-6)
    local turned = kernels.rope(q:copy(), table_of)
    local angle = 14
    local want = q:get(1, 1, 2) * math.cos(angle) - q:get(1, 1, 3) * math.sin(angle)
    assert.is_true(math.abs(turned:get(1, 1, 2) - want) <= 1e-5)
    near(q, kernels.rope(turned, table_of, true))
  end)

  it("multiplies by weights of every format", function()
    local x, w = random {2, 3, 8}, random({5, 8}, 4)
    local want = lsa.zeros {2, 3, 5}
    for a = 0, 1 do
      for b = 0, 2 do
        for r = 0, 4 do
          local sum = 0
          for c = 0, 7 do sum = sum + x:get(a, b, c) * w:get(r, c) end
          want:set(a, b, r, sum)
        end
      end
    end
    near(want, kernels.linear(x, w))
    near(want, kernels.linear {x = x, w = w, compute = "bf16"}, 0.05)
    near(want, kernels.linear(x, w:to "bf16"), 0.05)
    local scale = lsa.tensor {{0.5, 2}}
    local halves = w:copy()
    halves:narrow(1, 0, 4):copy(w:narrow(1, 0, 4):contiguous():mul(2))
    halves:narrow(1, 4, 4):copy(w:narrow(1, 4, 4):contiguous():mul(0.5))
    near(want, kernels.linear {x = x, w = halves:to "f8_e4m3", scale = scale, block_rows = 5, block_cols = 4}, 0.3)
    assert.is_truthy(message_of(kernels.linear, {x = x, w = w:to "f8_e4m3", scale = scale}):find(
      "linear: scale has shape [1, 2], blocks of 128 x 128 make [1, 1]", 1, true))
  end)

  it("routes and gates", function()
    local ids, weights = kernels.moe_route(lsa.tensor {{0, 3, 1, 2}}, 2, nil, nil, nil, "sigmoid", 1)
    assert.same({{1, 3}}, ids:totable())
    assert.is_true(math.abs(weights:sum() - 1) <= 1e-6)
    local hashed = {logits = lsa.tensor {{0, 3, 1, 2}}, k = 2, token_experts = lsa.tensor({{1, 3}, {0, 2}}, "i32"),
      tokens = lsa.tensor({1}, "i32")}
    assert.same({{0, 2}}, (kernels.moe_route(hashed)):totable())
    local function refused(name, value, message)
      local given = {}
      for k, v in pairs(hashed) do given[k] = v end
      given[name] = value
      assert.equal("moe_route: " .. message, message_of(kernels.moe_route, given))
    end
    refused("tokens", lsa.tensor({2}, "i32"), "tokens has 2, token_experts has 2 tokens")
    refused("token_experts", lsa.tensor({{1, 3}, {-1, 2}}, "i32"), "token_experts has -1, logits have 4 experts")
    refused("token_experts", nil, "token_experts and tokens come together")
    local y = kernels.swiglu(lsa.tensor {1, 20}, lsa.tensor {2, -20}, 7)
    assert.is_true(math.abs(y:get(0) - 2 / (1 + math.exp(-1))) <= 1e-5)
    assert.is_true(math.abs(y:get(1) + 49 / (1 + math.exp(-7))) <= 1e-4)
  end)

  it("opens and closes hyper-connections", function()
    local streams, mix = random {2, 2, 6}, random({2, 8}, 5)
    local base, scale = random({8}, 6), lsa.tensor {1, 1, 1}
    local x, post, comb = kernels.hc_open(streams, mix, base, scale)
    assert.same({2, 6}, x:shape())
    local columns = comb:sum(1)
    for i = 0, 3 do assert.is_true(math.abs(columns:reshape {4}:get(i) - 1) <= 1e-3) end
    local want = lsa.zeros {2, 2, 6}
    for t = 0, 1 do
      for k = 0, 1 do
        for c = 0, 5 do
          local v = post:get(t, k) * x:get(t, c)
          for j = 0, 1 do v = v + comb:get(t, j, k) * streams:get(t, j, c) end
          want:set(t, k, c, v)
        end
      end
    end
    near(want, kernels.hc_close(streams:copy(), x, post, comb))
    assert.same({2, 6}, kernels.hc_head(streams, random {2, 2}, random {2}, lsa.tensor {1}):shape())
    assert.is_truthy(message_of(kernels.hc_open, streams, random {2, 7}, random {7}, scale):find(
      "hc_open: mix has 7 columns, 2 streams make 8", 1, true))
  end)

  it("compresses, encodes and scores", function()
    local kv, gate, bias = random {4, 3}, random({4, 3}, 2), random({2, 3}, 3)
    local y = kernels.compress(kv, gate, bias)
    for w = 0, 1 do
      for c = 0, 2 do
        local p = softmax {gate:get(2 * w, c) + bias:get(0, c), gate:get(2 * w + 1, c) + bias:get(1, c)}
        local want = p[1] * kv:get(2 * w, c) + p[2] * kv:get(2 * w + 1, c)
        assert.is_true(math.abs(y:get(w, c) - want) <= 1e-5)
      end
    end
    assert.same({2, 2}, kernels.compress {kv = random {4, 4}, gate = random {4, 4}, bias = random {2, 4}, overlap = true}:shape())

    local entries = random({3, 80}, 4)
    for format, tolerance in pairs {f32 = 0, bf16 = 0.01, fp8 = 0.07} do
      near(entries, kernels.kv_decode(kernels.kv_encode(entries, 16, format), 80, 16, format), tolerance)
    end
    local keys = random({5, 32}, 5)
    near(keys, kernels.index_decode(kernels.index_encode(keys, "bf16"), 32, "bf16"), 0.01)

    local q, w = random({2, 3, 32}, 6), random({2, 3}, 7)
    local scores = kernels.index_score(q, w, kernels.index_encode(keys, "f32"), "f32")
    for t = 0, 1 do
      for s = 0, 4 do
        local want = 0
        for h = 0, 2 do
          local dot = 0
          for i = 0, 31 do dot = dot + q:get(t, h, i) * keys:get(s, i) end
          want = want + w:get(t, h) * math.max(0, dot)
        end
        assert.is_true(math.abs(scores:get(t, s) - want) <= 1e-4)
      end
    end
    local rotated = kernels.hadamard(q:copy())
    near(scores, kernels.index_score(rotated, w, kernels.index_encode(keys, "fp8"), "fp8"), 0.3)
  end)

  it("joins the scores of layers", function()
    local logits = lsa.tensor {{0, 2}, {1, -1}}
    local function sigmoid(v) return 1 / (1 + math.exp(-v)) end
    near(lsa.tensor {sigmoid(1), sigmoid(2)}, kernels.ensemble(logits))
    near(lsa.tensor {(0.5 + sigmoid(1)) / 2, (sigmoid(2) + sigmoid(-1)) / 2}, kernels.ensemble(logits, "mean"))
  end)

  it("goes backward", function()
    local a, b = lsa.tensor {{1, 2}, {3, 4}, {5, 6}}, lsa.tensor {{1, 0, -1}, {2, 1, 0}}
    assert.same({{5, 2, -1}, {11, 4, -3}, {17, 6, -5}}, kernels.gemm(a, b):totable())
    assert.same({{5, -1}, {10, -2}}, kernels.gemm(lsa.tensor {{1, 2}}, lsa.tensor {{5, -1}}, true):totable())
    assert.equal("gemm: 2 columns times 3 rows", message_of(kernels.gemm, a, a))
    local dx, dweight = kernels.rmsnorm_gradient(lsa.tensor {1, 1}, lsa.tensor {3, -3}, lsa.tensor {2, 2}, 0)
    near(lsa.tensor {2 / 3, 2 / 3}, dx)
    near(lsa.tensor {1, -1}, dweight)
    local q, w, keys = lsa.tensor {{1, 2}, {-1, 0}}, lsa.tensor {0.5, 2}, kernels.index_encode(lsa.tensor {{1, 1}, {-2, 0}})
    local ids = lsa.tensor({1, 0}, "i32")
    near(lsa.tensor {4, 1.5}, kernels.index_gather(q, w, keys, ids))
    local dq, dw = kernels.index_gradient(lsa.tensor {1, 10}, q, w, keys, ids)
    near(lsa.tensor {{5, 5}, {-4, 0}}, dq)
    near(lsa.tensor {30, 2}, dw)
    assert.equal("index_gather: ids has 2, there are 2 keys",
      message_of(kernels.index_gather, q, w, keys, lsa.tensor({2}, "i32")))
    local loss, slope = kernels.index_loss(lsa.tensor {0, 0}, lsa.tensor {1, 1}, 1, "bce")
    near(lsa.tensor {math.log(2)}, loss)
    near(lsa.tensor {-0.25, 0.25}, slope)
    local x, m, v = lsa.tensor {1, 1}, lsa.zeros(2), lsa.zeros(2)
    kernels.adamw {x = x, m = m, v = v, gradient = lsa.tensor {3, -3}, step = 1, rate = 0.5, decay = 0}
    near(lsa.tensor {0.5, 1.5}, x)
    near(lsa.tensor {25}, kernels.square_sum(lsa.tensor {{3}, {4}}))
  end)

  it("attends to a window and to records", function()
    local q, window, sinks = random {2, 2, 16}, random({3, 16}, 2), random({2}, 3)
    local entries = random({4, 16}, 4)
    local options = {q = q, window = window, sinks = sinks, rope_dim = 0, own = 1, window_size = 2, scale = 0.25,
      records = kernels.kv_encode(entries, 0), format = "f32", ids = lsa.tensor({{0, 2, -1}, {1, 2, 3}}, "i32"),
      counts = lsa.tensor({2, 3}, "i32"), mass = true}
    local out, mass = kernels.attention(options)
    local picked = {{0, 2}, {1, 2, 3}}
    for t = 0, 1 do
      for h = 0, 1 do
        local rows, logits = {}, {}
        for r = t, t + 1 do rows[#rows + 1] = window:row(r) end
        for _, id in ipairs(picked[t + 1]) do rows[#rows + 1] = entries:row(id) end
        for j, row in ipairs(rows) do logits[j] = q:row(t):row(h):mul(row):sum() * 0.25 end
        logits[#logits + 1] = sinks:get(h)
        local p, want = softmax(logits), lsa.zeros(16)
        for j, row in ipairs(rows) do want = want:add(row:mul(p[j])) end
        near(want, out:row(t):row(h), 1e-4)
      end
    end
    assert.same({2, 3}, mass:shape())
    assert.is_true(mass:get(0, 0) > 0 and mass:get(1, 2) > 0)
    local plain = kernels.attention {q = q, window = window, sinks = sinks, rope_dim = 0, own = 1, window_size = 2, scale = 1}
    assert.same({2, 2, 16}, plain:shape())
  end)

  it("costs little beyond its kernel", function()
    local x, y = random {16}, lsa.zeros {16}
    for _ = 1, 300 do kernels.rmsnorm(x, nil, 1e-6, y) end
    local best = math.huge
    for _ = 1, 10 do
      local before = os.clock()
      for _ = 1, 100 do kernels.rmsnorm(x, nil, 1e-6, y) end
      best = math.min(best, (os.clock() - before) / 100)
    end
    assert.is_true(best <= 50e-6, best)
  end)
end)
