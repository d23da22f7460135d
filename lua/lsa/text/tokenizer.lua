-- Owns text <-> token ids of a model's folder: its tokenizer.json (byte-pair encoding, of bytes or with a byte fallback) or,
-- where there is none and the vocabulary is 256, the bytes themselves.
--
--   t = tokenizer.open(directory, vocab)
--   t:encode(text) -> list of ids       no token is added; special tokens written out in the text are recognised
--   t:decode(ids) -> text               special tokens are written out; the bytes are as the tokens give them
-- Any string can be encoded: bytes that are no UTF-8 are pieces of their own.
local ffi = require "ffi"
local json = require "cjson"
local bpe = require "lsa.text.bpe"
local lsa = require "lsa.ffi"
local pretokenize = require "lsa.text.pretokenize"
local raise = require "lsa.raise"
local regex = require "lsa.text.regex"

local C = lsa.C

local M = {}

local function check_ids(ids, vocab)
  if type(ids) ~= "table" then raise("tokens are a list of ids, this is %s", raise.kind(ids)) end
  for i = 1, #ids do
    local id = ids[i]
    if type(id) ~= "number" or not (id >= 0 and id < vocab) or id ~= math.floor(id) then
      raise("token %d is %s, the vocabulary is 0..%d", i, tostring(id), vocab - 1)
    end
  end
end

local function check_text(text)
  if type(text) ~= "string" then raise("the text to encode is %s", raise.kind(text)) end
end

-- ---- bytes ----

local Bytes = {}
Bytes.__index = Bytes

function Bytes.encode(_, text)
  check_text(text)
  local ids = {}
  for i = 1, #text do ids[i] = text:byte(i) end
  return ids
end

function Bytes.decode(_, ids)
  check_ids(ids, 256)
  local out = {}
  for i = 1, #ids do out[i] = string.char(ids[i]) end
  return table.concat(out)
end

function Bytes.__tostring() return "tokenizer: 256 bytes" end

-- ---- characters that stand for bytes ----

local function utf8(code)
  if code < 128 then return string.char(code) end
  return string.char(192 + math.floor(code / 64), 128 + code % 64)
end

-- ByteLevel writes a byte as a printable character: itself where it is one, the next from 256 on otherwise.
local byte_of = {}
do
  local following = 256
  for byte = 0, 255 do
    if byte >= 33 and byte <= 126 or byte >= 161 and byte <= 172 or byte >= 174 then
      byte_of[utf8(byte)] = string.char(byte)
    else
      byte_of[utf8(following)] = string.char(byte)
      following = following + 1
    end
  end
end

