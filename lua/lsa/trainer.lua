-- Owns decoupled training (LSA paper, Sec. 3): Memory Indexers learn from traces, the model itself is never run.
--
--   trainer = lsa.trainer{model = model, traces = {"a.safetensors", …}, steps = 2000, checkpoint = "indexer.state"}
--   trainer:run{progress = true}      to the end; a killed run goes on from its checkpoint when it is started again
--   trainer:step() -> {step, loss, rate, norm, ids, ms, skipped}
--   ix = trainer:indexer()            as lsa.indexer{…}, a copy of the weights as they are;  ix:save "indexer.safetensors"
--   trainer:save(path)                weights, optimiser and sampler: what `checkpoint` is written with
--
-- A sample is one decode step: golden chunks of its coming steps, and others (lua/lsa/train/sampled_steps.lua). The loss is the mean over
-- layers and samples. On a GPU, weights and gradients lie there; the losses are the CPU's but for rounding. A step whose loss or gradient is no number changes nothing; ten in a row are an error.
local ffi = require "ffi"
local batches = require "lsa.train.sampled_steps"
local devices = require "lsa.devices"
local documents = require "lsa.train.documents"
local interrupts = require "lsa.interrupts"
local lib = require "lsa.ffi"
local real = require "lsa.tensor.real"
local options = require "lsa.options"
local raise = require "lsa.raise"
local ranks = require "lsa.train.ranks"
local state = require "lsa.train.trainer_state"
local tensor = require "lsa.tensor.tensor"

local C = lib.C
local check = raise.check

local M = {}
local Trainer = {}
Trainer.__index = Trainer

