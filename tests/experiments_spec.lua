-- The experiment scripts, run small.
local lsa = require "lsa"
local files = require "file_support"

-- What a script writes with these arguments.
local function output(script, arguments)
  local out = {}
  local function write(...)
    for i = 1, select("#", ...) do out[#out + 1] = tostring((select(i, ...))) end
  end
  local function say(...)
    write(...)
    write "\n"
  end
  local saved, chunk = _G.arg, assert(loadfile(lsa.root .. "/experiments/" .. script))
  setfenv(chunk, setmetatable({print = say, io = setmetatable({write = write}, {__index = io})}, {__index = _G}))
  arguments[0] = script
  _G.arg = arguments
  local ok, why = pcall(chunk)
  _G.arg = saved
  assert(ok, why)
  return table.concat(out)
end

-- Words without end, in a file.
local function with_text(fn)
  files.with_folder(function(folder)
    local path, words, state, list = folder .. "/text", {"river", "stone", "cloud", "grass", "apple", "seven", "about"}, 1, {}
    for i = 1, 4000 do
      state = state * 16807 % 2147483647
      list[i] = words[1 + state % #words] .. (state % 11 == 0 and ".\n" or " ")
    end
    files.write(path, table.concat(list))
    fn(path)
  end)
end

describe("experiments/policies.lua", function()
  it("has a row for every policy and budget, oracles too", function()
    with_text(function(text)
      local csv = output("policies.lua", {"--tokens", "1500", "--needles", "1", "--budgets", "0.1,0.2", "--text", text, "--csv"})
      local rows, names = {}, require("lsa.registry").names "policies"
      for line in csv:gmatch "[^\n]+" do rows[#rows + 1] = line end
      assert.matches("^select,budget,accuracy,digits,coverage,evidence,fetched_bytes,resident_bytes,resident_pct,error", rows[1])
      assert.equal(1 + 2 * (#names - 1), #rows)
      local found = {}
      for i = 2, #rows do
        local name, budget, _, _, coverage = rows[i]:match "^([%w_]+),([%d.]+),([%d.]+),([%d.]+),([%d.]+),"
        found[name .. (tonumber(budget) == 0.2 and "" or " less")] = tonumber(coverage)
      end
      assert.equal(1, found.full)
      assert.is_true(found.oracle_budget >= found.native_topk and found.native_topk > found.none)
      local text_table = output("policies.lua", {"--tokens", "1500", "--needles", "1", "--budgets", "0.1", "--text", text,
        "--policies", "recency,oracle_native"})
      assert.matches("\nrecency +0.1 +[%d.]+%%", text_table)
    end)
  end)
end)

describe("experiments/evictions.lua", function()
  it("never lets a policy miss less than belady", function()
    with_text(function(text)
      local csv = output("evictions.lua", {"--tokens", "1200", "--steps", "200", "--text", text, "--csv"})
      local n = 0
      for line in csv:gmatch "\n([^\n]+)" do
        local rates = {}
        for cell in line:gmatch "[^,]+" do rates[#rates + 1] = tonumber(cell) or cell end
        for i = 6, #rates do assert.is_true(rates[5] <= rates[i] and rates[i] <= 1, line) end
        n = n + 1
      end
      assert.equal(2 * (4 + 4), n)
    end)
  end)
end)
