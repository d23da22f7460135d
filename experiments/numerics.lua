-- What number formats do to the logits: KV records in f32, bf16 and fp8, and activations in bf16, against all in f32.
--
--   ./lsa experiments/numerics.lua [--help]
local lsa = require "lsa"
local texts = require "lsa.texts"

local opt = require "lsa.args" [[
Effect of kv and compute on the logits of the last positions of a text.
  --tokens (default 8192)     length of the text
  --last (default 512)        positions compared, at its end
  --model (default needle)    a model's short name (lsa.model) or directory
  --text (default bible)      a file; bible is the text of Debian's bible-kjv
]]

local directory = require "lsa.model".directory(opt.model)
local text = texts.open(opt.text):sub(1, opt.tokens)

-- Logits [last, vocab] of the text's last positions.
local function logits(compute, kv)
  local model = lsa.model(directory, {compute = compute})
  local s = model:session{select = "full", kv = kv}
  local tokens = model:tokens(text)
  local head, tail = {}, {}
  for i = 1, #tokens do
    if i <= #tokens - opt.last then head[#head + 1] = tokens[i] else tail[#tail + 1] = tokens[i] end
  end
  s:prefill(head)
  return s:prefill(tail, {all = true}), tail
end

-- Mean negative log-likelihood of the next token, in nats.
local function loss(rows, tokens)
  local p, vocab, sum = rows:pointer(), rows:shape()[2], 0
  for t = 0, #tokens - 2 do
    local most, z = -math.huge, 0
    for v = 0, vocab - 1 do most = math.max(most, p[t * vocab + v]) end
    for v = 0, vocab - 1 do z = z + math.exp(p[t * vocab + v] - most) end
    sum = sum + most + math.log(z) - p[t * vocab + tokens[t + 2]]
  end
  return sum / (#tokens - 1)
end

local reference, tokens = logits("f32", "f32")
local a, rows, vocab = reference:pointer(), unpack(reference:shape())
local report, measured = opt.report, {}
report:say("%d tokens of text, last %d positions; largest logit %.1f\n", opt.tokens, opt.last, reference:max())
report:say("%-8s %-6s %12s %12s %10s %12s", "compute", "kv", "median diff", "max diff", "same best", "loss (nats)")
for _, case in ipairs {{"f32", "f32"}, {"f32", "bf16"}, {"f32", "fp8"}, {"bf16", "f32"}, {"bf16", "bf16"}, {"bf16", "fp8"}} do
  local got = logits(case[1], case[2])
  local b, worst, same = got:pointer(), {}, 0
  for t = 0, rows - 1 do
    local w = 0
    for i = t * vocab, (t + 1) * vocab - 1 do w = math.max(w, math.abs(a[i] - b[i])) end
    worst[t + 1] = w
    if got:row(t):argmax() == reference:row(t):argmax() then same = same + 1 end
  end
  table.sort(worst)
  local row = {compute = case[1], kv = case[2], median_difference = worst[math.ceil(rows / 2)], largest_difference = worst[rows],
    same_best = same / rows, loss = loss(got, tokens)}
  measured[#measured + 1] = row
  report:say("%-8s %-6s %12.2e %12.2e %9.1f%% %12.4f", row.compute, row.kv, row.median_difference, row.largest_difference, 100 * row.same_best,
    row.loss)
end
report:table("formats", {"compute", "kv", "median_difference", "largest_difference", "same_best", "loss"}, measured, "")
report:done()
