local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local function sigmoid(v) return 1 / (1 + math.exp(-v)) end

local function norm_of(streams, at, n, eps)
  local sum = 0
  for i = at, at + n - 1 do sum = sum + streams[i] ^ 2 end
  return 1 / math.sqrt(sum / n + eps)
end

local function sinkhorn(m, hc, iters, eps)
  local function columns()
    for j = 0, hc - 1 do
      local sum = eps
      for i = 0, hc - 1 do sum = sum + m[i * hc + j] end
      for i = 0, hc - 1 do m[i * hc + j] = m[i * hc + j] / sum end
    end
  end
  for i = 0, hc - 1 do
    local max, sum = -math.huge, 0
    for j = 0, hc - 1 do max = math.max(max, m[i * hc + j]) end
    for j = 0, hc - 1 do sum = sum + math.exp(m[i * hc + j] - max) end
    for j = 0, hc - 1 do m[i * hc + j] = math.exp(m[i * hc + j] - max) / sum + eps end
  end
  columns()
  for _ = 2, iters do
    for i = 0, hc - 1 do
      local sum = eps
      for j = 0, hc - 1 do sum = sum + m[i * hc + j] end
      for j = 0, hc - 1 do m[i * hc + j] = m[i * hc + j] / sum end
    end
    columns()
  end
end

-- Rows of pre, post and comb side by side: as many as mix has columns.
local function oracle(case)
  local hc, dim, tokens = case.hc, case.dim, case.tokens
  local x, post = ffi.new("double[?]", tokens * dim), ffi.new("double[?]", tokens * hc)
  local comb = ffi.new("double[?]", tokens * hc * hc)
  for t = 0, tokens - 1 do
    local norm = norm_of(case.streams, t * hc * dim, hc * dim, case.norm_eps)
    local function logit(i, part) return case.mix[t * case.width + i] * norm * case.scale[part] + case.base[i] end
    for k = 0, hc - 1 do
      local pre = sigmoid(logit(k, 0)) + case.hc_eps
      for i = 0, dim - 1 do x[t * dim + i] = x[t * dim + i] + pre * case.streams[(t * hc + k) * dim + i] end
      if not case.head then post[t * hc + k] = 2 * sigmoid(logit(hc + k, 1)) end
    end
    if not case.head then
      local m = ffi.new("double[?]", hc * hc)
      for i = 0, hc * hc - 1 do m[i] = logit(2 * hc + i, 2) end
      sinkhorn(m, hc, case.iters, case.hc_eps)
      for i = 0, hc * hc - 1 do comb[t * hc * hc + i] = m[i] end
    end
  end
  return x, post, comb
end

local function new_case(tokens, hc, dim, iters, head)
  local width = head and hc or (2 + hc) * hc
  return {tokens = tokens, hc = hc, dim = dim, iters = iters, width = width, head = head, norm_eps = 1e-6, hc_eps = 1e-6,
    streams = support.normals(tokens * hc * dim, 1, 2), mix = support.normals(tokens * width, 2, 4),
    base = support.normals(width, 3), scale = support.array("float", head and {0.7} or {0.7, 1.3, 0.9})}
end

local function open(case)
  local x, post = support.buffer("float", case.tokens * case.dim), support.buffer("float", case.tokens * case.hc)
  local comb = support.buffer("float", case.tokens * case.hc * case.hc)
  check(C.lsa_hc_open_cpu(x, post, comb, case.streams, case.mix, case.base, case.scale, case.tokens, case.hc, case.dim,
    case.iters, case.norm_eps, case.hc_eps, nil))
  return x, post, comb
end

local function head(case)
  local x = support.buffer("float", case.tokens * case.dim)
  check(C.lsa_hc_head_cpu(x, case.streams, case.mix, case.base, case.scale, case.tokens, case.hc, case.dim,
    case.norm_eps, case.hc_eps, nil))
  return x
end

local shapes = {{1, 1, 1, 1}, {1, 2, 5, 3}, {3, 4, 64, 20}, {17, 2, 128, 4}, {33, 3, 50, 2}, {2, 16, 17, 5}}

