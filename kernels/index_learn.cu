// The training of index scores on the GPU, some samples at a time: their keys are widened to f32 side by side, so that queries'
// products with them, and what goes back to the queries, are batches of equal products by cuBLASLt. Keys that a sample has not are
// zeros. What joins a sample's numbers runs in an order that its place alone fixes.
#include "kernels/cuda_launch.h"
#include "kernels/gemm_cuda.h"
#include "kernels/number_formats.h"

extern "C" {
#include "kernels/index_learn.h"
}

enum {
    THREADS = 256,
    LOSS_THREADS = 512,
    HEADS = 32,      // that a block takes the slopes of, ...
    STRIPS = 8,      // each by so many threads
    HELD = 256 << 20 // bytes of the workspace, or what one sample takes
};

// ---- helpers ----

__device__ static int64_t count_of(const lsa_index_sample &x) { return x.positives + x.negatives; }

__device__ static float relu(float v) { return v <= 0 ? 0.0f : v; } // NaN stays

__device__ static float value_of(const uint8_t *key, int64_t d, int64_t dim, int32_t format)
{
    if (format == LSA_KV_FP8) {
        uint32_t scale =
            key[dim] | key[dim + 1] << 8 | key[dim + 2] << 16 | (uint32_t)key[dim + 3] << 24;
        return e4m3_to_f32(key[d]) * f32_from_bits(scale);
    }
    if (format == LSA_KV_BF16) return bf16_to_f32((uint16_t)(key[2 * d] | key[2 * d + 1] << 8));
    const uint8_t *at = key + 4 * d;
    return f32_from_bits(at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24);
}

// sigmoid(-u), and -log sigmoid(u), from one exponential.
__device__ static void miss(float *probability, float *cost, float u)
{
    float e = expf(-fabsf(u));
    *probability = (u < 0 ? 1.0f : e) / (e + 1.0f);
    *cost = log1pf(e) + (-u < 0 ? 0.0f : -u);
}

// Of a positive's logit z and a negative's: what the pair costs, and the cost's slope by their difference, but for its sign.
__device__ static void pair(float *cost, float *slope, float z, float negative,
                            const lsa_index_loss &how)
{
    float u = z - negative;
    if (how.pairwise == LSA_PAIRWISE_BPR) {
        miss(slope, cost, u);
        return;
    }
    *cost = how.margin - u;
    *slope = *cost <= 0 ? 0.0f : 1.0f;
    if (*cost <= 0) *cost = 0;
    if (*cost != *cost) *slope = *cost;
}

// ---- kernels ----

// A warp a key. Grid: (ceil(n most / 8)), block: 256.
__global__ static void widen(float *keys, const lsa_index_sample *samples, int64_t n, int64_t most,
                             int64_t dim, int64_t stride, int32_t format)
{
    int lane = threadIdx.x % LSA_WARP;
    for (int64_t i = lsa_thread() / LSA_WARP; i < n * most; i += lsa_threads() / LSA_WARP) {
        const lsa_index_sample x = samples[i / most];
        bool has = i % most < count_of(x);
        const uint8_t *key = (const uint8_t *)x.keys + (has ? x.ids[i % most] * stride : 0);
        for (int64_t d = lane; d < dim; d += LSA_WARP)
            keys[i * dim + d] = has ? value_of(key, d, dim, format) : 0.0f;
    }
}

// A warp a logit, of products [n, most, heads]. Grid: (ceil(n most / 8)), block: 256.
__global__ static void add_heads(float *logits, const float *products, const float *w, int64_t n,
                                 int64_t most, int64_t heads)
{
    int lane = threadIdx.x % LSA_WARP;
    for (int64_t i = lsa_thread() / LSA_WARP; i < n * most; i += lsa_threads() / LSA_WARP) {
        const float *weight = w + i / most * heads;
        float sum = 0;
        for (int64_t h = lane; h < heads; h += LSA_WARP)
            sum += weight[h] * relu(products[i * heads + h]);
        sum = lsa_warp_sum(sum);
        if (lane == 0) logits[i] = sum;
    }
}

// A thread's part of one sample's pointwise cost; writes all of its slopes.
__device__ static double points(float *slope, const float *z, const lsa_index_sample &x,
                                const lsa_index_loss &how, float share)
{
    int64_t count = count_of(x);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += LOSS_THREADS) {
        float sign = i < x.positives ? 1.0f : -1.0f, q, cost;
        slope[i] = 0;
        if (how.pointwise == LSA_POINTWISE_NONE) continue;
        miss(&q, &cost, z[i] * sign);
        float d = -q;
        if (how.pointwise == LSA_POINTWISE_FOCAL) {
            d = -(q * q) * (2.0f * (1.0f - q) * cost + q);
            cost *= q * q;
        }
        slope[i] = d * x.weights[i] * sign * (1.0f / (float)count) * share;
        sum += (double)(cost * x.weights[i]);
    }
    return count ? sum / (double)count : 0;
}

// The same of pairs, added to the slopes: a thread has positives, then negatives of its own.
__device__ static double pairs(float *slope, const float *z, const lsa_index_sample &x,
                               const lsa_index_loss &how, float share)
{
    float factor = how.pairwise_factor / ((float)x.positives * (float)x.negatives) * share;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < x.positives; i += LOSS_THREADS) {
        double costs = 0, slopes = 0;
        for (int64_t j = x.positives; j < count_of(x); j++) {
            float cost, d;
            pair(&cost, &d, z[i], z[j], how);
            costs += cost;
            slopes += d;
        }
        sum += costs * x.weights[i];
        slope[i] -= (float)slopes * x.weights[i] * factor;
    }
    for (int64_t j = x.positives + threadIdx.x; j < count_of(x); j += LOSS_THREADS) {
        double slopes = 0;
        for (int64_t i = 0; i < x.positives; i++) {
            float cost, d;
            pair(&cost, &d, z[i], z[j], how);
            slopes += (double)d * x.weights[i];
        }
        slope[j] += (float)slopes * factor;
    }
    return sum * how.pairwise_factor / ((double)x.positives * (double)x.negatives);
}

