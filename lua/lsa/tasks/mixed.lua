-- Owns the mixed task: items of several kinds hidden in one context, so that one prefill serves them all and each is among the others'
-- statements.
--   kinds   of lua/lsa/tasks/items.lua, all where not given        items   of each kind in a context
local asked = require "lsa.tasks.asked"
local items = require "lsa.tasks.items"

return {task = function(model, opt) return asked.kinds(model, opt, items.names, "mixed.task") end}
