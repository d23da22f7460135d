-- Owns dumps: the backbone runs over a document once, and what training needs of it becomes a trace.
--
--   dump.document(model, tokens, "doc.safetensors", {layers = {0, 2}, from = 0, every = 1, top_p = 0.6})
--   paths = dump.documents(model, {{name = "doc", tokens = tokens or text = "…" or file = "doc.txt"}, …}, "folder", options)
--
-- Every teacher-forced position is a step, or those of `from` and `every`: T steps over a document of N chunks; L is a CSA ordinal.
--   hidden_layer_{L} [T, D] bf16, positions_layer_{L} [T] i64, compk_layer_{L} [N, bytes] u8    of the chosen layers
--   label_pointers [T + 1], label_indices, label_scores i32      golden labels (lua/lsa/train/labels.lua) of the CSA layers `voters`, in CSR
--   logits_layer_{L}_token_{i} [N] f32                           native logits of the first steps, -inf where a chunk is yet to come
-- Memory does not grow with the document beyond its cache. A file appears when it is complete; dump.documents passes over those
-- that are there, made with the same options from the same text.
local ffi = require "ffi"
local cjson = require "cjson"
local bit = require "bit"
local intermediates = require "lsa.session.intermediates"
local labels = require "lsa.train.labels"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local make_folder = require "posix.sys.stat".mkdir
local interrupts = require "lsa.interrupts"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"
local writer = require "lsa.files.safetensors_writer"

local C = lib.C
local check = raise.check

local M = {}

local KEYS = 65536           -- index keys written at a time

local defaults = {
  layers = false,            -- CSA ordinals of hidden states and keys: all
  from = 0, every = 1,       -- the first step's position, and from one to the next
  voters = false,            -- CSA ordinals whose picks count for labels: all
  by = "scores",             -- what a layer's picks are weighed by for labels: "scores", its index scores (the paper's way), or
                             -- "attention", what they got of the layer's attention, a mean over heads; then
  least = 0,                 -- those that got less are no picks
  top_p = 0.6, k = false, min_layers = false, extra = false,   -- as labels.mine has them
  logits = 0,                -- of so many steps, at most 3
  progress = false,          -- function(tokens done, of how many)
}

M.defaults = defaults

