/* Owns what goes into a pool and comes out of it: records and keys, written, published and read. */
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/pool/mirror.h"

/* The plane of a layer's keys. */
static int64_t keys_of(int64_t layer) { return LSA_RECORDS + 1 + layer; }

static int on_disk(const lsa_pool *p, int64_t layer)
{
    return p->cold.plane[keys_of(layer)].at >= 0;
}

/* Where a layer's key is among those of a cell. */
static int64_t key_in_cell(const lsa_pool *p, int64_t layer)
{
    return p->cold.plane[keys_of(layer)].at - p->cold.plane[LSA_RECORDS].bytes;
}

static int check_layer(const lsa_pool *p, int64_t layer)
{
    if (layer >= 0 && layer < p->layers) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: layer %lld, the pool has %lld", (long long)layer,
                    (long long)p->layers);
}

int lsa_pool_write(lsa_pool *p, int64_t layer, const int32_t *chunks, int64_t n,
                   const void *records)
{
    int rc = check_layer(p, layer);
    for (int64_t i = 0; !rc && i < n; i++) rc = lsa_pool_check_chunk(p, chunks[i]);
    lsa_mirror_drop(p);
    for (int64_t i = 0; !rc && i < n; i++) {
        uint8_t *to;
        if ((rc = lsa_cold_tier_write(&p->cold, LSA_RECORDS, chunks[i], &to))) return rc;
        if (lsa_pool_has(p, chunks[i] / p->unit)) lsa_pool_release_cell(p, chunks[i] / p->unit);
        lsa_background_fetch_spoil(p, chunks[i] / p->unit, chunks[i] / p->unit + 1);
        memcpy(to + layer * p->record, (const uint8_t *)records + i * p->record, (size_t)p->record);
    }
    return rc;
}

int lsa_pool_publish(lsa_pool *p, int64_t layer, int64_t chunk, const void *record)
{
    uint8_t *cold, *hot = NULL, *keys;
    int rc = check_layer(p, layer);
    if (!rc) rc = lsa_pool_check_chunk(p, chunk);
    if (rc) return rc;
    int64_t slot = lsa_pool_slot(p, chunk);
    if (slot != LSA_ABSENT)
        rc = lsa_hot_tier_open_slot(p->hot, slot, &hot, &keys); /* both before either is changed */
    if (!rc) rc = lsa_cold_tier_write(&p->cold, LSA_RECORDS, chunk, &cold);
    if (rc) return rc;
    lsa_mirror_drop(p);
    memcpy(cold + layer * p->record, record, (size_t)p->record);
    if (hot) memcpy(hot + layer * p->record, record, (size_t)p->record);
    lsa_background_fetch_spoil(p, chunk / p->unit, chunk / p->unit + 1);
    return LSA_OK;
}

/* One layer's part of chunks that come from the cold tier, into a packed list. */
typedef struct extract {
    int64_t plane, offset, bytes;
    const int64_t *place; /* of the i-th chunk in the list; NULL: i */
    uint8_t *out;
} extract;

static void take_part(void *context, int64_t i, const uint8_t *const *parts)
{
    const extract *x = context;
    int64_t place = x->place ? x->place[i] : i;
    memcpy(x->out + place * x->bytes, parts[x->plane] + x->offset, (size_t)x->bytes);
}

int lsa_pool_read(const lsa_pool *p, int64_t layer, const int32_t *chunks, int64_t n, void *records)
{
    int rc = check_layer(p, layer);
    for (int64_t i = 0; !rc && i < n; i++) rc = lsa_pool_check_chunk(p, chunks[i]);
    if (rc) return rc;
    int64_t cold = 0;
    int in_host = p->hot->records.memory == LSA_MEMORY_HOST;
    int32_t *list = lsa_alloc(n * (int64_t)sizeof *list);
    int64_t *place = lsa_alloc(n * (int64_t)sizeof *place);
    if (!list || !place) rc = LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++) {
        int64_t slot = in_host ? lsa_pool_slot(p, chunks[i]) : LSA_ABSENT;
        if (slot == LSA_ABSENT) { /* the cold tier has all there is, too */
            list[cold] = chunks[i];
            place[cold++] = i;
        } else {
            memcpy((uint8_t *)records + i * p->record,
                   lsa_cow_blocks_at(&p->hot->records, slot) + layer * p->record,
                   (size_t)p->record);
        }
    }
    extract x = {LSA_RECORDS, layer * p->record, p->record, place, records};
    if (!rc && cold) rc = lsa_cold_tier_read(&p->cold, list, cold, 1, take_part, &x);
    lsa_free(list);
    lsa_free(place);
    return rc;
}

/* ---- keys ---- */

int64_t lsa_pool_key_bytes(const lsa_pool *p) { return p->key; }

