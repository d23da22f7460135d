-- Owns tensors as tables of HTML, for notebooks: rows and columns by their places, the first and the last of many.
local display = require "lsa.display"

local ROWS, COLUMNS = 10, 12 -- shown at most; half of them from either end

-- The places that are shown of n, in order; false stands for those left out.
local function places(n, most)
  local out = {}
  for i = 1, math.min(n, most) do out[i] = (n <= most or i <= most / 2) and i - 1 or n - most + i - 1 end
  if n > most then table.insert(out, most / 2 + 1, false) end
  return out
end

-- A matrix, of which `text(number)` shows the elements. head: above the table; label: of a row.
return function(matrix, head, text, label)
  local shape = matrix:shape()
  local columns, rows = places(shape[2], COLUMNS), {}
  local header = {""}
  for j, column in ipairs(columns) do header[j + 1] = column and tostring(column) or "…" end
  for i, row in ipairs(places(shape[1], ROWS)) do
    local cells = {row and label(row) or "…"}
    for j, column in ipairs(columns) do
      cells[j + 1] = row and column and text(matrix:get(row, column)) or "…"
    end
    rows[i] = cells
  end
  return display.table {head = head, header = header, rows = rows, labels = true}
end
