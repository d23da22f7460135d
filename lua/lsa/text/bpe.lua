-- Owns byte-pair encoding: pieces of text to ids by merging neighbours, the lowest rank first, the leftmost of equals.
--
--   bpe = bpe.new{vocab = {token = id}, merges = {{left, right}, ...}, ignore_merges = bool,
--                 symbols = function(piece) -> ids}      the ids that a piece starts from
--   bpe:encode(piece, out)                               appends the piece's ids to the list out
local raise = require "lsa.raise"

local M = {}
local Bpe = {}
Bpe.__index = Bpe

local PAIR = 2 ^ 26       -- ids are below it, so that a pair of them is one exact number
local PLACE = 2 ^ 26      -- as are the places in a piece
local MOST_CACHED = 50000

function M.new(given)
  local ranks, results = {}, {}
  for rank, merge in ipairs(given.merges) do
    local left, right = given.vocab[merge[1]], given.vocab[merge[2]]
    local result = given.vocab[merge[1] .. merge[2]]
    if not (left and right and result) then
      raise("merge %d, %q with %q, is of tokens that are not in the vocabulary", rank - 1, merge[1], merge[2])
    end
    ranks[left * PAIR + right] = rank
    results[rank] = result
  end
  return setmetatable({vocab = given.vocab, symbols = given.symbols, ignore_merges = given.ignore_merges, ranks = ranks,
    results = results, cache = {}, cached = 0}, Bpe)
end

-- A heap of numbers, the least on top.
local function push(heap, value)
  local i = #heap + 1
  while i > 1 do
    local parent = (i - i % 2) / 2
    if heap[parent] <= value then break end
    heap[i] = heap[parent]
    i = parent
  end
  heap[i] = value
end

local function pop(heap)
  local n = #heap
  local top, value = heap[1], heap[n]
  heap[n] = nil
  n = n - 1
  if n == 0 then return top end
  local i = 1
  while 2 * i <= n do
    local child = 2 * i
    if child < n and heap[child + 1] < heap[child] then child = child + 1 end
    if heap[child] >= value then break end
    heap[i] = heap[child]
    i = child
  end
  heap[i] = value
  return top
end

-- Merges the list of ids in place; gives its new length. The heap holds rank and place of every pair that was ever
-- a neighbourhood; those that no longer are have another rank, or none, when they come up.
local function merge(self, ids)
  local ranks, results = self.ranks, self.results
  local n = #ids
  local after, before, heap = {}, {}, {}
  local function offer(i)
    local rank = after[i] <= n and ranks[ids[i] * PAIR + ids[after[i]]]
    if rank then push(heap, rank * PLACE + i) end
  end
  for i = 1, n do after[i], before[i] = i + 1, i - 1 end
  for i = 1, n - 1 do offer(i) end
  while #heap > 0 do
    local key = pop(heap)
    local i = key % PLACE
    local rank = (key - i) / PLACE
    local right = after[i]
    if ids[i] and right <= n and ranks[ids[i] * PAIR + ids[right]] == rank then
      ids[i], ids[right] = results[rank], false
      after[i] = after[right]
      if after[i] <= n then before[after[i]] = i end
      offer(i)
      if before[i] >= 1 then offer(before[i]) end
    end
  end
  local kept = 0
  for i = 1, n do
    if ids[i] then
      kept = kept + 1
      ids[kept] = ids[i]
    end
  end
  for i = kept + 1, n do ids[i] = nil end
end

local function encode(self, piece)
  local whole = self.ignore_merges and self.vocab[piece]
  if whole then return {whole} end
  local ids = self.symbols(piece)
  if #ids >= PLACE then raise("a piece of %d symbols is too long", #ids) end
  if #ids > 1 then merge(self, ids) end
  return ids
end

function Bpe:encode(piece, out)
  local ids = self.cache[piece]
  if not ids then
    ids = encode(self, piece)
    if #piece < 64 then
      if self.cached >= MOST_CACHED then self.cache, self.cached = {}, 0 end
      self.cache[piece], self.cached = ids, self.cached + 1
    end
  end
  local n = #out
  for i = 1, #ids do out[n + i] = ids[i] end
end

return M
