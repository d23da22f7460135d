-- Shows values in the middle of a script or of a notebook's cell: rich in a notebook, as the prompt prints them elsewhere.
--
--   lsa.display(x, ...)                 shows the values
--   shown = lsa.display(x)              shown:update(y) shows y instead of x; where that is not possible, below
--   lsa.display.html(text)              a value that is this HTML; lsa.display.svg(text), lsa.display.png(bytes)
--   lsa.display.clear(wait)             takes away what the cell has shown; wait: once something else comes
--
-- An object is rich where its metatable's `__mime(object)` gives a table of representations by MIME type: any of "text/plain",
-- "text/html", "text/markdown", "image/svg+xml" (texts) and "image/png" (bytes). Of a C object it is a method. A plain list of rows,
-- {{name = value}, …}, is a table.
local M = {}

-- What the notebook's kernel puts here: show(representations) -> a name, update(name, representations), clear(wait).
M.front = nil

local function index(object, key) return object[key] end

local function find_mime(value)
  if type(value) == "cdata" then
    local ok, f = pcall(index, value, "__mime")
    return ok and f
  end
  local meta = debug.getmetatable(value)
  return type(meta) == "table" and rawget(meta, "__mime")
end

-- The value's representations by MIME type; there always is "text/plain".
function M.representations(value)
  local f, inspect = find_mime(value), require "lsa.prompt.inspect"
  local records = not f and inspect.records(value)
  local found = f and f(value) or records and records:__mime() or {}
  local out = {}
  for kind, data in pairs(found) do out[kind] = data end
  if not out["text/plain"] then out["text/plain"] = inspect.text(value) end
  return out
end

local Shown = {}
Shown.__index = Shown

function Shown:update(value)
  if self.name then M.front.update(self.name, M.representations(value)) else M.show(value) end
  return self
end

function M.show(...)
  local name
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    if M.front then
      name = M.front.show(M.representations(value))
    else
      print(M.representations(value)["text/plain"])
    end
  end
  return setmetatable({name = name}, Shown)
end

function M.clear(wait)
  if M.front then M.front.clear(wait == true) end
end

local Rich = {}
Rich.__index = Rich
function Rich:__mime() return self.representations end
function Rich:__tostring() return self.text end

local function rich(kind, text)
  return function(data) return setmetatable({representations = {[kind] = data}, text = text or data}, Rich) end
end

M.html, M.svg, M.png = rich "text/html", rich("image/svg+xml", "<SVG>"), rich("image/png", "<PNG>")

-- HTML for a text that is no HTML.
function M.escape(text)
  return (text:gsub("[&<>\"]", {["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;"}))
end

-- A table of texts as HTML. given.head: a line above it; header: names of the columns; rows: lists of cells; labels: whether
-- each row's first cell is its name; left: {[column] = true} of those that are no numbers; notes: lines below.
function M.table(given)
  local out = {"<div>"}
  local function add(...)
    for i = 1, select("#", ...) do out[#out + 1] = (select(i, ...)) end
  end
  local function cell(kind, column, text)
    local style = given.left and given.left[column] and ' style="text-align:left"' or ""
    add("<", kind, style, ">", M.escape(text), "</", kind, ">")
  end
  if given.head then add('<div style="opacity:0.7;font-size:85%;margin-bottom:4px">', M.escape(given.head), "</div>") end
  add '<table style="margin-left:0"><thead><tr>'
  for j, name in ipairs(given.header) do cell("th", j, name) end
  add "</tr></thead><tbody>"
  for _, cells in ipairs(given.rows) do
    add "<tr>"
    for j, text in ipairs(cells) do cell(given.labels and j == 1 and "th" or "td", j, text) end
    add "</tr>"
  end
  add "</tbody></table>"
  for _, note in ipairs(given.notes or {}) do add('<div style="opacity:0.7;font-size:85%">', M.escape(note), "</div>") end
  add "</div>"
  return table.concat(out)
end

require("lsa.arity").functions(M, "lsa.display.")

return setmetatable(M, {__call = function(_, ...) return M.show(...) end})
