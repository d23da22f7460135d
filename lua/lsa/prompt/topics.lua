-- The calls that take options by name: the one place from which help, completion and the specs of the pages know what
-- there is to choose from. Their defaults are the modules' own; what an option means is said in the page's table.
--
--   topic.name     how it is called: "lsa.model", "model:session"
--   topic.call     its signature
--   topic.page     its page, lua/docs/<page>.md
--   topic.about    one line
--   topic.defaults()   name -> default, false where there is none
--   topic.shares       whether options that its own table leaves out are those of model:session
--   topic.f()      the function itself
--   topics.of(f)   the topic of a function, or nil;  topics.list in the order of a tour;  topics["lsa.model"]
--   topics.values  what an option can be: a list, the kind of rule that it names, or "file"
local arity = require "lsa.arity"

local M = {list = {}}

M.values = {
  select = "policies", policies = "policies", evict = "evictions", evictions = "evictions", every = "schedules",
  sampler = "samplers", of = "policies", kv = {"f32", "bf16", "fp8"}, compute = {"f32", "bf16"}, device = {"cpu", "cuda"},
  granularity = {"chunk", "page"}, ensemble = {"max", "mean"}, cold = {"ram", "disk:"}, indexer = {"native"},
  loss = {"bce", "focal", "none"}, pairwise = {"none", "hinge", "bpr"}, parallel = {"mpi"}, model = "models",
}

-- A line on each of what has no options.
M.others = {
  zeros = "a tensor of zeros: lsa.zeros({4, 128}, \"bf16\")", tensor = "a tensor of a table's numbers: lsa.tensor({{1, 2}, {3, 4}}, \"i32\")",
  ones = "a tensor of ones", full = "a tensor of one number", arange = "numbers from, from + step, ... before to",
  linspace = "n numbers, both ends among them", eye = "the identity matrix", rand = "uniform numbers of [0, 1)",
  randn = "numbers of the normal distribution", cat = "tensors joined along a dimension", stack = "tensors joined along a new dimension",
  set = "a set of ids 0 .. n-1", load = "tensors of a .safetensors, .npy, .pt or pickle file", save = "writes tensors to such a file",
  kernels = "every kernel as a checked call", accounting = "bytes and FLOPs of models of any size", tasks = "what policies are judged by",
  policies = "which chunks the next steps may use", evictions = "who leaves the hot pool", schedules = "when the next cycle is due",
  samplers = "which chunks a trained indexer learns to leave out", root = "the tree's folder", version = "of lsa",
  plot = "pictures of numbers and results", display = "shows values in the middle of a notebook's cell",
  cuda = "kernels of a script's own on the GPU",
  interact = "a prompt at this line of a script, with its locals",
}

-- The value of `path`, fields divided by dots, in a module.
local function field(module, path)
  return function()
    local value = require(module)
    for name in path:gmatch "[^.]+" do value = value and value[name] end
    return value
  end
end

local shares = {["lsa.batch"] = true, ["batch:submit"] = true, ["model:restore"] = true, ["session:fork"] = true, ["lsa.replay"] = true}