describe("hc_open", function()
  it("collapses the streams and makes post and comb, at any size", function()
    support.for_each_cpu_level(function(_, name)
      for _, shape in ipairs(shapes) do
        local case = new_case(unpack(shape))
        local x, post, comb = open(case)
        local want_x, want_post, want_comb = oracle(case)
        local err = math.max(support.max_error(x, want_x, case.tokens * case.dim, 1),
          support.max_error(post, want_post, case.tokens * case.hc, 1e-2),
          support.max_error(comb, want_comb, case.tokens * case.hc ^ 2, 1e-2))
        assert.is_true(err <= 4e-6, ("%s hc %d dim %d: %g"):format(name, case.hc, case.dim, err))
      end
    end)
  end)

  it("gives a token the same bits alone as among others, on every code path", function()
    local case = new_case(40, 4, 72, 20)
    local wx, wpost, wcomb
    support.for_each_cpu_level(function(_, name)
      local x, post, comb = open(case)
      wx, wpost, wcomb = wx or x, wpost or post, wcomb or comb
      assert.is_true(support.same_bits(wx, x, 40 * 72 * 4), name)
      assert.is_true(support.same_bits(wpost, post, 40 * 4 * 4), name)
      assert.is_true(support.same_bits(wcomb, comb, 40 * 16 * 4), name)
      local alone = new_case(1, 4, 72, 20)
      alone.streams, alone.mix, alone.base = case.streams + 19 * 4 * 72, case.mix + 19 * 24, case.base
      x, post, comb = open(alone)
      assert.is_true(support.same_bits(wx + 19 * 72, x, 72 * 4), name)
      assert.is_true(support.same_bits(wpost + 19 * 4, post, 4 * 4), name)
      assert.is_true(support.same_bits(wcomb + 19 * 16, comb, 16 * 4), name)
    end)
  end)

  it("keeps NaN in its token, and survives logits of any size and streams of zeros", function()
    support.for_each_cpu_level(function()
      local case = new_case(5, 2, 20, 4)
      case.streams[2 * 40 + 3] = 0 / 0
      for i = 0, 39 do case.streams[4 * 40 + i] = 0 end
      for i = 0, 7 do case.mix[i] = i % 2 == 0 and 1e6 or -1e6 end
      local x, post, comb = open(case)
      for t = 0, 4 do
        for i = 0, 19 do assert.equal(t == 2, x[t * 20 + i] ~= x[t * 20 + i]) end
        for i = 0, 1 do assert.equal(t == 2, post[t * 2 + i] ~= post[t * 2 + i]) end
        for i = 0, 3 do assert.equal(t == 2, comb[t * 4 + i] ~= comb[t * 4 + i]) end
      end
    end)
  end)

  it("refuses more streams than it holds", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_hc_open_cpu(nil, nil, nil, nil, nil, nil, nil, 1, 17, 8, 1, 0, 0, nil))
    assert.is_truthy(ffi.string(C.lsa_error()):find "hc_open: %[1, 17, 8%]")
    assert.equal(0, C.lsa_hc_open_cpu(nil, nil, nil, nil, nil, nil, nil, 0, 4, 8, 1, 0, 0, nil))
  end)
end)

describe("hc_close", function()
  local function close(streams, y, post, comb, tokens, hc, dim)
    local out = support.buffer("float", tokens * hc * dim)
    ffi.copy(out, streams, tokens * hc * dim * 4)
    check(C.lsa_hc_close_cpu(out, y, post, comb, tokens, hc, dim, nil))
    return out
  end

  it("mixes the streams by comb's columns and adds post y", function()
    support.for_each_cpu_level(function(_, name)
      for _, shape in ipairs(shapes) do
        local tokens, hc, dim = unpack(shape)
        local streams, y = support.normals(tokens * hc * dim, 1), support.normals(tokens * dim, 2)
        local post, comb = support.normals(tokens * hc, 3), support.normals(tokens * hc * hc, 4)
        local want = ffi.new("double[?]", tokens * hc * dim)
        for t = 0, tokens - 1 do
          for k = 0, hc - 1 do
            for i = 0, dim - 1 do
              local sum = post[t * hc + k] * y[t * dim + i]
              for j = 0, hc - 1 do sum = sum + comb[(t * hc + j) * hc + k] * streams[(t * hc + j) * dim + i] end
              want[(t * hc + k) * dim + i] = sum
            end
          end
        end
        local out = close(streams, y, post, comb, tokens, hc, dim)
        local err = support.max_error(out, want, tokens * hc * dim, 1)
        assert.is_true(err <= 2e-6, ("%s hc %d dim %d: %g"):format(name, hc, dim, err))
      end
    end)
  end)

  it("gives the same bits on every code path, and keeps NaN in its token and place", function()
    local tokens, hc, dim = 60, 4, 333
    local streams, y = support.normals(tokens * hc * dim, 1), support.normals(tokens * dim, 2)
    local post, comb, want = support.normals(tokens * hc, 3), support.normals(tokens * hc * hc, 4), nil
    y[5 * dim + 40] = 0 / 0
    support.for_each_cpu_level(function(_, name)
      local out = close(streams, y, post, comb, tokens, hc, dim)
      want = want or out
      assert.is_true(support.same_bits(want, out, tokens * hc * dim * 4), name)
      for row = 0, tokens * hc - 1 do
        for i = 0, dim - 1 do
          local v = out[row * dim + i]
          assert(v == v or (math.floor(row / hc) == 5 and i == 40))
        end
      end
      assert.is_true(out[5 * hc * dim + 40] ~= out[5 * hc * dim + 40])
    end)
  end)
end)

