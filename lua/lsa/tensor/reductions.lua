-- Owns reductions: of all elements to a number, along a dimension to a tensor without it. tensor.lua gives it what it is made of.
--
-- Sums run in f64, or exactly in 64 bits for integers. A number has all their digits (an integer beyond 2^53 is an int64_t); a tensor
-- of f32, bf16, f16 or f8 gives f32, another f64, or i64 where results are integers. Minima and maxima keep an integer's dtype.
local C = require("lsa.ffi").C
local raise = require "lsa.raise"
local real = require "lsa.tensor.real"

local check = raise.check
local F32, F64, I32, I64 = C.LSA_F32, C.LSA_F64, C.LSA_I32, C.LSA_I64
local SUM, MIN, MAX = C.LSA_FOLD_SUM, C.LSA_FOLD_MIN, C.LSA_FOLD_MAX

return function(inner)
  local Tensor, M = inner.Tensor, inner.M
  local is_tensor, count, shown, kind_of, as = inner.is_tensor, inner.count, inner.shown, inner.kind_of, inner.as
  local want_dim, want_number = inner.want_dim, inner.want_number

  local function is_whole(t) return kind_of(t) == I32 or kind_of(t) == I64 end

  -- A tensor of the shape without dim; of no dimensions where dim is nil.
  local function shape_without(t, dim)
    if dim == nil then return {} end
    local shape = t:shape()
    table.remove(shape, dim + 1)
    return shape
  end

  -- [outer, n, inner] of a reduction.
  local function extents(t, dim)
    if dim == nil then return 1, count(t.c), 1 end
    return inner.around(t.c, dim)
  end

  -- An op of LSA_FOLD_* with everything that it keeps: f64 or i64.
  local function fold(t, dim, op)
    local kind = kind_of(t)
    if kind == I32 then kind = I64 end
    local a = as(t, kind)
    local whole = op >= C.LSA_FOLD_NONZERO or kind == I64 and op <= MAX
    local out = M.empty(shape_without(t, dim), whole and "i64" or "f64")
    local outer, n, within = extents(t, dim)
    check(C.lsa_fold_cpu(out.c.data, a.c.data, outer, n, within, op, kind, nil))
    return out
  end

  local function number(t)
    if t.c.dtype == F64 then return real.f64(t.c.data, 0) end
    return (inner.integer(t:pointer(), 0))
  end

  -- A number where dim is nil; else f64 as f32 where that is what t computes in.
  local function finished(t, dim, out)
    if dim == nil then return number(out) end
    return kind_of(t) == F32 and out.c.dtype == F64 and out:to "f32" or out
  end

  local function want(t, dim, what)
    if dim == nil then return nil end
    return want_dim(t.c, dim, what)
  end

  local function plain(name, op)
    Tensor[name] = function(t, dim)
      dim = want(t, dim, name)
      local out = fold(t, dim, op)
      if dim and op ~= SUM and is_whole(t) then return out:to(t:dtype()) end
      return (finished(t, dim, out))
    end
  end

  plain("sum", SUM)
  plain("min", MIN)
  plain("max", MAX)

  local function floats_of(t) return is_whole(t) and as(t, F64) or t end

  function Tensor:mean(dim)
    dim = want(self, dim, "mean")
    local _, n = extents(self, dim)
    local out = fold(floats_of(self), dim, SUM)
    return (finished(self, dim, out / n))
  end

  local function variance(t, dim, ddof, what)
    ddof = want_number(ddof or 0, what .. ": ddof")
    dim = want(t, dim, what)
    local _, n = extents(t, dim)
    return fold(floats_of(t), dim, C.LSA_FOLD_DEVIATIONS) / math.max(0, n - ddof), dim
  end

  -- Divided by n - ddof; ddof is 0, or 1 for the variance of what the elements are a sample of.
  function Tensor:var(dim, ddof)
    local out, at = variance(self, dim, ddof, "var")
    return (finished(self, at, out))
  end

  function Tensor:std(dim, ddof)
    local out, at = variance(self, dim, ddof, "std")
    return (finished(self, at, out:sqrt()))
  end

  -- The p-norm: 2, 1 or math.huge.
  function Tensor:norm(dim, p)
    dim = want(self, dim, "norm")
    local t = floats_of(self)
    if p == 1 then return (finished(t, dim, fold(t:abs(), dim, SUM))) end
    if p == math.huge then return (finished(t, dim, fold(t:abs(), dim, MAX))) end
    if p ~= nil and p ~= 2 then raise("norm: p is %s; 1, 2 and math.huge are possible", shown(p)) end
    return (finished(t, dim, fold(t, dim, C.LSA_FOLD_SQUARES):sqrt()))
  end

  -- ---- places ----

  -- Without dim: of a 1-D tensor where it is, or nil; of another along its last dimension. A tensor is of i32, -1 where there is none.
  local function place(t, dim, op, what)
    local c = t.c
    if c.rank == 0 then raise("%s: the tensor has no dimensions", what) end
    local at = want_dim(c, dim or -1, what)
    local out = fold(t, at, op)
    if c.rank > 1 then return out:to "i32" end
    local id = out:item()
    return id >= 0 and id or nil
  end

  function Tensor:argmax(dim)
    return (place(self, dim, C.LSA_FOLD_ARGMAX, "argmax"))
  end

  function Tensor:argmin(dim)
    return (place(self, dim, C.LSA_FOLD_ARGMIN, "argmin"))
  end


  -- ---- counts ----

  function Tensor:count_nonzero(dim)
    dim = want(self, dim, "count_nonzero")
    return (finished(self, dim, fold(self, dim, C.LSA_FOLD_NONZERO)))
  end

  -- true or false; u8 along a dimension.
  function Tensor:any(dim)
    local n = self:count_nonzero(dim)
    if dim == nil then return n > 0 end
    return n:gt(0, {mask = true})
  end

  function Tensor:all(dim)
    local n = self:count_nonzero(dim)
    local _, many = extents(self, want(self, dim, "all"))
    if dim == nil then return n == many end
    return n:eq(many, {mask = true})
  end

  -- Counts, an i64 tensor, and the bins + 1 edges, f64: of equal bins from low to high, the least and greatest element where not given.
  function Tensor:histogram(bins, low, high)
    bins = inner.want_whole(bins or 10, "histogram: bins")
    if bins < 1 then raise("histogram: bins is %d, at least 1 is wanted", bins) end
    local x = as(self, F64)
    local n = count(x.c)
    low = want_number(low or (n > 0 and tonumber(x:min()) or 0), "histogram: low")
    high = want_number(high or (n > 0 and tonumber(x:max()) or 1), "histogram: high")
    if low == high then low, high = low - 0.5, high + 0.5 end
    local counts = M.empty({bins}, "i64")
    check(C.lsa_histogram_cpu(counts:pointer(), x:pointer(), n, low, high, bins, nil))
    local edges = M.empty({bins + 1}, "f64")
    for b = 0, bins - 1 do edges:pointer()[b] = low + b * ((high - low) / bins) end
    edges:pointer()[bins] = high
    return counts, edges
  end

  -- How many of the elements, integers, are 0, 1, ..., bins - 1; as many bins as there have to be where not given.
  function Tensor:bincount(bins)
    if not is_whole(self) then raise("bincount: the tensor is of %s, integers are wanted", self:dtype()) end
    local x = as(self, I64)
    local n = count(x.c)
    if bins == nil then bins = n > 0 and math.max(0, tonumber(x:max())) + 1 or 0 end
    inner.want_whole(bins, "bincount: bins")
    if bins < 0 then raise("bincount: bins is %d", bins) end
    local counts = M.empty({bins}, "i64")
    check(C.lsa_bincount_cpu(counts:pointer(), x:pointer(), n, bins, nil))
    return counts
  end

  -- ---- running sums, and what exp is in ----

  -- Along the last dimension where dim is not given.
  function Tensor:cumsum(dim)
    local at = want_dim(self.c, dim or -1, "cumsum")
    local kind = kind_of(self)
    if kind == I32 then kind = I64 end
    local a, out = as(self, kind), M.empty(self:shape(), inner.names[kind])
    local outer, n, within = inner.around(self.c, at)
    check(C.lsa_cumsum_cpu(out.c.data, a.c.data, outer, n, within, kind, nil))
    return out
  end

  function Tensor:diff(dim)
    local at = want_dim(self.c, dim or -1, "diff")
    local n = tonumber(self.c.shape[at])
    local many = math.max(0, n - 1)
    return self:narrow(at, math.min(1, n), many) - self:narrow(at, 0, many)
  end

  function Tensor:softmax(dim)
    local at = want_dim(self.c, dim or -1, "softmax")
    if count(self.c) == 0 then return floats_of(self):copy() end
    local x = floats_of(self)
    local e = (x - x:max(at):unsqueeze(at)):exp()
    return e / e:sum(at):unsqueeze(at)
  end

  local MOST = 3.4028234663852886e38

  -- log of the sum of exp: a number, or along dim.
  function Tensor:logsumexp(dim)
    local x = floats_of(self)
    if dim == nil then return (x:reshape {-1}:logsumexp(0):item()) end
    local at = want_dim(self.c, dim, "logsumexp")
    -- An infinite maximum would make NaN of itself.
    local most = x:max(at):clamp(-MOST, MOST)
    return (x - most:unsqueeze(at)):exp():sum(at):log() + most
  end

  -- ---- products ----

  function Tensor:dot(y)
    if not is_tensor(y) then raise("dot: y is %s, a tensor is wanted", shown(y)) end
    if self.c.rank ~= 1 or y.c.rank ~= 1 or self.c.shape[0] ~= y.c.shape[0] then
      raise("dot: y has shape %s, x has %s: 1-D and equally long is wanted", inner.shape_text(y.c), inner.shape_text(self.c))
    end
    if is_whole(self) and is_whole(y) then return (as(self, I64) * as(y, I64)):sum() end
    if kind_of(self) ~= F32 or kind_of(y) ~= F32 then return (self * y):sum() end
    local a, b, out = as(self, F32), as(y, F32), M.empty({}, "f64")
    check(C.lsa_dot_cpu(out:pointer(), inner.floats(a), inner.floats(b), count(a.c), nil))
    return (number(out))
  end

  -- [m, k] times [k, n]: f32 by gemm, others row by row.
  local function product(x, y)
    local m, k, n = tonumber(x.c.shape[0]), tonumber(x.c.shape[1]), tonumber(y.c.shape[1])
    if kind_of(x) == F32 and kind_of(y) == F32 then
      local a, b, out = as(x, F32), as(y, F32), M.empty {m, n}
      if m > 0 and n > 0 then
        check(C.lsa_gemm_cpu(inner.floats(out), inner.floats(a), inner.floats(b), m, n, k, n, k, n, 0, 0, nil))
      end
      return out
    end
    local rows = {}
    if is_whole(x) and is_whole(y) then x, y = as(x, I64), as(y, I64) end
    for i = 0, m - 1 do rows[i + 1] = (x:row(i):unsqueeze(1) * y):sum(0) end
    if m == 0 then return M.zeros({0, n}, is_whole(x) and is_whole(y) and "i64" or "f64") end
    return M.stack(rows)
  end

  -- Batches: leading dimensions, which broadcast.
  local function products(x, y, what)
    local a, b, shape = x:shape(), y:shape(), {}
    local rank = math.max(#a, #b) - 2
    for i = 1, rank do
      local m, n = a[#a - 2 - rank + i] or 1, b[#b - 2 - rank + i] or 1
      if m ~= n and m ~= 1 and n ~= 1 then raise("%s: x has %d and y %d in leading dimension %d", what, m, n, i - 1) end
      shape[i] = m == 1 and n or m
    end
    local batch, rows, columns = 1, a[#a - 1], b[#b]
    for i = 1, rank do batch = batch * shape[i] end
    local function flat(t, last)
      local full = {}
      for i = 1, rank do full[i] = shape[i] end
      full[rank + 1], full[rank + 2] = last[#last - 1], last[#last]
      return t:expand(full):reshape {batch, last[#last - 1], last[#last]}
    end
    local p, q, list = flat(x, a), flat(y, b), {}
    for i = 0, batch - 1 do list[i + 1] = product(p:row(i), q:row(i)) end
    shape[rank + 1], shape[rank + 2] = rows, columns
    if batch == 0 then return M.zeros(shape, product(M.zeros({0, a[#a]}, x:dtype()), M.zeros({a[#a], 0}, y:dtype())):dtype()) end
    return M.stack(list):reshape(shape)
  end

  -- A 1-D tensor is a row on the left, a column on the right; two of them have their dot product.
  function Tensor:matmul(y)
    if not is_tensor(y) then raise("matmul: y is %s, a tensor is wanted", shown(y)) end
    local a, b = self.c.rank, y.c.rank
    if a == 0 or b == 0 then raise "matmul: a tensor has no dimensions" end
    if a == 1 and b == 1 then return (self:dot(y)) end
    local p, q = a == 1 and self:unsqueeze(0) or self, b == 1 and y:unsqueeze(1) or y
    if p.c.shape[p.c.rank - 1] ~= q.c.shape[q.c.rank - 2] then
      raise("matmul: x has shape %s, y has %s: %d columns meet %d rows", inner.shape_text(self.c), inner.shape_text(y.c),
        tonumber(p.c.shape[p.c.rank - 1]), tonumber(q.c.shape[q.c.rank - 2]))
    end
    local out = p.c.rank == 2 and q.c.rank == 2 and product(p, q) or products(p, q, "matmul")
    if a == 1 then return out:squeeze(-2) end
    if b == 1 then return out:squeeze(-1) end
    return out
  end

  inner.finished = finished
end
