/* Owns hot tiers: cells, who has them, which are free. */
#include "core/pool/hot_tier.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/pool/pool_state.h"

enum { HOT_SHIFT = 6 };

int lsa_hot_tier_new(lsa_hot_tier **out, int64_t item, int64_t key_item, int64_t unit)
{
    lsa_hot_tier *h = lsa_alloc_zero(sizeof *h);
    if (!h) return LSA_ENOMEM;
    h->references = 1;
    h->unit = unit;
    lsa_cow_blocks_init(&h->records, item, HOT_SHIFT);
    lsa_cow_blocks_init(&h->keys, key_item, HOT_SHIFT);
    *out = h;
    return LSA_OK;
}

void lsa_hot_tier_release(lsa_hot_tier *h)
{
    if (!h || --h->references) return;
    lsa_cow_blocks_free(&h->records);
    lsa_cow_blocks_free(&h->keys);
    lsa_free(h->owner);
    lsa_free(h->unit_in);
    lsa_free(h->free_cells);
    lsa_free(h);
}

/* The tables of `cells` cells: what is known stays, the lowest free cell is on top. */
static int resize_tables(lsa_hot_tier *h, int64_t cells)
{
    const struct lsa_pool **owner = lsa_alloc_zero(cells * (int64_t)sizeof *owner);
    int32_t *unit_in = lsa_alloc_zero(cells * (int64_t)sizeof *unit_in);
    int32_t *free_cells = lsa_alloc(cells * (int64_t)sizeof *free_cells);
    if (!owner || !unit_in || !free_cells) {
        lsa_free(owner);
        lsa_free(unit_in);
        lsa_free(free_cells);
        return LSA_ENOMEM;
    }
    int64_t both = cells < h->cells ? cells : h->cells;
    if (both) memcpy(owner, h->owner, (size_t)both * sizeof *owner);
    if (both) memcpy(unit_in, h->unit_in, (size_t)both * sizeof *unit_in);
    h->free_count = 0;
    for (int64_t c = cells - 1; c >= 0; c--)
        if (!owner[c]) free_cells[h->free_count++] = (int32_t)c;
    lsa_free(h->owner);
    lsa_free(h->unit_in);
    lsa_free(h->free_cells);
    h->owner = owner;
    h->unit_in = unit_in;
    h->free_cells = free_cells;
    h->cells = cells;
    return LSA_OK;
}

static int resize_blocks(lsa_hot_tier *h, int64_t cells)
{
    int64_t before = h->records.count;
    LSA_TRY(lsa_cow_blocks_resize(&h->records, cells * h->unit));
    if (!h->keys.item || !lsa_cow_blocks_resize(&h->keys, cells * h->unit)) return LSA_OK;
    lsa_cow_blocks_resize(&h->records, before);
    return LSA_ENOMEM;
}

int lsa_hot_tier_set_cells(lsa_hot_tier *h, int64_t cells)
{
    for (int64_t c = h->cells - 1; c >= cells; c--)
        if (h->owner[c]) cells = c + 1;
    if (cells == h->cells) return LSA_OK;
    if (cells < h->cells) { /* tables first: blocks that grow again could fail */
        LSA_TRY(resize_tables(h, cells));
        return resize_blocks(h, cells);
    }
    LSA_TRY(resize_blocks(h, cells));
    int rc = resize_tables(h, cells);
    if (rc) resize_blocks(h, h->cells);
    return rc;
}

int32_t *lsa_hot_tier_next(lsa_hot_tier *h, int64_t n)
{
    int32_t *cells = h->free_cells + h->free_count - n;
    for (int64_t i = 0; i < n / 2; i++) {
        int32_t cell = cells[i];
        cells[i] = cells[n - 1 - i];
        cells[n - 1 - i] = cell;
    }
    return cells;
}

