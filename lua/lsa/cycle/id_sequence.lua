-- Owns the forms in which a script gives a sequence of ids: a list, an i32 tensor, or {ids = int32_t *, n = count}.
local ffi = require "ffi"
local raise = require "lsa.raise"

local M = {}

local function check(id, i, what)
  if type(id) ~= "number" or id < 0 or id > 2147483647 or id % 1 ~= 0 then
    raise("%s: element %d is %s, ids are integers from 0 to 2147483647", what, i, tostring(id))
  end
end

-- An int32_t array of its own and its length. `what` names the argument in errors.
function M.of(x, what)
  if type(x) == "table" and type(x.ids) == "cdata" then
    local n = tonumber(x.n)
    if not n or n < 0 then raise("%s: n is %s, and is the length of ids", what, tostring(x.n)) end
    local out = ffi.new("int32_t[?]", n + 1)
    for i = 0, n - 1 do
      local id = tonumber(x.ids[i])
      check(id, i, what)
      out[i] = id
    end
    return out, n
  end
  local tensor = package.loaded["lsa.tensor.tensor"]
  if tensor and tensor.is(x) then
    if x:dtype() ~= "i32" then raise("%s is a tensor of %s, ids are i32", what, x:dtype()) end
    x = x:to "cpu":contiguous()
    return M.of({ids = x:pointer(), n = x:count()}, what)
  end
  if type(x) ~= "table" then
    raise("%s is a %s, and is a list of ids, an i32 tensor, or {ids =, n =}", what, type(x))
  end
  local n = #x
  local out = ffi.new("int32_t[?]", n + 1)
  for i = 1, n do
    check(x[i], i - 1, what)
    out[i - 1] = x[i]
  end
  return out, n
end

return M