local function topic(name, page, call, about, f, defaults)
  local one = {name = name, page = page, call = call, about = about, f = field(unpack(f)),
    defaults = defaults and field(unpack(defaults)) or nil}
  one.shares = shares[name] or false
  M.list[#M.list + 1] = one
  M[name] = one
end

topic("lsa.model", "model", "lsa.model(name or folder, {…}) -> model", "loads a model: its weights, and the sessions on them",
  {"lsa.model", "new"}, {"lsa.model", "defaults"})
topic("model:session", "session", "model:session{…} -> session", "a session: tokens, their cached KV, and the policy that says what stays near",
  {"lsa.model", "class.session"}, {"lsa.session", "defaults"})
topic("model:restore", "session", "model:restore(path, {…}) -> session", "a session that s:save wrote, to go on with",
  {"lsa.model", "class.restore"}, {"lsa.session", "restorable"})
topic("session:fork", "session", "s:fork{…} -> session", "a session that shares what is cached, under another policy if you like",
  {"lsa.session", "class.fork"}, {"lsa.session", "forkable"})
topic("session:prefill", "session", "s:prefill(tokens or text, {…}) -> logits", "full attention over tokens; makes a cycle due",
  {"lsa.session", "class.prefill"}, {"lsa.session", "prefill_options"})
topic("session:fill", "session", "s:fill(n, {…}) -> logits", "a synthetic context of n tokens in place of a prefill's, to measure costs on",
  {"lsa.session", "class.fill"}, {"lsa.session", "fill_options"})
topic("session:generate", "session", "s:generate{…} -> ids, ended", "decodes until a stop, or n tokens",
  {"lsa.session", "class.generate"}, {"lsa.session", "generate_options"})
topic("lsa.batch", "batch", "lsa.batch(model, {…}) -> batch", "many requests over one hot pool; takes a session's options, too",
  {"lsa.batch", "new"}, {"lsa.batch", "options"})
topic("batch:submit", "batch", "b:submit{…} -> id", "queues a request", {"lsa.batch", "class.submit"}, {"lsa.serve.request", "options"})
topic("batch:run", "batch", "b:run{…} -> stats", "until all requests are finished", {"lsa.batch", "class.run"}, {"lsa.batch", "run_options"})
topic("lsa.replay", "replay", "lsa.replay(path, {…}) -> replay", "any policy, eviction and schedule on a recorded session, without the model",
  {"lsa.replay", "new"}, {"lsa.replay", "options"})
topic("lsa.cache", "cache", "lsa.cache{pages = ids, capacity = n, evict = …} -> {hits =, misses =}", "an eviction policy on a trace of accesses",
  {"lsa.cache", "new"}, {"lsa.cache", "options"})
topic("lsa.pool", "pool", "lsa.pool{…} -> pool", "two tiers of chunk records, without a model", {"lsa.pool", "new"}, {"lsa.pool", "defaults"})
topic("lsa.cuda.kernel", "cuda", "lsa.cuda.kernel(source, name, {…}) -> kernel", "a CUDA kernel of your own, compiled now",
  {"lsa.cuda.kernel", "new"}, {"lsa.cuda.kernel", "options"})
topic("lsa.indexer", "indexer", "lsa.indexer{…} -> indexer", "a Memory Indexer: which chunks the next steps will need",
  {"lsa.indexer", "new"}, {"lsa.indexer", "defaults"})
topic("lsa.dump", "training", "lsa.dump(model, tokens, path, {…})", "a document's trace: hidden states, index keys, golden labels",
  {"lsa.dump", "document"}, {"lsa.dump", "defaults"})
topic("lsa.trainer", "training", "lsa.trainer{…} -> trainer", "trains a Memory Indexer on traces", {"lsa.trainer", "new"}, {"lsa.trainer", "defaults"})
topic("trainer:run", "training", "trainer:run{…}", "training steps, to the end or so many", {"lsa.trainer", "class.run"}, {"lsa.trainer", "run_defaults"})
topic("lsa.evaluate", "training", "lsa.evaluate{…} -> result", "precision, recall and calibration of a Memory Indexer",
  {"lsa.evaluate", "run"}, {"lsa.evaluate", "defaults"})
topic("lsa.eval", "eval", "lsa.eval{…} -> table", "policies on several tasks, compared question by question", {"lsa.eval", "new"}, {"lsa.eval", "options"})
topic("lsa.sweep", "sweep", "lsa.sweep{…} -> table", "a function of some parameters, or a task, run over all their combinations",
  {"lsa.sweep", "new"}, {"lsa.sweep", "options"})

function M.of(f)
  for _, one in ipairs(M.list) do
    if f ~= nil and arity.original(one.f()) == arity.original(f) then return one end
  end
end

return M
