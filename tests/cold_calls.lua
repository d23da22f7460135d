-- Decodes the same with its cold tier in memory and on disk, and prints whether the tokens are the same, how many cycles failed, and
-- whether anything is on disk: cold_calls.lua MODEL FOLDER
local lsa = require "lsa"
local model, folder = lsa.model(arg[1]), arg[2]
local ids = {}
for i = 1, 5000 do ids[i] = (i * 7919 + 13) % tonumber(model.config.vocab) end
local texts, last = {}, nil
for i, cold in ipairs {"ram", "disk:" .. folder} do
  local s = model:session{select = "random", budget = 0.1, every = 4, cold = cold}
  s:prefill(ids)
  texts[i] = table.concat(s:generate{n = 24}, " ")
  last = s:stats()
end
print(texts[1] == texts[2] and "same" or "other", last.policy_errors, last.disk_bytes > 0 and "disk" or "memory")
