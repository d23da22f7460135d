-- Owns lsa.tasks: what policies are judged by.
--
--   task = lsa.tasks.stream{model = model, tokens = 16384}      or needle; options: lua/lsa/tasks/NAME.lua
--   row = task:run{select = "lsa_topk", budget = 0.1}           task:close()
local options = require "lsa.options"
local models = require "lsa.model"

local M = {}

for _, name in ipairs {"needle", "stream"} do
  M[name] = function(given)
    local what = "lsa.tasks." .. name
    local own = options.copy(given or {})
    local model = models.check(own.model, what .. ": model")
    own.model = nil
    return require(what).task(model, own)
  end
end

return M