static int publish_key(lsa_pool *p, int64_t layer, int64_t chunk, const uint8_t *key)
{
    uint8_t *cold, *record, *hot = NULL;
    int64_t slot = lsa_pool_slot(p, chunk);
    int rc = slot != LSA_ABSENT && on_disk(p, layer)
                 ? lsa_hot_tier_open_slot(p->hot, slot, &record, &hot)
                 : LSA_OK;
    if (!rc) rc = lsa_cold_tier_write(&p->cold, keys_of(layer), chunk, &cold);
    if (rc) return rc;
    memcpy(cold, key, (size_t)p->key);
    if (hot) memcpy(hot + key_in_cell(p, layer), key, (size_t)p->key);
    lsa_background_fetch_spoil(p, chunk / p->unit, chunk / p->unit + 1);
    return LSA_OK;
}

int lsa_pool_publish_keys(lsa_pool *p, int64_t layer, int64_t first, int64_t n, const void *keys)
{
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < n; i++)
        rc = publish_key(p, layer, first + i, (const uint8_t *)keys + i * p->key);
    return rc;
}

int lsa_pool_has_keys(const lsa_pool *p, int64_t layer)
{
    return !lsa_pool_spilled(p) || !on_disk(p, layer);
}

int lsa_pool_keys_stay(const lsa_pool *p)
{
    for (int64_t layer = 0; p->key && layer < p->layers; layer++)
        if (on_disk(p, layer))
            return lsa_fail(
                LSA_ESTATE,
                "pool: the index keys of CSA layer %lld go to the disk with the cold tier",
                (long long)layer);
    return LSA_OK;
}

const uint8_t *lsa_pool_keys(const lsa_pool *p, int64_t layer, int64_t chunk)
{
    return lsa_cold_tier_at(&p->cold, keys_of(layer), chunk);
}

int lsa_pool_read_keys(const lsa_pool *p, int64_t layer, int64_t first, int64_t n, void *keys)
{
    if (lsa_pool_has_keys(p, layer))
        return lsa_cow_blocks_pack(&p->cold.plane[keys_of(layer)].blocks, first, n, p->key, keys);
    int32_t *chunks = lsa_alloc(n * (int64_t)sizeof *chunks);
    if (!chunks) return LSA_ENOMEM;
    for (int64_t i = 0; i < n; i++) chunks[i] = (int32_t)(first + i);
    extract x = {keys_of(layer), 0, p->key, NULL, keys};
    int rc = lsa_cold_tier_read(&p->cold, chunks, n, 1, take_part, &x);
    lsa_free(chunks);
    return rc;
}

/* ---- both ---- */

typedef struct gathering {
    const lsa_pool *pool;
    int64_t n;
    uint8_t *records, *keys;
} gathering;

static void take_chunk(void *context, int64_t i, const uint8_t *const *parts)
{
    const gathering *g = context;
    int64_t bytes = g->pool->layers * g->pool->record, key = g->pool->key;
    memcpy(g->records + i * bytes, parts[LSA_RECORDS], (size_t)bytes);
    for (int64_t layer = 0; key && layer < g->pool->layers; layer++)
        memcpy(g->keys + (layer * g->n + i) * key, parts[keys_of(layer)], (size_t)key);
}

static int check_range(const lsa_pool *p, int64_t first, int64_t n)
{
    int rc = n ? lsa_pool_check_chunk(p, first) : LSA_OK;
    return rc || !n ? rc : lsa_pool_check_chunk(p, first + n - 1);
}

int lsa_pool_read_chunks(const lsa_pool *p, int64_t first, int64_t n, void *records, void *keys)
{
    int rc = check_range(p, first, n);
    if (rc) return rc;
    int32_t *chunks = lsa_alloc(n * (int64_t)sizeof *chunks);
    if (!chunks) return LSA_ENOMEM;
    for (int64_t i = 0; i < n; i++) chunks[i] = (int32_t)(first + i);
    gathering g = {p, n, records, keys};
    rc = lsa_cold_tier_read(&p->cold, chunks, n, 1, take_chunk, &g);
    lsa_free(chunks);
    return rc;
}

int lsa_pool_write_chunks(lsa_pool *p, int64_t first, int64_t n, const void *records,
                          const void *keys)
{
    int64_t bytes = p->layers * p->record;
    uint8_t *to;
    int rc = check_range(p, first, n);
    lsa_mirror_drop(p);
    for (int64_t i = 0; !rc && i < n; i++) {
        if ((rc = lsa_cold_tier_write(&p->cold, LSA_RECORDS, first + i, &to))) return rc;
        memcpy(to, (const uint8_t *)records + i * bytes, (size_t)bytes);
    }
    for (int64_t layer = 0; p->key && layer < p->layers; layer++)
        for (int64_t i = 0; !rc && i < n; i++) {
            if ((rc = lsa_cold_tier_write(&p->cold, keys_of(layer), first + i, &to))) return rc;
            memcpy(to, (const uint8_t *)keys + (layer * n + i) * p->key, (size_t)p->key);
        }
    return rc;
}
