/* Owns lsa_experts_cpu: groups tokens by expert, and runs one expert after the other. */
#include "kernels/experts.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/moe.h"

/* One call's working memory. */
typedef struct plan {
    int64_t *first;   /* [count + 1]: where an expert's members begin in `members` */
    int32_t *members; /* [tokens * k]: places in ids, by expert, ascending */
    float *gathered;  /* [tokens, hidden] */
    float *gate, *up; /* [tokens, inner] */
    float *down;      /* [tokens, hidden] */
    void *linear;
    int64_t bytes; /* up to `linear` */
} plan;

static void *take(uint8_t *base, int64_t *used, int64_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

int64_t lsa_experts_widest(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                           int64_t count)
{
    int64_t inner = shared ? shared->gate.rows : 0;
    for (int64_t e = 0; e < count; e++)
        if (experts[e].gate.rows > inner) inner = experts[e].gate.rows;
    return inner;
}

/* base NULL: only counts. */
static plan lay_out(uint8_t *base, int64_t tokens, int64_t hidden, int64_t count, int64_t k,
                    int64_t inner)
{
    plan p;
    int64_t used = 0, f = sizeof(float);
    p.first = take(base, &used, (count + 1) * (int64_t)sizeof *p.first);
    p.members = take(base, &used, tokens * k * (int64_t)sizeof *p.members);
    p.gathered = take(base, &used, tokens * hidden * f);
    p.gate = take(base, &used, tokens * inner * f);
    p.up = take(base, &used, tokens * inner * f);
    p.down = take(base, &used, tokens * hidden * f);
    p.bytes = used;
    p.linear = take(base, &used, 0);
    return p;
}

/* A call, as each of its experts sees it. */
typedef struct call {
    const float *x, *weights;
    float *y;
    int64_t tokens, hidden, k;
    float limit;
    int32_t compute;
    plan plan;
} call;

static int linear(const call *c, float *y, const float *x, const lsa_weight *w, int64_t n)
{
    return lsa_linear_cpu(y, x, w, n, 0, w->rows, w->cols, w->rows, c->compute, c->plan.linear,
                          NULL);
}

static int expert(const call *c, float *out, const float *x, const lsa_expert_weights *e, int64_t n)
{
    const plan *p = &c->plan;
    LSA_TRY(linear(c, p->gate, x, &e->gate, n));
    LSA_TRY(linear(c, p->up, x, &e->up, n));
    LSA_TRY(lsa_swiglu_cpu(p->gate, p->gate, p->up, n * e->gate.rows, c->limit, NULL));
    return linear(c, out, p->gate, &e->down, n);
}

/* Adds an expert's share to the rows of its n members. */
static int add_expert(const call *c, const lsa_expert_weights *e, const int32_t *members, int64_t n)
{
    const plan *p = &c->plan;
    int64_t d = c->hidden;
    for (int64_t i = 0; i < n; i++)
        memcpy(p->gathered + i * d, c->x + members[i] / c->k * d, (size_t)d * sizeof *c->x);
    LSA_TRY(expert(c, p->down, p->gathered, e, n));
    for (int64_t i = 0; i < n; i++) {
        float share = c->weights[members[i]], *to = c->y + members[i] / c->k * d;
        for (int64_t j = 0; j < d; j++) to[j] += share * p->down[i * d + j];
    }
    return LSA_OK;
}

/* Sorts the places of ids by expert, those of one expert in their order. */
static void group(const plan *p, const int32_t *ids, int64_t n, int64_t count)
{
    memset(p->first, 0, (size_t)(count + 1) * sizeof *p->first);
    for (int64_t i = 0; i < n; i++) p->first[ids[i] + 1]++;
    for (int64_t e = 0; e < count; e++) p->first[e + 1] += p->first[e];
    for (int64_t i = 0; i < n; i++) p->members[p->first[ids[i]]++] = (int32_t)i;
    /* Every beginning is now the next one's. */
    memmove(p->first + 1, p->first, (size_t)count * sizeof *p->first);
    p->first[0] = 0;
}

static int check_expert(const lsa_expert_weights *e, const char *which, int64_t number,
                        int64_t hidden)
{
    if (e->gate.cols == hidden && e->up.cols == hidden && e->down.rows == hidden &&
        e->up.rows == e->gate.rows && e->down.cols == e->gate.rows)
        return LSA_OK;
    return lsa_fail(LSA_ESHAPE,
                    "experts: %s %lld has gate [%lld, %lld], up [%lld, %lld], down [%lld, %lld], "
                    "x %lld columns",
                    which, (long long)number, (long long)e->gate.rows, (long long)e->gate.cols,
                    (long long)e->up.rows, (long long)e->up.cols, (long long)e->down.rows,
                    (long long)e->down.cols, (long long)hidden);
}

int lsa_experts_check(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                      int64_t tokens, int64_t hidden, int64_t count, int64_t k)
{
    if (tokens < 0 || hidden < 0 || count < 0 || k < 0 || (tokens && k > INT32_MAX / tokens))
        return lsa_fail(LSA_ESHAPE, "experts: %lld tokens of %lld, %lld of %lld experts",
                        (long long)tokens, (long long)hidden, (long long)k, (long long)count);
    if (shared) LSA_TRY(check_expert(shared, "shared expert", 0, hidden));
    for (int64_t e = 0; e < count; e++) LSA_TRY(check_expert(experts + e, "expert", e, hidden));
    return LSA_OK;
}

int lsa_experts_cpu(float *y, const float *x, const int32_t *ids, const float *weights,
                    const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                    int64_t tokens, int64_t hidden, int64_t count, int64_t k, float swiglu_limit,
                    int32_t compute, void *workspace, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_experts_check(experts, shared, tokens, hidden, count, k));
    if (tokens == 0) return LSA_OK;
    call c = {
        x,
        weights,
        y,
        tokens,
        hidden,
        k,
        swiglu_limit,
        compute,
        lay_out(workspace, tokens, hidden, count, k, lsa_experts_widest(experts, shared, count))};
    if (shared)
        LSA_TRY(expert(&c, y, x, shared, tokens));
    else
        memset(y, 0, (size_t)(tokens * hidden) * sizeof *y);
    group(&c.plan, ids, tokens * k, count);
    for (int64_t e = 0; e < count; e++) {
        int64_t end = c.plan.first[e + 1];
        /* A token can have an expert more than once; there is room for as many as there are tokens. */
        for (int64_t at = c.plan.first[e]; at < end; at += tokens)
            LSA_TRY(add_expert(&c, experts + e, c.plan.members + at,
                               end - at < tokens ? end - at : tokens));
    }
    return LSA_OK;
}

static int64_t linear_bytes(const lsa_expert_weights *e, int64_t tokens, int32_t compute)
{
    const lsa_weight *weights[] = {&e->gate, &e->up, &e->down};
    int64_t most = 0;
    for (int i = 0; i < 3; i++) {
        int64_t bytes = lsa_linear_workspace(weights[i], tokens, weights[i]->rows, compute);
        if (bytes > most) most = bytes;
    }
    return most;
}

int64_t lsa_experts_workspace(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                              int64_t tokens, int64_t hidden, int64_t count, int64_t k,
                              int32_t compute)
{
    int64_t linear = shared ? linear_bytes(shared, tokens, compute) : 0;
    for (int64_t e = 0; e < count; e++) {
        int64_t bytes = linear_bytes(experts + e, tokens, compute);
        if (bytes > linear) linear = bytes;
    }
    return lay_out(NULL, tokens, hidden, count, k, lsa_experts_widest(experts, shared, count))
               .bytes +
           linear;
}
