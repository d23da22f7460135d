-- What make.py --all compares: lsa tests/tokenizer/split.lua PRE_TOKENIZER TEXTS RESULT
-- PRE_TOKENIZER is its description in JSON, TEXTS has one text a line, in hexadecimal; a line of RESULT has the lengths of the
-- pieces, in bytes.
local json = require "cjson"
local pretokenize = require "lsa.text.pretokenize"

local description = json.decode(assert(io.open(arg[1])):read "*a")
local split = pretokenize.splitter(description)
local out = assert(io.open(arg[3], "w"))
for line in io.lines(arg[2]) do
  local text = line:gsub("%x%x", function(hex) return string.char(tonumber(hex, 16)) end)
  local lengths = {}
  for i, piece in ipairs(split({text}, true)) do lengths[i] = #piece end
  out:write(table.concat(lengths, " "), "\n")
end
out:close()
