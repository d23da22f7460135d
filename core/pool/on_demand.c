/* Owns the order of cells by last use, and fetching on demand. */
#include "core/pool/on_demand.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/pool/pool_state.h"

enum { NONE = -1 };

static int is_listed(const lsa_on_demand *d, int32_t cell)
{
    return cell < d->room && d->newer[cell] != cell;
}

int lsa_on_demand_room(lsa_on_demand *d, int64_t cells)
{
    if (cells <= d->room) return LSA_OK;
    int32_t *newer = lsa_realloc(d->newer, cells * (int64_t)sizeof *newer);
    if (!newer) return LSA_ENOMEM;
    d->newer = newer;
    int32_t *older = lsa_realloc(d->older, cells * (int64_t)sizeof *older);
    if (!older) return LSA_ENOMEM;
    d->older = older;
    int32_t *absent = lsa_realloc(d->absent, cells * (int64_t)sizeof *absent);
    if (!absent) return LSA_ENOMEM;
    d->absent = absent;
    for (int64_t c = d->room; c < cells; c++) d->newer[c] = d->older[c] = (int32_t)c;
    d->room = cells;
    return LSA_OK;
}

static void take_out(lsa_on_demand *d, int32_t cell)
{
    if (!is_listed(d, cell)) return;
    int32_t newer = d->newer[cell], older = d->older[cell];
    if (newer == NONE)
        d->newest = older;
    else
        d->older[newer] = older;
    if (older == NONE)
        d->oldest = newer;
    else
        d->newer[older] = newer;
    d->newer[cell] = d->older[cell] = cell;
}

void lsa_on_demand_put_first(lsa_on_demand *d, int32_t cell)
{
    take_out(d, cell);
    d->newer[cell] = NONE;
    d->older[cell] = d->newest;
    if (d->newest == NONE)
        d->oldest = cell;
    else
        d->newer[d->newest] = cell;
    d->newest = cell;
}

static int is_in_use(const lsa_pool *p, int64_t cell)
{
    return cell < p->hot->cells && p->hot->owner[cell] == p && p->hot->unit_in[cell] >= 0;
}

int lsa_on_demand_new(lsa_on_demand **out, const lsa_pool *p)
{
    lsa_on_demand *d = lsa_alloc_zero(sizeof *d);
    if (!d) return LSA_ENOMEM;
    d->newest = d->oldest = NONE;
    if (lsa_on_demand_room(d, p->hot->cells)) {
        lsa_on_demand_free(d);
        return LSA_ENOMEM;
    }
    for (int64_t u = 0; u < lsa_pool_units(p); u++)
        if (p->cell_of[u] != LSA_ABSENT) lsa_on_demand_put_first(d, p->cell_of[u]);
    *out = d;
    return LSA_OK;
}

void lsa_on_demand_free(lsa_on_demand *d)
{
    if (!d) return;
    lsa_free(d->newer);
    lsa_free(d->older);
    lsa_free(d->absent);
    lsa_on_demand_free_there(d);
    lsa_free(d);
}

int lsa_on_demand_fork(lsa_on_demand **out, const lsa_on_demand *demand, const lsa_pool *from,
                       const lsa_pool *to)
{
    lsa_on_demand *d = lsa_alloc_zero(sizeof *d);
    if (!d) return LSA_ENOMEM;
    if (lsa_on_demand_room(d, to->hot->cells)) {
        lsa_on_demand_free(d);
        return LSA_ENOMEM;
    }
    d->newest = d->oldest = NONE;
    for (int32_t c = demand->oldest; c != NONE; c = demand->newer[c])
        if (is_in_use(from, c)) lsa_on_demand_put_first(d, to->cell_of[from->hot->unit_in[c]]);
    *out = d;
    return LSA_OK;
}

int64_t lsa_on_demand_most(const lsa_on_demand *d, const lsa_pool *p)
{
    return d->share ? d->share : p->hot->cells;
}

int64_t lsa_on_demand_held(const lsa_on_demand *d, const lsa_pool *p) { return p->held - d->lent; }