local function checked(model, opt)
  require("lsa.model").check(model, "dump: model")
  opt = options.check(opt, defaults, "dump")
  for name, least in pairs {from = 0, every = 1, logits = 0} do options.whole(opt[name], least, "dump: " .. name) end
  if opt.logits > 3 then raise("dump: logits is %d, at most 3 steps have them", opt.logits) end
  local all = #model.csa_layers
  if all == 0 then raise "dump: the model has no CSA layers" end
  for _, name in ipairs {"layers", "voters"} do
    if not opt[name] then
      opt[name] = {}
      for l = 0, all - 1 do opt[name][l + 1] = l end
    end
    for _, l in ipairs(options.list(opt[name], "dump: " .. name)) do
      options.whole(l, 0, "dump: layer")
      if l >= all then raise("dump: layer %d; the model has %d CSA layers", l, all) end
    end
  end
  opt.min_layers = opt.min_layers or labels.min_layers(#opt.voters)
  options.whole(opt.min_layers, 1, "dump: min_layers")
  local most = tonumber(model.config.index_topk)
  if opt.k then options.whole(opt.k, 1, "dump: k") end
  options.number(opt.top_p, 0, "dump: top_p")
  options.one_of(opt.by, {"scores", "attention"}, "dump: by")
  options.number(opt.least, 0, "dump: least")
  if opt.by == "scores" and opt.least > 0 then raise("dump: least is %g, and labels are by scores; it is of attention", opt.least) end
  options.boolean(opt.extra or false, "dump: extra")
  opt.k = math.min(opt.k or 512, most)
  return opt
end

-- A number that other tokens will hardly have: FNV-1a.
local function digest(tokens)
  local h = 0xcbf29ce484222325ULL
  for i = 1, #tokens do h = bit.bxor(h, tokens[i]) * 0x100000001b3ULL end
  return bit.tohex(h)
end

-- What a trace says of itself: a finished one is passed over when this is equal.
local function about(model, tokens, opt)
  local c = model.config
  return {model = (model.directory or model.name):match "[^/]+/*$":gsub("/*$", ""), weight_bytes = tonumber(model.c.weight_bytes), compute = model.compute,
    tokens = #tokens, digest = digest(tokens), layers = opt.layers, voters = opt.voters, from = opt.from, every = opt.every, by = opt.by, least = opt.least, top_p = opt.top_p, k = opt.k,
    min_layers = opt.min_layers, extra = opt.extra, logits = opt.logits, csa_layers = #model.csa_layers,
    csa_rate = tonumber(c.csa_rate), hidden = tonumber(c.hidden), index_dim = tonumber(c.index_dim)}
end

-- JSON that is the same text for the same values.
local function text_of(value)
  if type(value) ~= "table" then return cjson.encode(value) end
  local keys, out = {}, {}
  if #value > 0 then
    for i, item in ipairs(value) do out[i] = text_of(item) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do out[i] = cjson.encode(key) .. ":" .. text_of(value[key]) end
  return "{" .. table.concat(out, ",") .. "}"
end

-- ---- one document ----

local function open_writer(self, path)
  local c, list, T, N = self.model.config, {}, self.steps, self.chunks
  local bytes = tonumber(C.lsa_index_key_bytes(C.LSA_KV_FP8, c.index_dim))
  for _, l in ipairs(self.opt.layers) do
    local function add(name, dtype, shape) list[#list + 1] = {name:format(l), dtype, shape} end
    add("hidden_layer_%d", "bf16", {T, tonumber(c.hidden)})
    add("positions_layer_%d", "i64", {T})
    add("compk_layer_%d", "u8", {N, bytes})
    for i = 0, self.with_logits - 1 do add("logits_layer_%d_token_" .. i, "f32", {N}) end
  end
  list[#list + 1] = {"label_pointers", "i32", {T + 1}}
  list[#list + 1] = {"label_indices", "i32"}
  list[#list + 1] = {"label_scores", "i32"}
  return writer.new(path, list, {format = "lsa document 1", about = text_of(self.about)})
end

-- Buffers of a piece: rows of hidden states, picks of all layers [layers, rows, width], and their labels.
local function buffers(self)
  local c, rows, layers = self.model.config, self.piece, #self.opt.voters
  local width = tonumber(c.index_topk)
  local room = tonumber(C.lsa_golden_labels_room(rows, layers, width, self.opt.min_layers))
  return {hidden = tensor.empty({rows, tonumber(c.hidden)}, "bf16"), positions = tensor.empty({rows}, "i64"),
    ids = tensor.empty({layers * rows * width}, "i32"), logits = tensor.empty({layers * rows * width}, "f32"),
    pointers = tensor.empty({rows + 1}, "i32"), indices = tensor.empty({room}, "i32"), scores = tensor.empty({room}, "i32"),
    workspace = tensor.empty({tonumber(C.lsa_golden_labels_workspace(layers, width, self.chunks))}, "u8")}
end

-- Copies the steps' rows out of a trace's piece: first, first + every, ...; all at once where they are next to each other.
local function take_rows(self, to, dtype, data, cols, first, rows)
  local code, size = C.lsa_dtype_of(dtype), tonumber(C.lsa_dtype_size(C.lsa_dtype_of(dtype)))
  to = ffi.cast("char *", to)
  if self.opt.every == 1 then
    check(C.lsa_convert_cpu(to, data + first * cols, rows * cols, code, C.LSA_F32, nil))
    return
  end
  for i = 0, rows - 1 do
    check(C.lsa_convert_cpu(to + i * cols * size, data + (first + i * self.opt.every) * cols, cols, code, C.LSA_F32, nil))
  end
end

-- A piece's intermediates by name: float *, columns.
local function by_name(trace)
  local out, rows, cols = {}, ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  for i = 0, tonumber(C.lsa_trace_count(trace)) - 1 do
    local data = C.lsa_trace_data(trace, i, rows, cols)
    out[ffi.string(C.lsa_trace_name(trace, i))] = {data, tonumber(cols[0])}
  end
  return out
end

local function write_hidden(self, found, first, rows, position)
  local b, w = self.buffers, self.writer
  for i = 0, rows - 1 do b.positions:pointer()[i] = position + i * self.opt.every end
  for _, l in ipairs(self.opt.layers) do
    local data, cols = unpack(found[("layer.%d.attn_input"):format(self.model.csa_layers[l + 1])])
    take_rows(self, b.hidden.c.data, "bf16", data, cols, first, rows)
    w:write("hidden_layer_" .. l, b.hidden.c.data, rows * cols)
    w:write("positions_layer_" .. l, b.positions.c.data, rows)
  end
end

-- Logits whose softmax are n shares of attention; those below `least` are no entries.
local function log_shares(shares, n, least)
  for i = 0, n - 1 do shares[i] = shares[i] > 0 and shares[i] >= least and math.log(shares[i]) or -math.huge end
end

local function write_labels(self, found, first, rows)
  local b, w, opt = self.buffers, self.writer, self.opt
  local layers, width = #opt.voters, tonumber(self.model.config.index_topk)
  local ids, logits = b.ids:pointer(), b.logits:pointer()
  for i, l in ipairs(opt.voters) do
    local at, layer = (i - 1) * rows * width, self.model.csa_layers[l + 1]
    take_rows(self, ids + at, "i32", found[("layer.%d.index_topk"):format(layer)][1], width, first, rows)
    take_rows(self, logits + at, "f32", found[("layer.%d.%s"):format(layer, self.weighed)][1], width, first, rows)
    if opt.by == "attention" then log_shares(logits + at, rows * width, opt.least) end
  end
  if opt.k < width then
    local n = layers * rows
    local best, values = labels.best(b.ids:narrow(0, 0, n * width):reshape {n, width},
      b.logits:narrow(0, 0, n * width):reshape {n, width}, opt.k)
    ids, logits, width = best:pointer(), values:pointer(), opt.k
    b.best, b.values = best, values
  end
  local pointers = b.pointers:pointer()
  check(C.lsa_golden_labels_cpu(pointers, b.indices:pointer(), b.scores:pointer(), ids, logits, rows, layers, width, width,
    rows * width, self.chunks, opt.top_p, opt.extra and 1 or 0, opt.min_layers, b.workspace.c.data, nil))
  local before, count = w:count "label_indices", pointers[rows]
  if before + count >= 2 ^ 31 then raise("dump: more than 2^31 labels; dump fewer positions (every)") end
  w:write("label_indices", b.indices.c.data, count)
  w:write("label_scores", b.scores.c.data, count)
  for t = 1, rows do pointers[t] = pointers[t] + before end
  w:write("label_pointers", pointers + 1, rows)
end

-- Native logits of the last token, which is a step.
local function write_logits(self, session, step)
  local heads = tonumber(self.model.config.index_heads)
  local _, n = session:position()
  local all = tensor.empty({self.chunks}, "f32"):fill(-math.huge)
  for _, l in ipairs(self.opt.layers) do
    if n > 0 then
      local q, w = session:recent_queries(l, 1)
      all:narrow(0, 0, n):copy(session:index_scores(l, q:pointer(), w:pointer(), heads, n))
    end
    self.writer:write(("logits_layer_%d_token_%d"):format(l, step), all.c.data, self.chunks)
  end
end

local function write_keys(self, session)
  for _, l in ipairs(self.opt.layers) do
    local bytes = tonumber(C.lsa_index_key_bytes(C.LSA_KV_FP8, self.model.config.index_dim))
    local buffer = tensor.empty({math.min(KEYS, self.chunks) * bytes}, "u8")
    for from = 0, self.chunks - 1, KEYS do
      local n = math.min(KEYS, self.chunks - from)
      check(C.lsa_session_keys(session.c, l, from, n, buffer.c.data))
      self.writer:write("compk_layer_" .. l, buffer.c.data, n * bytes)
    end
  end
end

-- The first step at or after a position, counted from 0.
local function step_at(self, position)
  return math.max(0, math.ceil((position - self.opt.from) / self.opt.every))
end

local function run(self, tokens)
  local model, opt, n = self.model, self.opt, #tokens
  local wanted = {"index_topk", self.weighed}
  for _, l in ipairs(opt.layers) do wanted[#wanted + 1] = ("layer.%d.attn_input"):format(model.csa_layers[l + 1]) end
  local session = model:session{select = "full", kv = "fp8"}
  local ids, trace = ffi.new("int32_t[?]", n, tokens), intermediates.new(wanted)
  local zero = ffi.new "int32_t[1]"
  self.writer:write("label_pointers", zero, 1)
  local at = 0
  while at < n do
    local step = step_at(self, at)
    local stop = math.min(n, at + self.piece)
    if step < self.with_logits then stop = math.min(stop, opt.from + step * opt.every + 1) end -- such a step ends its piece
    check(C.lsa_session_prefill(session.c, ids + at, stop - at, 0, nil, trace, nil))
    local rows, position = math.min(self.steps, step_at(self, stop)) - step, opt.from + step * opt.every
    if rows > 0 then
      local found = by_name(trace)
      write_hidden(self, found, position - at, rows, position)
      write_labels(self, found, position - at, rows)
      if step < self.with_logits then write_logits(self, session, step) end
    end
    C.lsa_trace_clear(trace)
    at = stop
    if opt.progress then opt.progress(at, n) end
  end
  write_keys(self, session)
  session:close()
end

local function token_list(tokens)
  if tensor.is(tokens) then tokens = tokens:totable() end
  if type(tokens) ~= "table" then raise("dump: tokens is %s, a list or an i32 tensor is wanted", raise.kind(tokens)) end
  return tokens
end

local function write_document(model, tokens, path, opt, description)
  local n, most = #tokens, tonumber(model.config.max_positions)
  if n > most then raise("dump: %s would have %d tokens; the model's max_position_embeddings is %d", path, n, most) end
  local self = {model = model, opt = opt, about = description, chunks = math.floor(n / tonumber(model.config.csa_rate)),
    piece = tonumber(C.lsa_activations_piece(model.scratch)),
    weighed = opt.by == "attention" and "index_topk_mass" or "index_topk_logits"}
  self.steps = n > opt.from and math.floor((n - 1 - opt.from) / opt.every) + 1 or 0
  self.with_logits = math.min(opt.logits, self.steps)
  self.writer = open_writer(self, path)
  self.buffers = buffers(self)
  local ok, message = pcall(function()
    run(self, tokens)
    self.writer:finish()
  end)
  if ok then return path end
  self.writer:abandon()
  error(message, 0)
end

function M.document(model, tokens, path, opt)
  opt, tokens = checked(model, opt), token_list(tokens)
  options.path(path, "dump: path")
  local last = tonumber(model.config.vocab) - 1
  for i = 1, #tokens do options.whole(tokens[i], 0, ("dump: token %d"):format(i - 1), last) end
  return interrupts.masked(write_document, model, tokens, path, opt, about(model, tokens, opt))
end

-- ---- many ----

local function tokens_of(model, entry)
  if entry.tokens then return token_list(entry.tokens) end
  return model:tokens(entry.text or require("lsa.texts").file(entry.file))
end

-- Whether the trace is there already; one of something else is an error.
local function finished(path, description)
  local there = check(C.lsa_file_exists(path))
  if there == 0 then return false end
  local _, metadata = require("lsa.files.files").load(path)
  if metadata.format ~= "lsa document 1" or metadata.about ~= text_of(description) then
    raise("dump: %s is there, of another text or with other options; remove it, or choose another folder", path)
  end
  return true
end

-- One process at a time writes to a folder, and any number read what is finished: held until the file is collected.
local function lock(folder)
  local file = ownership.take(C.lsa_file_close, "lsa_file", C.lsa_file_open, folder .. "/.lock", C.LSA_FILE_UPDATE)
  if check(C.lsa_file_lock(file)) == 0 then raise("dump: another process is writing to %s", folder) end
  return file
end

-- The documents' paths, and a list of those that are not there.
local function missing_of(model, list, folder, opt, each)
  local paths, missing, seen = {}, {}, {}
  for i, entry in ipairs(list) do
    if type(entry) ~= "table" or type(entry.name) ~= "string" then raise("dump: document %d has no name", i) end
    if seen[entry.name] then raise("dump: two documents are called %s", entry.name) end
    seen[entry.name] = true
    local tokens = tokens_of(model, entry)
    local description = about(model, tokens, opt)
    paths[i] = ("%s/%s.safetensors"):format(folder, entry.name)
    if finished(paths[i], description) then
      each(entry.name, "there")
    else
      missing[#missing + 1] = {entry = entry, path = paths[i], description = description}
    end
  end
  return paths, missing
end

local function write_all(model, missing, opt, each)
  for _, one in ipairs(missing) do
    local tokens = tokens_of(model, one.entry)
    if not finished(one.path, one.description) then
      each(one.entry.name, "begun", #tokens)
      interrupts.masked(write_document, model, tokens, one.path, opt, one.description)
    end
    each(one.entry.name, "done")
  end
end

-- Gives the traces' paths, and how many of them were there already. `each(name, state, tokens)`: "there", "begun" or "done".
function M.documents(model, list, folder, opt, each)
  opt = checked(model, opt)
  make_folder(folder)
  each = each or function() end
  local paths, missing = missing_of(model, list, folder, opt, each)
  if #missing > 0 then
    local held = lock(folder)
    local ok, message = pcall(write_all, model, missing, opt, each)
    ownership.free(C.lsa_file_close, held)
    if not ok then error(message, 0) end
  end
  return paths, #list - #missing
end

return M
