-- Owns views of tensors, choice of their elements, and what joins several. tensor.lua gives it what it is made of.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"

local check = raise.check

return function(inner)
  local Tensor, M = inner.Tensor, inner.M
  local is_tensor, count, shape_text, shown = inner.is_tensor, inner.count, inner.shape_text, inner.shown
  local want_whole, view = inner.want_whole, inner.view
  local MOST = tonumber(C.LSA_MAX_RANK)

  -- A dimension, counted from the end where it is negative.
  local function want_dim(c, dim, what)
    want_whole(dim, what .. ": dim")
    local at = dim < 0 and dim + c.rank or dim
    if at < 0 or at >= c.rank then raise("%s: dim is %d, the tensor has %d dimensions", what, dim, c.rank) end
    return at
  end
  inner.want_dim = want_dim

  -- ---- views ----

  -- A view by lists of dimensions and strides.
  local function strided(t, offset, shape, stride, what)
    if #shape > MOST then raise("%s: the result has %d dimensions, at most %d are possible", what, #shape, MOST) end
    return view(t.c, offset, #shape, ffi.new("int64_t[6]", shape), ffi.new("int64_t[6]", stride))
  end

  local function strides(c)
    local out = {}
    for i = 0, c.rank - 1 do out[i + 1] = tonumber(c.stride[i]) end
    return out
  end

  -- x:permute(2, 0, 1) or x:permute {2, 0, 1}: dimension i of the result is that of x.
  function Tensor:permute(...)
    local order = type((...)) == "table" and (...) or {...}
    local c, shape, stride, seen = self.c, {}, {}, {}
    if #order ~= c.rank then raise("permute: %d dimensions are given, the tensor has %d", #order, c.rank) end
    for i, dim in ipairs(order) do
      local from = want_dim(c, dim, "permute")
      if seen[from] then raise("permute: dimension %d is given twice", dim) end
      seen[from] = true
      shape[i], stride[i] = tonumber(c.shape[from]), tonumber(c.stride[from])
    end
    return (strided(self, 0, shape, stride, "permute"))
  end

  -- Two dimensions change places; of a matrix, its two.
  function Tensor:transpose(a, b)
    local c, order = self.c, {}
    if a == nil and b == nil and c.rank ~= 2 then raise("transpose: the tensor has %d dimensions; which two is not said", c.rank) end
    a, b = want_dim(c, a or 0, "transpose"), want_dim(c, b or 1, "transpose")
    for i = 0, c.rank - 1 do order[i + 1] = i == a and b or i == b and a or i end
    return (self:permute(order))
  end

  -- Without the dimensions of 1, or without that one.
  function Tensor:squeeze(dim)
    local c, shape, stride = self.c, {}, {}
    local only = dim ~= nil and want_dim(c, dim, "squeeze")
    if only and c.shape[only] ~= 1 then raise("squeeze: dimension %d has %d, 1 is wanted", dim, tonumber(c.shape[only])) end
    for i = 0, c.rank - 1 do
      if not (c.shape[i] == 1 and (not only or i == only)) then
        shape[#shape + 1], stride[#stride + 1] = tonumber(c.shape[i]), tonumber(c.stride[i])
      end
    end
    return (strided(self, 0, shape, stride, "squeeze"))
  end

  -- With a dimension of 1 more, which is number `dim` of the result.
  function Tensor:unsqueeze(dim)
    local c = self.c
    want_whole(dim, "unsqueeze: dim")
    local at = dim < 0 and dim + c.rank + 1 or dim
    if at < 0 or at > c.rank then raise("unsqueeze: dim is %d, the result has %d dimensions", dim, c.rank + 1) end
    local shape, stride = self:shape(), strides(c)
    table.insert(shape, at + 1, 1)
    table.insert(stride, at + 1, 0)
    return (strided(self, 0, shape, stride, "unsqueeze"))
  end

  -- Dimensions of 1, and new ones in front, repeat without a copy. Nothing should write to such a view.
  function Tensor:expand(...)
    local c, stride, shape = self.c, {}, inner.dimensions_of("expand", ...)
    local rank = inner.read_shape(shape, "expand: shape", ffi.new "int64_t[6]")
    if rank < c.rank then raise("expand: shape has %d dimensions, the tensor %d", rank, c.rank) end
    for i = 1, rank do
      local from = i - 1 - (rank - c.rank)
      stride[i] = 0
      if from >= 0 and c.shape[from] == shape[i] then
        stride[i] = tonumber(c.stride[from])
      elseif from >= 0 and c.shape[from] ~= 1 then
        raise("expand: shape has %d in dimension %d, the tensor %s has %d", shape[i], i - 1, shape_text(c), tonumber(c.shape[from]))
      end
    end
    return (strided(self, 0, shape, stride, "expand"))
  end

  -- ---- elements by their places ----

  -- Elements from, from + step, ... before `to` of a dimension; a copy where step is negative.
  local function range(t, dim, from, to, step)
    if step < 0 then t = inner.host(t) end       -- nothing but the copy that follows knows of negative strides
    local c = t.c
    local n = tonumber(c.shape[dim])
    local shape, stride = t:shape(), strides(c)
    local many = math.max(0, math.ceil((to - from) / step))
    if many > 0 then
      local last = from + (many - 1) * step
      if from < 0 or from >= n or last < 0 or last >= n then
        raise("index: %d to %d, step %d, dimension %d has %d", from, to, step, dim, n)
      end
    else
      from = 0
    end
    local offset = from * stride[dim + 1]
    shape[dim + 1], stride[dim + 1] = many, stride[dim + 1] * step
    local out = strided(t, offset, shape, stride, "index")
    return step < 0 and out:copy() or out
  end

  local function named_range(t, dim, r)
    local n = tonumber(t.c.shape[dim])
    for name in pairs(r) do
      if name ~= "from" and name ~= "to" and name ~= "step" then
        raise("index: a range has no %s; from, to and step are known", tostring(name))
      end
    end
    local step = want_whole(r.step or 1, "index: step")
    if step == 0 then raise "index: step is 0" end
    local function place(v, otherwise, what)
      if v == nil then return otherwise end
      want_whole(v, what)
      return v < 0 and v + n or v
    end
    local from = place(r.from, step > 0 and 0 or n - 1, "index: from")
    return range(t, dim, from, place(r.to, step > 0 and n or -1, "index: to"), step)
  end

  -- Ids as a contiguous tensor of i32, of any shape.
  local function id_tensor(ids, what)
    if type(ids) == "table" then ids = M.new(ids, "i32") end
    if inner.set_module().is(ids) then return ids:ids() end
    if not is_tensor(ids) then raise("%s: ids is %s; ids, a set, a range or a mask is wanted", what, shown(ids)) end
    local kind = inner.kind_of(ids)
    if kind ~= C.LSA_I32 and kind ~= C.LSA_I64 then raise("%s: ids is a tensor of %s, integers are wanted", what, ids:dtype()) end
    local out = kind == C.LSA_I32 and inner.as(ids, kind) or inner.converted(inner.host(ids):contiguous(), C.LSA_I32)
    if kind == C.LSA_I64 and inner.compare(ids, out, C.LSA_NE):any() then
      raise("%s: ids from %s to %s, which no dimension has", what, inner.digits(ids:min()), inner.digits(ids:max()))
    end
    return out
  end

  -- [outer, n, inner] around a dimension.
  local function around(c, dim)
    local outer, within = 1, 1
    for i = 0, c.rank - 1 do
      local n = tonumber(c.shape[i])
      if i < dim then outer = outer * n elseif i > dim then within = within * n end
    end
    return outer, tonumber(c.shape[dim]), within
  end
  inner.around = around

  local function mask_ids(t, dim, mask)
    if mask.c.rank ~= 1 or mask.c.shape[0] ~= t.c.shape[dim] then
      raise("index: the mask has shape %s, dimension %d has %d", shape_text(mask.c), dim, tonumber(t.c.shape[dim]))
    end
    return inner.marked(inner.as(mask, C.LSA_U8)):ids()
  end

  local function index(t, ids, dim)
    local c = t.c
    if c.rank == 0 then raise "index: the tensor has no dimensions" end
    local at = want_dim(c, dim or 0, "index")
    if type(ids) == "number" then
      local i = inner.want_index(c, at, ids, "index")
      return t:narrow(at, i, 1):squeeze(at)
    end
    if type(ids) == "table" and (ids.from or ids.to or ids.step) then return (named_range(t, at, ids)) end
    if inner.set_module().is(ids) and ids:size() ~= tonumber(c.shape[at]) then
      raise("index: the set is over %d ids, dimension %d has %d", ids:size(), at, tonumber(c.shape[at]))
    end
    local list = is_tensor(ids) and ids.c.dtype == C.LSA_U8 and mask_ids(t, at, ids) or id_tensor(ids, "index")
    if list.c.rank ~= 1 then raise("index: ids has shape %s, 1-D is wanted", shape_text(list.c)) end
    local source, shape = inner.host(t):contiguous(), t:shape()
    local outer, n, within = around(c, at)
    shape[at + 1] = count(list.c)
    local out = M.empty(shape, t:dtype())
    check(C.lsa_take_cpu(out.c.data, source.c.data, ffi.cast("const int32_t *", list.c.data), outer, n, count(list.c),
      within * tonumber(C.lsa_dtype_size(c.dtype)), 0, nil))
    return out
  end

  -- ids: a number, which drops the dimension; a list, a tensor of integers, a set; a range {from = a, to = b, step = s}, without b;
  -- a mask of u8. Negative ids count from the end.
  function Tensor:index(ids, dim) return (index(self, ids, dim)) end

  -- out[i][j] = x[i][ids[i][j]], where dim is 1: ids has x's shape but for that dimension.
  function Tensor:gather(dim, ids)
    local c = self.c
    local at, last = want_dim(c, dim, "gather"), c.rank - 1
    local places = id_tensor(ids, "gather")
    local fits = places.c.rank == c.rank
    for i = 0, c.rank - 1 do fits = fits and (i == at or places.c.shape[i] == c.shape[i]) end
    if not fits then raise("gather: ids has shape %s, x has %s: the same is wanted but for dimension %d", shape_text(places.c), shape_text(c), at) end
    local x = inner.host(self):transpose(at, last):contiguous()
    places = places:transpose(at, last):contiguous()
    local out = M.empty(places:shape(), self:dtype())
    local outer, n = around(x.c, last)
    local many = tonumber(places.c.shape[last])
    check(C.lsa_take_cpu(out.c.data, x.c.data, ffi.cast("const int32_t *", places.c.data), outer, n, many,
      C.lsa_dtype_size(c.dtype), many, nil))
    return out:transpose(at, last):contiguous()
  end

  function Tensor:flip(...)
    local dims, out = {...}, self
    if #dims == 0 then
      for i = 0, self.c.rank - 1 do dims[i + 1] = i end
    end
    local done = {}
    for _, dim in ipairs(dims) do
      local at = want_dim(self.c, dim, "flip")
      if done[at] then raise("flip: dimension %d is given twice", at) end
      done[at] = true
      out = range(out, at, tonumber(self.c.shape[at]) - 1, -1, -1)
    end
    return #dims > 0 and out or self:copy()
  end

  -- ---- several tensors ----

  local function check_list(list, what)
    if type(list) ~= "table" or #list == 0 then raise("%s: a list of tensors is wanted", what) end
    for i, t in ipairs(list) do
      if not is_tensor(t) then raise("%s: element %d is %s, a tensor is wanted", what, i, shown(t)) end
      if t.c.dtype ~= list[1].c.dtype then
        raise("%s: element %d is %s, the first is %s; x:to converts", what, i, t:dtype(), list[1]:dtype())
      end
    end
  end

  local function cat(list, dim, what)
    local first = list[1].c
    local at, shape = want_dim(first, dim or 0, what), list[1]:shape()
    shape[at + 1] = 0
    for i, t in ipairs(list) do
      local fits = t.c.rank == first.rank
      for d = 0, first.rank - 1 do fits = fits and (d == at or t.c.shape[d] == first.shape[d]) end
      if not fits then raise("%s: element %d has shape %s, the first %s", what, i, shape_text(t.c), shape_text(first)) end
      shape[at + 1] = shape[at + 1] + tonumber(t.c.shape[at])
    end
    local out, done = M.empty(shape, list[1]:dtype()), 0
    for _, t in ipairs(list) do
      local n = tonumber(t.c.shape[at])
      if n > 0 then out:narrow(at, done, n):copy(inner.host(t)) end
      done = done + n
    end
    return out
  end

  -- lsa.cat({x, y}, dim): one after another along a dimension that they have (0).
  function M.cat(list, dim)
    check_list(list, "cat")
    return (cat(list, dim, "cat"))
  end

  -- lsa.stack({x, y}, dim): side by side along a new dimension (0).
  function M.stack(list, dim)
    check_list(list, "stack")
    local with = {}
    for i, t in ipairs(list) do with[i] = t:unsqueeze(dim or 0) end
    return (cat(with, dim, "stack"))
  end
end
