-- Owns models: a directory's weights, and the sessions on them. model = lsa.model(directory, options).
--
--   lsa.model "needle"     one of experiments/models by its name;  "./needle" is a directory
--   lsa.model{config = "flash", random = 1, experts = 16}     random weights of a given shape (lua/lsa/random_model.lua)
--   model.config           the architecture's numbers, by the names of core/model/config.h
--   model:session{...}     see lua/lsa/session.lua;  model:restore(path, {...}) has a saved one again
--   model:tokens "text"    a list of token ids;  model:text(tokens)
--   model.csa_layers       model layers with compressed sparse attention, in order: a CSA ordinal's layer is [ordinal + 1]
local ffi = require "ffi"
local lib = require "lsa.ffi"
local devices = require "lsa.devices"
local options = require "lsa.options"
local ownership = require "lsa.ownership"
local random_model = require "lsa.random_model"
local raise = require "lsa.raise"

local C = lib.C

local Model = {}
Model.__index = Model
raise.kinds[#raise.kinds + 1] = {function(value) return getmetatable(value) == Model end, "a model"}

local M = {class = Model}

-- Raises unless it is a model.
function M.check(value, what)
  if getmetatable(value) ~= Model then
    raise("%s is %s; a model (lsa.model) is wanted", what, options.shown(value))
  end
  return value
end

-- device: "cpu", or "cuda": weights, caches and hot pools on the first GPU, the cold tier in host memory; "cuda:1": on the second. compute: "f32" or "bf16". piece: the most
-- tokens that a prefill runs at once; 0: 512 on a CPU, 2048 on a GPU, where fewer do not fill it.
local defaults = {device = "cpu", compute = "f32", piece = 0}

M.random_defaults = options.copy(random_model.defaults)
for name, value in pairs(defaults) do M.random_defaults[name] = value end

M.defaults = defaults -- `lsa test --device cuda` has models on the GPU where a spec says nothing

-- Tokens of a piece for models whose activations are large: bounded to about a quarter of a gigabyte.
local function fitting_piece(config, piece)
  local wide = tonumber(config.heads * config.head_dim * 2 + config.hidden * (config.hc_mult + 6))
  return math.max(16, math.min(piece, math.floor(2 ^ 28 / (4 * wide))))
end

-- The names of the configuration's numbers, from the header that declares them.
local function names_of_config()
  local names, file = {}, assert(io.open(lib.root .. "/core/model/config.h"))
  local fields = file:read "*a":gsub("/%*.-%*/", ""):match "struct lsa_config%s*{(.-)}"
  file:close()
  for list in fields:gmatch "[%w_]+%s+([^;]+);" do
    for name in list:gmatch "[%a_][%w_]*" do names[#names + 1] = name end
  end
  return names
end

local function config_text(config)
  local lines = {}
  for _, name in ipairs(names_of_config()) do
    local ok, value = pcall(function() return config[name] end)
    if ok and (type(value) == "number" or type(value) == "boolean") then lines[#lines + 1] = ("%-24s %s"):format(name, tostring(value)) end
  end
  return table.concat(lines, "\n")
end

-- The model's numbers as Lua's own: layers * 1.5 is no whole number.
local function numbers_of(c)
  return setmetatable({}, {__names = names_of_config, __tostring = config_text, __index = function(self, name)
    local value = c.config[name]
    if ffi.istype("int64_t", value) then value = tonumber(value) end
    self[name] = value
    return value
  end})
end

-- The models that come with the tree, which have short names, sorted.
function M.names()
  local names, folder = {}, lib.root .. "/experiments/models/"
  local there, list = pcall(require("posix.dirent").dir, folder)
  for _, name in ipairs(there and list or {}) do
    local file = name:find "^%w" and io.open(folder .. name .. "/config.json")
    if file then
      file:close()
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return names
end

-- The directory that a name or a path stands for: a name without a slash is that of a model of the tree where there is one.
function M.directory(name)
  for _, known in ipairs(M.names()) do
    local path = lib.root .. "/experiments/models/" .. name
    if known == name then
      local realpath = require "posix.stdlib".realpath
      local here = realpath(name)
      if here and here ~= realpath(path) then
        raise('lsa.model: "%s" is a model of the tree, and there is a %s here; "./%s" would be the latter', name, name, name)
      end
      return path
    end
  end
  if not name:find "/" and not require "posix.sys.stat".stat(name) then
    local names = {}
    for _, known in ipairs(M.names()) do names[known] = true end
    raise('lsa.model: no folder "%s", and no model of the tree; there are: %s%s', name, table.concat(M.names(), ", "),
      require "lsa.nearest".hint(name, names))
  end
  return name
end

-- Its weights on their device, and room for the activations of a piece of tokens beside them.
local function open_there(self, piece)
  if self.gpu then raise.check(C.lsa_model_to_gpu(self.c)) end
  self.scratch = ownership.take(C.lsa_activations_release, "lsa_activations", C.lsa_activations_new, self.c, fitting_piece(self.config, piece))
end

-- The weights of a folder, or random ones: the C model, what it is called, and the folder, nil without one.
local function load(given, opt)
  if type(given) == "table" then
    local c, name = random_model.load(opt, M.directory)
    return c, name
  end
  local directory = M.directory(given)
  return ownership.take(C.lsa_model_free, "lsa_model", C.lsa_model_load, directory), given, directory
end

-- given: a name or a folder, and options; or one table, of options and of what random weights have to be like.
function M.new(given, opt)
  if type(given) == "table" then
    if opt ~= nil then raise "lsa.model: options beside a table; they go into it" end
    opt = options.check(given, M.random_defaults, "lsa.model")
  else
    options.path(given, "lsa.model: directory")
    opt = options.check(opt, defaults, "lsa.model")
  end
  options.one_of(opt.compute, {"f32", "bf16"}, "lsa.model: compute")
  local device = devices.parse(opt.device, "lsa.model: device")
  options.whole(opt.piece, 0, "lsa.model: piece")
  local piece = opt.piece > 0 and opt.piece or device.kind == "cuda" and 2048 or 512
  local self = setmetatable({compute = opt.compute, device = device.kind}, Model)
  self.gpu = device.kind == "cuda" and device.gpu or nil
  self.c, self.name, self.directory = load(given, opt)
  self.made_of = {given, opt}
  self.config = numbers_of(self.c)
  devices.on(self.gpu, open_there, self, piece)
  self.csa_layers = {}
  for i = 0, tonumber(self.config.layers) - 1 do
    if self.config.layer_type[i] == C.LSA_LAYER_CSA then table.insert(self.csa_layers, i) end
  end
  return self
end

-- The same model on another GPU.
function M.on_gpu(model, gpu)
  local given, opt = unpack(model.made_of)
  local changed = options.copy(type(given) == "table" and given or opt)
  changed.device = "cuda:" .. gpu
  if type(given) == "table" then return M.new(changed) end
  return M.new(given, changed)
end

-- The model's own Memory Indexer, which sessions score with by default: indexer.safetensors beside its weights; nil without one.
function Model:indexer_file()
  if not self.directory then return nil end
  local path = self.directory .. "/indexer.safetensors"
  local file = io.open(path)
  if not file then return nil end
  file:close()
  return path
end

function Model:session(opt)
  return require("lsa.session").new(self, opt)
end

-- A session that s:save wrote. options: what a fork may change (then a cycle is due, as for a fork), cold and indexer.
function Model:restore(path, opt)
  return require("lsa.session").restore(self, path, opt)
end

-- The file's tokenizer, opened when it is first needed.
local function tokenizer(self)
  if not self.directory then raise("%s has no tokenizer; tokens are lists of ids", self.name) end
  self.codec = self.codec or require("lsa.text.tokenizer").open(self.directory, tonumber(self.config.vocab))
  return self.codec
end

function Model:tokens(text)
  return tokenizer(self):encode(text)
end

-- ended: what s:generate gives beside tokens, so that model:text(s:generate {…}) is its text; of no matter here.
function Model:text(tokens, ended) -- luacheck: no unused args
  if type(tokens) == "number" then tokens = {tokens} end
  return tokenizer(self):decode(type(tokens) == "table" and tokens or tokens:totable())
end

function Model:__tostring()
  local c = self.config
  return ("model %s: %d layers (%d CSA, %d HCA), hidden %d, %d heads of %d, vocabulary %d, %.1f MB of weights, compute %s")
    :format(self.name, tonumber(c.layers), tonumber(c.csa_layers), tonumber(c.hca_layers), tonumber(c.hidden),
    tonumber(c.heads), tonumber(c.head_dim), tonumber(c.vocab), tonumber(self.c.weight_bytes) / 1e6, self.compute)
end

devices.methods(Model, function(self) return self.gpu end)
require("lsa.arity").methods(Model, "model:")

return M