local defaults = {
  model = false,           -- rope, key format and sizes; weights to start from
  traces = false,          -- files, or tables of their tensors
  layers = false,          -- CSA ordinals; those of the first trace
  from = false,            -- "native" (where rank and heads are the model's), "random", or a file of lsa.indexer's
  rank = false, heads = false,             -- the native indexer's
  loss = "bce",            -- on sigmoid(logit): "bce", "focal", "none"
  pairwise = "none",       -- over pairs of a golden chunk and another: "hinge", "bpr"
  factor = 1, margin = 1,  -- of the pairwise loss; of the hinge
  weights = "votes",       -- of golden chunks: by votes, or "none"
  min_layers = false,      -- votes that make a chunk golden; ceil(layers / 7)
  frequent = 0.8,          -- golden in more than this share of a document's steps: weight 0.5
  where = false,           -- function(number of the trace, position): whether such a step is trained
  window = 64, first = 1,  -- a step's golden chunks are those of positions p + first .. p + first + window - 1
  positives = 512,         -- at most, of a sample; beyond, a random subset
  negatives = 1,           -- for each positive
  sampler = "uniform",     -- of negatives: a name in lua/lsa/samplers, a file, a function, or {one of these, option = …}
  steps = 1000, batch = 64,
  rate = 1e-4, warmup = 0, -- steps in which the rate rises from 0; then it falls to 0 as a cosine
  decay = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8,
  clip = 1,                -- largest norm of the gradient over all layers; 0: none
  seed = 1,
  checkpoint = false,      -- a file, written every `every` steps and at the end, and gone on from where it is there
  every = 100,
  ensemble = "max",        -- of the indexer that comes out
  device = "cpu",          -- "cpu"; "cuda": the first GPU, of ranks each its own in turn; "cuda:1": the second
  parallel = false,        -- "mpi", "nccl": the ranks of this mpirun share each batch, by it or between GPUs; rank 0 writes the checkpoint
}

M.class, M.defaults = Trainer, defaults

local MOST_CHUNKS = 2 ^ 28  -- of a training step

local pointwise = {none = C.LSA_POINTWISE_NONE, bce = C.LSA_POINTWISE_BCE, focal = C.LSA_POINTWISE_FOCAL}
local pairwise = {none = C.LSA_PAIRWISE_NONE, hinge = C.LSA_PAIRWISE_HINGE, bpr = C.LSA_PAIRWISE_BPR}

local function positive(opt, names)
  for _, name in ipairs(names) do options.number(opt[name], 0, "lsa.trainer: " .. name) end
end

local function checked(opt)
  opt = options.check(opt, defaults, "lsa.trainer")
  require("lsa.model").check(opt.model, "lsa.trainer: model, which gives the rope and the indexer's sizes,")
  options.list(opt.traces, "lsa.trainer: traces")
  if opt.layers then
    for _, layer in ipairs(options.list(opt.layers, "lsa.trainer: layers")) do
      options.whole(layer, 0, "lsa.trainer: layer", #opt.model.csa_layers - 1)
    end
  end
  devices.parse(opt.device, "lsa.trainer: device")
  if opt.checkpoint then options.path(opt.checkpoint, "lsa.trainer: checkpoint") end
  for _, name in ipairs {"rank", "heads", "min_layers"} do
    if opt[name] then options.whole(opt[name], 1, "lsa.trainer: " .. name, 2 ^ 20) end
  end
  if opt.where and type(opt.where) ~= "function" then raise("lsa.trainer: where is %s; a function is wanted", raise.kind(opt.where)) end
  options.one_of(opt.loss, {"bce", "focal", "none"}, "lsa.trainer: loss")
  options.one_of(opt.pairwise, {"none", "hinge", "bpr"}, "lsa.trainer: pairwise")
  options.one_of(opt.weights, {"votes", "none"}, "lsa.trainer: weights")
  for _, name in ipairs{"window", "positives", "steps", "batch", "every"} do
    options.whole(opt[name], 1, "lsa.trainer: " .. name)
  end
  for _, name in ipairs{"first", "warmup", "seed"} do options.whole(opt[name], 0, "lsa.trainer: " .. name) end
  positive(opt, {"rate", "decay", "beta1", "beta2", "eps", "clip", "negatives", "factor", "margin", "frequent"})
  if opt.batch * opt.positives * (1 + opt.negatives) > MOST_CHUNKS then
    raise("lsa.trainer: batch %d of %d positives with %g negatives each; at most %d chunks a step are possible", opt.batch,
      opt.positives, opt.negatives, MOST_CHUNKS)
  end
  return opt
end

local function open_documents(opt)
  local horizon, list = documents.horizon(opt.model, opt.window, opt.first), {}
  for i, trace in ipairs(opt.traces) do list[i] = documents.open(trace, opt.layers, opt.model, horizon) end
  return list
end

-- Where this rank trains: where no number is given, ranks have the GPUs in turn.
local function join(opt)
  local device = devices.parse(opt.device, "lsa.trainer: device")
  local joined = ranks.join(opt.parallel, device)
  if device.kind == "cuda" and not device.numbered and joined.size > 1 then
    local count = C.lsa_device_count()
    if count > 0 then device.gpu = joined.rank % count end
  end
  joined:connect(device)
  return joined, device
end

function M.new(opt)
  opt = checked(opt)
  opt.layers = opt.layers or documents.layers((documents.load(opt.traces[1])))
  if #opt.layers == 0 then raise "lsa.trainer: the first trace has no layers" end
  local c = opt.model.config
  opt.rank, opt.heads = opt.rank or tonumber(c.q_rank), opt.heads or tonumber(c.index_heads)
  opt.min_layers = opt.min_layers or math.ceil(#opt.model.csa_layers / 7)
  local self = setmetatable({opt = opt, model = opt.model, layers = opt.layers, steps_done = 0, skipped = 0}, Trainer)
  self.ranks, self.device = join(opt)
  self.c = state.new(opt, self.device)
  self.documents = open_documents(opt)
  self.batches = batches.new{documents = self.documents, batch = opt.batch, positives = opt.positives,
    ratio = opt.negatives, sampler = opt.sampler, seed = opt.seed, min_layers = opt.min_layers,
    csa_layers = #opt.model.csa_layers, vote_weights = opt.weights == "votes", frequent = opt.frequent, where = opt.where,
    score = function(document, step, n) return self:highest(document, step, n) end}
  self.loss = ffi.new("lsa_index_loss", {pointwise[opt.loss], pairwise[opt.pairwise], opt.factor, opt.margin})
  self.from, self.to = self.ranks:share(opt.batch)
  self.samples = ffi.new("lsa_training_sample[?]", math.max(1, self.to - self.from))
  state.start(self)
  if opt.checkpoint and C.lsa_file_exists(opt.checkpoint) == 1 then state.load(self, opt.checkpoint) end
  return self
end

-- ---- one step ----

local function point_at(sample, doc, step, layer)
  local hidden, keys = doc.hidden[layer], doc.keys[layer]
  sample.hidden = ffi.cast("const uint8_t *", hidden.c.data) + step * (hidden:bytes() / doc.steps)
  sample.hidden_dtype = hidden.c.dtype
  sample.keys, sample.key_count = keys.c.data, doc.chunks
end

-- Logits [n] of all candidates of a step, the highest of the layers, with the weights as they are.
function Trainer:highest(document, step, n)
  local doc, sample = self.documents[document + 1], ffi.new "lsa_training_sample"
  local all = tensor.zeros({#self.layers, n}, "f32")
  for i, layer in ipairs(self.layers) do
    point_at(sample, doc, step, layer)
    sample.key_count, sample.position = n, doc.golden.positions[step]
    check(C.lsa_trainer_logits(self.c, i - 1, sample, all:pointer() + (i - 1) * n))
  end
  return all:max(0)
end

-- The rate of training step i, from 0: linear warm-up, then a cosine to 0.
function Trainer:rate(i)
  local opt = self.opt
  if i < opt.warmup then return opt.rate * (i + 1) / opt.warmup end
  local span = math.max(1, opt.steps - opt.warmup)
  return opt.rate * 0.5 * (1 + math.cos(math.pi * math.min(1, (i - opt.warmup) / span)))
end

-- Loss and gradients of one batch, this rank's part of it joined with the others'; how many chunks it had.
function Trainer:gradients(number)
  local opt, drawn, n = self.opt, {}, self.to - self.from
  local sums = ffi.new "double[2]"                       -- loss, chunks
  for i = 0, n - 1 do
    local one = self.batches:draw(number, self.from + i)
    local s = self.samples[i]
    s.ids, s.weights, s.positives, s.negatives, s.position = one.ids, one.weights, one.positives, one.negatives, one.position
    drawn[i], sums[1] = one, sums[1] + one.positives + one.negatives
  end
  local part = 1 / (opt.batch * #self.layers)
  for l, layer in ipairs(self.layers) do
    for i = 0, n - 1 do point_at(self.samples[i], drawn[i].doc, drawn[i].step, layer) end
    check(C.lsa_trainer_gradients(self.c, l - 1, self.samples, n, self.loss, part, sums))
  end
  self.ranks:sum_f32(C.lsa_trainer_all(self.c, C.LSA_TRAIN_GRADIENT), C.lsa_trainer_count(self.c))
  self.ranks:sum_f64(sums, 2)
  return real.f64(sums, 0), real.f64(sums, 1)
end

-- As gradients(); where Ctrl-C breaks it off, the sampler remembers what it did before.
local function gradients_or_none(self, number)
  local known, memory
  if interrupts.survived() then known, memory = pcall(state.memory, self) end
  local ok, loss, ids = pcall(self.gradients, self, number)
  if ok then return loss, ids end
  if known and interrupts.came() then state.remember(self, memory) end
  error(loss, 0)
end

Trainer.step = interrupts.method(function(self)
  local opt, began, number = self.opt, C.lsa_clock_ns(), self.steps_done
  if number >= opt.steps then raise("trainer: all %d steps are done", opt.steps) end
  local loss, ids = gradients_or_none(self, number)
  local how = ffi.new("lsa_adamw", {rate = self:rate(number), beta1 = opt.beta1, beta2 = opt.beta2, eps = opt.eps,
    decay = opt.decay, step = number + 1})
  local norm = ffi.new "double[1]"
  check(C.lsa_trainer_update(self.c, how, opt.clip, norm))
  local size = real.f64(norm, 0)
  local skipped = not (math.abs(size) < math.huge and math.abs(loss) < math.huge)
  self.skipped = skipped and self.skipped + 1 or 0
  self.steps_done = number + 1
  if self.skipped == 10 then raise("trainer: loss or gradient was no number in 10 steps up to %d; the last loss is %g", number, loss) end
  if opt.checkpoint and self.ranks.rank == 0 and (self.steps_done % opt.every == 0 or self.steps_done == opt.steps) then self:save(opt.checkpoint) end
  return {step = number, loss = loss, rate = how.rate, norm = size, ids = ids, skipped = skipped,
    ms = tonumber(C.lsa_clock_ns() - began) / 1e6}
end)

-- ---- many ----

local run_defaults = {steps = false, progress = false, on_step = false}
M.run_defaults = run_defaults

-- Up to opt.steps training steps (all that are left). on_step(row) sees each one, and ends the run by returning false.
function Trainer:run(opt)
  opt = options.check(opt, run_defaults, "trainer:run")
  local last = opt.steps and math.min(self.opt.steps, self.steps_done + opt.steps) or self.opt.steps
  local bar = opt.progress and self.ranks.rank == 0 and require "lsa.progress"(last - self.steps_done, "training")
  local row
  while self.steps_done < last do
    row = self:step()
    if bar then bar:step(1, ("loss %.4f, %.0f chunks/ms"):format(row.loss, row.ids / row.ms)) end
    if opt.on_step and opt.on_step(row) == false then break end
  end
  if bar then bar:done() end
  return row
end

-- ---- what comes out ----

function Trainer:save(path) state.save(self, path) end

-- The weights by checkpoint name, copied.
function Trainer:tensors() return state.weights(self) end

function Trainer:indexer(opt)
  opt = options.check(opt, {ensemble = self.opt.ensemble, looks = 1}, "trainer:indexer")
  return require("lsa.indexer").new({model = self.model, layers = self.layers, from = self:tensors(),
    ensemble = opt.ensemble, looks = opt.looks})
end

function Trainer:__tostring()
  local where = self.device.kind == "cuda" and (", on GPU %d"):format(self.device.gpu) or ""
  return ("trainer: CSA layers %s, rank %d, %d heads, %d documents, %d eligible steps, %d of %d training steps done%s"):format(
    table.concat(self.layers, ", "), self.opt.rank, self.opt.heads, #self.documents, self.batches.total, self.steps_done,
    self.opt.steps, where)
end

require("lsa.arity").methods(Trainer, "trainer:")

return M
