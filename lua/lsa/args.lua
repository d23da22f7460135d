-- Command lines of experiment scripts: the usage text is the declaration (penlight's lapp).
--
--   local args = require "lsa.args" [[
--   How often each policy finds the needle.
--     --contexts (numbers default 1024,4096)   context lengths, in tokens
--     --policies (list default lsa_topk,random) which policies
--     -n,--questions (default 20)               questions per context
--     --quick                                   a small run
--     <model> (string)                          the model's folder
--   ]]
--   args.contexts[1], args.questions, args.quick, args.model
--
-- Every script has --json and --csv, by which args.report (lua/lsa/report.lua) writes rows in the place of tables, and --debug, which
-- opens a prompt where the script fails. --help prints the text; a bad command line prints what is wrong and ends the script with exit code 2.
local raise = require "lsa.raise"
local report = require "lsa.report"

local always = {
  {"csv", "rows as CSV"}, {"json", "rows as JSON, with the options"}, {"debug", "an error opens a prompt where it is"},
}

local BAD_USAGE = 2

local function split(text)
  local items = {}
  for item in text:gmatch "[^,]+" do items[#items + 1] = item end
  return items
end

local function numbers(text)
  local list = split(text)
  for i, item in ipairs(list) do
    list[i] = tonumber(item) or error(("%q is not a number"):format(item), 0)
  end
  return list
end

local function leave(code, file, text)
  file:write(text)
  os.exit(code, true)
end

-- The usage text with what every script has.
local function whole(usage)
  usage = usage:gsub("\n[ \t]*$", "") .. "\n"
  local width = 12
  for option in usage:gmatch "\n  (%S[^\n]-)   +%S" do width = math.max(width, #option + 2) end
  for _, one in ipairs(always) do
    if not usage:find("%-%-" .. one[1] .. "%f[^%w_%-]") then usage = usage .. ("  %-" .. width .. "s %s\n"):format("--" .. one[1], one[2]) end
  end
  return usage
end

-- The options of `arguments` (the script's, by default) as the usage text declares them.
return function(usage, arguments)
  local ok, lapp = pcall(require, "pl.lapp")
  if not ok then raise "lsa.args needs penlight (Debian: apt-get install lua-penlight)" end
  arguments = { unpack(arguments or arg) }
  usage = whole(usage)
  local help = "usage: " .. (arg and arg[0] or "script") .. " [options]\n" .. usage
  for _, value in ipairs(arguments) do
    if value == "--help" or value == "-h" then leave(0, io.stdout, help) end
  end
  lapp.show_usage_error = "throw"
  lapp.add_type("list", split)
  lapp.add_type("numbers", numbers)
  local parsed, options = pcall(lapp.process_options_string, usage, arguments)
  if parsed and options[1] == nil and options.csv and options.json then parsed, options = false, "--csv and --json: one of them" end
  if parsed and options[1] == nil then
    if options.debug then require "lsa.prompt.interact".on_error() end
    local name = arg and arg[0] and arg[0]:match "([^/]*)%.lua$" or "script"
    options.report = report.new(options.json and "json" or options.csv and "csv" or nil, name, options)
    return options
  end
  if parsed then options = ("there is no argument for %q"):format(options[1]) end
  leave(BAD_USAGE, io.stderr, tostring(options):gsub("^[^\n]-lapp%.lua:%d+: [^:]*: ", "") .. "\n" .. help)
end