-- The bytes of a token; nil where a character stands for none.
local function token_bytes(token)
  local out = {}
  for character in token:gmatch "[%z\1-\127\194-\244][\128-\191]*" do
    out[#out + 1] = byte_of[character]
    if not byte_of[character] then return nil end
  end
  return table.concat(out)
end

-- ---- tokenizer.json ----

local Json = {}
Json.__index = Json

local function optional(value)
  if value ~= json.null then return value end
end

local function refuse(condition, what)
  if condition then raise(what .. " is not supported") end
end

local function check_model(model)
  if type(model) ~= "table" or type(model.vocab) ~= "table" or type(model.merges) ~= "table" then
    raise "model has no vocab and merges: only byte-pair encoding is supported"
  end
  refuse(optional(model.type) and model.type ~= "BPE", "model type " .. tostring(model.type))
  refuse(optional(model.dropout) and model.dropout ~= 0, "dropout")
  for _, affix in ipairs {"continuing_subword_prefix", "end_of_word_suffix"} do
    refuse(optional(model[affix]) and model[affix] ~= "", affix)
  end
end

-- A merge is {left, right} or "left right".
local function read_merges(list, spell)
  local out = {}
  for i, merge in ipairs(list) do
    local left, right
    if type(merge) == "table" then
      left, right = merge[1], merge[2]
    else
      left, right = merge:match "^(%S+) (%S+)$"
    end
    if not left then raise("merge %d is %q", i - 1, tostring(merge)) end
    out[i] = {spell(left), spell(right)}
  end
  return out
end

-- The ids that a piece starts from, where every byte has a token.
local function byte_symbols(vocab)
  local ids = {}
  for byte = 0, 255 do ids[byte] = vocab[string.char(byte)] end
  return function(piece)
    local out = {}
    for i = 1, #piece do
      local id = ids[piece:byte(i)]
      if not id then raise("byte %d has no token", piece:byte(i)) end
      out[i] = id
    end
    return out
  end
end

-- The same for characters: those without a token are their bytes' tokens <0x00> .. <0xFF>, or the unknown one.
local function character_symbols(model)
  local vocab, unknown = model.vocab, optional(model.unk_token) and model.vocab[model.unk_token]
  local function bytes(character)
    local ids = {}
    for i = 1, model.byte_fallback and #character or 0 do
      ids[i] = vocab[("<0x%02X>"):format(character:byte(i))]
    end
    return #ids == #character and ids
  end
  return function(piece)
    local out, after_unknown = {}, false
    -- A continuation byte begins a piece only where it is the whole of one that is not UTF-8.
    for character in piece:gmatch "[%z\1-\255][\128-\191]*" do
      local known = vocab[character] and {vocab[character]} or bytes(character)
      if not (known or unknown) then raise("%q has no token", character) end
      for _, id in ipairs(known or after_unknown and model.fuse_unk and {} or {unknown}) do out[#out + 1] = id end
      after_unknown = not known
    end
    return out
  end
end

-- Added tokens by their first byte, the longest first, and a pattern of those bytes.
local function added_finder(tokens)
  local by_first, class = {}, {}
  for _, token in ipairs(tokens) do
    refuse(token.single_word, "an added token of single_word")
    local first = token.content:byte()
    if not by_first[first] then
      by_first[first] = {}
      table.insert(class, (string.char(first):gsub("%p", "%%%0")))
    end
    table.insert(by_first[first], token)
  end
  for _, list in pairs(by_first) do
    table.sort(list, function(a, b) return #a.content > #b.content end)
  end
  return by_first, "[" .. table.concat(class) .. "]"
end

-- A function that calls on_text(piece) for what lies between added tokens and on_token(id) for them, in turn.
local function added_splitter(tokens)
  if #tokens == 0 then return function(text, on_text) on_text(text) end end
  local by_first, class = added_finder(tokens)
  local function match(text, at)
    for _, token in ipairs(by_first[text:byte(at)]) do
      if text:sub(at, at + #token.content - 1) == token.content then return token end
    end
  end
  return function(text, on_text, on_token)
    local from, at = 1, text:find(class)
    while at do
      local token = match(text, at)
      if token then
        local stop, following = at - 1, at + #token.content
        if token.lstrip then
          while stop >= from and text:find("^%s", stop) do stop = stop - 1 end
        end
        if token.rstrip then following = text:find("%S", following) or #text + 1 end
        if stop >= from then on_text(text:sub(from, stop)) end
        on_token(token.id)
        from, at = following, text:find(class, following)
      else
        at = text:find(class, at + 1)
      end
    end
    if from <= #text then on_text(text:sub(from)) end
  end
end

-- Added tokens that are looked for in the text as it is, and those looked for after normalisation.
local function read_added(list)
  local raw, normalized, by_id = {}, {}, {}
  for _, token in ipairs(optional(list) or {}) do
    if token.content ~= "" then
      table.insert(token.normalized and normalized or raw, token)
      by_id[token.id] = token.content
    end
  end
  return raw, normalized, by_id
end

-- ---- decoders: functions from a list of tokens to a list of texts; `literal` has the places of added tokens ----

local decoders = {}

function decoders.ByteLevel()
  return function(tokens, literal)
    for i, token in ipairs(tokens) do
      if not literal[i] then tokens[i] = token_bytes(token) or token end
    end
    return tokens
  end
end

function decoders.ByteFallback()
  return function(tokens)
    for i, token in ipairs(tokens) do
      local hex = token:match "^<0x(%x%x)>$"
      if hex then tokens[i] = string.char(tonumber(hex, 16)) end
    end
    return tokens
  end
end

function decoders.Fuse()
  return function(tokens) return {table.concat(tokens)} end
end

function decoders.Replace(d)
  refuse(not optional(d.pattern.String), "a decoder's regular expression")
  local change = pretokenize.normalizer(d)
  return function(tokens)
    for i, token in ipairs(tokens) do tokens[i] = change(token) end
    return tokens
  end
end

function decoders.Strip(d)
  return function(tokens)
    for i, token in ipairs(tokens) do
      local from, to = 1, #token
      while from <= d.start and token:sub(from, from) == d.content do from = from + 1 end
      while #token - to < d.stop and to >= from and token:sub(to, to) == d.content do to = to - 1 end
      tokens[i] = token:sub(from, to)
    end
    return tokens
  end
end

local function decoder(d)
  if d.type == "Sequence" then
    local list = {}
    for i, part in ipairs(d.decoders) do list[i] = decoder(part) end
    return function(tokens, literal)
      for _, decode in ipairs(list) do tokens = decode(tokens, literal) end
      return tokens
    end
  end
  refuse(not decoders[d.type], "decoder " .. tostring(d.type))
  return decoders[d.type](d)
end

-- Builds everything out of a tokenizer.json's contents.
local function build(root, vocab)
  check_model(root.model)
  local model, self = root.model, setmetatable({vocab = vocab}, Json)
  local uses_bytes = pretokenize.uses_bytes(root.pre_tokenizer)
  local spell = uses_bytes and function(token) return token_bytes(token) or token end
    or function(token) return token end
  local spelled = {}
  self.token_of = {}
  for token, id in pairs(model.vocab) do
    spelled[spell(token)] = id
    self.token_of[id] = token
  end
  self.bpe = bpe.new {vocab = spelled, merges = read_merges(model.merges, spell), ignore_merges = optional(model.ignore_merges),
    symbols = uses_bytes and byte_symbols(spelled) or character_symbols(model)}
  self.uses_bytes = uses_bytes
  self.normalize = pretokenize.normalizer(root.normalizer)
  self.split = pretokenize.splitter(root.pre_tokenizer)
  local raw, normalized, by_id = read_added(root.added_tokens)
  self.split_raw, self.split_normalized, self.added = added_splitter(raw), added_splitter(normalized), by_id
  self.to_text = optional(root.decoder) and decoder(root.decoder)
  return self
end

-- Text that is UTF-8: cut at added tokens, normalised, cut again, cut into pieces.
local function encode_run(self, text, out)
  local function token(id) out[#out + 1] = id end
  self.split_raw(text, function(part)
    self.split_normalized(self.normalize(part), function(plain)
      for _, piece in ipairs(self.split {plain}) do self.bpe:encode(piece, out) end
    end, token)
  end, token)
end

local function encode(self, text)
  local out = {}
  while text ~= "" do
    local valid, at = regex.valid(text)
    if valid then
      encode_run(self, text, out)
      break
    end
    encode_run(self, text:sub(1, at - 1), out)
    self.bpe:encode(text:sub(at, at), out)
    text = text:sub(at + 1)
  end
  return out
end

function Json:encode(text)
  check_text(text)
  local ok, out = pcall(encode, self, text)
  if not ok then raise("%s: %s", self.path, raise.words(out)) end
  for i = 1, #out do
    if out[i] >= self.vocab then
      raise("%s: token %d is past the model's vocabulary of %d", self.path, out[i], self.vocab)
    end
  end
  return out
end

-- Ids of the vocabulary that have no token give nothing.
function Json:decode(ids)
  check_ids(ids, self.vocab)
  local tokens, literal = {}, {}
  for i = 1, #ids do
    local added = self.added[ids[i]]
    local token = added or self.token_of[ids[i]]
    if token then
      tokens[#tokens + 1] = token
      literal[#tokens] = added ~= nil
    end
  end
  if not self.to_text then return table.concat(tokens, " ") end
  return table.concat(self.to_text(tokens, literal))
end

function Json:__tostring()
  return ("tokenizer: %s, byte-pair encoding of %s, vocabulary %d"):format(self.path,
    self.uses_bytes and "bytes" or "characters", self.vocab)
end

-- A whole file through the library's door to files.
local function read(path)
  local text, bytes = ffi.new "char *[1]", ffi.new "int64_t[1]"
  raise.check(C.lsa_file_read_all(text, bytes, path, 2 ^ 28))
  local contents = ffi.string(text[0], bytes[0])
  C.lsa_free(text[0])
  return contents
end

function M.open(directory, vocab)
  local path = directory .. "/tokenizer.json"
  if raise.check(C.lsa_file_exists(path)) == 0 then
    if vocab == 256 then return setmetatable({}, Bytes) end
    raise("%s is not there, and a vocabulary of %d is not one of bytes (256)", path, vocab)
  end
  local ok, root = pcall(json.decode, read(path))
  if not ok or type(root) ~= "table" then raise("%s: %s", path, ok and "is no JSON object" or root) end
  local built, self = pcall(build, root, vocab)
  if not built then raise("%s: %s", path, raise.words(self)) end
  self.path = path
  return self
end

return M
