-- The library as scripts see it: `local lsa = require "lsa"`.
-- A name is loaded when it is first used, so that starting a script costs nothing that it does not need.
-- All ids (tokens, chunks, pages, layers, positions) are 0-based.

-- name = module, or module.field where the name is one function of it
local names = {
  zeros = "lsa.tensor.tensor:zeros",
  tensor = "lsa.tensor.tensor:new",
  ones = "lsa.tensor.tensor:ones",
  full = "lsa.tensor.tensor:full",
  arange = "lsa.tensor.tensor:arange",
  linspace = "lsa.tensor.tensor:linspace",
  eye = "lsa.tensor.tensor:eye",
  rand = "lsa.tensor.tensor:rand",
  randn = "lsa.tensor.tensor:randn",
  cat = "lsa.tensor.tensor:cat",
  stack = "lsa.tensor.tensor:stack",
  set = "lsa.tensor.set:new",
  load = "lsa.files.files:load",
  save = "lsa.files.files:save",
  kernels = "lsa.tensor.kernels",
  model = "lsa.model:new",
  indexer = "lsa.indexer:new",
  trainer = "lsa.trainer:new",
  evaluate = "lsa.evaluate:run",
  batch = "lsa.batch:new",
  pool = "lsa.pool:new",
  cache = "lsa.cache:new",
  cuda = "lsa.cuda",
  accounting = "lsa.accounting",
  sweep = "lsa.sweep:new",
  plot = "lsa.plot",
  eval = "lsa.eval:new",
  tasks = "lsa.tasks.init",
  policies = "lsa.catalogue:policies",
  evictions = "lsa.catalogue:evictions",
  schedules = "lsa.catalogue:schedules",
  samplers = "lsa.catalogue:samplers",
  replay = "lsa.replay:new",
  dump = "lsa.dump:document",
  display = "lsa.display",
  root = "lsa.ffi:root",
  version = "lsa.version",
  interact = "lsa.prompt.interact:here",
}

-- What there is, with a line on each where one is known.
local function described()
  local sorted, rows = {}, {}
  for name in pairs(names) do sorted[#sorted + 1] = name end
  table.sort(sorted)
  local topics = require "lsa.prompt.topics"
  for i, name in ipairs(sorted) do
    local topic = topics["lsa." .. name]
    rows[i] = {name = "lsa." .. name, what = topic and topic.about or topics.others[name] or ""}
  end
  return (tostring(require "lsa.prompt.results_table".new(rows, {"name", "what"})):gsub("\n$", ""))
end

return setmetatable({}, {
  __names = names,
  __tostring = described,
  __index = function(lsa, name)
    local from = names[name]
    if not from then
      if type(name) ~= "string" or name:sub(1, 2) == "__" then return nil end
      require "lsa.raise"("lsa has no %q%s", name, require "lsa.nearest".hint(name, names))
    end
    local module, field = from:match "^([^:]+):?(.*)$"
    local value = require(module)
    if field ~= "" then value = value[field] end
    if type(value) == "function" then value = require "lsa.arity".counted(value, "lsa." .. name) end
    rawset(lsa, name, value)
    return value
  end,
})
