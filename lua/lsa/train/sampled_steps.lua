-- Owns which decode steps a training step sees, and which chunks of each: positives from the golden labels, negatives from
-- a sampler. Everything follows from seed, training step and place in the batch, so nothing of it needs to be saved but
-- what a sampler remembers.
--
-- A sampler is a file in lua/lsa/samplers/, or any file or function: return function(sample, opt) ... return ids end, ids a
-- list or i32 tensor of at most `want` chunks that are not golden.
--   sample.want, n, positives     how many to give; candidates are 0 .. n-1; an i32 tensor of golden chunks that are trained
--   sample.document, step, position, number      which decode step of which document (from 0); the training step (from 0)
--   sample:uniform(k, but)        an i32 tensor of k chunks, each as likely, neither golden nor in the list `but`
--   sample:scores()               [n] f32: logits as the indexer is now, the highest of the layers; golden ones are -inf
--   sample.rng, sample.state      rng() in 0 .. 1, rng(n) in 0 .. n-1; a table of plain data that is the sampler's own
local ffi = require "ffi"
local bit = require "bit"
local lib = require "lsa.ffi"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local M = {}

registry.singular.samplers = "sampler"

-- ---- one sample, as its sampler sees it ----

local Sample = {}
Sample.__index = Sample

-- A set of ids as bits; little-endian halves of the C side's 64-bit words.
local function mark(bits, id, on)
  local word, mask = bit.rshift(id, 5), bit.lshift(1, bit.band(id, 31))
  bits[word] = on and bit.bor(bits[word], mask) or bit.band(bits[word], bit.bnot(mask))
end

local function marked(bits, id)
  return bit.band(bits[bit.rshift(id, 5)], bit.lshift(1, bit.band(id, 31))) ~= 0
end

