-- Owns what needs tensors in order: sorting, quantiles, distinct elements. tensor.lua gives it what it is made of.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"
local real = require "lsa.tensor.real"

local check = raise.check

return function(inner)
  local Tensor, M = inner.Tensor, inner.M
  local as, count, shown = inner.as, inner.count, inner.shown

  -- dim and {descending = true}, either of which may be left out.
  local function arguments(t, dim, options, what)
    if type(dim) == "table" then dim, options = nil, dim end
    if options ~= nil and type(options) ~= "table" then raise("%s: options is %s, a table is wanted", what, shown(options)) end
    for name in pairs(options or {}) do
      if name ~= "descending" then raise("%s: it has no option %s; descending is known", what, tostring(name)) end
    end
    return inner.want_dim(t.c, dim or -1, what), options and options.descending and 1 or 0
  end

  -- Values and places along the last dimension of a contiguous tensor.
  local function sorted(x, kind, descending, with_values, with_ids)
    local n = tonumber(x.c.shape[x.c.rank - 1])
    local values = with_values and M.empty(x:shape(), inner.names[kind]) or nil
    local ids = with_ids and M.empty(x:shape(), "i32") or nil
    local rows = n > 0 and count(x.c) / n or 0
    local work = M.empty({tonumber(C.lsa_sort_workspace(rows, n, with_ids and 1 or 0, kind))}, "u8")
    check(C.lsa_sort_cpu(values and values.c.data, ids and ffi.cast("int32_t *", ids.c.data), x.c.data, rows, n, kind,
      descending, work.c.data, nil))
    M.release(work)
    return values or ids
  end

  local function along(t, at, f)
    local last = t.c.rank - 1
    if at == last then return f(t) end
    return f(t:transpose(at, last)):transpose(at, last):contiguous()
  end

  local function kind_for(t)
    local kind = inner.kind_of(t)
    return kind == C.LSA_I32 and C.LSA_I64 or kind
  end

  -- Ascending along dim (the last), or {descending = true}; NaN last, ties in the order in which they were.
  function Tensor:sort(dim, options)
    local at, descending = arguments(self, dim, options, "sort")
    local kind = kind_for(self)
    return along(self, at, function(t) return sorted(as(t, kind), kind, descending, true, false) end):to(self:dtype())
  end

  -- Where the elements of x:sort(...) are: an i32 tensor.
  function Tensor:argsort(dim, options)
    local at, descending = arguments(self, dim, options, "argsort")
    local kind = kind_for(self)
    return (along(self, at, function(t) return sorted(as(t, kind), kind, descending, false, true) end))
  end

  -- ---- quantiles ----

  local readers = {[C.LSA_F32] = real.f32, [C.LSA_F64] = real.f64}
  local function integer(p, i) return tonumber(p[i]) end

  -- Of rows in order: out[r] = the element at q (n - 1), linear between two.
  local function interpolate(rows, n, q)
    local at = readers[rows.c.dtype] or integer
    local many = n > 0 and count(rows.c) / n or 0
    local p, out = rows:pointer(), M.empty({many}, "f64")
    local place = q * (n - 1)
    local low = math.floor(place)
    local high, part = math.min(low + 1, n - 1), place - low
    for r = 0, many - 1 do
      local a, b, last = at(p, r * n + low), at(p, r * n + high), at(p, r * n + n - 1)
      local v = part == 0 and a or a + (b - a) * part
      if last ~= last then v = 0 / 0 end
      out:pointer()[r] = v
    end
    return out
  end

  local function quantile(t, q, dim, what)
    if type(q) ~= "number" or not (q >= 0 and q <= 1) then raise("%s: q is %s, a number from 0 to 1 is wanted", what, shown(q)) end
    local x = dim == nil and t:reshape {count(t.c)} or t
    local at = dim == nil and 0 or inner.want_dim(t.c, dim, what)
    local n, last = tonumber(x.c.shape[at]), x.c.rank - 1
    if n == 0 then raise("%s: there are no elements", what) end
    local kind = kind_for(x)
    local ordered = sorted(as(x:transpose(at, last), kind), kind, 0, true, false)
    local out = interpolate(ordered, n, q)
    if dim == nil then return (inner.finished(t, nil, out:reshape {})) end
    -- The dimension at `at` has gone last, and what was last is in its place.
    local shape = ordered:shape()
    table.remove(shape)
    local turned = out:reshape(shape)
    local order = {}
    for i = 0, last - 1 do order[i + 1] = i end
    if at < last then
      table.remove(order, at + 1)
      order[#order + 1] = at
    end
    return (inner.finished(t, at, turned:permute(order):contiguous()))
  end

  -- q is from 0 to 1; between two elements it is linear. NaN where one is NaN. A list of q gives a list of results.
  function Tensor:quantile(q, dim)
    if type(q) ~= "table" then return (quantile(self, q, dim, "quantile")) end
    local out = {}
    for i, each in ipairs(q) do out[i] = quantile(self, each, dim, "quantile") end
    return out
  end

  function Tensor:median(dim) return (quantile(self, 0.5, dim, "median")) end

  -- ---- distinct elements ----

  -- The distinct elements, ascending, NaN last and once; how many there are of each, as i64.
  function Tensor:unique()
    local x = self:reshape {count(self.c)}:sort(0)
    local n = #x
    if n == 0 then return x, M.zeros({0}, "i64") end
    local new = inner.set_module().new(n):add(0)
    if n > 1 then
      local differs = inner.marked(x:narrow(0, 1, n - 1):ne(x:narrow(0, 0, n - 1)))
      new:add(differs:ids() + 1)
    end
    local nan = inner.marked(x:isnan {mask = true}):ids()
    if #nan > 1 then new:remove(nan:narrow(0, 1, #nan - 1)) end
    local first = new:ids()
    return x:index(first), M.cat {first, M.new({n}, "i32")}:diff():to "i64"
  end
end
