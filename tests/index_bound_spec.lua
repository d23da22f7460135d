-- Bounds of index scores: no key is left out whose score, as index_score has it, is above the bar; and of keys far below, most are.
local bit = require "bit"
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local FP8, F32, BF16 = C.LSA_KV_FP8, C.LSA_SCORE_F32, C.LSA_SCORE_BF16
local INF, NAN = math.huge, 0 / 0
local MOST = tonumber(C.LSA_BOUND_KEYS)

-- n keys `stride` bytes apart, the last of which ends where its buffer ends: normal numbers, encoded as a session's are.
local function new_keys(n, dim, stride, seed)
  local at = support.buffer("uint8_t", (n - 1) * stride + dim + 4)
  check(C.lsa_index_encode_cpu(at, support.normals(n * dim, seed), n, dim, stride, FP8, nil))
  return at
end

local function scale_at(keys, i, dim, stride) return ffi.cast("float *", keys + i * stride + dim) end

-- t: tokens, heads, dim, n, stride, q, w, keys, scoring. Scores [token][key], in index_score's own bits.
local function scores_of(t)
  local scores = support.buffer("float", t.tokens * t.n)
  local work = support.workspace(C.lsa_index_score_workspace(t.tokens, t.n, t.heads, t.dim, FP8, t.scoring))
  check(C.lsa_index_score_cpu(scores, t.q, t.w, t.keys, t.tokens, t.n, t.heads, t.dim, t.stride, t.n, FP8, t.scoring, work, nil))
  return scores
end

local function reached_by(t, least)
  local bound, reached = ffi.new "lsa_index_bound", support.buffer("uint64_t", t.tokens)
  local work = support.workspace(C.lsa_index_bound_workspace(t.tokens, t.heads, t.dim))
  C.lsa_index_bound_begin(bound, t.q, t.w, t.tokens, t.heads, t.dim, t.scoring, work)
  C.lsa_index_bound_reach(reached, bound, least, t.keys, t.n, t.stride)
  return reached
end

local function is_set(bits, i) return bit.band(bit.rshift(bits, i), 1ULL) ~= 0 end

-- With each key's score as the bar, in turns, and one that is far below or above all. Counts what is looked at and what is reached of
-- keys below the bar.
local function proves(t)
  local below, reached_below = 0, 0
  support.for_each_cpu_level(function(_, name)
    local scores, least = scores_of(t), support.buffer("float", t.tokens)
    for bar = -2, t.n - 1 do
      for token = 0, t.tokens - 1 do
        least[token] = bar == -2 and -INF or bar == -1 and 3e38 or scores[token * t.n + (bar + 7 * token) % t.n]
      end
      local reached = reached_by(t, least)
      for token = 0, t.tokens - 1 do
        assert(t.n == MOST or bit.rshift(reached[token], t.n) == 0ULL, "a key that is not there is reached")
        for i = 0, t.n - 1 do
          local score, found = scores[token * t.n + i], is_set(reached[token], i)
          assert(found or not (score > least[token]), ("%s, %s: token %d, key %d has %g, above %g, and is left out"):format(
            t.what or "", name, token, i, score, least[token]))
          if score < least[token] then
            below = below + 1
            if found then reached_below = reached_below + 1 end
          end
        end
      end
    end
  end)
  return reached_below / math.max(1, below)
end

local function new_case(tokens, heads, dim, n, seed, gap)
  local random, t = support.uniform(seed), {tokens = tokens, heads = heads, dim = dim, n = n, stride = dim + 4 + (gap or 0)}
  t.scoring = seed % 2 == 0 and F32 or BF16
  t.q, t.w = support.normals(tokens * heads * dim, seed + 100), support.buffer("float", tokens * heads)
  for i = 0, tokens * heads - 1 do t.w[i] = random() * 2 - 0.6 end
  t.keys = new_keys(n, dim, t.stride, seed + 200)
  return t
end

describe("index bounds", function()
  it("leave out no key above the bar, of any sizes", function()
    local seed = 0
    for _, dim in ipairs {32, 64, 128, 256} do
      for _, heads in ipairs {1, 3, 4, 9} do
        for _, n in ipairs {1, 7, 16, 17, 48, 63, 64} do
          seed = seed + 1
          proves(new_case(1 + seed % 3, heads, dim, n, seed, seed % 4))
        end
      end
    end
    proves(new_case(32, 4, 32, 64, 1))
  end)

  it("leave out most keys that are below the bar", function()
    for seed = 2, 3 do
      assert(proves(new_case(8, 4, 32, 64, seed)) < 0.2)
      assert(proves(new_case(8, 4, 64, 64, seed)) < 0.3)
    end
  end)

  it("take every code of a key and every size of a query", function()
    for seed = 1, 8 do
      local t = new_case(4, 4, 32, 64, seed)
      for i = 0, 63 do
        for d = 0, 31 do
          local code = (i * 32 + d * 7 + seed) % 256
          t.keys[i * t.stride + d] = code % 128 == 127 and code - 1 or code
        end
        scale_at(t.keys, i, 32, t.stride)[0] = 0.01 * (i + 1)
      end
      proves(t)
      for i = 0, 4 * 4 * 32 - 1 do t.q[i] = i % 32 == seed and 1 or i % 5 == 0 and 1e-3 or 0 end
      t.what = "few large numbers"
      proves(t)
      for i = 0, 4 * 4 * 32 - 1 do t.q[i] = i % 3 - 1 end
      t.what = "ties"
      proves(t)
    end
  end)

  it("take what is not finite, huge, tiny or zero", function()
    for seed = 1, 4 do
      for what, x in pairs {zero = 0, tiny = 1e-40, small = 1e-20, large = 1e20, huge = 1e37, infinite = INF, NaN = NAN} do
        local t = new_case(3, 4, 32, 40, seed)
        t.what = what .. " query"
        for d = 0, 31 do t.q[32 * 5 + d] = t.q[32 * 5 + d] * x end
        proves(t)
        t = new_case(3, 4, 32, 40, seed)
        t.what = what .. " weight"
        t.w[5] = t.w[5] * x
        proves(t)
        t = new_case(3, 4, 32, 40, seed)
        t.what = what .. " scale"
        scale_at(t.keys, 11, 32, t.stride)[0] = x
        scale_at(t.keys, 12, 32, t.stride)[0] = -x
        t.keys[13 * t.stride + 5], t.keys[14 * t.stride + 6] = 0x7f, 0xff
        proves(t)
      end
    end
  end)

  it("are there for keys of fp8 whose dim is a multiple of 32", function()
    assert.equal(1, C.lsa_index_bound_has(4, 32, FP8, F32))
    assert.equal(1, C.lsa_index_bound_has(1, 256, FP8, BF16))
    for _, case in ipairs {{4, 16, FP8, F32}, {4, 48, FP8, F32}, {4, 512, FP8, F32}, {4, 32, C.LSA_KV_BF16, F32},
      {4, 32, C.LSA_KV_F32, F32}, {4, 32, FP8, C.LSA_SCORE_FP8}, {0, 32, FP8, F32}} do
      assert.equal(0, C.lsa_index_bound_has(unpack(case)))
    end
  end)
end)