function Sample:uniform(k, but)
  local out = tensor.zeros({k}, "i32")
  local bits, added = self.batches.bits, {}
  for _, id in ipairs(but or {}) do
    if not marked(bits, id) then
      mark(bits, id, true)
      added[#added + 1] = id
    end
  end
  local n = tonumber(C.lsa_sample_others(out:pointer(), k, self.n, ffi.cast("uint64_t *", bits), self.random))
  for _, id in ipairs(added) do mark(bits, id, false) end
  return n < k and out:narrow(0, 0, n) or out
end

function Sample:scores()
  local out = self.batches.score(self.document, self.step, self.n)
  local to = out:pointer()
  for id = 0, self.n - 1 do
    if marked(self.batches.bits, id) then to[id] = -math.huge end
  end
  return out
end

-- ---- batches ----

local Batches = {}
Batches.__index = Batches

-- Leaves of a document's eligible steps those whose position is wanted; how many.
local function filtered(doc, wanted)
  local steps, kept = doc.eligible_steps, 0
  for i = 0, doc.eligible_count - 1 do
    if wanted(tonumber(doc.golden.positions[steps[i]])) then steps[kept], kept = steps[i], kept + 1 end
  end
  return kept
end

-- opt: documents, batch, positives, ratio, sampler, seed, min_layers, csa_layers, vote_weights, frequent; where(document, position): false, or whether
-- such a step is trained;
-- score(document, step, n): logits of all candidates, for samplers that ask.
function M.new(opt)
  local self = setmetatable({opt = opt, documents = opt.documents, score = opt.score, state = {}, ends = {}}, Batches)
  self.sampler = registry.open("samplers", opt.sampler)
  local chunks, total = 0, 0
  for i, doc in ipairs(opt.documents) do
    doc.eligible_steps, doc.eligible_count = doc:eligible()
    if opt.where then doc.eligible_count = filtered(doc, function(position) return opt.where(i, position) end) end
    doc.often = opt.frequent < 1 and doc:frequent(opt.frequent) or nil
    total = total + doc.eligible_count
    self.ends[i] = total
    chunks = math.max(chunks, doc.chunks)
  end
  if total == 0 then raise("lsa.trainer: no step of %d traces has a golden chunk within its window%s", #opt.documents,
    opt.where and " where training is wanted" or "") end
  self.total = total
  self.bits = ffi.new("int32_t[?]", 2 * math.ceil(chunks / 64))
  local most = opt.positives + math.ceil(opt.positives * opt.ratio)
  self.most = most
  self.ids, self.weights = ffi.new("int32_t[?]", opt.batch * most), ffi.new("float[?]", opt.batch * most)
  return self
end

-- The document of the i-th eligible step, and the step.
function Batches:locate(i)
  local low, high = 1, #self.ends
  while low < high do
    local middle = math.floor((low + high) / 2)
    if i < self.ends[middle] then high = middle else low = middle + 1 end
  end
  return low, self.documents[low].eligible_steps[i - (low > 1 and self.ends[low - 1] or 0)]
end

local function generator(state)
  local rng = require("lsa.cycle.rng").new(1)
  rng.state = state
  return rng
end

local function as_ids(answer, entry)
  if tensor.is(answer) and answer:dtype() == "i32" then return answer:contiguous():pointer(), answer:count() end
  if type(answer) ~= "table" then
    raise("the %s returned %s; a list or i32 tensor of chunks is wanted", tostring(entry), raise.kind(answer))
  end
  return ffi.new("int32_t[?]", #answer, answer), #answer
end

-- The sampler's negatives behind the positives; how many.
function Batches:negatives(sample, ids, at)
  local ok, answer = self.sampler:call(sample)
  if not ok then error(answer, 0) end
  local from, n = as_ids(answer, self.sampler)
  if n > sample.want then
    raise("the %s returned %d chunks; %d are wanted", tostring(self.sampler), n, sample.want)
  end
  for i = 0, n - 1 do
    local id = from[i]
    if id < 0 or id >= sample.n or marked(self.bits, id) then
      raise("the %s returned chunk %d, which is %s", tostring(self.sampler), id,
        id >= 0 and id < sample.n and "golden" or ("none of the %d candidates"):format(sample.n))
    end
    ids[at + i] = id
  end
  return n
end

-- Fills sample `place` of training step `number`; returns its record.
function Batches:draw(number, place)
  local opt = self.opt
  local random = ffi.new("uint64_t[1]", C.lsa_sample_seed(opt.seed, number, place))
  local rng = generator(random)
  local which, step = self:locate(rng(self.total))
  local doc, base = self.documents[which], place * self.most
  local all = doc:find_positives(step)
  local positives = math.min(all, opt.positives)
  for i = 0, all - 1 do mark(self.bits, doc.ids[i], true) end
  if positives < all then C.lsa_sample_subset(doc.ids, doc.votes, all, positives, random) end
  ffi.copy(self.ids + base, doc.ids, positives * 4)
  local kept = tensor.zeros({positives}, "i32")
  ffi.copy(kept:pointer(), doc.ids, positives * 4)
  local n = doc:candidates(step)
  local sample = setmetatable({batches = self, document = which - 1, step = step, n = n, number = number, rng = rng,
    random = random, state = self.state, positives = kept, position = tonumber(doc.golden.positions[step]),
    want = math.min(math.ceil(positives * opt.ratio), n - all)}, Sample)
  local ok, negatives = pcall(self.negatives, self, sample, self.ids + base, positives)
  for i = 0, all - 1 do mark(self.bits, doc.ids[i], false) end
  if not ok then error(negatives, 0) end
  for i = 0, positives + negatives - 1 do self.weights[base + i] = 1 end
  if opt.vote_weights then
    C.lsa_golden_weights(self.weights + base, doc.ids, doc.votes, positives, opt.min_layers, opt.csa_layers, doc.often)
  end
  return {doc = doc, step = step, position = sample.position, ids = self.ids + base, weights = self.weights + base,
    positives = positives, negatives = negatives}
end

return M
