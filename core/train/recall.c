/* Owns the counts behind retrieval metrics. */
#include "core/train/recall.h"

#include <stdatomic.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/parallel.h"
#include "kernels/select.h"
#include "kernels/table.h"

typedef struct retrieval {
    const float *scores, *ranks;
    const lsa_golden *golden;
    const lsa_horizon *horizon;
    const int64_t *steps, *limits;
    int64_t stride, k;
    double theta;
    int32_t strict;
} retrieval;

/* A thread's working memory. */
typedef struct scratch {
    int32_t *seen, *ids, *votes; /* [chunks] */
    uint64_t *golden, *first;    /* sets of `chunks` ids */
    void *select;
} scratch;

static int64_t words(int64_t n) { return (n + 63) / 64; }

static int64_t scratch_bytes(int64_t chunks)
{
    return 3 * chunks * (int64_t)sizeof(int32_t) + 64 +
           2 * words(chunks) * (int64_t)sizeof(uint64_t) + 64 + lsa_select_workspace(chunks);
}

static scratch scratch_at(uint8_t *base, int64_t chunks)
{
    scratch s;
    s.select = base;
    s.golden = (uint64_t *)(base + (lsa_select_workspace(chunks) + 63) / 64 * 64);
    s.first = s.golden + words(chunks);
    s.seen = (int32_t *)(s.first + words(chunks));
    s.ids = s.seen + chunks;
    s.votes = s.ids + chunks;
    memset(s.seen, 0, (size_t)chunks * sizeof *s.seen);
    return s;
}

static int bit(const uint64_t *bits, int64_t i) { return (int)(bits[i / 64] >> (i % 64) & 1); }

static void count_chunks(lsa_recall_counts *c, const retrieval *r, const float *scores,
                         const uint64_t *golden, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int is = bit(golden, i), chosen = r->strict ? scores[i] > r->theta : scores[i] >= r->theta;
        c->selected += chosen;
        c->right += is & chosen;
        if (!(scores[i] >= 0 && scores[i] <= 1)) continue;
        int at = (int)(scores[i] * LSA_RECALL_BINS);
        if (at == LSA_RECALL_BINS) at--;
        c->bin_count[at]++;
        c->bin_golden[at] += is;
        c->bin_score[at] += scores[i];
    }
}

static int count_row(lsa_recall_counts *c, const retrieval *r, int64_t row, const scratch *s)
{
    int64_t n = r->limits[row], golden = 0, found = 0;
    if (n == 0) return LSA_OK;
    int64_t positives =
        lsa_golden_positives(s->ids, s->votes, r->golden, r->horizon, r->steps[row], s->seen);
    memset(s->golden, 0, (size_t)words(n) * sizeof *s->golden);
    for (int64_t i = 0; i < positives; i++) {
        if (s->ids[i] >= n) continue;
        s->golden[s->ids[i] / 64] |= 1ull << (s->ids[i] % 64);
        golden++;
    }
    c->steps++;
    c->candidates += n;
    c->golden += golden;
    count_chunks(c, r, r->scores + row * r->stride, s->golden, n);
    if (golden == 0) return LSA_OK;
    int rc =
        lsa_kernels_cpu.select_topk(s->first, r->ranks + row * r->stride, n, r->k, s->select, NULL);
    for (int64_t i = 0; i < words(n); i++)
        found += __builtin_popcountll(s->first[i] & s->golden[i]);
    c->golden_steps++;
    c->recall_at_k += (double)found / (double)golden;
    return rc;
}

static void add(lsa_recall_counts *to, const lsa_recall_counts *from)
{
    to->steps += from->steps;
    to->golden_steps += from->golden_steps;
    to->candidates += from->candidates;
    to->golden += from->golden;
    to->selected += from->selected;
    to->right += from->right;
    to->recall_at_k += from->recall_at_k;
    for (int i = 0; i < LSA_RECALL_BINS; i++) {
        to->bin_count[i] += from->bin_count[i];
        to->bin_golden[i] += from->bin_golden[i];
        to->bin_score[i] += from->bin_score[i];
    }
}

