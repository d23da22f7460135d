-- Traces for training: the backbone runs over texts once, and what the Memory Indexer learns from is written down.
--
--   ./lsa experiments/dump.lua MODEL TEXTS... -o FOLDER [--help]
local lsa = require "lsa"
local dump = require "lsa.dump"
local progress = require "lsa.progress"

local opt = require "lsa.args" [[
Runs a model over texts, each a document, and writes a trace of each: FOLDER/NAME.safetensors.
A finished trace is passed over, so a run that was stopped, or killed, goes on where it is started again.
  <model> (string)             a model's short name (lsa.model) or directory
  <texts...> (string)          files
  -o,--output (string)         the folder of the traces
  --layers (default all)       CSA ordinals of hidden states and index keys, as in 10,12,20
  --voters (default all)       CSA ordinals whose top-k make the labels
  --from (default 0)           position of the first step
  --every (default 1)          positions from one step to the next
  --by (default scores)        what its picks are weighed by: scores, or the attention that they got
  --least (default 0)          of attention: picks that got less do not count
  --top_p (default 0.6)        of each layer's top-k, the best that have more than this share (of the softmax) are kept
  --k (default 512)            so many of each layer's top-k count
  --min_layers (default 0)     a chunk that so many layers keep is golden; 0: a seventh of them
  --extra                      each layer keeps one more, as the reference code does
  --logits (default 0)         native logits of so many first steps (at most 3), for checks
  --compute (default f32)      f32 or bf16
]]

local function name_of(path)
  return (path:match "[^/]+$":gsub("(.)%.%w+$", "%1"))
end

local function layers_of(text)
  if text == "all" then return nil end
  local out = {}
  for number in text:gmatch "[^,]+" do
    out[#out + 1] = tonumber(number) or error(("%q is not a number"):format(number), 0)
  end
  return out
end

local directory = require "lsa.model".directory(opt.model)
local model = lsa.model(directory, {compute = opt.compute})
local documents = {}
for i, path in ipairs(opt.texts) do documents[i] = {name = name_of(path), file = path} end

local bar, before
local finished = {}
local function each(name, state, tokens)
  if state == "begun" then
    bar, before = progress(tokens, name), 0
  elseif state == "done" then
    bar:done()
  end
  if state ~= "begun" then finished[#finished + 1] = {name = name, state = state, path = ("%s/%s.safetensors"):format(opt.output, name)} end
  opt.report:say("%-40s %s", name, state)
  io.stdout:flush()
end

local paths, there = dump.documents(model, documents, opt.output, {
  layers = layers_of(opt.layers), voters = layers_of(opt.voters), from = opt.from, every = opt.every, by = opt.by, least = opt.least, top_p = opt.top_p, k = opt.k,
  min_layers = opt.min_layers > 0 and opt.min_layers or false, extra = opt.extra or false, logits = opt.logits,
  progress = function(done)
    bar:step(done - before)
    before = done
  end,
}, each)
opt.report:say("%d traces in %s, %d of them were there", #paths, opt.output, there)
opt.report:table("traces", {"name", "state", "path"}, finished, "")
opt.report:done()
