-- grow(t, shape, value): a new f32 tensor whose first rows are t's (nil: none) and whose others hold `value`. What a
-- policy remembers of chunks grows by this as chunks are born.
local tensor = require "lsa.tensor.tensor"

return function(t, shape, value)
  local out = tensor.empty(shape, "f32")
  local before = t and math.min(#t, shape[1]) or 0
  if t then out:narrow(0, 0, before):copy(t:narrow(0, 0, before)) end
  if shape[1] > before then out:narrow(0, before, shape[1] - before):fill(value) end
  return out
end
