/* Owns lsa_experts_cpu: groups tokens by expert, and runs one expert after the other, each by all threads; small ones, whose products
 * are not worth sharing out, side by side, and adds them up when all are there. */
#include "kernels/experts.h"

#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/moe.h"

enum {
    SMALL =
        1 << 19, /* numbers of all tokens' x and hidden values: what fits so is done side by side */
    LEAST_TOKENS = 64, /* fewer are bound by reading weights, which all threads share out evenly */
    FLOPS_PER_NS = 100,
    ADDED_PER_NS = 4
};

/* What one expert at a time works with. */
typedef struct slot {
    float *gathered;  /* [tokens, hidden] */
    float *gate, *up; /* [tokens, inner] */
    float *down;      /* [tokens, hidden]; not where experts go side by side */
    void *linear;
} slot;

/* One call's working memory. */
typedef struct plan {
    int64_t *first;   /* [count + 1]: where an expert's members begin in `members` */
    int32_t *members; /* [tokens * k]: places in ids, by expert, ascending */
    int32_t *member;  /* [tokens * k]: where a place is in `members` */
    float *
        parts; /* [tokens * k, hidden]: what experts made of their members, where they go side by side */
    uint8_t *slots;
    int64_t slot_bytes, bytes;
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

/* A call, as each of its experts sees it. */
typedef struct call {
    float *y;
    const float *x, *weights;
    const lsa_expert_weights *experts, *shared;
    int64_t tokens, hidden, count, k, inner, linear_bytes; /* inner: the widest expert's */
    float limit;
    int32_t compute;
    plan plan;
    lsa_failure failure;
} call;

/* Tokens that are few enough for experts to go side by side. */
static int64_t most_side_by_side(const call *c) { return SMALL / (c->hidden + c->inner + 1); }

static int is_side_by_side(const call *c)
{
    return c->tokens >= LEAST_TOKENS && c->tokens <= most_side_by_side(c);
}

/* base NULL: only counts. */
static slot slot_at(const call *c, uint8_t *base, int64_t *bytes)
{
    slot s;
    int64_t used = 0, f = sizeof(float);
    s.gathered = take(base, &used, c->tokens * c->hidden * f);
    s.gate = take(base, &used, c->tokens * c->inner * f);
    s.up = take(base, &used, c->tokens * c->inner * f);
    s.down = take(base, &used, is_side_by_side(c) ? 0 : c->tokens * c->hidden * f);
    s.linear = take(base, &used, c->linear_bytes);
    if (bytes) *bytes = used;
    return s;
}

static plan lay_out(const call *c, uint8_t *base)
{
    plan p;
    int64_t used = 0, places = c->tokens * c->k, slots = is_side_by_side(c) ? lsa_threads() : 1;
    p.first = take(base, &used, (c->count + 1) * (int64_t)sizeof *p.first);
    p.members = take(base, &used, places * (int64_t)sizeof *p.members);
    p.member = take(base, &used, places * (int64_t)sizeof *p.member);
    p.parts =
        take(base, &used, is_side_by_side(c) ? places * c->hidden * (int64_t)sizeof *p.parts : 0);
    slot_at(c, NULL, &p.slot_bytes);
    p.slots = take(base, &used, slots * p.slot_bytes);
    p.bytes = used;
    return p;
}

static slot slot_of(const call *c, int thread)
{
    return slot_at(c, c->plan.slots + thread * c->plan.slot_bytes, NULL);
}

static int linear(const call *c, const slot *s, float *y, const float *x, const lsa_weight *w,
                  int64_t n)
{
    return lsa_linear_cpu(y, x, w, n, 0, w->rows, w->cols, w->rows, c->compute, s->linear, NULL);
}

static int expert(const call *c, const slot *s, float *out, const float *x,
                  const lsa_expert_weights *e, int64_t n)
{
    LSA_TRY(linear(c, s, s->gate, x, &e->gate, n));
    LSA_TRY(linear(c, s, s->up, x, &e->up, n));
    LSA_TRY(lsa_swiglu_cpu(s->gate, s->gate, s->up, n * e->gate.rows, c->limit, NULL));
    return linear(c, s, out, s->gate, &e->down, n);
}

/* What an expert makes of n members. */
static int of_members(const call *c, const slot *s, float *out, int64_t e, int64_t at, int64_t n)
{
    int64_t d = c->hidden;
    const int32_t *members = c->plan.members + at;
    for (int64_t i = 0; i < n; i++)
        memcpy(s->gathered + i * d, c->x + members[i] / c->k * d, (size_t)d * sizeof *c->x);
    return expert(c, s, out, s->gathered, c->experts + e, n);
}

/* A token can have an expert more than once; there is room for as many as there are tokens. */
static int64_t members_at(const call *c, int64_t e, int64_t at)
{
    int64_t left = c->plan.first[e + 1] - at;
    return left < c->tokens ? left : c->tokens;
}

/* to += share * x */
static void add(float *to, const float *x, float share, int64_t n)
{
    for (int64_t j = 0; j < n; j++) to[j] += share * x[j];
}

/* ---- one after the other ---- */

static int run_in_order(const call *c)
{
    slot s = slot_of(c, 0);
    const plan *p = &c->plan;
    int64_t d = c->hidden, n;
    if (c->shared)
        LSA_TRY(expert(c, &s, c->y, c->x, c->shared, c->tokens));
    else
        memset(c->y, 0, (size_t)(c->tokens * d) * sizeof *c->y);
    for (int64_t e = 0; e < c->count; e++)
        for (int64_t at = p->first[e]; at < p->first[e + 1]; at += n) {
            n = members_at(c, e, at);
            LSA_TRY(of_members(c, &s, s.down, e, at, n));
            for (int64_t i = 0; i < n; i++) {
                int32_t place = p->members[at + i];
                add(c->y + place / c->k * d, s.down + i * d, c->weights[place], d);
            }
        }
    return LSA_OK;
}

/* ---- side by side ---- */

/* Part 0 is the shared expert, part e + 1 expert e. */
static void run_some(void *context, int64_t from, int64_t to, int thread)
{
    call *c = context;
    slot s = slot_of(c, thread);
    int64_t d = c->hidden, n;
    for (int64_t e = from - 1; e < to - 1; e++) {
        if (e < 0 && c->shared)
            lsa_failure_note(&c->failure, expert(c, &s, c->y, c->x, c->shared, c->tokens));
        else if (e < 0)
            memset(c->y, 0, (size_t)(c->tokens * d) * sizeof *c->y);
        for (int64_t at = e < 0 ? 0 : c->plan.first[e]; e >= 0 && at < c->plan.first[e + 1];
             at += n) {
            n = members_at(c, e, at);
            lsa_failure_note(&c->failure, of_members(c, &s, c->plan.parts + at * d, e, at, n));
        }
    }
}

/* Adds up what tokens got, in the order of the experts' numbers: `members` has a token's places so. */
static void add_some(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const call *c = context;
    int64_t d = c->hidden;
    for (int64_t t = from; t < to; t++) {
        int32_t *member = c->plan.member + t * c->k;
        for (int64_t i = 1; i < c->k; i++)
            for (int64_t j = i; j > 0 && member[j] < member[j - 1]; j--) {
                int32_t other = member[j];
                member[j] = member[j - 1];
                member[j - 1] = other;
            }
        for (int64_t j = 0; j < c->k; j++)
            add(c->y + t * d, c->plan.parts + member[j] * d, c->weights[c->plan.members[member[j]]],
                d);
    }
}

static int run_side_by_side(call *c)
{
    int64_t places = c->tokens * c->k, rows = places + (c->shared ? c->tokens : 0);
    for (int64_t i = 0; i < places; i++) c->plan.member[c->plan.members[i]] = (int32_t)i;
    lsa_parallel(lsa_threads_for(6 * rows * c->hidden * c->inner / FLOPS_PER_NS), c->count + 1,
                 run_some, c);
    LSA_TRY(lsa_failure_raise(&c->failure));
    lsa_parallel(lsa_threads_for(places * c->hidden / ADDED_PER_NS), c->tokens, add_some, c);
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

static call call_of(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                    int64_t tokens, int64_t hidden, int64_t count, int64_t k, int32_t compute)
{
    call c = {.experts = experts, .shared = shared, .tokens = tokens, .hidden = hidden};
    c.count = count;
    c.k = k;
    c.compute = compute;
    c.inner = lsa_experts_widest(experts, shared, count);
    c.linear_bytes = shared ? linear_bytes(shared, tokens, compute) : 0;
    for (int64_t e = 0; e < count; e++) {
        int64_t bytes = linear_bytes(experts + e, tokens, compute);
        if (bytes > c.linear_bytes) c.linear_bytes = bytes;
    }
    return c;
}

int lsa_experts_cpu(float *y, const float *x, const int32_t *ids, const float *weights,
                    const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                    int64_t tokens, int64_t hidden, int64_t count, int64_t k, float swiglu_limit,
                    int32_t compute, void *workspace, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_experts_check(experts, shared, tokens, hidden, count, k));
    if (tokens == 0) return LSA_OK;
    call c = call_of(experts, shared, tokens, hidden, count, k, compute);
    c.y = y;
    c.x = x;
    c.weights = weights;
    c.limit = swiglu_limit;
    c.plan = lay_out(&c, workspace);
    group(&c.plan, ids, tokens * k, count);
    return is_side_by_side(&c) ? run_side_by_side(&c) : run_in_order(&c);
}

int64_t lsa_experts_workspace(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                              int64_t tokens, int64_t hidden, int64_t count, int64_t k,
                              int32_t compute)
{
    call c = call_of(experts, shared, tokens, hidden, count, k, compute);
    int64_t all = lay_out(&c, NULL).bytes, fewer = most_side_by_side(&c);
    if (fewer < 1 || fewer >= tokens) return all;
    c = call_of(experts, shared, fewer, hidden, count, k, compute);
    int64_t small = lay_out(&c, NULL).bytes;
    return all > small ? all : small;
}
