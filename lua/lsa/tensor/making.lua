-- Owns tensors that are made of a rule: lsa.ones(shape, dtype), lsa.full(shape, v, dtype), lsa.arange(from, to, step, dtype),
-- lsa.linspace(from, to, n, dtype), lsa.eye(n, dtype), lsa.rand(shape, seed), lsa.randn(shape, seed). Dtypes are f32 where not
-- given, i32 for lsa.arange of whole numbers. Equal seeds give equal numbers.
local C = require("lsa.ffi").C
local raise = require "lsa.raise"

local check = raise.check

return function(inner)
  local M = inner.M
  local want_number, want_whole, count = inner.want_number, inner.want_whole, inner.count

  function M.full(shape, v, dtype)
    return M.empty(shape, dtype):fill(want_number(v, "full: v"))
  end

  function M.ones(shape, dtype)
    return M.empty(shape, dtype):fill(1)
  end

  -- Dtypes that the kernel has not, and integers that might be outside of theirs, come through f64, which saturates.
  local direct = {f32 = C.LSA_F32, f64 = C.LSA_F64}
  local function sequence(n, from, step, dtype)
    local limit = math.max(math.abs(from), math.abs(from + step * n))
    local code = direct[dtype] or dtype == "i32" and limit < 2 ^ 31 and C.LSA_I32 or dtype == "i64" and limit < 2 ^ 53 and C.LSA_I64
    local out = M.empty({n}, code and dtype or "f64")
    check(C.lsa_sequence_cpu(out.c.data, n, from, step, code or C.LSA_F64, nil))
    return out:to(dtype)
  end

  -- from, from + step, ... before `to`. lsa.arange(n) starts at 0.
  function M.arange(from, to, step, dtype)
    if to == nil then from, to = 0, from end
    step = want_number(step or 1, "arange: step")
    want_number(from, "arange: from")
    want_number(to, "arange: to")
    local n = math.max(0, math.ceil((to - from) / step))
    if not (n < math.huge) then raise("arange: from %s to %s by %s", tostring(from), tostring(to), tostring(step)) end
    local whole = from % 1 == 0 and step % 1 == 0
    local last = from + step * math.max(0, n - 1)
    local small = math.max(math.abs(from), math.abs(last)) < 2 ^ 31
    dtype = dtype or whole and (small and "i32" or "i64") or "f32"
    local range = n > 0 and inner.integers[dtype]
    if range and not whole then raise("arange: %s by %s are no whole numbers, %s is wanted", tostring(from), tostring(step), dtype) end
    if range and not (math.min(from, last) >= range[1] and math.max(from, last) <= range[2]) then
      raise("arange: %s does not hold %s to %s", dtype, tostring(from), tostring(last))
    end
    return sequence(n, from, step, dtype)
  end

  -- n numbers, the first `from` and the last `to`.
  function M.linspace(from, to, n, dtype)
    want_number(from, "linspace: from")
    want_number(to, "linspace: to")
    n = want_whole(n or 50, "linspace: n")
    if n < 0 then raise("linspace: n is %d", n) end
    local out = sequence(n, from, (to - from) / math.max(1, n - 1), dtype or "f32")
    if n > 1 then out:set(n - 1, to) end
    return out
  end

  function M.eye(n, dtype)
    want_whole(n, "eye: n")
    local out = M.zeros({n, n}, dtype)
    for i = 0, n - 1 do out:set(i, i, 1) end
    return out
  end

  local function random(shape, seed, f, what)
    if seed == nil then raise("%s: no seed is given; equal seeds give equal numbers", what) end
    want_whole(seed, what .. ": seed")
    local out = M.empty(shape)
    check(f(inner.floats(out), count(out.c), seed, nil))
    return out
  end

  function M.rand(shape, seed) return (random(shape, seed, C.lsa_uniform_cpu, "rand")) end
  function M.randn(shape, seed) return (random(shape, seed, C.lsa_normal_cpu, "randn")) end
end