describe("hc_head", function()
  it("collapses the streams, at any size", function()
    support.for_each_cpu_level(function(_, name)
      for _, shape in ipairs(shapes) do
        local case = new_case(shape[1], shape[2], shape[3], 0, true)
        local err = support.max_error(head(case), (oracle(case)), case.tokens * case.dim, 1)
        assert.is_true(err <= 2e-6, ("%s hc %d dim %d: %g"):format(name, case.hc, case.dim, err))
      end
    end)
  end)
end)

describe("hc_turn", function()
  local turn = support.over_spans "hc_turn"
  local function shared(n, seed) return support.span_copy("float", support.normals(n, seed), n) end

  it("closes a block, opens the next, and norms its input, as the parts do", function()
    for _, shape in ipairs {{1, 2, 128}, {3, 4, 96}, {2, 1, 64}, {5, 4, 1030}, {1, 16, 64}} do
      local tokens, hc, dim = unpack(shape)
      for _, last in ipairs {0, 1} do
        for _, closes in ipairs {true, false} do
          local rows = last == 1 and hc or (2 + hc) * hc
          local u, w = ffi.new "lsa_hc_turning", ffi.new "lsa_weight"
          local data = shared(rows * hc * dim, 3)
          w.data, w.rows, w.cols, w.block_rows, w.block_cols, w.dtype = data, rows, hc * dim, 1, 1, C.LSA_F32
          local x, streams, y = shared(tokens * dim, 1), shared(tokens * hc * dim, 4), shared(tokens * dim, 5)
          local post, comb, mix = shared(tokens * hc, 6), shared(tokens * hc * hc, 7), shared(tokens * rows, 8)
          local base, scale, norm = shared(rows, 9), shared(3, 10), shared(dim, 11)
          u.x, u.streams, u.y, u.post, u.comb, u.mix = x, streams, closes and y or nil, post, comb, mix
          u.fn, u.base, u.scale, u.norm = w, base, scale, norm
          u.hc, u.dim, u.iters, u.norm_eps, u.hc_eps, u.compute, u.head = hc, dim, 3, 1e-6, 1e-6, C.LSA_COMPUTE_F32, last
          local want_x, want_streams = support.buffer("float", tokens * dim), support.buffer("float", tokens * hc * dim)
          local want_post, want_comb = support.buffer("float", tokens * hc), support.buffer("float", tokens * hc * hc)
          local want_mix = support.buffer("float", tokens * rows)
          ffi.copy(want_streams, streams, 4 * tokens * hc * dim)
          ffi.copy(want_post, post, 4 * tokens * hc)
          ffi.copy(want_comb, comb, 4 * tokens * hc * hc)
          local workspace = support.workspace(math.max(64, tonumber(C.lsa_linear_workspace(w, tokens, rows, u.compute))))
          if closes then check(C.lsa_hc_close_cpu(want_streams, y, want_post, want_comb, tokens, hc, dim, nil)) end
          check(C.lsa_linear_cpu(want_mix, want_streams, w, tokens, 0, rows, hc * dim, rows, u.compute, workspace, nil))
          if last == 1 then
            check(C.lsa_hc_head_cpu(want_x, want_streams, want_mix, base, scale, tokens, hc, dim, 1e-6, 1e-6, nil))
          else
            check(C.lsa_hc_open_cpu(want_x, want_post, want_comb, want_streams, want_mix, base, scale, tokens, hc, dim, 3, 1e-6, 1e-6, nil))
          end
          check(C.lsa_rmsnorm_cpu(want_x, want_x, norm, tokens, dim, 1e-6, nil))
          check(turn(u, tokens, workspace, nil))
          local what = ("%d x %d x %d, head %d, closes %s"):format(tokens, hc, dim, last, tostring(closes))
          for _, pair in ipairs {{x, want_x, tokens * dim}, {streams, want_streams, tokens * hc * dim}, {post, want_post, tokens * hc},
                                 {comb, want_comb, tokens * hc * hc}} do
            local error = support.max_error(pair[1], pair[2], pair[3], 1)
            assert.is_true(error <= (support.device == "cpu" and 0 or 2e-5), what .. ": " .. error)
          end
        end
      end
    end
  end)

  it("takes no tokens, and refuses too many streams", function()
    local u, w = ffi.new "lsa_hc_turning", ffi.new "lsa_weight"
    w.rows, w.cols, w.dtype, u.fn, u.hc, u.dim = 8, 16, C.LSA_F32, w, 2, 8
    check(turn(u, 0, nil, nil))
    w.cols = 17
    assert.equal(C.LSA_ESHAPE, turn(u, 1, nil, nil))
    assert.equal("hc_turn: a projection [8, 17], [8, 16] is wanted", ffi.string(C.lsa_error()))
    u.hc = 17
    assert.equal(C.LSA_ESHAPE, turn(u, 1, nil, nil))
  end)
end)
