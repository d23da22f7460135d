-- The standard input of a notebook's cells: `io.read`, `io.lines()` and `io.stdin:read` ask the front end for a line.
local M = {}

local waiting = "" -- what was typed and not read yet
local methods = getmetatable(io.stdin).__index

-- `ask()` gives a line without its end.
local function make_reader(ask)
  local function line()
    if waiting == "" then waiting = ask() .. "\n" end
    local text, rest = waiting:match "^([^\n]*)\n(.*)$"
    waiting = rest
    return text
  end

  local function one(format)
    format = tostring(format):gsub("^%*", "")
    if format == "l" or format == "L" then return line() .. (format == "L" and "\n" or "") end
    if format == "n" then return tonumber(line()) end
    if waiting == "" then waiting = ask() .. "\n" end
    local count = format == "a" and #waiting or tonumber(format)
    if not count then error("bad argument to 'read' (invalid format)", 3) end
    local text = waiting:sub(1, count)
    waiting = waiting:sub(count + 1)
    return text
  end

  return function(...)
    if select("#", ...) == 0 then return line() end
    local values = {}
    for i = 1, select("#", ...) do values[i] = one((select(i, ...))) end
    return unpack(values, 1, select("#", ...))
  end
end

function M.install(ask)
  local read, standard = make_reader(ask), io.stdin
  local read_file, lines_of_file, lines, read_current = methods.read, methods.lines, io.lines, io.read
  function methods.read(file, ...)
    if file == standard then return read(...) end
    return read_file(file, ...)
  end
  function methods.lines(file, ...)
    if file == standard then return function() return read "*l" end end
    return lines_of_file(file, ...)
  end
  rawset(io, "read", function(...)
    if io.input() == standard then return read(...) end
    return read_current(...)
  end)
  rawset(io, "lines", function(...)
    if select("#", ...) == 0 and io.input() == standard then return function() return read "*l" end end
    return lines(...)
  end)
end

return M