// A block a sample. Grid: (n), block: 512.
__global__ static void __launch_bounds__(LOSS_THREADS)
    loss_of(double *losses, float *slopes, const float *logits, const lsa_index_sample *samples,
            int64_t most, lsa_index_loss how, float share)
{
    __shared__ double sums[LOSS_THREADS / LSA_WARP];
    const lsa_index_sample x = samples[blockIdx.x];
    float *slope = slopes + blockIdx.x * most;
    const float *z = logits + blockIdx.x * most;
    double sum = points(slope, z, x, how, share);
    __syncthreads();
    if (how.pairwise && x.positives && x.negatives) sum += pairs(slope, z, x, how, share);
    sum = lsa_block_sum(sum, sums);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

// Products become slopes of themselves, and give the heads' weights theirs. Grid: (ceil(heads / 32), n), block: 32 x 8.
__global__ static void head_slopes(float *dw, float *products, const float *slopes, const float *w,
                                   const lsa_index_sample *samples, int64_t most, int64_t heads)
{
    __shared__ float sums[STRIPS][HEADS];
    int64_t sample = blockIdx.y, h = (int64_t)blockIdx.x * HEADS + threadIdx.x,
            count = count_of(samples[sample]);
    const float *slope = slopes + sample * most;
    float sum = 0, weight = h < heads ? w[sample * heads + h] : 0.0f;
    for (int64_t j = threadIdx.y; h < heads && j < most; j += STRIPS) {
        float *product = products + (sample * most + j) * heads + h;
        float g = j < count ? slope[j] : 0.0f, x = *product;
        if (j < count) sum += g * relu(x);
        *product = j >= count || x <= 0 ? 0.0f : g * weight;
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || h >= heads) return;
    for (int i = 1; i < STRIPS; i++) sum += sums[i][threadIdx.x];
    dw[sample * heads + h] = sum;
}

// ---- launcher ----

static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

static int64_t sample_bytes(int64_t most, int64_t heads, int64_t dim)
{
    return most * (dim + heads + 2) * (int64_t)sizeof(float);
}

// Samples that are worked on at a time; never more than a grid has rows for.
static int64_t group_of(int64_t n, int64_t most, int64_t heads, int64_t dim)
{
    int64_t each = sample_bytes(most, heads, dim), group = each ? HELD / each : n;
    if (group > 32768) group = 32768;
    return group < 1 ? 1 : group < n ? group : n;
}

int64_t lsa_index_learn_workspace_cuda(int64_t n, int64_t most, int64_t heads, int64_t dim)
{
    return group_of(n, most, heads, dim) * sample_bytes(most, heads, dim) + 4 * aligned(1);
}

struct buffers {
    float *keys, *products, *logits, *slopes;
};

static buffers buffers_of(void *workspace, int64_t group, int64_t most, int64_t heads, int64_t dim)
{
    char *at = (char *)workspace;
    buffers b;
    auto take = [&](int64_t floats) {
        float *block = (float *)at;
        at += aligned(floats * (int64_t)sizeof(float));
        return block;
    };
    b.keys = take(group * most * dim);
    b.products = take(group * most * heads);
    b.logits = take(group * most);
    b.slopes = take(group * most);
    return b;
}

int lsa_index_learn_cuda(double *losses, float *dq, float *dw, const float *q, const float *w,
                         const lsa_index_sample *samples, int64_t n, int64_t most, int64_t heads,
                         int64_t dim, int32_t key_format, const lsa_index_loss *how, float share,
                         void *workspace, void *stream)
{
    int rc = lsa_index_learn_check(n, most, heads, dim, key_format, how);
    if (rc || n == 0) return rc;
    cudaStream_t s = (cudaStream_t)stream;
    int64_t group = group_of(n, most, heads, dim), width = heads * dim,
            stride = lsa_index_key_bytes(key_format, dim);
    buffers b = buffers_of(workspace, group, most, heads, dim);
    for (int64_t i = 0; i < n; i += group) {
        int64_t m = n - i < group ? n - i : group;
        unsigned rows = lsa_blocks(m * most, THREADS / LSA_WARP);
        const float *qi = q + i * width, *wi = w + i * heads;
        if (most)
            widen<<<rows, THREADS, 0, s>>>(b.keys, samples + i, m, most, dim, stride, key_format);
        rc = lsa_gemm_batch_cuda("index_learn", b.products, heads, most * heads,
                                 {b.keys, dim, most * dim, false}, {qi, dim, width, true}, most,
                                 heads, dim, m, stream);
        if (rc) return rc;
        if (most) add_heads<<<rows, THREADS, 0, s>>>(b.logits, b.products, wi, m, most, heads);
        loss_of<<<(unsigned)m, LOSS_THREADS, 0, s>>>(losses + i, b.slopes, b.logits, samples + i,
                                                     most, *how, share);
        head_slopes<<<dim3((unsigned)((heads + HEADS - 1) / HEADS), (unsigned)m),
                      dim3(HEADS, STRIPS), 0, s>>>(dw + i * heads, b.products, b.slopes, wi,
                                                   samples + i, most, heads);
        rc = lsa_gemm_batch_cuda("index_learn", dq + i * width, dim, width,
                                 {b.products, heads, most * heads, true},
                                 {b.keys, dim, most * dim, false}, heads, dim, most, m, stream);
        if (rc) return rc;
    }
    return lsa_launched("index_learn", n, most, heads);
}