void lsa_on_demand_lend(lsa_on_demand *d, lsa_pool *p)
{
    int64_t n = d->share - p->held;
    if (n > p->hot->free_count) n = p->hot->free_count;
    if (n < 1) return;
    lsa_hot_tier_occupy(p->hot, lsa_hot_tier_next(p->hot, n), n, p, NULL, LSA_AWAITED);
    p->held += n;
    d->lent += n;
}

void lsa_on_demand_give_back(lsa_on_demand *d, lsa_pool *p)
{
    for (int64_t c = p->hot->cells - 1; d->lent && c >= 0; c--) {
        if (p->hot->owner[c] != p || p->hot->unit_in[c] != LSA_AWAITED) continue;
        lsa_hot_tier_vacate(p->hot, (int32_t)c);
        p->held--;
        d->lent--;
    }
}

/* Frees cells for `missing` chunks: the oldest leave. What is used now is at the list's other end. */
static int make_room(lsa_on_demand *d, lsa_pool *p, int64_t missing)
{
    while (p->hot->free_count < missing || p->held + missing > lsa_on_demand_most(d, p)) {
        int32_t cell = d->oldest;
        if (cell == NONE)
            return lsa_fail(LSA_ESTATE,
                            "on demand: no cell is left for %lld chunks, the hot pool has %lld",
                            (long long)missing, (long long)lsa_on_demand_most(d, p));
        take_out(d, cell);
        if (!is_in_use(p, cell)) continue; /* its chunk is gone */
        LSA_TRY(lsa_pool_evict(p, &p->hot->unit_in[cell], 1));
    }
    return LSA_OK;
}

int lsa_on_demand_reserve(lsa_on_demand *d, lsa_pool *p, int64_t chunks, int64_t picks)
{
    LSA_TRY(lsa_on_demand_room(d, p->hot->cells));
    if (p->hot->records.memory != LSA_MEMORY_HOST)
        LSA_TRY(lsa_on_demand_reserve_there(d, p, chunks, picks));
    return lsa_pool_reserve_all_cells(p);
}

int lsa_on_demand_use(lsa_on_demand *d, lsa_pool *p, const int32_t *chunks, int64_t n,
                      int64_t *hits)
{
    int64_t missing = 0, found = 0, most = lsa_on_demand_most(d, p);
    if (n > most)
        return lsa_fail(LSA_ESTATE, "on demand: %lld chunks at once, the hot pool has %lld cells",
                        (long long)n, (long long)most);
    LSA_TRY(lsa_on_demand_settle(d, p));
    lsa_on_demand_give_back(d, p);
    LSA_TRY(lsa_on_demand_room(d, p->hot->cells));
    int32_t *absent = d->absent;
    p->changes++; /* of the order, at least */
    for (int64_t i = 0; i < n; i++) {
        int32_t cell = p->cell_of[chunks[i]];
        if (cell == LSA_ABSENT) {
            absent[missing++] = chunks[i];
        } else {
            lsa_on_demand_put_first(d, cell);
            found++;
        }
    }
    int rc = make_room(d, p, missing);
    if (!rc) rc = lsa_pool_fetch(p, absent, missing);
    for (int64_t i = 0; !rc && i < missing; i++) lsa_on_demand_put_first(d, p->cell_of[absent[i]]);
    if (!rc) *hits += found;
    return rc;
}

/* ---- for files ---- */

int64_t lsa_on_demand_cells(const lsa_on_demand *d, const lsa_pool *p, int32_t *cells)
{
    int64_t n = 0;
    for (int32_t c = d->newest; c != NONE; c = d->older[c]) {
        if (!is_in_use(p, c)) continue;
        if (cells) cells[n] = c;
        n++;
    }
    return n;
}

int lsa_on_demand_restore(lsa_on_demand *d, const lsa_pool *p, const int32_t *cells, int64_t n)
{
    while (d->oldest != NONE) take_out(d, d->oldest);
    for (int64_t i = n - 1; i >= 0; i--) {
        if (cells[i] < 0 || cells[i] >= d->room || !is_in_use(p, cells[i]) ||
            is_listed(d, cells[i]))
            return lsa_fail(LSA_EFORMAT, "cell %d by last use is %d, of %lld", (int)i, cells[i],
                            (long long)p->hot->cells);
        lsa_on_demand_put_first(d, cells[i]);
    }
    return LSA_OK;
}
