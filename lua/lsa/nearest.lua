-- What a name that nothing has was probably meant to be.
--
--   nearest.find(name, names)    the one of the names, keys of a table, that is close; nil where none is
--   nearest.hint(name, names)    "; did you mean that?", or ""
local M = {}

-- How many letters to change, add, drop, or swap with their neighbour, make one word the other.
local function distance(a, b)
  local d = {[0] = {}}
  for j = 0, #b do d[0][j] = j end
  for i = 1, #a do
    d[i] = {[0] = i}
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      d[i][j] = math.min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (same and 0 or 1))
      local swapped = i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j)
      if swapped then d[i][j] = math.min(d[i][j], d[i - 2][j - 2] + 1) end
    end
  end
  return d[#a][#b]
end

function M.find(name, names)
  local best, least = nil, math.min(#name - 1, math.max(1, math.floor(#name / 3))) + 0.5
  for other in pairs(names) do
    if type(other) == "string" and other:sub(1, 2) ~= "__" then
      local d = distance(name, other)
      if d < least or d == least and best and other < best then best, least = other, d end
    end
  end
  return best
end

function M.hint(name, names)
  local meant = M.find(name, names)
  return meant and ("; did you mean %s?"):format(meant) or ""
end

return M