void lsa_hot_tier_occupy(lsa_hot_tier *h, const int32_t *cells, int64_t n,
                         const struct lsa_pool *owner, const int32_t *units, int32_t all)
{
    h->free_count -= n;
    for (int64_t i = 0; i < n; i++) {
        h->owner[cells[i]] = owner;
        h->unit_in[cells[i]] = units ? units[i] : all;
    }
}

void lsa_hot_tier_vacate(lsa_hot_tier *h, int32_t cell)
{
    h->owner[cell] = NULL;
    h->free_cells[h->free_count++] = cell;
}

int lsa_hot_tier_open_slot(lsa_hot_tier *h, int64_t slot, uint8_t **record, uint8_t **keys)
{
    *record = lsa_cow_blocks_write(&h->records, slot);
    *keys = h->keys.item ? lsa_cow_blocks_write(&h->keys, slot) : NULL;
    return *record && (*keys || !h->keys.item) ? LSA_OK : LSA_ENOMEM;
}

/* ---- forks ---- */

/* All cells of a tier that `from` has for itself. */
static int fork_all(lsa_hot_tier *to, const lsa_hot_tier *h, const struct lsa_pool *owner)
{
    LSA_TRY(lsa_cow_blocks_fork(&to->records, &h->records));
    LSA_TRY(lsa_cow_blocks_fork(&to->keys, &h->keys));
    LSA_TRY(resize_tables(to, h->cells));
    if (h->cells) memcpy(to->unit_in, h->unit_in, (size_t)h->cells * sizeof *to->unit_in);
    if (h->cells)
        memcpy(to->free_cells, h->free_cells, (size_t)h->free_count * sizeof *to->free_cells);
    to->free_count = h->free_count;
    for (int32_t c = 0; c < h->cells; c++) {
        if (!h->owner[c]) continue;
        if (h->unit_in[c] == LSA_AWAITED)
            to->free_cells[to->free_count++] = c;
        else
            to->owner[c] = owner;
    }
    return LSA_OK;
}

/* Copies of one pool's cells, side by side. */
static int fork_some(lsa_hot_tier *to, const lsa_hot_tier *h, const struct lsa_pool *from,
                     const struct lsa_pool *owner)
{
    int64_t n = 0;
    for (int64_t c = 0; c < h->cells; c++) n += h->owner[c] == from && h->unit_in[c] != LSA_AWAITED;
    LSA_TRY(lsa_hot_tier_set_cells(to, n));
    int32_t *cells = lsa_hot_tier_next(to, n);
    int64_t at = 0;
    for (int64_t c = 0; c < h->cells; c++) {
        if (h->owner[c] != from || h->unit_in[c] == LSA_AWAITED) continue;
        for (int64_t j = 0; j < h->unit; j++) {
            uint8_t *record, *keys;
            LSA_TRY(lsa_hot_tier_open_slot(to, at * h->unit + j, &record, &keys));
            memcpy(record, lsa_cow_blocks_at(&h->records, c * h->unit + j),
                   (size_t)h->records.item);
            if (keys)
                memcpy(keys, lsa_cow_blocks_at(&h->keys, c * h->unit + j), (size_t)h->keys.item);
        }
        to->unit_in[at++] = h->unit_in[c];
    }
    lsa_hot_tier_occupy(to, cells, n, owner, to->unit_in, 0);
    return LSA_OK;
}

int lsa_hot_tier_fork(lsa_hot_tier **out, const lsa_hot_tier *h, const struct lsa_pool *from,
                      const struct lsa_pool *owner)
{
    lsa_hot_tier *to;
    LSA_TRY(lsa_hot_tier_new(&to, h->records.item, h->keys.item, h->unit));
    lsa_cow_blocks_init_in(&to->records, h->records.item, h->records.shift, h->records.memory);
    lsa_cow_blocks_init_in(&to->keys, h->keys.item, h->keys.shift, h->keys.memory);
    int rc = h->common ? fork_some(to, h, from, owner) : fork_all(to, h, owner);
    if (rc)
        lsa_hot_tier_release(to);
    else
        *out = to;
    return rc;
}
