-- Owns how tensors print themselves: as text, and as tables of HTML for notebooks. tensor.lua gives it what it is made of.
--
-- A line with the shape, the type and min, mean and max of all elements, and under it the elements, columns one below the other. Of many
-- only the first and the last of a dimension are shown.
local C = require("lsa.ffi").C

local PART = 2 ^ 20                  -- elements that are looked at at once
local VECTOR, ROWS, COLUMNS = 60, 10, 10 -- shown whole where there are no more
local FIRST, LAST = 4, 3             -- that are shown of more
local WIDTH = 96                     -- of lines
local ROWS_HTML, COLUMNS_HTML = 10, 12

-- The places that are shown of n, in order; false stands for those left out.
local function places(n, most, first, last)
  local out = {}
  if n <= most then first, last = n, 0 end
  for i = 0, first - 1 do out[#out + 1] = i end
  if n > most then out[#out + 1] = false end
  for i = n - last, n - 1 do out[#out + 1] = i end
  return out
end

-- "[a, b]" of words that are as wide as `widths` says, in lines of `indent`.
local function listed(words, widths, indent)
  local lines, line = {}, indent .. "["
  for i, word in ipairs(words) do
    local text = (" "):rep(widths[i] - #word) .. word .. (i < #words and ", " or "]")
    if #line + #text > WIDTH and #line > #indent + 1 then
      lines[#lines + 1] = line:match "^(.-) *$"
      line = indent .. " "
    end
    line = line .. text
  end
  lines[#lines + 1] = line
  return lines
end

return function(inner)
  local Tensor, host, count, digits = inner.Tensor, inner.host, inner.count, inner.digits

  local function number_text(v)
    if type(v) == "cdata" then return digits(v) end
    if v == math.floor(v) and math.abs(v) < 1e9 then return ("%d"):format(v) end
    return ("%.4g"):format(v)
  end

  -- min, mean and max a part at a time, so that printing a mapped file of gigabytes needs no memory of its size.
  local function statistics(t)
    local n, sum, done, low, high = count(t.c), 0, 0, nil, nil
    local flat = t:reshape {n}
    while done < n do
      local m = math.min(n - done, PART)
      local part = flat:narrow(0, done, m)
      local a, b = part:min(), part:max()
      if a ~= a then return a, a, a end
      low, high = (low == nil or a < low) and a or low, (high == nil or b > high) and b or high
      sum, done = sum + part:mean() * m, done + m
    end
    return low, sum / n, high
  end

  local function vector_lines(t)
    local words, widths, widest = {}, {}, 0
    for i, place in ipairs(places(#t, VECTOR, FIRST + LAST, LAST)) do
      words[i] = place and number_text(t:get(place)) or "..."
      widest = math.max(widest, #words[i])
    end
    local one_line = #table.concat(words, ", ") + 4 <= WIDTH
    for i, word in ipairs(words) do widths[i] = one_line and #word or widest end
    return listed(words, widths, "  ")
  end

  -- Rows of words, false for those left out; how wide the columns are, and all of them together.
  local function words_of(t, most)
    local rows, widths, sum = {}, {}, 0
    for i, row in ipairs(places(#t, ROWS, FIRST, LAST)) do
      rows[i] = row and {} or false
      for j, column in ipairs(row and places(t:shape()[2], most, FIRST, LAST) or {}) do
        rows[i][j] = column and number_text(t:get(row, column)) or "..."
        widths[j] = math.max(widths[j] or 0, #rows[i][j])
      end
    end
    for _, width in ipairs(widths) do sum = sum + width + 2 end
    return rows, widths, sum
  end

  local function matrix_lines(t, lines, indent)
    local rows, widths, sum = words_of(t, COLUMNS)
    if sum + #indent > WIDTH then rows, widths = words_of(t, FIRST + LAST) end
    for _, row in ipairs(rows) do
      for _, line in ipairs(row and listed(row, widths, indent) or {indent .. "..."}) do lines[#lines + 1] = line end
    end
  end

  -- The matrices of more dimensions, each under its place.
  local function deep_lines(t, lines, prefix)
    for _, place in ipairs(places(#t, LAST, LAST - 1, 0)) do
      if not place then
        lines[#lines + 1] = "  ..."
      elseif t.c.rank > 3 then
        deep_lines(t:row(place), lines, prefix .. "[" .. place .. "]")
      else
        lines[#lines + 1] = "  " .. prefix .. "[" .. place .. "]"
        matrix_lines(t:row(place), lines, "    ")
      end
    end
  end

  function inner.describe(self)
    local head = ("tensor %s %s"):format(self:dtype(), inner.shape_text(self.c))
    if self.c.device ~= C.LSA_CPU then head = head .. " " .. self:device() end
    if count(self.c) == 0 then return head end
    local t = host(self)
    if t.c.rank == 0 then return head .. " " .. number_text(t:item()) end
    local low, mean, high = statistics(t)
    local lines = {("%s  min %s mean %s max %s"):format(head, number_text(low), number_text(mean), number_text(high))}
    if t.c.rank == 1 then
      for _, line in ipairs(vector_lines(t)) do lines[#lines + 1] = line end
    elseif t.c.rank == 2 then
      matrix_lines(t, lines, "  ")
    else
      deep_lines(t, lines, "")
    end
    return table.concat(lines, "\n")
  end

  -- A matrix by its places. label: of a row.
  local function html(matrix, head, label)
    local shape = matrix:shape()
    local columns, rows = places(shape[2], COLUMNS_HTML, COLUMNS_HTML / 2, COLUMNS_HTML / 2), {}
    local header = {""}
    for j, column in ipairs(columns) do header[j + 1] = column and tostring(column) or "…" end
    for i, row in ipairs(places(shape[1], ROWS_HTML, ROWS_HTML / 2, ROWS_HTML / 2)) do
      local cells = {row and label(row) or "…"}
      for j, column in ipairs(columns) do cells[j + 1] = row and column and number_text(matrix:get(row, column)) or "…" end
      rows[i] = cells
    end
    return require "lsa.display".table {head = head, header = header, rows = rows, labels = true}
  end

  -- As a notebook shows it: vectors and matrices as tables, of more dimensions the first matrix.
  function Tensor:__mime()
    local text = inner.describe(self)
    if self.c.rank == 0 or count(self.c) == 0 then return {["text/plain"] = text} end
    local t, prefix = host(self), ""
    while t.c.rank > 2 do
      t, prefix = t:row(0), prefix .. "0, "
    end
    local matrix = t.c.rank == 1 and t:reshape {1, #t} or t
    local function label(row) return t.c.rank == 1 and "" or prefix .. row end
    return {["text/plain"] = text, ["text/html"] = html(matrix, text:match "^[^\n]*", label)}
  end
end