typedef struct counting {
    lsa_recall_counts *parts;
    const retrieval *r;
    uint8_t *memory;
    int64_t each;
    atomic_int failed;
} counting;

static void count_part(void *context, int64_t from, int64_t to, int thread)
{
    counting *c = context;
    scratch s = scratch_at(c->memory + thread * c->each, c->r->golden->chunks);
    for (int64_t row = from; row < to; row++) {
        int rc = count_row(c->parts + row, c->r, row, &s);
        if (rc) c->failed = rc;
    }
}

/* Rows over the threads, each row's counts apart until they are added in order. */
static int count_rows(lsa_recall_counts *counts, const retrieval *r, int64_t rows, int threads)
{
    int64_t chunks = r->golden->chunks, each = (scratch_bytes(chunks) + 63) / 64 * 64;
    uint8_t *memory = lsa_alloc(threads * each);
    lsa_recall_counts *parts = lsa_alloc_zero(rows * (int64_t)sizeof *parts);
    int failed = memory && parts ? LSA_OK : LSA_ENOMEM;
    if (!failed) {
        counting c = {parts, r, memory, each, LSA_OK};
        lsa_parallel(threads, rows, count_part, &c);
        failed = c.failed;
    }
    for (int64_t row = 0; !failed && row < rows; row++) add(counts, parts + row);
    lsa_free(memory);
    lsa_free(parts);
    return failed;
}

int lsa_recall_add(lsa_recall_counts *counts, const float *scores, const float *ranks,
                   const lsa_golden *golden, const lsa_horizon *horizon, const int64_t *steps,
                   const int64_t *limits, int64_t rows, int64_t stride, double theta,
                   int32_t strict, int64_t k)
{
    retrieval r = {scores, ranks, golden, horizon, steps, limits, stride, k, theta, strict};
    int64_t all = 0;
    if (k < 0) return lsa_fail(LSA_EARG, "retrieval: k is %lld", (long long)k);
    for (int64_t i = 0; i < rows; i++) {
        if (steps[i] < 0 || steps[i] >= golden->steps)
            return lsa_fail(LSA_EARG, "retrieval: step %lld of %lld", (long long)steps[i],
                            (long long)golden->steps);
        int64_t candidates = lsa_golden_candidates(golden, horizon, steps[i]);
        if (limits[i] < 0 || limits[i] > candidates || limits[i] > stride)
            return lsa_fail(
                LSA_EARG,
                "retrieval: limit %lld of step %lld, which has %lld candidates, in rows of %lld",
                (long long)limits[i], (long long)steps[i], (long long)candidates,
                (long long)stride);
        all += limits[i];
    }
    int threads = lsa_threads_for(all * 4);
    return rows ? count_rows(counts, &r, rows, threads < rows ? threads : (int)rows) : LSA_OK;
}

int lsa_recall_check(const int32_t *ids, int64_t rows, int64_t k, const int64_t *positions,
                     int64_t rate)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t chunks = (positions[row] + 1) / rate, before = -1, ended = 0;
        for (int64_t j = 0; j < k; j++) {
            int32_t id = ids[row * k + j];
            ended |= id == -1;
            if (ended ? id != -1 : id <= before || id >= chunks)
                return lsa_fail(LSA_EFORMAT,
                                "chunk %d at place %lld of row %lld, which has %lld chunks", id,
                                (long long)j, (long long)row, (long long)chunks);
            before = id;
        }
    }
    return LSA_OK;
}

int64_t lsa_recall_covered(const uint64_t *bits, const int32_t *ids, int64_t rows, int64_t k,
                           int64_t *total)
{
    int64_t covered = 0;
    *total = 0;
    for (int64_t row = 0; row < rows; row++, ids += k) {
        int64_t j = 0;
        for (; j < k && ids[j] >= 0; j++) covered += bit(bits, ids[j]);
        *total += j;
    }
    return covered;
}
