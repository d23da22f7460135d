-- A policy that scores chunks with a CUDA kernel of its own, to copy: the largest product, over an index head's weight and positive part,
-- of the last query with each chunk's index key, in one CSA layer.
--   score(s) = max over heads h of w[h] * max(0, q[h] . k_s)
--   opt.layer 0
--
--     s = model:session{select = "experiments/own_kernel.lua"}      -- a GPU is needed, a model on it is not
local lsa = require "lsa"

local source = [[
__global__ void best_head(const float *q, const float *w, const float *keys, float *scores, int heads, int dim, int n)
{
    int s = blockIdx.x * blockDim.x + threadIdx.x;
    if (s >= n) return;
    float best = 0;
    for (int h = 0; h < heads; h++) {
        float sum = 0;
        for (int d = 0; d < dim; d++) sum += q[h * dim + d] * keys[(long long)s * dim + d];
        best = fmaxf(best, w[h] * fmaxf(sum, 0));
    }
    scores[s] = best;
}
]]

local THREADS = 128
local best_head

return function(cycle, opt)
  best_head = best_head or lsa.cuda.kernel(source, "best_head", {file = "experiments/own_kernel.lua"})
  local q, w = cycle.queries(opt.layer, 1)
  local heads, dim = q:shape()[2], q:shape()[3]
  local scores = lsa.zeros({cycle.n}):to "cuda"
  if cycle.n > 0 then
    best_head(math.ceil(cycle.n / THREADS), THREADS, 0, q, w, cycle.keys(opt.layer), scores, heads, dim, cycle.n)
  end
  return cycle.top(scores:to "cpu")
end, {layer = 0}
