-- Owns what results depend on, as texts that change when it does: rules with what they require, models, files.
--
--   content.digest(text)            16 hexadecimal digits (FNV-1a, 64 bits)
--   content.rule("policies", spec)  of a rule as a session's select names it, with its inner ones; nil where there is none
--   content.named("policies", name)  the name of one of the tree's, which the engine's version tells; a file's with its content
--   content.indexer(value)          of a session's option
--   content.model(model)            weights, numbers, compute and the Memory Indexer in its folder
local bit = require "bit"
local ffi = require "ffi"
local lib = require "lsa.ffi"
local registry = require "lsa.registry"

local M = {}

function M.digest(text)
  local hash = 0xcbf29ce484222325ULL
  for i = 1, #text do hash = bit.bxor(hash, text:byte(i)) * 0x100000001b3ULL end
  return bit.tohex(hash)
end

local function read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read "*a"
  file:close()
  return text
end

function M.file(path)
  local text = read(path)
  return text and M.digest(text)
end

-- Adds the texts of the Lua modules that `text` requires by name, and of those that they require.
local function add_required(parts, seen, text)
  for name in text:gmatch "require%s*%(?%s*[\"']([%w_.%-]+)[\"']" do
    if not seen[name] then
      seen[name] = true
      local path = package.searchpath(name, package.path)
      local inner = path and read(path)
      if inner then
        parts[#parts + 1] = name .. "\n" .. inner
        add_required(parts, seen, inner)
      end
    end
  end
end

-- A function by the file that it is in: its own lines could not tell what they use.
local function text_of(entry)
  local path = entry.path or entry.source
  return path and read(path) or entry.name
end

local function add_rule(parts, seen, kind, spec)
  local ok, entry = pcall(registry.open, kind, spec)
  if not ok then return false end
  local text = text_of(entry)
  parts[#parts + 1] = text
  add_required(parts, seen, text)
  local of = entry.opt.of
  if kind == "policies" and of ~= nil then
    local list = type(of) == "table" and (of[2] ~= nil or type(of[1]) == "table") and of or {of}
    for _, one in ipairs(list) do add_rule(parts, seen, kind, one) end
  end
  return true
end

function M.rule(kind, spec)
  local parts = {}
  if not add_rule(parts, {}, kind, spec) then return nil end
  table.sort(parts)
  return M.digest(table.concat(parts, "\0"))
end

function M.named(kind, name)
  return name:find "[/.]" and name .. " " .. (M.rule(kind, name) or "") or name
end

-- The text of the file that a function is in.
function M.code(fn)
  local info = debug.getinfo(fn, "S")
  local path = info.source:match "^@(.*)"
  return M.digest((path and read(path) or info.source) .. "\0" .. info.linedefined)
end

-- A Memory Indexer, or the path of one, as a session's option.
function M.indexer(value)
  if type(value) ~= "table" then return M.file(value) or value end
  local path = os.tmpname()
  value:save(path)
  local digest = M.file(path)
  os.remove(path)
  return digest
end

function M.model(model)
  local config, weights = ffi.new "uint64_t[1]", ffi.new "uint64_t[1]"
  lib.C.lsa_model_identity(model.c, config, weights)
  local indexer = model:indexer_file()
  return {config = bit.tohex(config[0]), weights = bit.tohex(weights[0]), compute = model.compute, device = model.device,
    indexer = indexer and M.file(indexer)}
end

return M
